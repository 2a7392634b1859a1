"""A 16-bit parameter of which the kernel knows more than 16 bits: the text that reads and writes both arrays.

float32  `master` is the parameter in float32; what is read by others is its copy in 16 bits.
split    `master` is the lower half of the float32 whose upper half, to the nearest, is a bfloat16.
kahan    `master` is what the last rounding lost, in 16 bits: Kahan 1965; Zamirai et al. 2020, arXiv:2010.06192.
"""

from collections.abc import Mapping

from fastopt.codecs import Codec

KINDS = ("float32", "split", "kahan")


def dtype(kind: str, own: Codec) -> str:
    """That of `master` beside a parameter of this codec. int16: no code of a bfloat16, and torch can pickle it."""
    return {"float32": "float32", "split": "int16", "kahan": own.name}[kind]


def load(kind: str, of: Mapping[str, Codec], p: str = "p_at[i]", master: str = "master_at[i]") -> str:
    """The parameter as float32, of what the two arrays hold."""
    codec = of["p"]
    return {
        "float32": master,
        "split": f"join_halves({p}, {master})",
        "kahan": f"from_{codec}({p}) + from_{codec}({master})",
    }[kind]


def codes(kind: str, of: Mapping[str, Codec]) -> dict[str, str]:
    """What the two arrays get to hold of the parameter, `whole`, by name."""
    codec = of["p"]
    return {
        "float32": {"master": "whole", "p": f"to_{codec}(whole)"},
        "split": {"p": "upper_half(whole)", "master": "lower_half(whole)"},
        "kahan": {"p": f"to_{codec}(whole)", "master": f"to_{codec}(whole - from_{codec}(to_{codec}(whole)))"},
    }[kind]


def store(kind: str, of: Mapping[str, Codec], value: str) -> list[str]:
    """Statements that store the parameter."""
    return [f"whole = {value}", *(f"{b}_at[i] = {code}" for b, code in codes(kind, of).items())]
