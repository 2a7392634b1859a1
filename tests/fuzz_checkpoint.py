"""Coverage-guided fuzzing of the reader, where atheris is installed: `python fuzz_checkpoint.py -max_total_time=60`.

Not part of the test suite, which fuzzes with hypothesis (test_checkpoint_bytes.py).
"""

import os
import sys
import tempfile

import atheris  # pip install atheris

with atheris.instrument_imports(include=["fastopt.checkpoint", "fastopt.state", "fastopt.groups"]):
    import fastopt as fo

from checkpoints import content as bytes_of
from checkpoints import put_together, signed, small, take_apart

PATH = tempfile.mktemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
small().save(PATH, params=True, extra={"data": {"epoch": 1}})
GOOD = open(PATH, "rb").read()
HEADER, DATA = take_apart(GOOD)
OPT = small(seed=8)
BEFORE = OPT.state_dict() | {"params": {n: x.copy() for n, x in OPT.params.items()}}


def load(raw: bytes) -> bool:
    with open(PATH, "wb") as file:
        file.write(raw)
    before = bytes_of(OPT)
    try:
        OPT.load(PATH)
    except fo.CheckpointError:
        assert bytes_of(OPT) == before
        return False
    assert not OPT.torn
    OPT.load_state_dict(BEFORE)
    return True


def one(data: bytes) -> None:
    """The first byte chooses what the rest is: a file, a header, a run or extra with right checksums."""
    kind, data = data[:1], data[1:]
    if kind < b"\x40":
        load(data)
    elif kind < b"\x80":
        load(put_together(None, DATA, text=data))
    else:
        key = "fastopt.run" if kind < b"\xc0" else "fastopt.extra"
        text = data.decode(errors="replace")
        header = {**HEADER, "__metadata__": {**HEADER["__metadata__"], key: text}}
        load(put_together(signed(header, DATA), DATA))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        seeds = [b"\0" + GOOD, b"\x41" + GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")]]
        seeds += [b"\x81" + HEADER["__metadata__"]["fastopt.run"].encode(), b"\xc1{}"]
        for k, seed in enumerate(seeds):
            with open(os.path.join(corpus, str(k)), "wb") as file:
                file.write(seed)
        atheris.Setup([*sys.argv, "-max_len=8192", "-len_control=0", "-keep_seed=1", corpus], one)
        atheris.Fuzz()
