"""The plan of a quantization: for each weight its encoding and who rounds it, or why it stays wide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...ir.encodings import LAYOUTS, Encoding
from ...ir.errors import ConfigError
from ...ir.graph import Graph
from ...ir.tensors import Tensor
from ...ir.types import DType, f32
from .plan import Choice, Method
from .settings import BLOCKS, Quantization
from .uses import Use, uses_of

LEAST = 256
"""Numbers of a weight below which its scales and its node cost more than its codes save."""


@dataclass(frozen=True)
class Planned:
    """What becomes of the weights. choices: those that are rounded. wide: why each of the others stays as it is."""

    choices: dict[str, Choice]
    wide: dict[str, str]


def choose(
    graph: Graph, weights: Mapping[str, Tensor], asked: Quantization, method: Method, dtype: DType = f32
) -> Planned:
    """The plan of a `filled` quantization for the weights of a plain graph. Nothing is read.

    dtype: of activations, and so of scales. Raises ConfigError where no weight at all can be rounded.
    """
    planned = Planned({}, {})
    for name, use in uses_of(graph).items():
        tensor = weights.get(name)
        found = "has no values" if tensor is None else _encoding(tensor, use, asked, dtype)
        if isinstance(found, str):
            planned.wide[name] = found
        else:
            planned.choices[name] = Choice(found[0], method, found[1])
    kept = any(t.type.encoding is not None for t in weights.values())
    if not planned.choices and not kept:
        details = [f"{name} {why}" for name, why in planned.wide.items()]
        raise ConfigError(f"{graph.name} has no weight that can be stored as {asked.weights}", details=details)
    return planned


def _encoding(tensor: Tensor, use: Use | str, asked: Quantization, dtype: DType) -> tuple[Encoding, str] | str:
    """The encoding of a weight and what is to be said about it, or why it stays as it is."""
    if isinstance(use, str):
        return use
    if tensor.type.encoding is not None and not asked.again:
        return f"is stored as {tensor.type.encoding} already: rounding it again (--again) loses more than it saves"
    if math.prod(tensor.shape) < LEAST:
        return f"is {tensor.type.decoded}, fewer than {LEAST} numbers"
    columns, rows = tensor.shape[use.axis], math.prod(tensor.shape) // max(tensor.shape[use.axis], 1)
    notes = [f"was stored as {tensor.source_format}, and is rounded again"] if tensor.source_format else []
    layout = _layout(use, asked, notes)
    if not layout:
        return "is a table or a head, which was asked to stay wide"
    if layout == asked.weights and asked.dynamic:
        scale = dtype if dtype == DType.f64 else f32
        return replace(LAYOUTS["int8"], scale=scale).along(use.axis, 2), "; ".join(notes)
    block = next((b for b in reversed(BLOCKS) if b <= (asked.block or BLOCKS[1]) and columns % b == 0), None)
    if block is None:
        return f"has {rows} rows of {columns} numbers, no multiple of {' or '.join(map(str, BLOCKS[:2]))}"
    if asked.block and block != asked.block:
        notes.append(f"blocks of {block}: rows of {columns} numbers are no multiple of {asked.block}")
    zeros = not asked.symmetric and (layout != "int8" or layout == asked.weights)
    encoding = LAYOUTS[layout].by_block(block, zeros=zeros, scale=dtype)
    return encoding.along(use.axis, 2), "; ".join(notes)


def _layout(use: Use, asked: Quantization, notes: list[str]) -> str:
    """The form of a weight, "" to leave it wide. What is not the form asked for is noted."""
    if not (use.decides or use.looks_up) or (asked.dynamic and not use.looks_up and not asked.tables):
        return asked.weights
    if asked.tables:
        return "" if asked.tables == "wide" else asked.tables
    if asked.weights not in ("int8", "int8-dynamic"):
        notes.append("decides on the output: 8 bits" if use.decides else "is looked up: 8 bits")
    return "int8"
