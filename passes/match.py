"""Find a traced pattern in a graph: bind placeholders and attributes, and compare with the pattern built again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ..ir.graph import Attributes, Node, Value
from ..ir.ops.shape import Reshape
from ..ir.text import format_attribute
from .trace import Capture, Pattern, Unknown


class Mismatch(Exception):
    """Why a pattern does not fit here; an outcome of matching, not an error. value: what the reason begins with."""

    def __init__(self, reason: str, value: Value | None = None) -> None:
        super().__init__(reason)
        self.value = value


class Match:
    """Bindings of one attempt: pattern values to graph values, captured attributes to numbers."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.values: dict[Value, Value] = {}
        self.attributes: Attributes = {}
        self.nodes: dict[Node, Node] = {}
        self.deepest = 0

    def run(self, root: Node) -> None:
        """Bind everything from the root down. Raises Mismatch with the reason."""
        self.value(self.pattern.outputs[0], root.outputs[self.pattern.outputs[0].index])

    def value(self, pattern: Value, v: Value) -> None:
        if pattern in self.values:
            if self.values[pattern] is not v:
                raise Mismatch(f"{describe(v)} and {describe(self.values[pattern])} should be the same value")
            return
        node = pattern.producer
        if node is None:
            self.values[pattern] = v
            return
        producer = v.producer
        if producer is None or producer.op is not node.op or v.index != pattern.index:
            if isinstance(node.op, Reshape):
                self.value(node.value("x"), v)  # An identity reshape of the body, gone from a canonical graph.
                self.values[pattern] = v
                return
            raise Mismatch(f"expected {node.op.name}, found {describe(v)}")
        self.node(node, producer)
        self.values.update(zip(node.outputs, producer.outputs, strict=True))

    def node(self, pattern: Node, node: Node) -> None:
        for key, expected in pattern.attributes.items():
            self.attribute(node, key, expected, node.attributes[key])
        self.nodes[pattern] = node
        self.deepest = max(self.deepest, len(self.nodes))
        wanted, given = pattern.operands, node.operands
        given = [*given, *[None] * (len(wanted) - len(given))]
        if not node.op.commutative:
            self.operands(node, wanted, given)
            return
        saved = dict(self.values), dict(self.attributes), dict(self.nodes)
        try:
            self.operands(node, wanted, given)
        except Mismatch as first:
            at_first = self.deepest
            self.values, self.attributes, self.nodes = saved
            try:
                self.operands(node, wanted, given[::-1])
            except Mismatch as second:
                raise (second if self.deepest > at_first else first) from None

    def operands(self, node: Node, wanted: Sequence[Value | None], given: Sequence[Value | None]) -> None:
        if len(wanted) != len(given):
            raise Mismatch(f"{node.op.name} at {node.location} has {len(given)} operands, expected {len(wanted)}")
        # Ops before placeholders: a placeholder takes anything, so it must not choose first.
        for p, v in sorted(
            zip(wanted, given, strict=True), key=lambda pair: pair[0] is None or pair[0].producer is None
        ):
            if (p is None) != (v is None):
                raise Mismatch(
                    f"{node.op.name} at {node.location} has {'no' if v is None else 'an extra'} operand here"
                )
            if p is not None and v is not None:
                self.value(p, v)

    def attribute(self, node: Node, key: str, expected: Any, found: Any) -> None:
        if isinstance(expected, tuple) and any(isinstance(e, Unknown) for e in cast("tuple[Any, ...]", expected)):
            return  # Checked when the pattern is rebuilt on the matched values.
        if isinstance(expected, Capture):
            if self.attributes.setdefault(expected.name, found) != found:
                raise Mismatch(f"{key} of {node.op.name} is {found}, but {self.attributes[expected.name]} elsewhere")
        elif not isinstance(expected, Unknown) and not _equal(expected, found):
            shown = f"{key}={format_attribute(found)}"
            raise Mismatch(f"{node.op.name} at {node.location} has {shown}, expected {format_attribute(expected)}")


def _equal(a: Any, b: Any) -> bool:
    """Equal, and not a bool against a number: 1 == True in Python, but not in a graph."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def likeness(pattern: Value, v: Value, seen: set[Node]) -> int:
    """How many ops of the pattern are found below `v` when attributes and shared values do not matter."""
    node, producer = pattern.producer, v.producer
    if node is None or node in seen:
        return 0
    if producer is None or producer.op is not node.op:
        inner = node.value("x") if isinstance(node.op, Reshape) else None
        return likeness(inner, v, seen) if inner is not None else 0
    seen.add(node)
    orders = [producer.operands, producer.operands[::-1]] if node.op.commutative else [producer.operands]
    best, best_seen = 0, seen
    for given in orders:
        tried = set(seen)
        pairs = zip(node.operands, given, strict=False)
        count = sum(likeness(p, x, tried) for p, x in pairs if p is not None and x is not None)
        if count >= best:
            best, best_seen = count, tried
    seen |= best_seen
    return 1 + best


def describe(v: Value) -> str:
    if v.producer is None:
        return f"{'@' if v.is_param else '%'}{v.name}"
    return f"{v.producer.op.name} at {v.producer.location}"


def index_only(match: Match) -> set[Node]:
    """Matched nodes that depend only on integers, bools and constants: masks, positions, rotary tables."""
    cheap: set[Node] = set()
    for node in sorted(match.nodes.values(), key=lambda n: n.order):
        plain = (v.producer in cheap or not v.dtype.is_float or v.is_constant for v in node.arguments)
        if all(plain):
            cheap.add(node)
    return cheap


def compare(scratch: Value, v: Value, bound: dict[Value, Value | None]) -> None:
    if scratch in bound:
        if bound[scratch] is not v:
            raise Mismatch(f"{describe(v)} is not the operand it should be")
        return
    expected, node = scratch.producer, v.producer
    assert expected is not None
    identity = isinstance(expected.op, Reshape) and expected.value("x").type == scratch.type
    if identity and (node is None or node.op is not expected.op):
        compare(expected.value("x"), v, bound)
        return
    if node is None or node.op is not expected.op or v.type != scratch.type:
        raise Mismatch(f"{describe(v)} gives {v.type}, expected {expected.op.name} giving {scratch.type}")
    for key, value in expected.attributes.items():
        if node.attributes[key] != value:
            shown = format_attribute(node.attributes[key]), format_attribute(value)
            raise Mismatch(f"{key} of {node.op.name} at {node.location} is {shown[0]}, expected {shown[1]}")
    _compare_operands(expected, node, bound)


def _compare_operands(expected: Node, node: Node, bound: dict[Value, Value | None]) -> None:
    orders = [node.operands, node.operands[::-1]] if node.op.commutative else [node.operands]
    for i, given in enumerate(orders):
        try:
            for s, v in zip(expected.operands, given, strict=True):
                if s is not None and v is not None:
                    compare(s, v, bound)
            return
        except Mismatch:
            if i == len(orders) - 1:
                raise
