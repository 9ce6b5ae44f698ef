"""Lazy tensors: a type that is known at once and bytes that are read when somebody asks for them."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import WeightsError
from .init import Init
from .types import DType, TensorType

Array = np.ndarray[Any, Any]


class Tensor(ABC):
    """A tensor of fixed integer shape whose bytes are produced by `numpy()`, anew on each call and never kept."""

    type: TensorType
    source_format: str = ""
    """The block format of the file that the values come from, where it is read as plain numbers (Q4_K); else empty."""

    @abstractmethod
    def numpy(self) -> Array:
        """The values, of `type`'s dtype and shape; possibly read-only. Raises WeightsError."""

    def stored(self) -> Array:
        """What a parameter of `type` holds: the values, or for an encoded type the bytes of its lines."""
        return self.numpy()

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return sizes(self.type)

    @property
    def bytes(self) -> int:
        """Size in memory of what `numpy()` gives (4-bit types counted packed)."""
        return (math.prod(self.shape) * self.dtype.bits + 7) // 8

    def cast(self, dtype: DType) -> Tensor:
        """This tensor converted when read; itself if it has that dtype already."""
        return self if dtype == self.dtype else Mapped(self, self.type.with_dtype(dtype), lambda x: convert(x, dtype))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type})"


def sizes(type: TensorType) -> tuple[int, ...]:
    """The shape as integers. Raises WeightsError for a symbolic dimension."""
    for d in type.shape:
        if not isinstance(d, int):
            raise WeightsError(f"a tensor of type {type} has no fixed size: dimension {d} is symbolic")
    return tuple(d for d in type.shape if isinstance(d, int))


def convert(x: Array, dtype: DType) -> Array:
    """`x` in another dtype, floats to floats or integers to integers. Raises WeightsError for any other mixture."""
    if x.dtype == dtype.numpy:
        return x
    source = DType.of(x.dtype)
    if source.is_float != dtype.is_float:
        raise WeightsError(f"a tensor of {source} is not converted to {dtype}: one holds floats and the other does not")
    with np.errstate(over="ignore"):
        return x.astype(dtype.numpy)


def held(tensor: Tensor, type: TensorType, name: str) -> Array:
    """The array that a parameter of `type` holds when its values are this tensor.

    An encoded parameter takes the stored bytes as they are, any other the values in its own width. Raises
    WeightsError if the shapes or the encodings differ.
    """
    if tensor.type.shape != type.shape or (type.encoding is not None and tensor.type.encoding != type.encoding):
        raise WeightsError(f"{name} is {tensor.type}, expected {type}")
    return tensor.stored() if type.encoding is not None else convert(tensor.numpy(), type.dtype)


class ArrayTensor(Tensor):
    """A tensor that is in memory already."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.type = TensorType(DType.of(array.dtype), array.shape)

    def numpy(self) -> Array:
        return self.array


class Mapped(Tensor):
    """`function` of another tensor, applied when read."""

    def __init__(self, source: Tensor, type: TensorType, function: Callable[[Array], Array]) -> None:
        self.source, self.type, self.function = source, type.decoded, function
        self.source_format = source.source_format

    def numpy(self) -> Array:
        y = self.function(self.source.numpy())
        if y.shape != self.shape or y.dtype != self.dtype.numpy:
            raise WeightsError(f"an expression over {self.source} gave {y.dtype}{list(y.shape)}, expected {self.type}")
        return y


class Random(Tensor):
    """Initial values of a parameter, decided by its name, its `Init` and a seed and nothing else."""

    def __init__(self, name: str, type: TensorType, init: Init, seed: int) -> None:
        if init.kind not in ("normal", "uniform", "zeros", "ones"):
            raise WeightsError(f"{name}: no initializer is called {init.kind!r}; known: normal, uniform, zeros, ones")
        self.name, self.type, self.init, self.seed = name, type, init, seed

    def numpy(self) -> Array:
        if self.init.kind in ("zeros", "ones"):
            return np.full(self.shape, float(self.init.kind == "ones"), dtype=self.dtype.numpy)
        digest = hashlib.sha256(f"{self.seed}:{self.name}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        if self.init.kind == "normal":
            draw = generator.standard_normal(self.shape, dtype=np.float32)
            draw *= np.float32(self.init.std)
        else:
            draw = generator.random(self.shape, dtype=np.float32)
            draw -= np.float32(0.5)
            draw *= np.float32(self.init.std * 12**0.5)  # The standard deviation of a width of 1 is 1/sqrt(12).
        return convert(draw, self.dtype)


@dataclass(frozen=True)
class Span:
    """`length` bytes at `offset` of a file, which must still be the file that was looked at: same size and time."""

    file: Path
    offset: int
    length: int
    stamp: tuple[int, int]

    def read(self, what: str) -> Array:
        """The bytes, read-only and memory-mapped; the pages go when the array goes. Raises WeightsError."""
        if self.length == 0:
            return np.empty(0, np.uint8)
        try:
            with self.file.open("rb") as f:
                if stamp_of(f.fileno()) != self.stamp:
                    raise WeightsError(
                        f"{what} cannot be read: the file was changed after it was opened", place=str(self.file)
                    )
                start = self.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
                skip = self.offset - start
                pages = mmap.mmap(f.fileno(), skip + self.length, offset=start, access=mmap.ACCESS_READ)
        except OSError as e:
            raise WeightsError(f"{what} cannot be read: {e.strerror}", place=str(self.file)) from None
        return np.frombuffer(pages, np.uint8, self.length, skip)


def stamp_of(descriptor: int) -> tuple[int, int]:
    """(size in bytes, modification time in nanoseconds) of an open file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


class StoredTensor(Tensor):
    """A plain little-endian tensor inside a file, memory-mapped when read."""

    def __init__(self, name: str, type: TensorType, span: Span) -> None:
        self.name, self.type, self.span = name, type, span

    def numpy(self) -> Array:
        flat = self.span.read(f"tensor {self.name}").view(self.dtype.numpy)
        # Readers outside NumPy assume alignment, which a file with an odd header length does not give.
        return (flat if flat.flags.aligned else flat.copy()).reshape(self.shape)
