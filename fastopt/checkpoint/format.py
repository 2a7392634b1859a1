"""Bytes of a checkpoint: a safetensors file whose metadata holds two JSON texts and checksums of everything.

    8 bytes N | N bytes of JSON: {"__metadata__": {...}, "state/m/w": {"dtype", "shape", "data_offsets"}, ...} | data

Metadata, all strings: `fastopt.format`; `fastopt.run`, `fastopt.extra` and `fastopt.sums`, JSON, the last one the
CRC-32 of each tensor's bytes; `fastopt.sum`, SHA-256 of those texts and of every tensor's name, dtype and shape. Where
a tensor lies is not part of it (its own CRC tells), so what another safetensors writer makes of the same is as good.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastopt import codecs
from fastopt.checkpoint.files import Damaged, File
from fastopt.errors import CheckpointError, listing

VERSION = 1
FORMAT, RUN, EXTRA, SUMS, SUM = (f"fastopt.{key}" for key in ("format", "run", "extra", "sums", "sum"))
LONGEST = 100_000_000  # bytes of header that safetensors reads
SPARE = 1 << 26  # bytes of memory that reading a header may take, besides twice the file's size
DIMENSIONS = 32

_CODES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1", "BF16": "<u2",
}  # fmt: skip
DTYPES = {code: np.dtype(text) for code, text in _CODES.items()}
_CODE_OF = {dtype: code for code, dtype in DTYPES.items() if code != "BF16"}  # which NumPy has no dtype for


class Entry(NamedTuple):
    """Where a tensor lies: bytes begin..end of the data."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype:
        return codecs.array_dtype("bfloat16") if self.code == "BF16" else DTYPES[self.code]


class Header(NamedTuple):
    """What a file says of itself: the two JSON texts parsed, tensors in the order in which they lie."""

    version: int
    run: Any
    extra: Any
    sums: dict[str, str]
    tensors: dict[str, Entry]
    start: int  # of the data


# -------------------------------------------------------------------- writing
def encode(tensors: Mapping[str, np.ndarray], run: Any, extra: Any) -> Iterator[memoryview]:
    """The bytes of a file, piece by piece. Raises `CheckpointError` for what such a file cannot hold."""
    plain = {}
    for name, a in tensors.items():
        plain[name] = np.ascontiguousarray(a, a.dtype.newbyteorder("<")).reshape(a.shape)
    # wide elements first: then each tensor starts at a multiple of its element's size, as `safetensors` has it
    names = sorted(plain, key=lambda n: (-plain[n].itemsize, n))
    entries, end = {}, 0
    for name in names:
        a, begin = plain[name], end
        end += a.nbytes
        entries[name] = Entry(code(name, a), a.shape, begin, end)
    flat = {n: memoryview(plain[n].reshape(-1).view(np.uint8)) for n in names}
    texts = {
        FORMAT: str(VERSION),
        RUN: _text(run),
        EXTRA: _text(extra),
        SUMS: _text({n: f"{zlib.crc32(flat[n]):08x}" for n in names}),
    }
    told: dict[str, Any] = {"__metadata__": {**texts, SUM: _sum(texts, entries)}}
    told |= {n: {"dtype": e.code, "shape": e.shape, "data_offsets": (e.begin, e.end)} for n, e in entries.items()}
    try:
        header = _text(told).encode()
    except UnicodeEncodeError as error:
        what = error.object[max(0, error.start - 20) : error.end + 20]
        raise CheckpointError(f"{what!a} holds half a character, which no file can; rename it.") from None
    header += b" " * (-len(header) % 8)
    if len(header) > LONGEST or _memory(header) > 2 * (len(header) + end) + SPARE:
        raise CheckpointError(
            f"{len(entries):,} names and `extra` make a header of {len(header):,} bytes, more than a reader would "
            "accept; save long lists of numbers as NumPy arrays."
        )
    yield memoryview(len(header).to_bytes(8, "little") + header)
    yield from flat.values()


def code(name: str, a: np.ndarray) -> str:
    """What safetensors calls the dtype of an array, or a `CheckpointError`."""
    if a.dtype.name == "bfloat16":
        return "BF16"
    if (dtype := a.dtype.newbyteorder("<")) not in _CODE_OF:
        raise CheckpointError(f"`{name}` has dtype {a.dtype}; a checkpoint holds {listing(_CODE_OF, 20)}.")
    return _CODE_OF[dtype]


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError as error:  # an int of thousands of digits
        raise CheckpointError(f"`extra` cannot be saved: {error}.") from error


def _memory(text: bytes | str) -> int:
    """Bytes that reading a header takes at most: copies of the text, and the objects that JSON makes of it."""
    brackets: tuple[Any, ...] = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
    # an empty list is the shortest text, "[],", for a large object: 64 bytes with the place that refers to it
    return 5 * len(text) + 64 * sum(map(text.count, brackets))


def _sum(texts: Mapping[str, str], entries: Mapping[str, Entry]) -> str:
    content = [dict(texts), {n: [e.code, *e.shape] for n, e in entries.items()}]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# -------------------------------------------------------------------- reading
def header(file: File) -> Header:
    """The header of an open file, checked. Allocates at most twice the file's size and `SPARE`."""
    head = file.read(0, 8)
    length = int.from_bytes(head, "little")
    if not 2 <= length <= min(LONGEST, file.size - 8):
        file.refuse(f"its header is said to have {length:,} bytes, the file has {file.size:,}")
    if 5 * length > 2 * file.size + SPARE:
        file.refuse(f"its header of {length:,} bytes is longer than what it describes")
    told = _parsed(file, _decoded(file, file.read(8, length)), "header")
    if not isinstance(told, dict):
        file.refuse("its header is no table")
    metadata = told.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        file.refuse("its metadata is no table of texts")
    if FORMAT not in metadata:
        raise Damaged(f"{file.path} is damaged or not a checkpoint of fastopt: its metadata has no `{FORMAT}`.")
    texts = {k: v for k, v in metadata.items() if k.startswith("fastopt.")}
    entries = {name: _entry(file, name, entry) for name, entry in told.items()}
    entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    end = 0
    for name, entry in entries.items():
        if entry.begin != end:
            file.refuse(f"tensor {name!a} begins at byte {entry.begin} of the data, expected {end}")
        end = entry.end
    if 8 + length + end != file.size:
        file.refuse(f"it has {file.size:,} bytes, its header speaks of {8 + length + end:,}")
    given = texts.pop(SUM, None)
    version = texts[FORMAT]
    if given != _sum(texts, entries):
        file.refuse("the checksum of its header does not match")
    if version != str(VERSION):
        # a newer file may mean anything by the rest; an older version gets its translation to this one here
        raise CheckpointError(
            f"{file.path} has format {version!a}; this fastopt reads format {VERSION}. Read it with a newer one."
        )
    if missing := [k for k in (RUN, EXTRA, SUMS) if k not in texts]:
        file.refuse(f"its metadata has no {listing(missing)}")
    run, extra, sums = (_parsed(file, texts[k], k) for k in (RUN, EXTRA, SUMS))
    if not isinstance(sums, dict) or sums.keys() != entries.keys():
        file.refuse("its checksums are not those of its tensors")
    return Header(VERSION, run, extra, sums, entries, 8 + length)


def _entry(file: File, name: str, entry: Any) -> Entry:
    def whole(numbers: Any) -> bool:
        return isinstance(numbers, list) and all(type(x) is int and x >= 0 for x in numbers)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        file.refuse(f"tensor {name!a} is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        file.refuse(f"tensor {name!a} has dtype {code!a}, expected one of {listing(DTYPES, 20)}")
    if not whole(shape) or len(shape) > DIMENSIONS or any(n >= 2**63 for n in shape):
        file.refuse(f"tensor {name!a} has a shape that no array has")
    if not whole(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[code].itemsize:
        file.refuse(f"tensor {name!a} has offsets that do not fit its shape")
    return Entry(code, tuple(shape), *offsets)


def _decoded(file: File, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        file.refuse("its header is no text")


def _parsed(file: File, text: str, what: str) -> Any:
    """JSON, strictly: no duplicate names, no NaN, nothing that takes more memory than a checkpoint may."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a name is given twice")
        return made

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number")

    if _memory(text) > 2 * file.size + SPARE:
        file.refuse(f"its {what} would take far more memory than the file has bytes")
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file.path} is damaged: its {what} cannot be read: {str(error)[:200]}.") from error


def tensors(file: File, header: Header) -> dict[str, np.ndarray]:
    """All tensors, in memory of their own. Raises `Damaged` with the names of those whose checksum differs."""
    found, bad = {}, []
    for name, raw, good in verified(file, header):
        entry = header.tensors[name]
        found[name] = raw.view(entry.dtype).reshape(entry.shape).astype(entry.dtype.newbyteorder("="), copy=False)
        bad += [name] * (not good)
    if bad:
        file.refuse(f"the checksum of {listing(bad, 20)} does not match")
    return found


def verified(file: File, header: Header) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Each tensor's name and bytes, and whether its checksum is the header's."""
    for name, entry in header.tensors.items():
        raw, crc = np.empty(entry.end - entry.begin, np.uint8), 0
        for piece in file.fill(header.start + entry.begin, raw):
            crc = zlib.crc32(piece, crc)
        yield name, raw, f"{crc:08x}" == header.sums[name]
