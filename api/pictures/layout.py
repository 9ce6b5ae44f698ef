"""Where blocks stand: rows from the bottom up, frames around what repeats, towers side by side, lines around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .folding import Choice, Drawn, Folded, Frame, Item, Line, blocks_in
from .measure import width, wrapped
from .places import DETAIL, FIRST_LANE, GAP, LANE, LEAST, MOST, PADDING, RADIUS, SIDE, TITLE, Place, Route
from .routing import Routing
from .vocabulary import Role

Texts = Callable[[Drawn], list[tuple[str, float]]]
"""The lines of a block under its title, each with its size."""


@dataclass
class Layout:
    """Everything in its place; x from the left, y upwards from the bottom."""

    places: list[Place]
    routes: list[Route]
    width: float
    height: float


def lay_out(folded: Folded, texts: Texts, label: Callable[[Frame], list[tuple[str, float]]]) -> Layout:
    """Place all items and route all lines."""
    return _Layout(folded, texts, label).run()


class _Layout:
    def __init__(self, folded: Folded, texts: Texts, label: Callable[[Frame], list[tuple[str, float]]]) -> None:
        self.folded, self.texts, self.label = folded, texts, label
        self.place_of: dict[Drawn, Place] = {}
        self.level: dict[Drawn, Frame | int] = {}
        self.row: dict[Drawn, int] = {}
        self.lane: dict[Line, tuple[int, int]] = {}
        self.tower: dict[Drawn, int] = {}
        self.frames: dict[Frame, Place] = {}

    def run(self) -> Layout:
        towers = towers_of(self.folded)
        for t, items in enumerate(towers):
            self.tower.update(dict.fromkeys(blocks_in(items), t))
        placed: list[Place] = []
        x, height = 24.0, 0.0
        for t, items in enumerate(towers):
            rows, left, right, high = self.rows(items, t, -1 if t == 0 else 1)
            top = self.stand(rows, x + left, 12.0)
            placed += [p for row in rows for p in row]
            x += left + right + 56.0
            height = max(height, top, high)
        routing = Routing(self.folded, self.place_of, self.frames, self.level, self.row, self.tower, self.lane)
        routes = [routing.route(line) for line in self.folded.lines]
        said: set[tuple[float, float] | None] = set()
        for route in routes:
            route.label = None if route.label in said else route.label
            said.add(route.label)
        return Layout(placed, routes, x - 56.0 + 24.0, height + 12.0)

    # -- sizes -----------------------------------------------------------------------------------------------

    def measured(self, item: Item, side: int) -> Place:
        if isinstance(item, Drawn):
            return self.box(item)
        if isinstance(item, Choice):
            options = [self.box(d) for d in item.options]
            half = (sum(p.left + p.right for p in options) + SIDE * (len(options) - 1)) / 2 + 8
            return Place(item, half, half, max(p.height for p in options) + 16, rows=[options])
        rows, left, right, height = self.rows(item.items, item, side)
        texts = self.label(item)
        beside = max((width(t, size, size > DETAIL) for t, size in texts), default=0.0) + 10 if texts else 0.0
        place = Place(item, left + PADDING, right + PADDING, height + 2 * PADDING, rows=rows, label=texts)
        place.inner_left, place.inner_right = place.left, place.right
        place.height = max(place.height, sum(size + 5 for _, size in texts) + 8)
        if side < 0:
            place.left += beside
        else:
            place.right += beside
        self.frames[item] = place
        return place

    def box(self, drawn: Drawn) -> Place:
        block = drawn.block
        if block.role is Role.sum:
            place = Place(drawn, RADIUS, RADIUS, 2 * RADIUS)
        else:
            lines = [(part, size) for text, size in self.texts(drawn) for part in wrapped(text, size, MOST - 20)]
            need = max([width(block.title, TITLE, True), *(width(t, size) for t, size in lines)]) + 24
            plain = block.role in (Role.input, Role.output)
            half = max(need, 0.0 if plain else LEAST) / 2
            place = Place(drawn, half, half, TITLE + 6 + sum(s + 4 for _, s in lines) + (4 if plain else 12))
            place.lines = lines
        self.place_of[drawn] = place
        return place

    def rows(
        self, items: Sequence[Item], level: Frame | int, side: int
    ) -> tuple[list[list[Place]], float, float, float]:
        """Rows of a level from the bottom up, how far they and the lines beside them reach, and their height."""
        rank = ranks(items, self.folded.lines)
        rows: list[list[Place]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
        for item in items:
            place = self.measured(item, side)
            rows[rank[item]].append(place)
            for d in blocks_in([item]):
                if isinstance(item, Frame):
                    continue
                self.level[d], self.row[d] = level, rank[item]
        left = right = 0.0
        for row in rows:
            before, after = self.spread(row, side)
            left, right = max(left, before), max(right, after)
        for row in rows:
            before, after = self.aligned(row)
            left, right = max(left, before), max(right, after)
        here = [d for d in self.level if self.level[d] is level or self.level[d] == level]
        for s, n in self.lanes(here, rank, items, side).items():
            more = FIRST_LANE + LANE * (n - 1) + 4 if n else 0.0
            left, right = (left + more, right) if s < 0 else (left, right + more)
        height = sum(max(p.height for p in row) for row in rows) + GAP * (len(rows) - 1)
        return rows, left, right, height

    def spread(self, row: list[Place], side: int) -> tuple[float, float]:
        """Set the axes of the places of a row relative to that of the level: side blocks stand beside the others."""
        main = [p for p in row if not self.aside(p)] or row
        rest = [p for p in row if p not in main]
        total = sum(p.left + p.right for p in main) + SIDE * (len(main) - 1)
        if len(main) == 1:
            main[0].x, left, right = 0.0, main[0].left, main[0].right
        else:
            x = -total / 2
            for p in main:
                p.x = x + p.left
                x += p.left + p.right + SIDE
            left = right = total / 2
        for p in rest:
            if side < 0:
                p.x, right = right + SIDE + p.left, right + SIDE + p.left + p.right
            else:
                p.x, left = -(left + SIDE + p.right), left + SIDE + p.left + p.right
        return left, right

    def aligned(self, row: list[Place]) -> tuple[float, float]:
        """Move inputs and outputs below and above the only block that they belong to, where there is room."""
        wanted: list[float] = []
        for p in row:
            item = p.item
            partners = [
                x.target if x.source is item else x.source
                for x in self.folded.lines
                if item in (x.source, x.target) and not x.quiet
            ]
            ends = isinstance(item, Drawn) and item.block.role in (Role.input, Role.output)
            here = ends and len(partners) == 1 and isinstance(self.level.get(partners[0]), int)
            wanted.append(self.place_of[partners[0]].x if here else p.x)
        placed = sorted(zip(wanted, row, strict=True), key=lambda pair: pair[0])
        if all(a + p.right - 12 <= b - q.left for (a, p), (b, q) in pairwise(placed)):
            for x, p in placed:
                p.x = x
        return max(p.left - p.x for p in row), max(p.right + p.x for p in row)

    def aside(self, place: Place) -> bool:
        return isinstance(place.item, Drawn) and place.item.block.layer == "-"

    # -- lines beside the rows -----------------------------------------------------------------------------------

    def lanes(self, here: list[Drawn], rank: dict[Item, int], items: Sequence[Item], side: int) -> dict[int, int]:
        """Give each line that does not lead straight up a lane; gives how many there are on each side."""
        inside = set(here)
        at = {d: rank[i] for i in items for d in blocks_in([i])}
        spans: list[tuple[int, int, int, Line]] = []
        for line in self.folded.lines:
            if line.target not in inside or self.tower[line.source] != self.tower[line.target]:
                continue
            start, end = at.get(line.source, -1), at[line.target]
            if not line.around and end - start <= 1:
                continue
            s = -side if line.quiet else side
            spans.append((end - start, start, s, line))
        taken: dict[tuple[int, int], list[tuple[int, int]]] = {}
        count = {-1: 0, 1: 0}
        for length, start, s, line in sorted(spans, key=lambda x: (x[0], x[1])):
            lane = 0
            end = start + length
            while any(a < end and start < b for a, b in taken.get((s, lane), [])):
                lane += 1
            taken.setdefault((s, lane), []).append((start, end))
            self.lane[line] = s, lane
            count[s] = max(count[s], lane + 1)
        return count

    # -- places ------------------------------------------------------------------------------------------------

    def stand(self, rows: list[list[Place]], x: float, y: float) -> float:
        """Move rows to their axis x, from the height y upwards; gives the height of their top."""
        for row in rows:
            high = max(p.height for p in row)
            for p in row:
                p.x += x
                p.y = y + (high - p.height) / 2
                if isinstance(p.item, Choice):
                    at = p.x - p.left + 8
                    for option in p.rows[0]:
                        option.x, option.y = at + option.left, p.y + 8 + (p.height - 16 - option.height) / 2
                        at += option.left + option.right + SIDE
                elif isinstance(p.item, Frame):
                    inner = sum(max(q.height for q in r) for r in p.rows) + GAP * (len(p.rows) - 1)
                    self.stand(p.rows, p.x, p.y + (p.height - inner) / 2)
            y += high + GAP
        return y - GAP


def ranks(items: Sequence[Item], lines: Sequence[Line]) -> dict[Item, int]:
    """The row of each item: above all that it reads, and no lower than right below what reads it."""
    item_of = {d: i for i in items for d in blocks_in([i])}
    before: dict[Item, list[Item]] = {i: [] for i in items}
    after: dict[Item, list[Item]] = {i: [] for i in items}
    for line in lines:
        a, b = item_of.get(line.source), item_of.get(line.target)
        if a is not None and b is not None and a is not b:
            before[b].append(a)
            after[a].append(b)
    rank: dict[Item, int] = {}
    for item in items:
        rank[item] = max((rank[p] + 1 for p in before[item] if p in rank), default=0)
    for item in reversed(items):
        if after[item]:
            rank[item] = max(rank[item], min(rank[i] for i in after[item]) - 1)
    lowest = min(rank.values(), default=0)
    return {i: r - lowest for i, r in rank.items()}


def towers_of(folded: Folded) -> list[list[Item]]:
    """Items that stand one above the other: an encoder and a decoder are two towers."""
    items = folded.items
    item_of = {d: i for i in items for d in blocks_in([i])}
    place = {item: i for i, item in enumerate(items)}
    parent = {item: item for item in items}

    def root(item: Item) -> Item:
        while parent[item] is not item:
            item = parent[item]
        return item

    entering: dict[Item, list[Item]] = {}
    for line in folded.lines:
        a, b = item_of[line.source], item_of[line.target]
        if a is not b and not line.quiet:
            entering.setdefault(b, []).append(a)
    for item, sources in entering.items():
        parent[root(item)] = root(max(sources, key=lambda i: place[i]))
    groups: dict[Item, list[Item]] = {}
    for item in items:
        groups.setdefault(root(item), []).append(item)
    for group in list(groups.values()):
        if len(groups) > 1 and _small(group):
            target = next(
                (
                    item_of[x.target]
                    for x in folded.lines
                    if item_of[x.source] in group and item_of[x.target] not in group
                ),
                None,
            )
            if target is not None:
                parent[root(group[0])] = root(target)
    towers: dict[Item, list[Item]] = {}
    for item in items:
        towers.setdefault(root(item), []).append(item)
    return list(towers.values())


def _small(group: list[Item]) -> bool:
    blocks = [i for i in group if not (isinstance(i, Drawn) and i.block.role is Role.input)]
    return len(blocks) <= 2 and not any(isinstance(i, Frame) for i in blocks)
