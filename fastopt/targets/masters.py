"""A 16-bit parameter of which the kernel knows more than 16 bits: the text that reads and writes both arrays.

float32  `master` is the parameter in float32; what is read by others is its copy in 16 bits.
split    `master` is the lower half of the float32 whose upper half, to the nearest, is a bfloat16.
kahan    `master` is what the last rounding lost, in 16 bits: Kahan 1965; Zamirai et al. 2020, arXiv:2010.06192.
"""

from collections.abc import Mapping

from fastopt.codecs import Codec

KINDS = ("float32", "split", "kahan")


def load(kind: str, of: Mapping[str, Codec]) -> str:
    """The parameter as float32."""
    codec = of["p"]
    return {
        "float32": "master_at[i]",
        "split": "join_halves(p_at[i], master_at[i])",
        "kahan": f"from_{codec}(p_at[i]) + from_{codec}(master_at[i])",
    }[kind]


def store(kind: str, of: Mapping[str, Codec], value: str) -> list[str]:
    """Statements that store the parameter."""
    codec = of["p"]
    return {
        "float32": [f"whole = {value}", "master_at[i] = whole", f"p_at[i] = to_{codec}(whole)"],
        "split": [f"whole = {value}", "p_at[i] = upper_half(whole)", "master_at[i] = lower_half(whole)"],
        "kahan": [
            f"whole = {value}",
            f"p_at[i] = to_{codec}(whole)",
            f"master_at[i] = to_{codec}(whole - from_{codec}(to_{codec}(whole)))",
        ],
    }[kind]
