"""Coverage-guided fuzzing of the reader, where atheris is installed: `python fuzz_checkpoint.py -max_total_time=60`.

atheris has wheels for Python 3.11 to 3.13 on Linux. A few seconds of it are part of the test suite
(test_checkpoint_bytes.py), which fuzzes with hypothesis everywhere.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

import atheris  # pip install atheris

with atheris.instrument_imports(include=["fastopt.checkpoint", "fastopt.state", "fastopt.groups"]):
    import fastopt as fo

from checkpoints import content as bytes_of
from checkpoints import put_together, signed, small, take_apart

FOLDER = os.environ.get("FASTOPT_FUZZ", "")  # set by the process that cleans up: libFuzzer never returns
PATH = os.path.join(FOLDER, "x")
VALUES = [
    None, True, False, 0, 1, -1, 3, 84, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, "", "w", "F32", "state/m/w", [],
    [0, 0], [7, 3], {}, {"$tensor": "params/w"}, {"$tensor": "x"}, {"$float": "nan"}, {"$float": "x"}, {"$new": 1},
]  # fmt: skip


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
    """The first byte chooses what the rest is: a file, a header, or, with right checksums, a header, a run or extra."""
    kind, data = data[:1], data[1:]
    if kind < b"\x40":
        load(data)
    elif kind < b"\x60":
        load(put_together(None, DATA, text=data))
    elif kind < b"\x80":
        try:
            header = signed(json.loads(data), DATA)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
        load(put_together(header, DATA))
    else:
        key = "fastopt.run" if kind < b"\xc0" else "fastopt.extra"
        text = data.decode(errors="replace")
        header = {**HEADER, "__metadata__": {**HEADER["__metadata__"], key: text}}
        load(put_together(signed(header, DATA), DATA))


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time a change of the JSON instead of one of its bytes: a value replaced, left out or moved."""
    rng = random.Random(seed)
    if data[:1] >= b"\x40" and rng.random() < 0.5:
        try:
            changed = data[:1] + json.dumps(_changed(json.loads(data[1:]), rng)).encode()
        except (ValueError, RecursionError):
            changed = b""
        if 0 < len(changed) <= max_size:
            return changed
    return atheris.Mutate(data, max_size)


def _changed(value, rng):
    inside = [value]
    for x in inside:
        inside += x.values() if isinstance(x, dict) else x if isinstance(x, list) else []
    containers = [x for x in inside if isinstance(x, dict | list) and x]
    if not containers:
        return rng.choice(VALUES)
    chosen = rng.choice(containers)
    key = rng.choice(list(chosen) if isinstance(chosen, dict) else range(len(chosen)))
    action = rng.randrange(4)
    if action == 0:
        del chosen[key]
    elif action == 1 and isinstance(chosen, dict):
        chosen[rng.choice(["w", "m", "t", "params", "$tensor", f"{key}'"])] = chosen.pop(key)
    else:
        chosen[key] = json.loads(json.dumps(rng.choice(VALUES if action == 2 else inside)))
    return value


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        command = [sys.executable, __file__, *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**os.environ, "FASTOPT_FUZZ": folder}).returncode)


if __name__ == "__main__":
    if not FOLDER:
        main()
    small().save(PATH, params=True, extra={"data": {"epoch": 1}})
    with open(PATH, "rb") as file:
        GOOD = file.read()
    HEADER, DATA = take_apart(GOOD)
    OPT = small(seed=8)
    BEFORE = OPT.state_dict() | {"params": {n: x.copy() for n, x in OPT.params.items()}}
    os.mkdir(corpus := os.path.join(FOLDER, "corpus"))
    text = GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")]
    seeds = [b"\0" + GOOD, b"\x41" + text, b"\x61" + text]
    seeds += [b"\x81" + HEADER["__metadata__"]["fastopt.run"].encode(), b'\xc1{"data": {"epoch": 1}}']
    assert [load(GOOD), *map(one, seeds)] == [True, *[None] * len(seeds)]
    for k, seed in enumerate(seeds):
        with open(os.path.join(corpus, str(k)), "wb") as file:
            file.write(seed)
    atheris.Setup([*sys.argv, "-max_len=8192", "-len_control=0", "-keep_seed=1", corpus], one, custom_mutator=mutated)
    atheris.Fuzz()
