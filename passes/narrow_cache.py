"""Keys and values remembered in 8 bits: codes of a scale a channel, rounded as they are appended, widened as they are
read.

The scales are parameters like any other; where the weights have none for a slot, it stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..ir.graph import Graph, Node, Value
from ..ir.ops.cache import CacheAppend, CacheRead, cache_append, cache_read
from ..ir.ops.elementwise import Cast, Div, Mul, cast, constant, floor, maximum, minimum
from ..ir.slots import Slot
from ..ir.types import TensorType, f32, i8

MOST, LEAST = 127, -128


def scale_of(slot: str) -> str:
    """The name of the parameter with the scales of a slot, f32 [K,D]."""
    return f"{slot}.scale"


@dataclass(frozen=True)
class Narrow:
    """Codes of keys or values that one node reads: what they were rounded from, and the nodes on the way.

    between: from the read to the reader.
    """

    past: Value
    new: Value
    scale: Value
    append: Node
    read: Node
    between: tuple[Node, ...]


def narrow_cache(graph: Graph, names: Collection[str]) -> int:
    """Slots whose scales are among `names` remember codes i8. Gives how many."""
    slots: list[Slot] = []
    changed = 0
    for slot in graph.slots:
        append = _append(graph.inputs[slot.input]) if scale_of(slot.input) in names else None
        slots.append(slot if append is None else _narrowed(graph, slot, append))
        changed += append is not None
    graph.slots = tuple(slots)
    return changed


def _append(past: Value) -> Node | None:
    """The append of a slot of f32, if it is its only reader and is read as keys or values only."""
    users = past.users
    if past.dtype != f32 or len(users) != 1 or not isinstance(users[0].op, CacheAppend):
        return None
    return users[0] if all(isinstance(n.op, CacheRead) for n in users[0].output.users) else None


def _narrowed(graph: Graph, slot: Slot, append: Node) -> Slot:
    old = graph.inputs[slot.input]
    past = graph.inputs[slot.input] = Value(graph, old.type.with_dtype(i8), slot.input)
    _, heads, _, width = old.shape
    scale = graph.param(scale_of(slot.input), TensorType(f32, (heads, width)))
    with graph.at(append):
        present = cache_append(past, rounded(append.value("new"), scale))
    for read in append.output.users:
        with graph.at(read):
            graph.replace(read.output, widened(cache_read(present), scale))
        graph.erase(read)
    graph.replace(append.output, present)
    graph.erase(append)
    return replace(slot, type=past.type)


def rounded(x: Value, scale: Value) -> Value:
    """x [...,K,D] as codes i8 of scale [K,D]."""
    near = floor(x / scale + 0.5)
    low, high = (constant(value=float(n), dtype=x.dtype) for n in (LEAST, MOST))
    return cast(minimum(maximum(near, low), high), dtype=i8)


def widened(codes: Value, scale: Value) -> Value:
    """The numbers that codes i8 [...,K,D] stand for."""
    return cast(codes, dtype=scale.dtype) * scale


def narrow_of(v: Value, reader: Node) -> Narrow | None:
    """How `v` comes out of a slot of codes, if `reader` alone reads it and all that it is made from."""
    times = v.producer
    if times is None or not isinstance(times.op, Mul) or v.users != [reader]:
        return None
    codes, scale = times.arguments
    wide, read = codes.producer, codes.producer.value("x").producer if codes.producer is not None else None
    if wide is None or read is None or not isinstance(wide.op, Cast) or not isinstance(read.op, CacheRead):
        return None
    append = read.value("cache").producer
    if append is None or not isinstance(append.op, CacheAppend) or append.output.users != [read]:
        return None
    past, rounds = append.arguments
    while rounds.producer is not None and not isinstance(rounds.producer.op, Div):
        rounds = rounds.producer.arguments[0]
    if rounds.producer is None or rounds.producer.value("y") is not scale or past.dtype != i8:
        return None
    return Narrow(past, rounds.producer.value("x"), scale, append, read, (wide, times))
