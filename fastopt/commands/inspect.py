"""What `fastopt inspect FILE` prints. The file may be anything: its texts are escaped before they reach a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from fastopt.checkpoint import files, format


def show(path: str) -> int:
    """Print it; 1 if a tensor is damaged. Raises `CheckpointError` if the header is, or there is no such file."""
    with files.opened(path) as file:
        header = format.header(file)
        for line in _facts(file, header):
            print(line)
        rows = [("tensor", "dtype", "shape", "bytes", "crc32")]
        bad = []
        for name, raw, good in format.verified(file, header):
            entry = header.tensors[name]
            if not good:
                bad.append(_plain(name))
            sum_ = f"{_plain(header.sums[name])} {'ok' if good else 'DAMAGED'}"
            rows.append((_plain(name), entry.code, str(entry.shape), f"{raw.nbytes:,}", sum_))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if bad:
        print(f"fastopt inspect: {len(bad)} of {len(rows) - 1} tensors are damaged: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def _facts(file: files.File, header: format.Header) -> list[str]:
    run = _table(header.run)
    state = _table(run.get("state"))
    data = sum(entry.end - entry.begin for entry in header.tensors.values())
    facts = {
        "file": file.path,
        "size": f"{file.size:,} bytes, {data:,} of them in {len(header.tensors)} tensors",
        "format": f"{header.version}, written by fastopt {_plain(run.get('fastopt'))}",
        "rule": _plain(state.get("rule")),
        "steps": _plain(state.get("t")),
    }
    skipped = {n: k for n, k in _table(state.get("steps")).items() if k != state.get("t")}
    if skipped:
        facts["fewer steps"] = ", ".join(f"{_plain(n)} {_plain(k)}" for n, k in skipped.items())
    for pattern, group in _table(run.get("groups")).items():
        group = _table(group)
        values = {**_table(group.get("values")), **_table(group.get("schedules"))}
        shown = ", ".join(f"{_plain(n)}={_plain(v)}" for n, v in values.items())
        frozen = ", frozen" if group.get("frozen") else ""
        facts[f"group {_plain(pattern)}"] = (
            f"{_plain(group.get('rule'))} (digest {_plain(group.get('digest'))}{frozen}): {shown}"
        )
    extra = header.extra
    facts["extra"] = ", ".join(map(_plain, extra)) if isinstance(extra, Mapping) and extra else "nothing"
    width = max(map(len, facts))
    return [f"{name:{width}}  {value}" for name, value in facts.items()]


def _table(x: Any) -> Mapping[str, Any]:
    return x if isinstance(x, Mapping) else {}


def _plain(x: Any) -> str:
    """Without control characters, which a terminal would obey, and half characters, which no stream takes."""
    text = x if isinstance(x, str) else repr(x)
    text = text if len(text) <= 200 else text[:200] + "..."
    return text if text.isprintable() else ascii(text)
