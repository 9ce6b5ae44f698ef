"""Places of items in a drawing, and the measures that layout, routes and drawing share. Lengths in pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

from .folding import Item, Line

TITLE, DETAIL, SMALL = 13.0, 11.0, 10.0
GAP, SIDE, PADDING = 30.0, 18.0, 16.0
LANE, FIRST_LANE = 13.0, 16.0
MOST, LEAST = 250.0, 150.0
RADIUS = 11.0


@dataclass(eq=False)
class Place:
    """An item where it stands. x: of its axis; y: of its bottom, upwards. left, right: from the axis to its sides."""

    item: Item
    left: float
    right: float
    height: float
    x: float = 0.0
    y: float = 0.0
    lines: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    rows: list[list[Place]] = field(default_factory=list[list["Place"]])
    label: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    inner_left: float = 0.0
    inner_right: float = 0.0

    @property
    def top(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass
class Route:
    """A line with its corners. label: where its shape is written, if it is; after: to the left of that point."""

    line: Line
    points: list[tuple[float, float]]
    label: tuple[float, float] | None = None
    before: bool = False
