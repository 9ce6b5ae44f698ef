"""Encodings: how a stored weight holds its numbers in fewer bits, block by block along one axis.

A stored line runs along that axis. It is a row of blocks, and a block is its scale, its minimum or its zero point if
it has one, and its codes. Those of GGUF have the bytes of the formats of the same names, so nothing is rounded again
on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    (-1: the last). zero: code that stands for 0. minimum: each block also stores what code 0 stands for. zeros: each
    block also stores the code that stands for 0, a byte of the type of the codes.
    Codes of 8 bits are signed, others are not. Of fewer bits, byte i of a block holds the codes i, i + block / n, ...
    for the n codes of a byte, the first in the lowest bits.
    """

    layout: str
    bits: int
    block: int
    scale: DType
    axis: int = -1
    zero: int = 0
    minimum: bool = False
    zeros: bool = False

    def __str__(self) -> str:
        known = LAYOUTS[self.layout]
        changed = [f"{k}={getattr(self, k)}" for k in _WRITTEN if getattr(self, k) != getattr(known, k)]
        changed += ["zeros"] if self.zeros else []
        return f"{self.layout}({','.join(changed)})" if changed else self.layout

    @staticmethod
    def parse(text: str) -> Encoding:
        """Read `q4_1`, `int8(axis=0,scale=bf16)` or `int4(block=64,zeros)`. Raises EncodingError."""
        found = re.fullmatch(r"(\w+)(?:\(([\w=,-]+)\))?", text)
        if not found:
            raise EncodingError(f"{text!r} is not an encoding such as q4_1 or int4(block=64)")
        known = LAYOUTS.get(found[1])
        if known is None:
            raise EncodingError(f"no encoding is called {found[1]!r}{did_you_mean(found[1], LAYOUTS)}")
        changes: dict[str, Any] = {}
        options = ("axis", "scale", *(("block", "zeros") if known.is_general else ()))
        for part in found[2].split(",") if found[2] else ():
            k, _, value = part.partition("=")
            if k not in options or k in changes:
                raise EncodingError(f"{text!r} has an option {part!r}, expected {' or '.join(options)}, once each")
            changes[k] = _read_option(text, k, value)
        return replace(known, **changes, **({"zero": 0} if "zeros" in changes else {}))

    @property
    def is_general(self) -> bool:
        """Whether its block length and its zero points are chosen freely, other than those of GGUF."""
        return self.layout in ("int2", "int4", "int8")

    def by_block(self, block: int, *, zeros: bool = False, scale: DType | None = None) -> Encoding:
        """A general encoding with another block length (0: a line), with or without zero points."""
        zero = 0 if zeros else LAYOUTS[self.layout].zero
        return replace(self, block=block, zeros=zeros, zero=zero, scale=scale or self.scale)

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
        if self.block_of(shape[self.axis]) * self.bits % 8:
            what = f"{self.block_of(shape[self.axis])} codes of {self.bits} bits are no whole bytes"
            raise EncodingError(f"{self} does not store {shown}: {what}")

    # -- sizes -------------------------------------------------------------------------------------------------

    @property
    def header(self) -> int:
        """Bytes of a block before its codes."""
        return self.scale.bits // 8 * (1 + self.minimum) + self.zeros

    @property
    def per_byte(self) -> int:
        """Codes of a byte."""
        return 8 // self.bits

    @property
    def levels(self) -> tuple[int, int]:
        """The least and the largest code."""
        return (-128, 127) if self.bits == 8 else (0, (1 << self.bits) - 1)

    @property
    def codes_type(self) -> DType:
        """Type of the codes and of the zero points."""
        return DType.i8 if self.bits == 8 else DType.u8

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
        """The codes [..., blocks, block]: i8, or u8 for fewer than 8 bits."""
        packed = self.blocks(stored)[..., self.header :]
        if self.bits == 8:
            return np.ascontiguousarray(packed).view(np.int8)
        mask = (1 << self.bits) - 1
        return np.concatenate([packed >> shift & mask for shift in range(0, 8, self.bits)], axis=-1)

    def scales(self, stored: Array) -> Array:
        """The scales [..., blocks, 1] as they are stored."""
        return self._field(stored, 0)

    def minimums(self, stored: Array) -> Array:
        """What code 0 stands for in each block, [..., blocks, 1]."""
        return self._field(stored, 1)

    def zero_points(self, stored: Array) -> Array:
        """The code that stands for 0 in each block, [..., blocks, 1], in the type of the codes."""
        raw = self.blocks(stored)[..., self.header - 1 : self.header]
        return np.ascontiguousarray(raw).view(self.codes_type.numpy)

    def _field(self, stored: Array, index: int) -> Array:
        size = self.scale.bits // 8
        raw = self.blocks(stored)[..., index * size : (index + 1) * size]
        return np.ascontiguousarray(raw).view(self.scale.numpy)

    # -- writing -----------------------------------------------------------------------------------------------

    def joined(self, codes: Array, scales: Array, minimums: Array | None = None, zeros: Array | None = None) -> Array:
        """The stored lines of codes [..., blocks, block] with scales, minimums and zero points [..., blocks, 1]."""
        parts = np.split(codes.view(np.uint8), self.per_byte, axis=-1)
        packed = parts[0]
        for i, part in enumerate(parts[1:], 1):
            packed = packed | (part << (i * self.bits))
        fields = [scales] if minimums is None else [scales, minimums]
        heads = [np.ascontiguousarray(f.astype(self.scale.numpy)).view(np.uint8) for f in fields]
        heads += [] if zeros is None else [np.ascontiguousarray(zeros.astype(self.codes_type.numpy)).view(np.uint8)]
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
        middle = sum(self.levels) // 2
        zeros = rng.integers(middle - 1, middle + 3, scales.shape) if self.zeros else None
        return self.joined(codes, scales, -scales * (levels - 1) / 2 if self.minimum else None, zeros)


def _read_option(text: str, name: str, value: str) -> Any:
    """The value of an option in the text of an encoding. Raises EncodingError."""
    if name == "zeros":
        if value:
            raise EncodingError(f"{text!r} gives zeros the value {value!r}, and it takes none")
        return True
    if name == "scale":
        if value not in DType.__members__:
            raise EncodingError(f"scales of type {value!r} are not known{did_you_mean(value, DType.__members__)}")
        return DType(value)
    if not re.fullmatch(r"-?\d{1,9}", value) or (name == "block" and int(value) < 1):
        raise EncodingError(f"{text!r} has {name}={value}, expected a whole number")
    return int(value)


_WRITTEN = ("axis", "block", "scale")
"""What is written behind a name where it is other than the layout's."""

LAYOUTS: Mapping[str, Encoding] = {
    "q4_0": Encoding("q4_0", 4, 32, DType.f16, zero=8),
    "q4_1": Encoding("q4_1", 4, 32, DType.f16, minimum=True),
    "q8_0": Encoding("q8_0", 8, 32, DType.f16),
    "int8": Encoding("int8", 8, 0, DType.f32),
    "int4": Encoding("int4", 4, 0, DType.f32, zero=8),
    "int2": Encoding("int2", 2, 0, DType.f32, zero=2),
}
"""Encodings by name; what is other than here is written behind the name."""
q4_0, q4_1, q8_0, int8, int4, int2 = LAYOUTS.values()
