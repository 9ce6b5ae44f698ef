"""Buffers in ordinary memory: NumPy arrays that ONNX Runtime reads and writes where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ...ir.errors import RuntimeInputError
from .memory import Array, Buffer
from .runtime import RUNTIME_ERRORS, UNCAPTURED, Loaded, OrtValue, array_of, value_of

_LINE = 64
"""Bytes of a cache line."""


class CpuBuffer:
    """An array with the value that ONNX Runtime knows it by; either is made from the other when first asked for."""

    def __init__(self, *, array: Array | None = None, value: OrtValue = None) -> None:
        assert (array is None) != (value is None)
        if array is not None:
            self.array = array
        if value is not None:
            self.value = value

    @cached_property
    def array(self) -> Array:
        return array_of(self.value)

    @cached_property
    def value(self) -> OrtValue:
        return value_of(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype


class CpuCall:
    """An I/O binding over buffers, which it keeps alive."""

    def __init__(self, loaded: Loaded, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        self.file = loaded.file
        self.kept = [*inputs.values(), *outputs.values()]
        given = {k: _own(b).value for k, b in inputs.items()}
        self.binding = loaded.bind(given, {k: _own(b).value for k, b in outputs.items()})

    def run(self) -> None:
        try:
            self.binding.run()
        except RUNTIME_ERRORS as e:
            raise RuntimeInputError(f"ONNX Runtime: {e}", place=self.file) from e


class CpuMemory:
    """`Memory` on the CPU."""

    apart = captures = False

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, host: bool = False) -> CpuBuffer:
        """Zeros whose first element lies on a cache line; pages are only taken when written."""
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.zeros(size + _LINE, np.uint8)
        start = -raw.ctypes.data % _LINE
        return CpuBuffer(array=raw[start : start + size].view(dtype).reshape(shape))

    def upload(self, array: Array) -> CpuBuffer:
        return CpuBuffer(array=np.ascontiguousarray(array).reshape(array.shape))

    def download(self, buffer: Buffer) -> Array:
        return _own(buffer).array

    def write(self, buffer: Buffer, array: Array) -> None:
        _own(buffer).array[...] = array

    def row(self, buffer: Buffer, index: int, count: int = 1) -> CpuBuffer:
        return CpuBuffer(array=_own(buffer).array[index : index + count])

    def reshaped(self, buffer: Buffer, shape: tuple[int, ...]) -> CpuBuffer:
        return CpuBuffer(array=_own(buffer).array.reshape(shape))

    def copy(self, source: Buffer, target: Buffer) -> None:
        _own(target).array[...] = _own(source).array

    def shift(self, source: Buffer, start: int, target: Buffer, to: int, length: int, *, row: int, axis: int) -> None:
        before = (row, *(slice(None),) * (axis - 1))
        found = _own(source).array[(*before, slice(start, start + length))]
        _own(target).array[(*before, slice(to, to + length))] = found

    def bind(
        self, loaded: Loaded, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], graph: int = UNCAPTURED
    ) -> CpuCall:
        return CpuCall(loaded, inputs, outputs)

    def run(self, loaded: Loaded, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        try:
            results = loaded.run_values({k: _own(b).value for k, b in inputs.items()})
        except RUNTIME_ERRORS as e:
            raise RuntimeInputError(f"ONNX Runtime: {e}", place=loaded.file) from e
        return {k: CpuBuffer(value=v) for k, v in results.items()}

    def largest(self, buffer: Buffer, k: int) -> None:
        return None


def _own(buffer: Buffer) -> CpuBuffer:
    assert isinstance(buffer, CpuBuffer)
    return buffer
