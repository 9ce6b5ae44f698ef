"""Buffers in the memory of a CUDA device: what is done to them is done there, and nothing reads them from the host.

ONNX Runtime has a copy of whole tensors between devices and no other; everything else is one of four small graphs, run
on the same provider over the addresses of the buffers. So all of it also runs where the device is `cpu`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir.errors import RuntimeInputError
from ..target import PROVIDERS
from . import device_graphs
from .memory import Array, Buffer
from .memory_cpu import CpuBuffer
from .runtime import (
    RUNTIME_ERRORS,
    UNCAPTURED,
    Binding,
    Loaded,
    OrtValue,
    Place,
    content_of,
    replace_content,
    uninitialized,
)

_KEPT = 16
"""Bindings of the best logits that are kept."""


class DeviceBuffer:
    """A tensor on a device, or a part of it that begins `offset` bytes in and has a shape of its own."""

    def __init__(
        self, value: OrtValue, device: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0
    ) -> None:
        self.value, self.device, self.dtype, self.shape, self.offset = value, device, dtype, shape, offset

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def whole(self) -> bool:
        """Whether it is its tensor, in the tensor's own shape."""
        return self.offset == 0 and tuple(self.value.shape()) == self.shape

    def seen(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Place:
        """Its memory in another shape or element type."""
        return Place(self.device, dtype or self.dtype, shape, self.value.data_ptr() + self.offset)

    def bound(self) -> OrtValue | Place:
        """What a session is given."""
        return self.value if self.whole else self.seen(self.shape)

    def __array__(self, *_: object, **__: object) -> Array:
        raise TypeError(f"{self.dtype}{list(self.shape)} lies on {self.device}: download it")


class DeviceCall:
    """An I/O binding over buffers, which it keeps alive; a graph that its runs captured goes with it."""

    def __init__(self, loaded: Loaded, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], graph: int) -> None:
        self.file = loaded.file
        self.kept = [*inputs.values(), *outputs.values()]
        given = {k: _bound(b) for k, b in inputs.items()}
        self.binding = loaded.bind(given, {k: _bound(b) for k, b in outputs.items()}, graph)
        if graph != UNCAPTURED:
            weakref.finalize(self, loaded.release, graph).atexit = False

    def run(self) -> None:
        run(self.binding, self.file)


class CudaMemory:
    """`Memory` on a CUDA device. device, provider: where, in the words of ONNX Runtime."""

    apart = captures = True

    def __init__(self, device: str = "cuda", provider: str = PROVIDERS["cuda"]) -> None:
        self.device, self.provider = device, provider
        self.graphs: dict[str, Loaded] = {}
        self.choosers: dict[Place, tuple[Binding, DeviceBuffer, DeviceBuffer]] = {}

    def graph(self, name: str) -> Loaded:
        """A session over one of the graphs that move things about, opened when first needed."""
        if name not in self.graphs:
            self.graphs[name] = Loaded(device_graphs.GRAPHS[name](), self.provider)
        return self.graphs[name]

    # -- making ------------------------------------------------------------------------------------------------

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, host: bool = False) -> Buffer:
        if host:
            return CpuBuffer(array=np.zeros(shape, dtype))
        buffer = self.empty(shape, dtype)
        if buffer.nbytes:
            count, unit = _units(buffer.nbytes)
            length = CpuBuffer(array=np.array([count]))
            self.once("zeros", {"length": length.value}, {"y": buffer.seen((count,), unit)}, unit)
        return buffer

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        return DeviceBuffer(uninitialized(shape, dtype, self.device), self.device, dtype, shape)

    def upload(self, array: Array) -> DeviceBuffer:
        buffer = self.empty(array.shape, array.dtype)
        if array.size:
            self.send(buffer, array)
        return buffer

    def send(self, buffer: DeviceBuffer, array: Array) -> None:
        """Bring the content of a whole buffer over from the host."""
        replace_content(buffer.value, array)

    def download(self, buffer: Buffer) -> Array:
        if isinstance(buffer, CpuBuffer):
            return buffer.array
        own = _own(buffer)
        if not own.whole:
            own, part = self.empty(own.shape, own.dtype), own
            self.copy(part, own)
        return self.fetch(own)

    def fetch(self, buffer: DeviceBuffer) -> Array:
        """Bring the content of a whole buffer over to the host."""
        return content_of(buffer.value, buffer.dtype)

    def write(self, buffer: Buffer, array: Array) -> None:
        if isinstance(buffer, CpuBuffer):
            buffer.array[...] = array
            return
        own = _own(buffer)
        given = np.broadcast_to(array, own.shape).astype(own.dtype)
        if own.whole:
            self.send(own, given)
        else:
            self.copy(self.upload(given), own)

    def row(self, buffer: Buffer, index: int, count: int = 1) -> Buffer:
        if isinstance(buffer, CpuBuffer):
            return CpuBuffer(array=buffer.array[index : index + count])
        own = _own(buffer)
        shape = (count, *own.shape[1:])
        if own.size == 0:
            return self.empty(shape, own.dtype)
        each = own.nbytes // own.shape[0]
        return DeviceBuffer(own.value, own.device, own.dtype, shape, own.offset + index * each)

    def reshaped(self, buffer: Buffer, shape: tuple[int, ...]) -> DeviceBuffer:
        own = _own(buffer)
        return DeviceBuffer(own.value, own.device, own.dtype, shape, own.offset)

    # -- moving ------------------------------------------------------------------------------------------------

    def copy(self, source: Buffer, target: Buffer) -> None:
        a, b = _own(source), _own(target)
        if a.whole and b.whole and a.shape == b.shape:
            b.value.update_inplace(a.value)
        elif a.nbytes:
            count, unit = _units(a.nbytes)
            self.once("copy", {"x": a.seen((count,), unit)}, {"y": b.seen((count,), unit)}, unit)

    def shift(self, source: Buffer, start: int, target: Buffer, to: int, length: int, *, row: int, axis: int) -> None:
        a, b = _own(source), _own(target)
        outer = range(row * math.prod(a.shape[1:axis]), (row + 1) * math.prod(a.shape[1:axis]))
        inner = math.prod(a.shape[axis + 1 :]) * a.dtype.itemsize
        if not length or not inner or not len(outer):
            return
        width, unit = _units(inner)
        places = np.arange(length)
        taken = (np.array(outer)[:, None] * a.shape[axis] + start + places).ravel()
        given = (np.array(outer)[:, None] * b.shape[axis] + to + places).ravel()
        lines = {n: x.seen((x.nbytes // inner, width), unit) for n, x in (("x", a), ("old", b))}
        # All that is read is read before anything is written, so that the two may overlap.
        indices = {"taken": self.upload(taken).value, "given": self.upload(given[:, None]).value}
        self.once("move", {**lines, **indices}, {"y": lines["old"]}, unit)

    def once(
        self, graph: str, inputs: Mapping[str, OrtValue | Place], outputs: Mapping[str, Place], unit: np.dtype[Any]
    ) -> None:
        loaded = self.graph(f"{graph} {unit.name}")
        run(loaded.bind(inputs, outputs), graph)

    # -- running -----------------------------------------------------------------------------------------------

    def bind(
        self, loaded: Loaded, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], graph: int = UNCAPTURED
    ) -> DeviceCall:
        return DeviceCall(loaded, inputs, outputs, graph)

    def run(self, loaded: Loaded, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        binding = loaded.bind({k: _bound(b) for k, b in inputs.items()}, dict.fromkeys(loaded.outputs, self.device))
        run(binding, loaded.file)
        found = zip(loaded.outputs, binding.outputs(), strict=True)
        return {k: DeviceBuffer(v, self.device, loaded.dtypes[k], tuple(v.shape())) for k, v in found}

    def largest(self, buffer: Buffer, k: int) -> tuple[Array, Array]:
        own = _own(buffer)
        rows, width = own.shape
        k = min(k, width)
        x = own.seen(own.shape)
        if (kept := self.choosers.get(x)) is None or kept[1].shape != (rows, k):
            if len(self.choosers) >= _KEPT:
                self.choosers.clear()
            values, ids = self.empty((rows, k), own.dtype), self.empty((rows, k), np.dtype(np.int64))
            number = CpuBuffer(array=np.array([k]))
            given = {"x": x, "k": number.value}
            loaded = self.graph(f"largest {own.dtype.name}")
            kept = loaded.bind(given, {"values": values.value, "ids": ids.value}), values, ids
            self.choosers[x] = kept
        binding, values, ids = kept
        run(binding, "largest")
        return self.download(values), self.download(ids)


def run(binding: Binding, file: str) -> None:
    try:
        binding.run()
    except RUNTIME_ERRORS as e:
        raise RuntimeInputError(f"ONNX Runtime: {e}", place=file) from e


def _units(nbytes: int) -> tuple[int, np.dtype[Any]]:
    """Bytes as a number of elements that are moved whole, and their type."""
    unit = np.dtype(np.int32) if nbytes % 4 == 0 else np.dtype(np.uint8)
    return nbytes // unit.itemsize, unit


def _own(buffer: Buffer) -> DeviceBuffer:
    assert isinstance(buffer, DeviceBuffer)
    return buffer


def _bound(buffer: Buffer) -> OrtValue | Place:
    return buffer.value if isinstance(buffer, CpuBuffer) else _own(buffer).bound()
