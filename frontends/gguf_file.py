"""Read the structure of a GGUF file: metadata and lazy tensors, every number checked before it is used.

The reader of the `gguf` package makes an object per array element (11 s for a vocabulary of 262144) and follows
lengths out of the file; its block formats and their dequantization are used here.
"""

from __future__ import annotations

import glob
import math
import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from ..ir.documents import open_regular
from ..ir.encoded import Encoded
from ..ir.encodings import LAYOUTS
from ..ir.errors import WeightsError, unreadable
from ..ir.tensors import Array, Mapped, Span, StoredTensor, Tensor, stamp_of
from ..ir.types import DType, TensorType, f32, u8

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {
    "F64": DType.f64,
    "F32": DType.f32,
    "F16": DType.f16,
    "BF16": DType.bf16,
    "I64": DType.i64,
    "I32": DType.i32,
    "I8": DType.i8,
}
_MAX_DIMS, _MAX_NESTING = 4, 4


@dataclass(frozen=True)
class GGUFFile:
    """Metadata by key and tensors by GGUF name; shapes are in row-major order, as everywhere else."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class BlockTensor(Tensor):
    """A tensor in a block format that no encoding of the IR has: `numpy()` dequantizes it to f32.

    source_format: the GGML name, such as Q4_K.
    """

    def __init__(self, lines: StoredTensor, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
        self.lines, self.kind, self.source_format = lines, kind, kind.name
        self.type = TensorType(f32, shape)

    def numpy(self) -> Array:
        stored = self.lines.numpy()
        try:
            return dequantize(stored.reshape(-1, stored.shape[-1]), self.kind).reshape(self.shape)
        except NotImplementedError:
            place = f"{self.lines.span.file}: tensor {self.lines.name}"
            raise WeightsError(f"{self.kind.name} cannot be dequantized", place=place) from None


def permute_rows(tensor: Tensor, order: Array) -> Tensor:
    """The rows of a tensor in another order; what is stored in blocks stays in blocks."""
    if isinstance(tensor, Encoded):
        return tensor.rows(order)
    return Mapped(tensor, tensor.type, lambda x: x[order])


class _Cursor:
    """Reads values off the front of a file and refuses to leave it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def error(self, what: str) -> WeightsError:
        return WeightsError(f"{what} (the file has {len(self.data)} bytes)", place=str(self.path))

    def take(self, count: int, what: str) -> int:
        """Skip `count` bytes and give where they start."""
        start = self.position
        if count > len(self.data) - start:
            raise self.error(f"is truncated or damaged: {what} at byte {start} needs {count} bytes")
        self.position += count
        return start

    def number(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, self.data, self.take(size, what))[0]

    def string(self, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as e:
            raise self.error(f"has {what} at byte {start} that is not UTF-8: {e.reason}") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY or depth == _MAX_NESTING:
            raise self.error(f"has a value of unknown kind {kind} for {what} at byte {self.position}")
        kind, count = self.number("I", f"the kind of {what}"), self.number("Q", f"the length of {what}")
        if kind in _SCALARS:
            start = self.take(count * struct.calcsize(_SCALARS[kind]), what)
            return np.frombuffer(self.data, np.dtype(_SCALARS[kind]).newbyteorder("<"), count, start).tolist()
        self.check_count(count, 8, what)
        return [self.value(kind, what, depth + 1) for _ in range(count)]

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things of at least `least` bytes each that cannot be in the file."""
        if count * least > len(self.data) - self.position:
            raise self.error(f"is truncated or damaged: it says that it has {count} of {what}")


def read_gguf(path: str | Path) -> GGUFFile:
    """The structure of a GGUF file; no tensor is read. Raises WeightsError naming file, tensor and numbers."""
    path = Path(path)
    try:
        with open_regular(path) as f:
            stamp = stamp_of(f.fileno())
            if stamp[0] < 24:
                raise WeightsError(f"has {stamp[0]} bytes; a GGUF file has at least 24", place=str(path))
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(path, data), stamp)
    except OSError as e:
        raise WeightsError(unreadable(e), place=str(path)) from None


def read_whole(path: str | Path) -> GGUFFile:
    """As `read_gguf`, with the tensors of all parts where a model is split over files: name-00001-of-00003.gguf.

    Any of the parts may be given; metadata are those of the first. Raises WeightsError for a missing part.
    """
    file = read_gguf(path)
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        name = _PART.fullmatch(file.path.name)
        if name is not None and int(name[3]) > 1 and _others(file.path, name):
            raise WeightsError(
                f"is called part {int(name[2])} of {int(name[3])}, but has no split.count", place=str(path)
            )
        return file
    name = _PART.fullmatch(file.path.name)
    if name is None or int(name[3]) != count:
        what = f"is one of {count} parts, but is not called like name-00001-of-{count:05}.gguf"
        raise WeightsError(what, place=str(file.path))
    paths = [file.path.with_name(f"{name[1]}-{i:05}-of-{name[3]}.gguf") for i in range(1, count + 1)]
    for i, part in enumerate(paths, 1):
        if not part.is_file():
            raise WeightsError(f"is missing: part {i} of {count}, beside {file.path.name}", place=str(part))
    parts = [read_gguf(part) for part in paths]
    tensors: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        if part.metadata.get("split.no") != i or part.metadata.get("split.count") != count:
            raise WeightsError(f"does not say that it is part {i + 1} of {count}", place=str(part.path))
        twice = next((k for k in part.tensors if k in tensors), None)
        if twice is not None:
            raise WeightsError(f"has tensor {twice}, and so has a part before it", place=str(part.path))
        tensors |= part.tensors
    total = parts[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise WeightsError(f"has parts with {len(tensors)} tensors in all, but says {total}", place=str(file.path))
    return GGUFFile(parts[0].path, parts[0].metadata, tensors)


def _others(path: Path, name: re.Match[str]) -> bool:
    """Whether other parts of the same model stand beside one."""
    return any(p != path for p in path.parent.glob(f"{glob.escape(name[1])}-?????-of-{name[3]}.gguf"))


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def first_part(files: Sequence[Path]) -> Path | None:
    """The file to open of a folder's GGUF files: the only one, or the first of one split model; else None."""
    names = [_PART.fullmatch(f.name) for f in files]
    models = {(n[1], n[3]) if n else f.name for n, f in zip(names, files, strict=True)}
    return min(files) if len(models) == 1 else None


def _parse(c: _Cursor, stamp: tuple[int, int]) -> GGUFFile:
    if c.data[c.take(4, "the magic") : 4] != b"GGUF":
        raise c.error(f"starts with {c.data[:4]!r}, not with b'GGUF'")
    version = c.number("I", "the version")
    if version not in (2, 3):
        raise c.error(f"has GGUF version {version}; 2 and 3 in little-endian order are read")
    tensor_count, key_count = c.number("Q", "the tensor count"), c.number("Q", "the key count")
    c.check_count(key_count, 12, "metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        name = c.string("a key")
        if name in metadata:
            raise c.error(f"has the key {name!r} twice")
        metadata[name] = c.value(c.number("I", f"the kind of {name}"), name)
    c.check_count(tensor_count, 24, "tensors")
    entries = [_entry(c) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise c.error(f"has general.alignment {alignment!r}, expected a power of two")
    start = -(-c.position // alignment) * alignment
    return GGUFFile(c.path, metadata, _tensors(c, entries, start, alignment, stamp))


@dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


def _entry(c: _Cursor) -> _Entry:
    name = c.string("a tensor name")
    rank = c.number("I", f"the rank of {name}")
    if rank > _MAX_DIMS:
        raise c.error(f"tensor {name} has {rank} dimensions, at most {_MAX_DIMS} are allowed")
    shape = tuple(c.number("Q", f"the shape of {name}") for _ in range(rank))[::-1]
    number, offset = c.number("I", f"the type of {name}"), c.number("Q", f"the offset of {name}")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise c.error(f"tensor {name} has type number {number}, which is not known") from None
    block, size = GGML_QUANT_SIZES[kind]
    row = shape[-1] if shape else 1
    if row % block:
        raise c.error(f"tensor {name} has rows of {row} elements, not a multiple of the {block} of {kind.name}")
    return _Entry(name, shape, kind, offset, math.prod(shape) // block * size)


def _tensors(
    c: _Cursor, entries: list[_Entry], start: int, alignment: int, stamp: tuple[int, int]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    end, last = 0, ""
    for e in sorted(entries, key=lambda e: (e.offset, e.size)):
        if e.name in found:
            raise c.error(f"has the tensor {e.name} twice")
        if e.offset % alignment:
            raise c.error(f"tensor {e.name} starts at byte {e.offset} of the data, not at a multiple of {alignment}")
        if e.offset < end:
            raise c.error(f"tensor {e.name} starts at byte {e.offset} of the data, inside {last} which ends at {end}")
        if start + e.offset + e.size > stamp[0]:
            what = f"tensor {e.name} is {e.kind.name}{list(e.shape)} at bytes {start + e.offset} to"
            raise c.error(f"{what} {start + e.offset + e.size}, outside the file")
        span = Span(c.path, start + e.offset, e.size, stamp)
        found[e.name] = _tensor(c, e, span)
        end, last = e.offset + e.size, e.name
    return {e.name: found[e.name] for e in entries}


def _tensor(c: _Cursor, e: _Entry, span: Span) -> Tensor:
    if e.kind.name in _PLAIN:
        return StoredTensor(e.name, TensorType(_PLAIN[e.kind.name], e.shape), span)
    if GGML_QUANT_SIZES[e.kind][0] == 1:
        raise c.error(f"tensor {e.name} is {e.kind.name}, which has no counterpart in the IR")
    block, size = GGML_QUANT_SIZES[e.kind]
    lines = StoredTensor(e.name, TensorType(u8, (*e.shape[:-1], e.shape[-1] // block * size)), span)
    encoding = LAYOUTS.get(e.kind.name.lower())
    if encoding is not None:
        return Encoded(lines, TensorType(f32, e.shape, encoding))
    return BlockTensor(lines, e.shape, e.kind)
