"""Checkpoints: `Optimizer.save` and `Optimizer.load`, `read` for a file on its own, and a `Manager` of many."""

from fastopt.checkpoint.content import Saved, captured, load, read
from fastopt.checkpoint.files import write
from fastopt.checkpoint.manager import Manager

__all__ = ["Manager", "Saved", "captured", "load", "read", "write"]
