"""Encodings: how a stored weight holds its numbers in fewer bits, block by block along one axis.

A stored line runs along that axis. It is a row of blocks, and a block is its scale, its minimum if it has one, and
its codes. These are the bytes of the GGUF formats of the same names, so nothing is rounded again on the way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .dtypes import DType
from .errors import MonographError, did_you_mean

Array = np.ndarray[Any, Any]


class EncodingError(MonographError):
    """An encoding that is not known, or that does not fit the tensor it is said to store."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Numbers as codes of a few bits and a scale a block: scale * (code - zero), or scale * code + minimum.

    layout: its name in text. block: codes that share a scale (0: all codes of a line). axis: along which blocks lie
    (-1: the last). zero: code that stands for 0. minimum: each block also stores what code 0 stands for.
    Codes of 8 bits are signed. Of 4-bit codes, byte i of a block holds code i (low half) and code i + block / 2.
    """

    layout: str
    bits: int
    block: int
    scale: DType
    axis: int = -1
    zero: int = 0
    minimum: bool = False

    def __str__(self) -> str:
        known = LAYOUTS[self.layout]
        given = {"axis": self.axis, "scale": self.scale}
        changed = [f"{k}={v}" for k, v in given.items() if v != getattr(known, k)]
        return f"{self.layout}({','.join(changed)})" if changed else self.layout

    @staticmethod
    def parse(text: str) -> Encoding:
        """Read `q4_1` or `int8(axis=0,scale=bf16)`. Raises EncodingError."""
        found = re.fullmatch(r"(\w+)(?:\((?:axis=(-?\d+))?,?(?:scale=(\w+))?\))?", text)
        if not found:
            raise EncodingError(f"{text!r} is not an encoding such as q4_1 or int8(axis=0)")
        known = LAYOUTS.get(found[1])
        if known is None:
            raise EncodingError(f"no encoding is called {found[1]!r}{did_you_mean(found[1], LAYOUTS)}")
        if found[3] is not None and found[3] not in DType.__members__:
            raise EncodingError(f"scales of type {found[3]!r} are not known{did_you_mean(found[3], DType.__members__)}")
        axis = known.axis if found[2] is None else int(found[2])
        return replace(known, axis=axis, scale=known.scale if found[3] is None else DType(found[3]))

    def along(self, axis: int, rank: int) -> Encoding:
        """This encoding with its blocks along `axis` of a tensor of `rank` axes."""
        return replace(self, axis=-1 if axis in (-1, rank - 1) else axis)

    def check(self, dtype: DType, shape: Sequence[Any]) -> None:
        """Raises EncodingError unless a tensor of this type can be stored so."""
        shown = f"{dtype}[{','.join(map(str, shape))}]"
        if not dtype.is_float or not self.scale.is_float:
            raise EncodingError(f"{self.layout} stores floats with float scales, not {shown} with {self.scale} scales")
        if not shape or not (self.axis == -1 or 0 <= self.axis < len(shape) - 1):
            raise EncodingError(f"{self.layout} has its blocks along axis {self.axis}, which {shown} does not have")
        if not all(isinstance(d, int) for d in shape):
            raise EncodingError(f"{self.layout} stores tensors of fixed size, not {shown}")
        if self.block and shape[self.axis] % self.block:
            what = f"{self.layout} has blocks of {self.block}, but axis {self.axis} of {shown}"
            raise EncodingError(f"{what} is {shape[self.axis]}, not a multiple")

    # -- sizes -------------------------------------------------------------------------------------------------

    @property
    def header(self) -> int:
        """Bytes of a block before its codes."""
        return self.scale.bits // 8 * (1 + self.minimum)

    def block_of(self, length: int) -> int:
        """Codes that share a scale on a line of `length` codes."""
        return self.block or length

    def stored_shape(self, shape: Sequence[Any]) -> tuple[int, ...]:
        """Shape of the stored bytes: the lines, and the bytes of a line."""
        length = shape[self.axis]
        block = self.block_of(length)
        blocks = length // block if block else 0
        lines = [d for i, d in enumerate(shape) if i != self.axis % len(shape)]
        return (*lines, blocks * (self.header + block * self.bits // 8))

    def length_of(self, line: int) -> int:
        """Codes on a line of this many bytes. Raises EncodingError for a length that no line has."""
        if not self.block:
            return (line - self.header) * 8 // self.bits
        size = self.header + self.block * self.bits // 8
        if line % size:
            raise EncodingError(f"{self.layout} has blocks of {size} bytes, but a line of {line} bytes was given")
        return line // size * self.block

    # -- reading -----------------------------------------------------------------------------------------------

    def blocks(self, stored: Array) -> Array:
        """Stored lines u8 [..., bytes] as [..., blocks, bytes of a block]."""
        length = self.length_of(stored.shape[-1])
        size = self.header + self.block_of(length) * self.bits // 8
        return stored.reshape(*stored.shape[:-1], -1, size)

    def codes(self, stored: Array) -> Array:
        """The codes [..., blocks, block]: i8, or u8 for 4 bits."""
        packed = self.blocks(stored)[..., self.header :]
        if self.bits == 8:
            return np.ascontiguousarray(packed).view(np.int8)
        return np.concatenate([packed & 15, packed >> 4], axis=-1)

    def scales(self, stored: Array) -> Array:
        """The scales [..., blocks, 1] as they are stored."""
        return self._field(stored, 0)

    def minimums(self, stored: Array) -> Array:
        """What code 0 stands for in each block, [..., blocks, 1]."""
        return self._field(stored, 1)

    def _field(self, stored: Array, index: int) -> Array:
        size = self.scale.bits // 8
        raw = self.blocks(stored)[..., index * size : (index + 1) * size]
        return np.ascontiguousarray(raw).view(self.scale.numpy)

    # -- writing -----------------------------------------------------------------------------------------------

    def joined(self, codes: Array, scales: Array, minimums: Array | None = None) -> Array:
        """The stored lines of codes [..., blocks, block] with scales and minimums [..., blocks, 1]."""
        low, high = np.split(codes.view(np.uint8), 2, axis=-1) if self.bits == 4 else (codes, None)
        packed = low.view(np.uint8) if high is None else low | (high << 4)
        fields = [scales] if minimums is None else [scales, minimums]
        heads = [np.ascontiguousarray(f.astype(self.scale.numpy)).view(np.uint8) for f in fields]
        blocks = np.concatenate([*heads, packed], axis=-1)
        return blocks.reshape(*blocks.shape[:-2], -1)

    def random(self, rng: np.random.Generator, shape: Sequence[int], std: float) -> Array:
        """Stored lines of a tensor with random codes whose numbers have about this standard deviation."""
        *lines, width = self.stored_shape(shape)
        length = self.length_of(width)
        block = self.block_of(length)
        levels = 1 << self.bits
        codes = rng.integers(0, levels, (*lines, length // block, block)).astype(np.uint8)
        scales = (0.5 + rng.random((*lines, length // block, 1))) * std * 12**0.5 / levels
        codes = codes.view(np.int8) if self.bits == 8 else codes
        return self.joined(codes, scales, -scales * (levels - 1) / 2 if self.minimum else None)


LAYOUTS = {
    "q4_0": Encoding("q4_0", 4, 32, DType.f16, zero=8),
    "q4_1": Encoding("q4_1", 4, 32, DType.f16, minimum=True),
    "q8_0": Encoding("q8_0", 8, 32, DType.f16),
    "int8": Encoding("int8", 8, 0, DType.f32),
}
"""Encodings by name; an axis or a type of scales other than here is written behind the name."""
q4_0, q4_1, q8_0, int8 = LAYOUTS.values()
