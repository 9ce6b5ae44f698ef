"""Rewrites: a pattern as an ordinary function, a condition, a replacement; and the near-miss report.

Contract for rule authors: a rewrite is directional, never makes the graph worse, and may assume canonical form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ..ir.errors import MonographError
from ..ir.graph import Attributes, Graph, Location, Node, Value, building
from ..ir.op import Op, OpFunction
from ..ir.text import names_of
from .match import Match, Mismatch, compare, describe, index_only, likeness
from .trace import Capture, Pattern, trace


class Rewrite:
    """`before(*placeholders, *, captured)` builds the pattern; `after`, with the same parameters, its replacement.

    `when` gets every placeholder and captured attribute by name and returns True or the reason why not.
    """

    choices: Attributes = {}
    before: Callable[..., Any]
    after: Callable[..., Any]

    def when(self, *_: Any, **bound: Any) -> bool | str:
        return True

    @property
    def name(self) -> str:
        return type(self).__name__


class Fuse(Rewrite):
    """The body of a composite op => the op: its definition is its own fusion pattern."""

    def __init__(self, op: OpFunction[..., Any], when: Callable[..., bool | str] | None = None) -> None:
        self.op = op.op
        assert self.op.body is not None, f"{op} is a primitive"
        self.before = self.op.body
        self.choices = self.op.choices
        self._when = when

    @property
    def name(self) -> str:
        return f"fuse_{self.op.name}"

    def when(self, *_: Any, **bound: Any) -> bool | str:
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
    depth: int = 0
    """Ops that matched before the reason was met."""
    whole: bool = False
    """The pattern was all there, and a condition on its surroundings failed."""
    value: Value | None = None
    """What the reason begins with; `apply_rewrites` gives it its name in the graph that is left."""

    @property
    def telling(self) -> bool:
        """Worth showing: enough was found that the user may have meant the op."""
        return (self.whole and self.size > 1) or self.matched >= 6 or 2 * self.matched > self.size > 2

    def __str__(self) -> str:
        return f"{self.rewrite} at {self.location}: {self.reason} ({self.matched} of {self.size} ops matched)"


@dataclass
class Report:
    """What a run of rewrites did: number of uses by rewrite, and the near misses."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])


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
            matched = match.deepest
            if not whole and matched > 1:
                matched = max(matched, likeness(pattern.outputs[0], root.outputs[pattern.outputs[0].index], set()))
            nodes = frozenset(match.nodes.values()) - {root}
            place, size = root.location, pattern.size
            return NearMiss(self.rewrite.name, place, str(e), matched, size, nodes, match.deepest, whole, e.value)
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
        cheap = index_only(match)
        for node in inside:
            for v in node.outputs:
                outside = graph.is_output(v) or any(user not in inside for user in v.users)
                if outside and v not in outputs and node not in cheap:
                    raise Mismatch(f"({node.op.name}) is also used outside the pattern", v)

    def check_rebuild(self, match: Match, operands: dict[str, Value | None], attributes: Attributes) -> None:
        """Build both sides on the matched types, beside the graph, and compare.

        So no attribute is ever a wildcard, and a replacement that cannot be built leaves the graph as it was.
        """
        scratch = Graph("scratch")
        inputs = {n: None if v is None else scratch.input(n, v.type) for n, v in operands.items()}
        try:
            with building(scratch):
                # The replacement first: an op's shape rule refuses what its body could not even be written for.
                replaced = _tuple(self.rewrite.after(*inputs.values(), **attributes))
                outputs = _tuple(self.rewrite.before(*inputs.values(), **attributes))
        except MonographError as e:
            raise Mismatch(e.what) from None
        bound = {s: operands[n] for n, s in inputs.items() if s is not None}
        for s, p in zip(outputs, match.pattern.outputs, strict=True):
            compare(s, match.values[p], bound)
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
            raise Mismatch(f"{describe(late[0])} is computed after a reader of the result")
        with graph.at(at, root.location):
            new = _tuple(self.rewrite.after(*operands.values(), **attributes))
        for before, after in zip(old, new, strict=True):
            graph.replace(before, after)
        for node in sorted(inside, key=lambda n: -n.order):
            if not any(v.uses or graph.is_output(v) for v in node.outputs):
                graph.erase(node)


def _tuple(outputs: Any) -> tuple[Value, ...]:
    return cast("tuple[Value, ...]", outputs) if isinstance(outputs, tuple) else (outputs,)


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
    report.misses = _named(graph, [m for node in left for m in _closest(misses[node]) if not _taken(m, taken)])
    return report


def _named(graph: Graph, misses: list[NearMiss]) -> list[NearMiss]:
    names = names_of(graph) if any(m.value is not None for m in misses) else {}
    return [m if m.value is None else replace(m, reason=f"{names.get(m.value, 'a value')} {m.reason}") for m in misses]


def _taken(miss: NearMiss, taken: dict[Node, str]) -> bool:
    """A part of the place was rewritten by the same rule after all: a smaller variant of it fitted."""
    return any(node.order < 0 and taken.get(node) == miss.rewrite for node in miss.nodes)


def _closest(found: list[NearMiss]) -> list[NearMiss]:
    """Per rewrite, the variant that got furthest; if one pattern was all there, the others say nothing more."""
    best: dict[str, NearMiss] = {}
    for miss in found:
        known = best.get(miss.rewrite)
        if known is None or _progress(miss) > _progress(known):
            best[miss.rewrite] = miss
    telling = [m for m in best.values() if m.telling]
    return [m for m in telling if m.whole] or telling


def _progress(miss: NearMiss) -> tuple[bool, int, int, int]:
    return miss.whole, miss.matched, miss.depth, -miss.size
