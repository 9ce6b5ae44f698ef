"""What raising found, by layer, and for every softmax that is left over its first obstacle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...ir.graph import Location, Node


@dataclass(frozen=True)
class Raised:
    """One composite that was put in the place of primitives."""

    op: str
    location: Location
    details: str = ""

    def __str__(self) -> str:
        return f"{self.op} at {self.location}{f' ({self.details})' if self.details else ''}"


@dataclass(frozen=True)
class Left:
    """A place that was not raised: the node at which the match ended, and why."""

    what: str
    location: Location
    node: str
    reason: str

    @classmethod
    def at(cls, what: str, root: Node, node: Node | None, reason: str) -> Left:
        place = node or root
        return cls(what, root.location, f"{place.op.name} at {place.location}", reason)

    def __str__(self) -> str:
        return f"{self.what} at {self.location}: {self.reason} ({self.node})"


@dataclass
class RaisingReport:
    """raised: what was. left: every softmax that was not, with its first obstacle. undone: what changed a number.

    places: of the values that were replaced after both were computed, as `raise_graph` takes them. read: parameters
    whose numbers decided something.
    """

    raised: list[Raised] = field(default_factory=list[Raised])
    left: list[Left] = field(default_factory=list[Left])
    undone: list[Left] = field(default_factory=list[Left])
    places: list[str] = field(default_factory=list[str])
    read: set[str] = field(default_factory=set[str])

    @property
    def counts(self) -> dict[str, int]:
        """Composites by op, most frequent first."""
        total: dict[str, int] = {}
        for found in self.raised:
            total[found.op] = total.get(found.op, 0) + 1
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    def by_layer(self) -> dict[str, list[Raised]]:
        """What was raised, by the scope it was written in; "" is outside all layers."""
        layers: dict[str, list[Raised]] = {}
        for found in self.raised:
            layers.setdefault(found.location.scope, []).append(found)
        return layers

    def as_json(self) -> dict[str, Any]:
        """All of it as plain dictionaries and lists."""
        layers = {k: [{"op": r.op, "details": r.details} for r in found] for k, found in self.by_layer().items()}
        problems = {name: [_plain(x) for x in found] for name, found in (("left", self.left), ("undone", self.undone))}
        return {"counts": self.counts, "layers": layers, **problems}

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {op}" for op, n in self.counts.items()) or "nothing"
        lines = [f"raised: {counts}", *(f"left: {x}" for x in self.left), *(f"undone: {x}" for x in self.undone)]
        return "\n".join(lines)


def _plain(left: Left) -> dict[str, str]:
    return {"what": left.what, "place": str(left.location), "node": left.node, "reason": left.reason}
