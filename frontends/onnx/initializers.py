"""Initializers as lazy tensors: inside the file, in other files of its folder, or as the elements that are not 0."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ...ir.documents import open_regular
from ...ir.errors import unreadable
from ...ir.tensors import Array, ArrayTensor, Mapped, Span, StoredTensor, Tensor, stamp_of
from ...ir.types import DType, TensorType
from .errors import OnnxFileError
from .types import DTYPES, ELEMENTS, check_sizes

MOST_DENSE = 1 << 32
"""Bytes of the largest tensor that is made of a sparse one."""

_TYPED: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.UINT32: "uint64_data",
}
"""Fields that hold the elements of a type one by one; the others are in int32_data."""


def place_of(path: Path, node: onnx.NodeProto) -> str:
    """A node for messages: file, name and operator."""
    name = node.name or next((o for o in node.output if o), "")
    return f"{path}: node {name} ({node.op_type})"


def read_initializer(t: onnx.TensorProto, path: Path) -> Tensor:
    """A dense initializer. Raises OnnxFileError for sizes that do not agree, and for data outside its file."""
    place = f"{path}: tensor {t.name}"
    type = _type_of(t, place)
    elements = math.prod(int(d) for d in type.shape)  # type: ignore[arg-type]
    size = -(-elements * type.dtype.bits // 8)
    if t.data_location == onnx.TensorProto.EXTERNAL:
        span = _external(t, path, size, place)
        stored = StoredTensor(t.name, type if type.dtype.bits >= 8 else TensorType(DType.u8, (size,)), span)
        return stored if type.dtype.bits >= 8 else Mapped(stored, type, lambda x: _unpacked(x, type))
    if t.external_data:
        raise OnnxFileError("names other files, but says that its data is in this one", place=place)
    _check_inside(t, elements, size, place)
    return ArrayTensor(_array(t, type, place))


def _type_of(t: onnx.TensorProto, place: str) -> TensorType:
    dtype = DTYPES.get(t.data_type)
    if dtype is None:
        raise OnnxFileError(f"has element type {t.data_type}, which has no counterpart in the IR", place=place)
    shape = tuple(t.dims)
    if any(d < 0 for d in shape):
        raise OnnxFileError(f"has shape {list(shape)} with a negative dimension", place=place)
    type = TensorType(dtype, shape)
    check_sizes(type, place)
    return type


def _check_inside(t: onnx.TensorProto, elements: int, size: int, place: str) -> None:
    if t.HasField("raw_data"):
        if len(t.raw_data) != size:
            what = f"has {len(t.raw_data)} bytes of data, but shape {list(t.dims)} needs {size}"
            raise OnnxFileError(what, place=place)
        return
    field = _TYPED.get(t.data_type, "int32_data")
    packed = {4: 2, 2: 4}.get(DTYPES[t.data_type].bits, 1)
    have, want = len(getattr(t, field)), -(-elements // packed)
    if have != want:
        raise OnnxFileError(f"has {have} numbers in {field}, but shape {list(t.dims)} needs {want}", place=place)


def _array(t: onnx.TensorProto, type: TensorType, place: str) -> Array:
    try:
        found: Any = numpy_helper.to_array(t)
    except (ValueError, TypeError, OverflowError) as e:
        raise OnnxFileError(f"cannot be read: {e}", place=place) from None
    return np.ascontiguousarray(found).astype(type.dtype.numpy, copy=False).reshape(tuple(t.dims))


def _unpacked(stored: Array, type: TensorType) -> Array:
    """Elements of less than a byte, the first of each byte in its lowest bits."""
    shape: Any = type.shape
    t = onnx.TensorProto(data_type=ELEMENTS[type.dtype], dims=shape, raw_data=stored.tobytes())
    return _array(t, type, "")


def _external(t: onnx.TensorProto, path: Path, size: int, place: str) -> Span:
    said: dict[str, str] = {}
    for entry in t.external_data:
        if said.setdefault(entry.key, entry.value) != entry.value:
            raise OnnxFileError(f"says {entry.key} twice: {said[entry.key]!r} and {entry.value!r}", place=place)
    file = _inside(path, said.get("location", ""), place)
    offset = _number(said.get("offset", "0"), "offset", place)
    length = _number(said["length"], "length", place) if said.get("length") else size
    if length != size:
        raise OnnxFileError(f"has {length} bytes of external data, but shape {list(t.dims)} needs {size}", place=place)
    try:
        with open_regular(file) as f:
            stamp = stamp_of(f.fileno())
    except OSError as e:
        raise OnnxFileError(f"has its data in {file.name}, which {unreadable(e)}", place=place) from None
    if offset + length > stamp[0]:
        what = f"lies at bytes {offset} to {offset + length} of {file.name}, which has {stamp[0]} bytes"
        raise OnnxFileError(what, place=place)
    return Span(file, offset, length, stamp)


def _number(text: str, what: str, place: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 19:
        raise OnnxFileError(f"has {what} {text!r}, expected a whole number of bytes", place=place)
    return int(text)


def _inside(path: Path, location: str, place: str) -> Path:
    """The file at `location`, which must lie in the folder of the model, also where links lead.

    A cache whose model file is itself a link may keep its data beside what that leads to.
    """
    parts = location.replace("\\", "/").split("/")
    named = location and "\0" not in location and ".." not in parts and not location.startswith(("/", "\\"))
    if not named or ":" in parts[0]:
        raise OnnxFileError(f"has its data at {location!r}, which is not a path inside the folder", place=place)
    file = path.parent / location
    homes = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}  # noqa: PTH120
    real = os.path.realpath(file)
    if not any(os.path.commonpath([home, real]) == home for home in homes):
        raise OnnxFileError(f"has its data at {location!r}, a link that leads outside the folder", place=place)
    return file


def read_sparse(s: onnx.SparseTensorProto, path: Path) -> Tensor:
    """A sparse initializer, dense when it is read. Raises OnnxFileError as `read_initializer`, and for bad indices."""
    place = f"{path}: sparse tensor {s.values.name}"
    values, indices = read_initializer(s.values, path), read_initializer(s.indices, path)
    shape = tuple(s.dims)
    if any(d < 0 for d in shape) or not shape:
        raise OnnxFileError(f"has shape {list(shape)}", place=place)
    type = TensorType(values.dtype, shape)
    check_sizes(type, place)
    size, count = math.prod(shape) * values.dtype.numpy.itemsize, math.prod(values.shape)
    if size > MOST_DENSE:
        raise OnnxFileError(f"is {size} bytes dense; {MOST_DENSE} are the most", place=place)
    if len(values.shape) != 1 or indices.dtype is not DType.i64 or indices.shape not in ((count,), (count, len(shape))):
        what = f"has values {values.type} and indices {indices.type} for shape {list(shape)}"
        raise OnnxFileError(what, place=place)
    found = indices.numpy()
    most = np.array(shape if found.ndim == 2 else [math.prod(shape)])
    if count and not ((found >= 0) & (found < most)).all():
        raise OnnxFileError(f"has indices from {found.min()} to {found.max()}, outside {list(shape)}", place=place)

    def dense(x: Array) -> Array:
        y = np.zeros(shape, x.dtype)
        flat = found if found.ndim == 1 else np.ravel_multi_index(tuple(found.T), shape)
        y.reshape(-1)[flat] = x
        return y

    return Mapped(values, type, dense)
