"""Read safetensors lazily and write them tensor by tensor.

The library of the format returns copies, has no bfloat16 in NumPy, writes from a full dictionary only, and does
not say which tensor of a damaged file is wrong; hence a reader and a writer of our own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

import numpy as np

from .documents import open_regular, parse_json
from .errors import WeightsError, unreadable
from .silent import silent
from .tensors import Array, Span, StoredTensor, Tensor, stamp_of
from .types import DType, TensorType

_MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": DType.f64,
    "F32": DType.f32,
    "F16": DType.f16,
    "BF16": DType.bf16,
    "I64": DType.i64,
    "I32": DType.i32,
    "I8": DType.i8,
    "U8": DType.u8,
    "BOOL": DType.bool_,
}
_NAMES = {v: k for k, v in _DTYPES.items()}
_WIDENED = {"I16": ("<i2", DType.i32), "U16": ("<u2", DType.i32), "U32": ("<u4", DType.i64)}
"""Integer types without a counterpart in the IR, and the type of the IR that has room for them."""


class Widened(Tensor):
    """Integers inside a file, in a wider type."""

    def __init__(self, name: str, type: TensorType, span: Span, stored: str) -> None:
        self.name, self.type, self.span, self.stored_type = name, type, span, stored

    def numpy(self) -> Array:
        flat = np.frombuffer(self.span.read(f"tensor {self.name}").tobytes(), self.stored_type)
        return flat.astype(self.dtype.numpy).reshape(self.shape)


_OTHER = {"C64": 64, "U64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4}
"""Types without any counterpart, with their bits: a tensor of one may be there, as long as nobody reads it."""


class Unreadable(Tensor):
    """A tensor inside a file whose element type the IR does not have: its type counts bytes."""

    def __init__(self, place: str, type: TensorType, stored: str) -> None:
        self.place, self.type, self.stored_type = place, type, stored

    @property
    def why(self) -> str:
        known = ", ".join((*_DTYPES, *_WIDENED))
        return f"has element type {self.stored_type}, which has no counterpart in the IR (known: {known})"

    def numpy(self) -> Array:
        raise WeightsError(self.why, place=self.place)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, metadata) of one .safetensors file; no tensor is read.

    Raises WeightsError, naming file, tensor and numbers, if the header lies about anything.
    """
    try:
        with open_regular(path) as f:
            stamp = stamp_of(f.fileno())
            header, start = _header(f, path, stamp[0])
    except OSError as e:
        raise WeightsError(unreadable(e), place=str(path)) from None
    metadata = header.pop("__metadata__", {})
    spans = {k: _entry(path, k, v, stamp[0] - start) for k, v in header.items()}
    _contiguous(path, {k: (begin, end) for k, (_, begin, end) in spans.items()}, stamp[0] - start)
    tensors: dict[str, Tensor] = {}
    for k, (t, begin, end) in spans.items():
        span, (stored, _) = Span(path, start + begin, end - begin, stamp), _WIDENED.get(header[k]["dtype"], ("", None))
        tensors[k] = Widened(k, t, span, stored) if stored else StoredTensor(k, t, span)
        if header[k]["dtype"] in _OTHER:
            tensors[k] = Unreadable(f"{path}: tensor {k}", t, header[k]["dtype"])
    return tensors, _metadata(path, metadata)


def _header(f: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    if size < 8:
        raise WeightsError(f"is {size} bytes long; a safetensors file has at least 8", place=str(path))
    length = int.from_bytes(f.read(8), "little")
    if length > min(size - 8, _MAX_HEADER):
        what = f"says its header is {length} bytes long, but the file has {size} bytes"
        raise WeightsError(f"{what} (and {_MAX_HEADER} is the most a header may have)", place=str(path))
    try:
        header = parse_json(f.read(length), lambda pairs: _unique(path, pairs))
    except ValueError as e:
        raise WeightsError(f"has a header that is not JSON: {e}", place=str(path)) from None
    if not isinstance(header, dict):
        raise WeightsError(f"has a header that is a JSON {type(header).__name__}, not an object", place=str(path))
    return cast("dict[str, Any]", header), 8 + length


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise WeightsError(f"names {key!r} twice in its header", place=str(path))
        found[key] = value
    return found


def _entry(path: Path, name: str, entry: Any, available: int) -> tuple[TensorType, int, int]:
    place = f"{path}: tensor {name}"
    fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise WeightsError(f"needs dtype, shape and data_offsets, but its entry is {entry!r}", place=place)
    if dtype not in _DTYPES and dtype not in _WIDENED and dtype not in _OTHER:
        known = ", ".join((*_DTYPES, *_WIDENED))
        raise WeightsError(
            f"has element type {dtype}, which has no counterpart in the IR (known: {known})", place=place
        )
    begin, end = offsets
    if not begin <= end <= available:
        raise WeightsError(f"has bytes {begin} to {end}, but the file has {available} bytes of data", place=place)
    if dtype in _OTHER:
        size = (math.prod(shape) * _OTHER[dtype] + 7) // 8
        if end - begin != size:
            raise WeightsError(f"has {end - begin} bytes, but {dtype} of shape {shape} needs {size}", place=place)
        return TensorType(DType.u8, (size,)), begin, end
    stored, widened = _WIDENED.get(dtype, ("", None))
    type = TensorType(widened or _DTYPES[dtype], tuple(shape))
    expected = math.prod(shape) * (np.dtype(stored) if stored else type.dtype.numpy).itemsize
    if end - begin != expected:
        raise WeightsError(f"has {end - begin} bytes, but {type} needs {expected}", place=place)
    return type, begin, end


def _naturals(x: Any) -> TypeGuard[list[int]]:
    return isinstance(x, list) and all(type(n) is int and n >= 0 for n in cast("list[Any]", x))


def _contiguous(path: Path, spans: Mapping[str, tuple[int, int]], available: int) -> None:
    position, last = 0, "the header"
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            relation = "overlaps" if begin < position else "leaves a hole after"
            what = f"starts at byte {begin} of the data and {relation} {last}, which ends at {position}"
            raise WeightsError(what, place=f"{path}: tensor {name}")
        position, last = end, name
    if position != available:
        raise WeightsError(f"has {available} bytes of data, but its tensors end at {position}", place=str(path))


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if found is None:
        return {}
    items = cast("dict[str, Any]", found) if isinstance(found, dict) else {"": None}
    texts = {k: v for k, v in items.items() if isinstance(v, str)}
    if len(texts) < len(items):
        raise WeightsError("has __metadata__ that is not a map from text to text", place=str(path))
    return texts


def write_file(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    done: Callable[[str, int], None] | None = None,
) -> None:
    """Write one safetensors file, one tensor in memory at a time. `done` is called with name and bytes written."""
    # Wide types first keeps every tensor aligned: the format allows no padding between tensors.
    order = sorted(tensors, key=lambda k: -tensors[k].dtype.bits)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        t = tensors[name]
        if t.dtype not in _NAMES:
            raise WeightsError(f"tensor {name} is {t.dtype}, which safetensors cannot store")
        span = [position, position + t.bytes]
        header[name] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": span}
        position += t.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        _write(file, name, tensors[name])
        (done or silent)(name, tensors[name].bytes)


def _write(file: BinaryIO, name: str, tensor: Tensor) -> None:
    x = tensor.numpy()
    if x.shape != tensor.shape or x.dtype != tensor.dtype.numpy:
        raise WeightsError(f"tensor {name} says it is {tensor.type} but gives {x.dtype}{list(x.shape)}")
    file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def read_index(path: Path) -> dict[str, Path]:
    """File by tensor name from a `*.safetensors.index.json`. Raises WeightsError for one outside its folder."""
    try:
        with open_regular(path) as file:
            index = parse_json(file.read())
        shards = cast("dict[str, Any]", index["weight_map"]).items()
    except OSError as e:
        raise WeightsError(unreadable(e), place=str(path)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise WeightsError(f"is not an index with a weight_map ({type(e).__name__}: {e})", place=str(path)) from None
    found: dict[str, Path] = {}
    for name, shard in shards:
        if not isinstance(shard, str) or os.path.basename(shard) != shard or shard in ("", ".", "..") or "\0" in shard:  # noqa: PTH119
            what = f"places tensor {name} in {shard!r}, which is not the name of a file in the same folder"
            raise WeightsError(what, place=str(path))
        found[name] = path.parent / shard
    return found
