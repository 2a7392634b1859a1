"""Where the numbers of a tensor are: in host memory, or on which CUDA device. Nothing else here asks torch for that.

Tests without a GPU replace these functions, and let host memory pose as a device's.
"""

from __future__ import annotations

import torch

from fastopt.devices.foreign import Producer, torch_stream

HOST = -1


def device(x: torch.Tensor) -> int:
    """The number of its CUDA device, or `HOST`."""
    return x.get_device()


def host(x: torch.Tensor) -> torch.Tensor:
    """It, or a copy of it in host memory, which waits for the device."""
    return x.detach().cpu()


def stream(device: int) -> Producer:
    """What tells the stream that torch queues work on there at the time of the call."""
    return torch_stream(device)
