"""A CUDA device made of ordinary memory: what a session brings over and back is noted, and nothing else reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from monograph.backends.onnxruntime import session as sessions
from monograph.backends.onnxruntime.memory import Buffer, Call
from monograph.backends.onnxruntime.memory_cpu import CpuBuffer
from monograph.backends.onnxruntime.memory_cuda import CudaMemory, DeviceBuffer
from monograph.backends.onnxruntime.runtime import UNCAPTURED, Loaded

Array = np.ndarray[Any, Any]
WARM_UPS = 3
"""Runs that a captured call makes at first: two so that all memory is there, and one that is captured."""


class Locked(onnxruntime.OrtValue):
    """A tensor that the host cannot read, or write a part of."""

    open = False

    def numpy(self) -> Array:
        if not self.open:
            raise AssertionError("the host reads memory of the device")
        return super().numpy()

    def __array__(self, *args: Any, **kwargs: Any) -> Array:
        raise AssertionError("the host reads memory of the device")

    __dlpack__ = __array__  # type: ignore[assignment]


class Device(CudaMemory):
    """`CudaMemory` over ordinary memory. uploads, downloads: shapes and types; made: buffers; bound: calls.

    late: how a replay sees what the host wrote after its graph was captured (False: not at all, as on a device).
    """

    def __init__(self, late: bool = False) -> None:
        super().__init__("cpu", "CPUExecutionProvider")
        self.uploads, self.downloads = list[str](), list[str]()
        self.made = self.bound = self.replays = 0
        self.captured = set[tuple[int, int]]()
        self.late = late

    def forget(self) -> None:
        self.uploads, self.downloads, self.made, self.bound, self.replays = [], [], 0, 0, 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        self.made += 1
        buffer = super().empty(shape, dtype)
        buffer.value = Locked(buffer.value._get_c_value())
        return buffer

    def send(self, buffer: DeviceBuffer, array: Array) -> None:
        assert array.dtype == buffer.dtype and array.shape == buffer.shape
        self.uploads.append(said(buffer))
        super().send(buffer, array)

    def fetch(self, buffer: DeviceBuffer) -> Array:
        self.downloads.append(said(buffer))
        buffer.value.open = True
        try:
            return super().fetch(buffer)
        finally:
            buffer.value.open = False

    def run(self, loaded: Loaded, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        found = super().run(loaded, inputs)
        for buffer in found.values():
            assert isinstance(buffer, DeviceBuffer)
            buffer.value = Locked(buffer.value._get_c_value())
        return found

    def bind(
        self, loaded: Loaded, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], graph: int = UNCAPTURED
    ) -> Call:
        self.bound += 1
        call = super().bind(loaded, inputs, outputs, graph)
        if graph == UNCAPTURED:
            return call
        assert (id(loaded), graph) not in self.captured, "a graph is replayed over the buffers it was captured with"
        self.captured.add((id(loaded), graph))
        hosted = [b for b in inputs.values() if isinstance(b, CpuBuffer)]
        return Replayed(self, call, hosted)


class Replayed:
    """A call that is run a few times at first, and later sees what was on the host when it was captured."""

    def __init__(self, device: Device, call: Call, hosted: list[CpuBuffer]) -> None:
        self.device, self.call, self.hosted = device, call, hosted
        self.frozen: list[Array] | None = None

    def run(self) -> None:
        if self.frozen is None:
            self.frozen = [b.array.copy() for b in self.hosted]
            for _ in range(WARM_UPS - 1):
                self.call.run()
        elif not self.device.late:
            self.device.replays += 1
            for buffer, then in zip(self.hosted, self.frozen, strict=True):
                buffer.array[...] = then
        self.call.run()


def said(buffer: DeviceBuffer) -> str:
    return f"{buffer.dtype.name}{list(buffer.shape)}"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Device]:
    """Sessions that are opened from now on lie on such a device; gives the one of the session opened last."""
    made = list[Device]()

    def new() -> Device:
        made.append(Device())
        return made[-1]

    monkeypatch.setitem(sessions.MEMORIES, "cpu", new)
    return lambda: made[-1]
