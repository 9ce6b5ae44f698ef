"""Lines between blocks that have their places: straight up, around in a lane, out at the side, or across to a tower."""

from __future__ import annotations

from dataclasses import dataclass

from .folding import Drawn, Folded, Frame, Line, blocks_in
from .places import FIRST_LANE, GAP, LANE, RADIUS, Place, Route
from .vocabulary import Role


@dataclass
class Routing:
    """Routes of lines.

    place_of: of a block. frames: places of frames. level, row: the frame or tower that a block stands in directly, and
    its row there. tower: its number. lane: side (-1: left) and number of the lane of a line that leads around.
    """

    folded: Folded
    place_of: dict[Drawn, Place]
    frames: dict[Frame, Place]
    level: dict[Drawn, Frame | int]
    row: dict[Drawn, int]
    tower: dict[Drawn, int]
    lane: dict[Line, tuple[int, int]]

    def route(self, line: Line) -> Route:
        s, t = self.place_of[line.source], self.place_of[line.target]
        round_ = line.target.block.role is Role.sum
        if self.tower[line.source] != self.tower[line.target]:
            return self.across(line, s, t)
        if self.inside(line):
            return self.out(line, s, t)
        if line in self.lane:
            return self.beside(line, s, t)
        if round_ and abs(s.x - t.x) > RADIUS and line.target.block.fork is None:
            reach = t.x + (RADIUS if s.x > t.x else -RADIUS)
            return Route(line, [(s.x, s.top), (s.x, t.middle), (reach, t.middle)])
        label, before = self.shape_beside(line, s, t)
        if abs(s.x - t.x) < 1:
            return Route(line, [(s.x, s.top), (t.x, t.y)], label, before)
        bend = t.y - GAP / 2 if abs(s.x - self.axis(line.source)) < 1 else s.top + GAP / 2
        return Route(line, [(s.x, s.top), (s.x, bend), (t.x, bend), (t.x, t.y)], label, before)

    def shape_beside(self, line: Line, s: Place, t: Place) -> tuple[tuple[float, float] | None, bool]:
        """Where the shape of a line is written: where it is new, and where a line enters or leaves a frame."""
        source, target = line.source.block, line.target.block
        if source.role is Role.input or target.role is Role.output or line.quiet:
            return None, False
        leaves = isinstance(self.level[line.source], Frame) and self.level[line.source] is not self.level[line.target]
        enters = isinstance(self.level[line.target], Frame) and self.level[line.source] is not self.level[line.target]
        known = {x.value.shape for x in self.folded.lines if x.target is line.source and not x.quiet}
        if not leaves and not enters and line.value.shape in known:
            return None, False
        before = self.tower[line.source] > 0
        if abs(s.x - t.x) >= 1 and not enters:
            return (t.x + 8, t.y - 11), False
        return (s.x + (-7 if before else 7), t.y - 12 if leaves else s.top + 10), before

    def inside(self, line: Line) -> bool:
        """Whether a line leaves a frame from below its top row."""
        level = self.level[line.source]
        if not isinstance(level, Frame) or line.target in set(blocks_in([level])):
            return False
        return self.row[line.source] < len(self.frames[level].rows) - 1

    def out(self, line: Line, s: Place, t: Place) -> Route:
        """From the side of a block up along the edge of its frame."""
        level = self.level[line.source]
        assert isinstance(level, Frame)
        frame, side = self.frames[level], 1 if self.tower[line.source] == 0 else -1
        edge = frame.x + (frame.inner_right - 7 if side > 0 else 7 - frame.inner_left)
        start = s.x + (s.right if side > 0 else -s.left)
        bend = t.y - GAP / 2
        return Route(line, [(start, s.middle), (edge, s.middle), (edge, bend), (t.x, bend), (t.x, t.y)])

    def axis(self, drawn: Drawn) -> float:
        level = self.level[drawn]
        return self.frames[level].x if isinstance(level, Frame) else self.place_of[drawn].x

    def beside(self, line: Line, s: Place, t: Place) -> Route:
        """Around what stands between, in a lane."""
        side, lane = self.lane[line]
        level = self.level[line.target]
        near = [d for d in self.place_of if self.level[d] is level or self.level[d] == level]
        near = [d for d in near if self.tower[d] == self.tower[line.target]]
        reach = [self.place_of[d] for d in near]
        edge = max(side * (p.x + (p.right if side > 0 else -p.left)) for p in reach)
        x = side * edge + side * (FIRST_LANE + LANE * lane)
        outside = isinstance(level, Frame) and line.source not in set(blocks_in(level.items))
        fork = s.top + 9
        if outside:
            assert isinstance(level, Frame)
            frame = self.frames[level]
            fork = frame.y + (9 if not line.quiet and len(frame.rows[0]) == 1 else -12)
        end = t.x + (t.right if side > 0 else -t.left)
        return Route(line, [(s.x, s.top), (s.x, fork), (x, fork), (x, t.middle), (end, t.middle)])

    def across(self, line: Line, s: Place, t: Place) -> Route:
        """From one tower to another: up, over, and into the side of the block."""
        right = t.x > s.x
        frames = [p for f, p in self.frames.items() if line.target in set(blocks_in([f]))]
        edges = [p.x - p.left if right else p.x + p.right for p in frames] or [t.x - t.left if right else t.x + t.right]
        x = min(edges) - 28 if right else max(edges) + 28
        end = t.x - t.left if right else t.x + t.right
        up = max([s.top, *(p.top for f, p in self.frames.items() if line.source in set(blocks_in([f])))]) + 12
        return Route(line, [(s.x, s.top), (s.x, up), (x, up), (x, t.middle), (end, t.middle)])
