"""One thing changed in a graph such that it still types: an attribute, an operand, what a slot is given."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from monograph.ir.errors import MonographError
from monograph.ir.graph import Graph, Node


@dataclass
class Count:
    """How many mutants each check caught, and those that none did, by kind; seconds of the work and of the check."""

    caught: Counter[str] = field(default_factory=Counter[str])
    slipped: Counter[str] = field(default_factory=Counter[str])
    equal: Counter[str] = field(default_factory=Counter[str])
    total: int = 0
    work: float = 0.0
    check: float = 0.0


def seen(check: Callable[[], object]) -> bool:
    """Whether a check finds something, or cannot run what it is given."""
    try:
        return bool(check())
    except (MonographError, ArithmeticError, LookupError, TypeError, ValueError):
        return True


def changed(value: Any, rng: random.Random) -> Any:
    """Another value of an attribute of the same kind; the same where there is none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1))
    if isinstance(value, float):
        return value * rng.choice((0.0, 0.5, 0.99, 1.01, 2.0)) if value else 0.01
    if isinstance(value, tuple) and len(value) > 1:
        order = list(value)
        i, j = rng.sample(range(len(order)), 2)
        order[i], order[j] = order[j], order[i]
        return tuple(order)
    return value


def attribute(graph: Graph, node: Node, rng: random.Random) -> str:
    """Change one attribute."""
    if not node.attributes:
        return ""
    name = rng.choice(sorted(node.attributes))
    new = changed(node.attributes[name], rng)
    if new == node.attributes[name] and type(new) is type(node.attributes[name]):
        return ""
    done = put(graph, node, list(node.operands), {**node.attributes, name: new})
    return f"{node.op.name}.{name}" if done else ""


def operand(graph: Graph, node: Node, rng: random.Random) -> str:
    """Swap two operands of one type, or read another value of that type."""
    given = [i for i, v in enumerate(node.operands) if v is not None]
    if not given:
        return ""
    i, operands = rng.choice(given), list(node.operands)
    old = operands[i]
    assert old is not None
    earlier = [v for n in graph if n.order < node.order for v in n.outputs if v.type == old.type and v is not old]
    stored = [v for v in graph.params.values() if v.type == old.type and v is not old]
    swaps = [j for j in given if operands[j] is not old and getattr(operands[j], "type", None) == old.type]
    if swaps and rng.random() < 0.5:
        j = rng.choice(swaps)
        operands[i], operands[j] = operands[j], old
    elif earlier or stored:
        operands[i] = rng.choice([*earlier, *stored])
    else:
        return ""
    return f"{node.op.name} operand" if put(graph, node, operands, dict(node.attributes)) else ""


def slot(graph: Graph, node: Node, rng: random.Random) -> str:
    """What one slot is given goes to another."""
    names = [s.output for s in graph.slots if s.output in graph.outputs]
    pairs = [(a, b) for a in names for b in names if a < b and graph.outputs[a].type == graph.outputs[b].type]
    if not pairs:
        return ""
    a, b = rng.choice(pairs)
    graph.outputs[a], graph.outputs[b] = graph.outputs[b], graph.outputs[a]
    return "slot written"


def put(graph: Graph, node: Node, operands: list[Any], attributes: Mapping[str, Any]) -> bool:
    """Another node in the place of one, if it gives the same types."""
    try:
        with graph.at(node):
            made = graph.add(node.op, operands, dict(attributes))
    except (MonographError, ArithmeticError, LookupError, TypeError, ValueError):
        return False
    alike = made[0].producer is not None and made[0].producer.attributes == node.attributes
    if [v.type for v in made] != [v.type for v in node.outputs] or (alike and operands == list(node.operands)):
        assert made[0].producer is not None
        graph.erase(made[0].producer)
        return False
    for old, new in zip(node.outputs, made, strict=True):
        graph.replace(old, new)
    graph.erase(node)
    return True


MUTATIONS: tuple[Callable[[Graph, Node, random.Random], str], ...] = (attribute, attribute, operand, slot)


def mutate(graph: Graph, rng: random.Random) -> str:
    """Change one thing such that the graph still types; gives its kind."""
    for _ in range(200):
        kind = rng.choice(MUTATIONS)(graph, rng.choice(list(graph)), rng)
        if kind:
            return kind
    raise AssertionError("nothing can be changed")
