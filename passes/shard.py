"""Tensor parallelism from the graph: which layers are cut over ranks is read off what happens to their outputs.

A linear layer can give each rank some of its output channels (column-parallel) if what follows treats channels apart,
per head or element by element, until linear layers take them in again (row-parallel), whose sum over the ranks is
whole. `plan` grows such regions from every linear layer; whatever needs all channels at once stops one, and its layers
stay whole. No layer is known by name. (Shoeybi et al. 2019, Megatron-LM, derived instead of written down.)
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.encoded import Encoded
from ..ir.errors import ConfigError, MonographError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.attention import Attention
from ..ir.ops.linear import Linear, is_row_parallel
from ..ir.ops.position import Rope
from ..ir.ops.shape import Slice
from ..ir.shard_rules import Cut, Indivisible, Stop
from ..ir.tensors import Array, Mapped, Tensor, sizes
from ..ir.types import DimLike, TensorType, exact_div
from .decompose import decompose


@dataclass(frozen=True)
class Split:
    """How a parameter is shared: cut along `axis` (from 0), each of `sections` apart. kind: column, row or other."""

    path: str
    type: TensorType
    axis: int
    sections: tuple[int, ...]
    kind: str
    why: str

    def pieces(self, rank: int, size: int) -> list[tuple[int, int]]:
        """(start, length) along the axis of what rank `rank` of `size` holds, one for each section."""
        found: list[tuple[int, int]] = []
        start = 0
        for section in self.sections:
            part = section // size
            found.append((start + rank * part, part))
            start += section
        return found

    def take(self, x: Array, rank: int, size: int) -> Array:
        """The part of the whole array that a rank holds."""
        parts = [x[(slice(None),) * self.axis + (slice(a, a + n),)] for a, n in self.pieces(rank, size)]
        return np.concatenate(parts, self.axis) if len(parts) > 1 else np.ascontiguousarray(parts[0])

    def join(self, parts: Sequence[Array]) -> Array:
        """The whole array from the parts of all ranks, in order."""
        size, whole = len(parts), np.empty(sizes(self.type), parts[0].dtype)
        for rank, part in enumerate(parts):
            at = 0
            for start, length in self.pieces(rank, size):
                there, here = ((slice(None),) * self.axis + (slice(i, i + length),) for i in (start, at))
                whole[there] = part[here]
                at += length
        return whole


@dataclass(frozen=True)
class Plan:
    """splits: parameters that are cut, by path. left: linear layers that stay whole, and why. cuts: of all values."""

    graph: Graph
    size: int
    splits: Mapping[str, Split]
    left: Mapping[str, str]
    cuts: Mapping[Value, Cut] = field(repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """For a table: every parameter that is cut, and every linear layer that is not."""
        cut = [
            {"parameter": s.path, "shape": str(s.type), "cut": s.kind, "axis": s.axis, "sections": len(s.sections),
             "why": s.why}
            for s in self.splits.values()
        ]  # fmt: skip
        return cut + [
            {"parameter": k, "shape": str(self.graph.params[k].type), "cut": "whole", "axis": None, "sections": None,
             "why": why}
            for k, why in self.left.items()
        ]  # fmt: skip

    def take(self, weights: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
        """What rank `rank` holds of whole weights, read when asked for."""
        return {k: self._part(k, t, rank) for k, t in weights.items()}

    def _part(self, path: str, tensor: Tensor, rank: int) -> Tensor:
        split = self.splits.get(path)
        if split is None:
            return tensor
        cut = Cut(split.axis - split.type.rank, split.sections)
        if isinstance(tensor, Encoded):
            return tensor.parts(split.axis, split.pieces(rank, self.size))
        return Mapped(tensor, cut.local(tensor.type, self.size), lambda x: split.take(x, rank, self.size))


def plan(graph: Graph, size: int) -> Plan:
    """How `size` ranks share the layers of a plain graph.

    Raises ConfigError if a layer that could be shared has a number of heads or channels that `size` does not divide,
    and if no layer can be shared, naming what stops each.
    """
    ready = graph.copy()
    decompose(ready, keep=lambda node: node.op.has_shard_rule)
    cuts: dict[Value, Cut] = {}
    splits: dict[str, Split] = {}
    left: dict[str, str] = {}
    for node in ready:
        if not isinstance(node.op, Linear) or any(v in cuts for v in [*node.arguments, node.output]):
            continue
        try:
            found = _grow(ready, node, cuts)
        except Indivisible as e:
            raise ConfigError(f"{e} cannot be shared by {size} ranks", place=ready.name) from None
        except Stop as e:
            left[_weight(node)] = str(e)
            continue
        for v, cut in found.items():
            _check_equal(v, cut, size, ready.name)
        cuts |= found
        splits |= _splits(found)
    if not splits:
        what = f"no layer of {graph.name} can be shared by {size} ranks"
        raise ConfigError(what, details=[f"{k}: {why}" for k, why in left.items()])
    left = {k: why for k, why in left.items() if k not in splits}
    return Plan(ready, size, {k: splits[k] for k in ready.params if k in splits}, left, cuts)


def _grow(graph: Graph, seed: Node, known: Mapping[Value, Cut]) -> dict[Value, Cut]:
    """The region around a column-parallel `seed`. Raises Stop with what does not let it close."""
    found: dict[Value, Cut] = {}
    both = ChainMap(found, dict(known))
    waiting = {seed.output: Cut(-1, _sections(seed.output))}
    while waiting:
        v, cut = waiting.popitem()
        if v in both:
            if both[v] != cut:
                raise Stop(f"{_shown(v)} would be cut in two ways")
            continue
        if graph.is_output(v) or (v.producer is None and not v.is_param):
            raise Stop(f"{_shown(v)} is needed whole")
        found[v] = cut
        for node in [*v.users, *([v.producer] if v.producer else [])]:
            for other, needed in node.op.shard(node, both).items():
                if other not in both or both[other] != needed:
                    waiting[other] = needed
    return found


def _sections(v: Value) -> tuple[DimLike, ...]:
    """The parts of the last axis that readers take apart from each other: of a packed projection."""
    slices = [n for n in v.users if isinstance(n.op, Slice) and n.attributes["axis"] == -1]
    if not slices or len(slices) != len(v.users):
        return (v.shape[-1],)
    parts = sorted({(n.attributes["start"], n.attributes["length"]) for n in slices})
    at: DimLike = 0
    for start, length in parts:
        if start != at:
            return (v.shape[-1],)
        at = at + length
    return tuple(length for _, length in parts) if at == v.shape[-1] else (v.shape[-1],)


def _check_equal(v: Value, cut: Cut, size: int, name: str) -> None:
    for section in cut.sections:
        try:
            exact_div(section, size)
        except MonographError:
            heads = [n for n in v.users if isinstance(n.op, (Attention, Rope))] and cut.axis == -2
            what = f"{section} {'heads' if heads else 'channels'} cannot be shared equally by {size} ranks"
            raise ConfigError(what, place=name, details=[f"axis {cut.axis} of {_shown(v)}"]) from None


def _splits(region: Mapping[Value, Cut]) -> dict[str, Split]:
    closing = [n for v in region for n in v.users if is_row_parallel(n, region)]
    per = "per head" if any(isinstance(n.op, Attention) for v in region for n in v.users) else "element by element"
    until = f"{per}, up to {', '.join(dict.fromkeys(map(_weight, closing)))}"
    found: dict[str, Split] = {}
    for v, cut in region.items():
        if v.is_param:
            row = any(is_row_parallel(n, region) for n in v.users)
            kind = "row" if row else "column" if any(isinstance(n.op, Linear) for n in v.users) else "other"
            sections = tuple(s for s in cut.sections if isinstance(s, int))
            why = "takes cut channels in, summed over ranks" if row else until
            found[v.name] = Split(v.name, v.type, cut.axis % v.rank, sections, kind, why)
    return found


def _shown(v: Value) -> str:
    return f"{v.type} from {v.producer}" if v.producer else repr(v)


def _weight(node: Node) -> str:
    w = node.value("w")
    return w.name if w.is_param else str(node)
