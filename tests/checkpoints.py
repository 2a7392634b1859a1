"""Shared by the tests of checkpoints: small optimizers, their bytes, and files made by hand from the description.

`python checkpoints.py resume FOLDER` is the new process of test_checkpoint.py.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np
from catalogue import Case, cases

import fastopt as fo

WRAPPED = {
    "cautious": fo.cautious(fo.adamw, floor=1e-2),
    "grokfast": fo.grokfast(fo.sgd),
    "both": fo.clip_value(fo.grokfast(fo.adam), limit=0.5),
    "lookahead": fo.lookahead(fo.adamw, interval=3),
    "ema": fo.ema(fo.lion),
    "stack": fo.ema(fo.lookahead(fo.clip_norm(fo.sgd, max_norm=1.0), interval=3), decay=0.9),
}


# Those that go on stepping in a new process, one for each kind of state: numbers of elements, parameters, rows, columns
# and all parameters, square matrices, random numbers, averages, wrappers. Of the others the state is compared, bit for
# bit, and test_catalogue.py goes on from a loaded state with all; each would cost a compile here.
STEPPED = ("adamw", "adafactor", "adam_mini", "dog", "shampoo", "sgld", "schedule_free_adamw", "nadam", "both", "stack")


class Wrapped(Case):
    make = property(lambda self: WRAPPED[self.rule])  # type: ignore[assignment]


def setups() -> list[Case]:
    """Every rule of the catalogue once, with as many switches on as a case has, and wrappers."""
    one = {case.rule: case for case in sorted(cases(), key=lambda c: sum(v is True for v in c.hyper.values()))}
    return [*one.values(), *(Wrapped(name, object, {"lr": 0.01}) for name in WRAPPED)]  # type: ignore[arg-type]


# ---- optimizers ------------------------------------------------------------------------------------------------------
def start(case: Case):
    """A rule of the catalogue with a schedule, a group and mini-batches, at its beginning."""
    rng = np.random.default_rng(11)
    params = {"w": rng.standard_normal((6, 5)).astype(np.float32)}
    if not case.matrix:
        params |= {"v": rng.standard_normal(7).astype(np.float32), "deep": {"s": rng.standard_normal(()).astype("f4")}}
    hyper = dict(case.hyper)
    lr = case.full().get("lr", ...)
    if isinstance(lr, float) and lr > 0:
        hyper["lr"] = fo.schedules.cosine(peak=lr, warmup=2, total=30)
    groups = [] if case.whole or case.matrix else [fo.Group("deep.*", **case.other)]
    data = rng.standard_normal((20, 6)).astype(np.float32)
    return params, case.make(params, groups=groups, **hyper), fo.minibatches(data, batch_size=6, seed=3)


def advance(case: Case, params, opt, batches, steps: int):
    while steps:
        for x in batches:
            t = opt.t + 1
            noise = np.random.default_rng(t)
            grads = {"w": 0.3 * params["w"] + np.outer(x[0], x[1, :5])}
            if not case.matrix:
                skip = t % 4 == 2 and not case.whole
                grads["v"] = None if skip else noise.standard_normal(7).astype(np.float32)
                grads["deep"] = {"s": params["deep"]["s"] + x[0, 0]}
            opt.step(grads)
            steps -= 1
            if not steps:
                break


def content(opt) -> list[bytes]:
    """The bytes of parameters and state, the step counts and hyperparameters: what a refused load must leave alone."""
    saved = opt.state_dict()
    parts = [s.array.tobytes() for s in opt._segments]
    parts += [f"{s} {n}".encode() + a.tobytes() for s, d in saved["state"].items() for n, a in d.items()]
    hyper = {pattern: dict(sorted(own.items())) for pattern, own in saved["hyper"].items()}
    return [*parts, repr((saved["t"], saved["steps"], hyper, opt.torn)).encode()]


def small(seed=0, **options):
    """AdamW on two arrays, three steps done."""
    rng = np.random.default_rng(seed)
    params = {"w": rng.standard_normal((7, 3)).astype(np.float32), "b": rng.standard_normal(5).astype(np.float32)}
    opt = fo.adamw(params, groups=[fo.Group("b", weight_decay=0.0)], **options)
    for _ in range(3):
        opt.step({"w": rng.standard_normal((7, 3)), "b": rng.standard_normal(5)})
    return opt


# ---- files by hand, from the description in docs/checkpoints.md ------------------------------------------------------
def take_apart(raw: bytes):
    """(header as a dict, data)."""
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def put_together(header, data: bytes, *, text: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return len(text).to_bytes(8, "little") + text + data


def signed(header, data: bytes):
    """The header with right checksums: what somebody who wants to be read would write."""
    tensors = {n: e for n, e in header.items() if n != "__metadata__"}
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "fastopt.sum"}
    sums = {n: f"{zlib.crc32(data[slice(*e['data_offsets'])]):08x}" for n, e in tensors.items()}
    metadata["fastopt.sums"] = json.dumps(sums)
    return {"__metadata__": {**metadata, "fastopt.sum": header_sum(metadata, tensors)}, **tensors}


def header_sum(metadata, tensors):
    told = [
        {k: v for k, v in metadata.items() if k.startswith("fastopt.")},
        {n: [e["dtype"], *e["shape"]] for n, e in tensors.items()},
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def resume(folder: Path) -> None:
    for k, case in enumerate(setups()):
        params, opt, batches = start(case)
        extra = opt.load(folder / f"{k}.safetensors", params=True)
        batches.load_state_dict(extra["data"])
        if case.rule in STEPPED:
            advance(case, params, opt, batches, 6)
        (folder / f"{k}.end").write_bytes(b"".join(content(opt)))


if __name__ == "__main__":
    {"resume": resume}[sys.argv[1]](Path(sys.argv[2]))
