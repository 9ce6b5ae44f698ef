"""What a session needs of the memory of its provider. One file for each provider implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from .runtime import UNCAPTURED, Loaded

Array = np.ndarray[Any, Any]


class Buffer(Protocol):
    """An array in the memory of a provider."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class Call(Protocol):
    """A graph bound to buffers: every run reads and writes them where they lie."""

    def run(self) -> None:
        """Raises RuntimeInputError with what the runtime says."""
        ...


class Memory(Protocol):
    """Where buffers lie, and everything that is done to them besides running graphs.

    apart: what leaves it or comes to it is copied. captures: calls may be captured and replayed.
    """

    apart: bool
    captures: bool

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, host: bool = False) -> Buffer:
        """Zeros; memory that nobody writes to need not be taken. host: for what a kernel reads before it starts."""
        ...

    def upload(self, array: Array) -> Buffer:
        """A buffer with the content of an array; it may be the array's own memory."""
        ...

    def download(self, buffer: Buffer) -> Array:
        """The content of a buffer; it may be the buffer's own memory, which the next run writes over."""
        ...

    def write(self, buffer: Buffer, array: Array) -> None:
        """Replace the whole content; the array is broadcast to the buffer's shape."""
        ...

    def row(self, buffer: Buffer, index: int, count: int = 1) -> Buffer:
        """A view of `count` rows from `index` on, [count,...]."""
        ...

    def reshaped(self, buffer: Buffer, shape: tuple[int, ...]) -> Buffer:
        """The same memory in another shape."""
        ...

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Replace the whole content by that of a buffer of the same shape."""
        ...

    def shift(self, source: Buffer, start: int, target: Buffer, to: int, length: int, *, row: int, axis: int) -> None:
        """Copy `length` places along an axis of one row, from `start` to `to`; within one buffer they may overlap."""
        ...

    def bind(
        self, loaded: Loaded, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], graph: int = UNCAPTURED
    ) -> Call:
        """A call over these buffers, for as long as they live. graph: the captured graph that its runs are."""
        ...

    def run(self, loaded: Loaded, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run once; every output by name, in buffers of its own. Raises RuntimeInputError."""
        ...

    def largest(self, buffer: Buffer, k: int) -> tuple[Array, Array] | None:
        """(values, indices i64) [R,k] of the k largest of each row [R,V], largest first; None where the whole buffer
        is as near as they are."""
        ...
