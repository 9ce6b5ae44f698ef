"""Rewrites: a pattern as an ordinary function, a condition, a replacement; the matcher; the near-miss report.

Contract for rule authors: a rewrite is directional, never makes the graph worse, and may assume canonical form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ..ir.errors import MonographError
from ..ir.graph import Attributes, Graph, Location, Node, Value, building
from ..ir.op import OPS, Op
from ..ir.text import format_attribute, names_of
from .trace import Capture, Pattern, Unknown, trace


class Rewrite:
    """`before(*placeholders, *, captured)` builds the pattern; `after`, with the same parameters, its replacement.

    `when` gets every placeholder and captured attribute by name and returns True or the reason why not.
    """

    choices: Attributes = {}
    before: Callable[..., Any]
    after: Callable[..., Any]

    def when(self, **bound: Any) -> bool | str:
        return True

    @property
    def name(self) -> str:
        return type(self).__name__


class Fuse(Rewrite):
    """The body of a composite op => the op: its definition is its own fusion pattern."""

    def __init__(self, op: str, when: Callable[..., bool | str] | None = None) -> None:
        self.op: Op = OPS[op]
        assert self.op.body is not None, f"{op} is a primitive"
        self.before = self.op.body
        self.choices = self.op.choices
        self._when = when

    @property
    def name(self) -> str:
        return f"fuse_{self.op.name}"

    def when(self, **bound: Any) -> bool | str:
        return self._when(**bound) if self._when else True

    def after(self, *operands: Value | None, **attributes: Any) -> Any:
        present = next(v for v in operands if v is not None)
        outputs = present.graph.add(self.op, operands, attributes)
        return outputs[0] if len(outputs) == 1 else outputs


@dataclass(frozen=True)
class NearMiss:
    """A place where most of a pattern was found: how much, and what stood in the way."""

    rewrite: str
    location: Location
    reason: str
    matched: int
    size: int
    nodes: frozenset[Node] = frozenset()
    whole: bool = False
    """The pattern was all there, and a condition on its surroundings failed."""

    @property
    def telling(self) -> bool:
        """Worth showing: enough was found that the user may have meant the op."""
        return (self.whole and self.size > 1) or self.matched >= 4 or 2 * self.matched > self.size > 2

    def __str__(self) -> str:
        return f"{self.rewrite} at {self.location}: {self.reason} ({self.matched} of {self.size} ops matched)"


@dataclass
class Report:
    """What a run of rewrites did: number of uses by rewrite, and the near misses."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])


class Mismatch(Exception):
    """Why a pattern does not fit here; an outcome of matching, not an error."""


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
                raise Mismatch(f"{_describe(v)} and {_describe(self.values[pattern])} should be the same value")
            return
        node = pattern.producer
        if node is None:
            self.values[pattern] = v
            return
        producer = v.producer
        if producer is None or producer.op is not node.op or v.index != pattern.index:
            if node.op.name == "reshape" and node.operands[0] is not None:
                self.value(node.operands[0], v)  # An identity reshape of the body, gone from a canonical graph.
                self.values[pattern] = v
                return
            raise Mismatch(f"expected {node.op.name}, found {_describe(v)}")
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


class Rule:
    """A rewrite with its traced variants, ready to be tried at nodes."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.rewrite = rewrite
        self.patterns = trace(rewrite.before, rewrite.choices)

    def apply(self, graph: Graph, root: Node, pattern: Pattern, taken: dict[Node, str]) -> NearMiss | None:
        """Rewrite at `root`; gives None on success, entering the nodes in `taken`, and the reason otherwise."""
        match, whole = Match(pattern), False
        try:
            match.run(root)
            whole = True
            operands, attributes = self.bound(match)
            self.check_uses(graph, match)
            self.check_rebuild(match, operands, attributes)
            verdict = self.rewrite.when(**operands, **attributes)
            if verdict is not True:
                raise Mismatch(str(verdict) if verdict else "the condition of the rewrite does not hold")
            self.replace(graph, root, match, operands, attributes)
        except Mismatch as e:
            nodes = frozenset(match.nodes.values()) - {root}
            return NearMiss(self.rewrite.name, root.location, str(e), match.deepest, pattern.size, nodes, whole)
        taken.update(dict.fromkeys(match.nodes.values(), self.rewrite.name))
        return None

    def bound(self, match: Match) -> tuple[dict[str, Value | None], Attributes]:
        missing = [n for n, p in match.pattern.placeholders.items() if p is not None and p not in match.values]
        if missing:
            raise Mismatch(f"nothing binds {missing[0]}")
        operands = {n: None if p is None else match.values[p] for n, p in match.pattern.placeholders.items()}
        attributes = {
            k: match.attributes.get(k) if isinstance(v, Capture) else v for k, v in match.pattern.attributes.items()
        }
        return operands, attributes

    def check_uses(self, graph: Graph, match: Match) -> None:
        """Refuse when an inner value is read outside, except index arithmetic, which any number may share."""
        inside = set(match.nodes.values())
        outputs = {match.values[p] for p in match.pattern.outputs}
        cheap = _index_only(match)
        for node in inside:
            for v in node.outputs:
                outside = graph.is_output(v) or any(user not in inside for user in v.users)
                if outside and v not in outputs and node not in cheap:
                    raise Mismatch(f"{names_of(graph)[v]} ({node.op.name}) is also used outside the pattern")

    def check_rebuild(self, match: Match, operands: dict[str, Value | None], attributes: Attributes) -> None:
        """Build both sides on the matched types, beside the graph, and compare.

        So no attribute is ever a wildcard, and a replacement that cannot be built leaves the graph as it was.
        """
        scratch = Graph("scratch")
        inputs = {n: None if v is None else scratch.input(n, v.type) for n, v in operands.items()}
        try:
            with building(scratch):
                outputs = _tuple(self.rewrite.before(*inputs.values(), **attributes))
                replaced = _tuple(self.rewrite.after(*inputs.values(), **attributes))
        except MonographError as e:
            raise Mismatch(e.what) from None
        bound = {s: operands[n] for n, s in inputs.items() if s is not None}
        for s, p in zip(outputs, match.pattern.outputs, strict=True):
            _compare(s, match.values[p], bound)
        for old, new in zip(outputs, replaced, strict=True):
            if old.type != new.type:
                raise MonographError(f"{self.rewrite.name} changes {old.type} to {new.type}")

    def replace(
        self, graph: Graph, root: Node, match: Match, operands: dict[str, Value | None], attributes: Attributes
    ) -> None:
        old = [match.values[p] for p in match.pattern.outputs]
        inside = set(match.nodes.values())
        readers = [user for v in old for user in v.users if user not in inside]
        at = min([root, *readers], key=lambda n: n.order)
        late = [v for v in operands.values() if v is not None and v.producer and v.producer.order >= at.order]
        if late:
            raise Mismatch(f"{_describe(late[0])} is computed after a reader of the result")
        with graph.at(at, root.location):
            new = _tuple(self.rewrite.after(*operands.values(), **attributes))
        for before, after in zip(old, new, strict=True):
            graph.replace(before, after)
        for node in sorted(inside, key=lambda n: -n.order):
            if not any(v.uses or graph.is_output(v) for v in node.outputs):
                graph.erase(node)


def _equal(a: Any, b: Any) -> bool:
    """Equal, and not a bool against a number: 1 == True in Python, but not in a graph."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _tuple(outputs: Any) -> tuple[Value, ...]:
    return cast("tuple[Value, ...]", outputs) if isinstance(outputs, tuple) else (outputs,)


def _describe(v: Value) -> str:
    if v.producer is None:
        return f"{'@' if v.is_param else '%'}{v.name}"
    return f"{v.producer.op.name} at {v.producer.location}"


def _index_only(match: Match) -> set[Node]:
    """Matched nodes that depend only on integers, bools and constants: masks, positions, rotary tables."""
    cheap: set[Node] = set()
    for node in sorted(match.nodes.values(), key=lambda n: n.order):
        plain = (v.producer in cheap or not v.dtype.is_float or _is_constant(v) for v in node.arguments)
        if all(plain):
            cheap.add(node)
    return cheap


def _is_constant(v: Value) -> bool:
    return v.producer is not None and v.producer.op.name == "constant"


def _compare(scratch: Value, v: Value, bound: dict[Value, Value | None]) -> None:
    if scratch in bound:
        if bound[scratch] is not v:
            raise Mismatch(f"{_describe(v)} is not the operand it should be")
        return
    expected, node = scratch.producer, v.producer
    assert expected is not None
    identity = expected.op.name == "reshape" and expected.operands[0] and expected.operands[0].type == scratch.type
    if identity and expected.operands[0] and (node is None or node.op is not expected.op):
        _compare(expected.operands[0], v, bound)
        return
    if node is None or node.op is not expected.op or v.type != scratch.type:
        raise Mismatch(f"{_describe(v)} gives {v.type}, expected {expected.op.name} giving {scratch.type}")
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
                    _compare(s, v, bound)
            return
        except Mismatch:
            if i == len(orders) - 1:
                raise


def apply_rewrites(graph: Graph, rewrites: Iterable[Rewrite | Rule]) -> Report:
    """Try every rewrite at every node once; linear in the graph. Gives counts and near misses.

    Nodes are visited from last to first, so that a pattern is met at its root before its parts are.
    """
    rules = [r if isinstance(r, Rule) else Rule(r) for r in rewrites]
    by_root: dict[Op, list[tuple[Rule, Pattern]]] = {}
    for rule in rules:
        for pattern in rule.patterns:
            by_root.setdefault(pattern.root.op, []).append((rule, pattern))
    report = Report({rule.rewrite.name: 0 for rule in rules})
    misses: dict[Node, list[NearMiss]] = {}
    taken: dict[Node, str] = {}
    for node in reversed(list(graph)):
        if node.order < 0:
            continue
        for rule, pattern in by_root.get(node.op, ()):
            miss = rule.apply(graph, node, pattern, taken)
            if miss is None:
                report.counts[rule.rewrite.name] += 1
                misses.pop(node, None)
                break
            misses.setdefault(node, []).append(miss)
    left = sorted((n for n in misses if n.order >= 0), key=lambda n: n.order)
    report.misses = [m for node in left for m in _closest(misses[node]) if not _taken(m, taken)]
    return report


def _taken(miss: NearMiss, taken: dict[Node, str]) -> bool:
    """A part of the place was rewritten by the same rule after all: a smaller variant of it fitted."""
    return any(node.order < 0 and taken.get(node) == miss.rewrite for node in miss.nodes)


def _closest(found: list[NearMiss]) -> list[NearMiss]:
    """Per rewrite, the variant that got furthest, if that is far enough to be told."""
    best: dict[str, NearMiss] = {}
    for miss in found:
        known = best.get(miss.rewrite)
        if known is None or (miss.whole, miss.matched, -miss.size) > (known.whole, known.matched, -known.size):
            best[miss.rewrite] = miss
    return [m for m in best.values() if m.telling]
