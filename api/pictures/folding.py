"""Folding: layers that compute the same are drawn once, in a frame that says how often and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..ir.types import TensorType
from ..ir.value import Value
from .blocks import Architecture, Block, Edge
from .patterns import order_of, ranges, repeats
from .vocabulary import Role


@dataclass(eq=False)
class Drawn:
    """A block as it is drawn, for all `members` that compute the same. note: in which layers it stands, if not all."""

    block: Block
    members: list[Block]
    note: str = ""


@dataclass(eq=False)
class Choice:
    """Blocks that stand in one another's place, each in some of the layers."""

    options: list[Drawn]


@dataclass(eq=False)
class Frame:
    """What is repeated. times: how many layers. order: which layers follow which, if they differ. name: their scope."""

    items: list[Item]
    times: int
    order: str = ""
    name: str = ""


Item = Drawn | Choice | Frame


@dataclass(eq=False)
class Line:
    """An edge between blocks that are drawn."""

    source: Drawn
    target: Drawn
    value: Value
    around: bool
    quiet: bool


@dataclass
class Folded:
    """What is drawn: items in order from the inputs to the outputs, and the lines between their blocks."""

    items: list[Item]
    lines: list[Line]

    @property
    def drawn(self) -> list[Drawn]:
        return list(blocks_in(self.items))


def blocks_in(items: Sequence[Item]) -> Iterator[Drawn]:
    for item in items:
        if isinstance(item, Drawn):
            yield item
        else:
            yield from item.options if isinstance(item, Choice) else blocks_in(item.items)


@dataclass(eq=False)
class _Unit:
    """The blocks of one layer."""

    layer: str
    blocks: list[Block] = field(default_factory=list[Block])


def fold(found: Architecture) -> Folded:
    """Draw layers that compute the same once."""
    folding = _Folding(found)
    return folding.run()


class _Folding:
    def __init__(self, found: Architecture) -> None:
        self.found = found
        self.signatures: dict[Value, int] = {}
        self.drawn: dict[Block, Drawn] = {}
        self.unit: dict[Block, tuple[int, int]] = {}
        self.kinds: dict[int, list[list[_Unit]]] = {}
        self.stacks = 0

    def run(self) -> Folded:
        items: list[Item] = []
        run: list[_Unit] = []
        for block in self.found.blocks:
            apart = block.role in (Role.input, Role.output) or block.layer == "-"
            if apart:
                items.append(self.single(block))
            elif run and block.layer and run[-1].layer == block.layer:
                run[-1].blocks.append(block)
            else:
                run.append(_Unit(block.layer, [block]))
        items += self.run_of(run)
        outputs = [i for i in items if isinstance(i, Drawn) and i.block.role is Role.output]
        return Folded([*[i for i in items if i not in outputs], *outputs], self.lines())

    def run_of(self, units: list[_Unit]) -> list[Item]:
        items: list[Item] = []
        while units:
            size = self.stack(units)
            items += self.folded(units[:size]) if units[0].layer else self.unnamed(units[:size])
            units = units[size:]
        return items

    def stack(self, units: list[_Unit]) -> int:
        """How many units from the front are layers of one list, or without a layer."""
        first = units[0].layer
        if not first:
            return next((i for i, u in enumerate(units) if u.layer), len(units))
        prefix, seen = first.rpartition(".")[0], set[str]()
        for i, u in enumerate(units):
            if not u.layer or u.layer.rpartition(".")[0] != prefix or u.layer in seen:
                return i
            seen.add(u.layer)
        return len(units)

    def unnamed(self, units: list[_Unit]) -> list[Item]:
        """Blocks whose names tell no layer: what follows itself is folded."""
        blocks = [u.blocks[0] for u in units]
        found = repeats([self.signature(b) for b in blocks])
        if found is None or not self.chained(blocks, *found):
            return [self.single(b) for b in blocks]
        start, period, times = found
        made = [_Unit("", blocks[start + i * period : start + (i + 1) * period]) for i in range(times)]
        end = start + period * times
        return [*self.unnamed(units[:start]), *self.folded(made), *self.unnamed(units[end:])]

    def chained(self, blocks: list[Block], start: int, period: int, times: int) -> bool:
        """Whether each repeat reads what the one before gives."""
        unit = {b: i // period for i, b in enumerate(blocks[start : start + period * times])}
        steps = {(unit[e.source], unit[e.target]) for e in self.found.edges if e.source in unit and e.target in unit}
        return all((i, i + 1) in steps for i in range(times - 1))

    def single(self, block: Block) -> Drawn:
        self.drawn[block] = Drawn(block, [block])
        return self.drawn[block]

    def folded(self, units: list[_Unit]) -> list[Item]:
        if len(units) == 1:
            return [self.single(b) for b in units[0].blocks]
        self.stacks += 1
        for i, unit in enumerate(units):
            for b in unit.blocks:
                self.unit[b] = (self.stacks, i)
        kinds: dict[object, list[_Unit]] = {}
        for unit in units:
            kinds.setdefault(self.kind(unit), []).append(unit)
        name = units[0].layer.rpartition(".")[0]
        if len(kinds) == len(units) and (inner := self.deeper(units)):
            return inner
        if len({self.skeleton(members[0]) for members in kinds.values()}) == 1:
            return [self.aligned(units, name)]
        return [self.stacked(units, list(kinds.values()), name)]

    def deeper(self, units: list[_Unit]) -> list[Item]:
        """Units none of which is as another, folded by what repeats inside of each; nothing if nothing does."""
        items: list[Item] = []
        for unit in units:
            inner: list[_Unit] = []
            for b in unit.blocks:
                if b.inner and inner and inner[-1].layer == b.inner:
                    inner[-1].blocks.append(b)
                else:
                    inner.append(_Unit(b.inner, [b]))
            items += self.run_of(inner)
        return items if any(isinstance(i, Frame) for i in items) else []

    def aligned(self, units: list[_Unit], name: str) -> Frame:
        """Layers with the same skeleton: a place where they differ shows all that stand there."""
        items: list[Item] = []
        names = [list[str]() for _ in units]
        for place in range(len(units[0].blocks)):
            groups: dict[object, list[int]] = {}
            for i, unit in enumerate(units):
                groups.setdefault(looks(unit.blocks[place]), []).append(i)
            options: list[Drawn] = []
            for layers in groups.values():
                members = [units[i].blocks[place] for i in layers]
                drawn = Drawn(members[0], members, ranges(layers, "layer") if len(groups) > 1 else "")
                self.drawn.update(dict.fromkeys(members, drawn))
                options.append(drawn)
            items.append(options[0] if len(options) == 1 else Choice(options))
            if len(options) > 1:
                said = distinguished([o.block for o in options])
                for word, layers in zip(said, groups.values(), strict=True):
                    for i in layers:
                        names[i].append(word)
        order = order_of([", ".join(dict.fromkeys(n)) for n in names])
        return Frame(items, len(units), order, name)

    def stacked(self, units: list[_Unit], kinds: list[list[_Unit]], name: str) -> Frame:
        """Layers with different skeletons: one frame for each, in the order in which they first come."""
        frames: list[Item] = []
        self.kinds[self.stacks] = kinds
        said = [titles(members[0]) for members in kinds]
        own = [[t for t in mine if not all(t in other for other in said)] or mine[-1:] for mine in said]
        words = {id(u): " and ".join(mine) for mine, members in zip(own, kinds, strict=True) for u in members}
        for members in kinds:
            frame = self.aligned(members, name)
            layers = [units.index(u) for u in members]
            frame.order = ranges(layers, "layer")
            frames.append(frame)
        return Frame(frames, len(units), order_of([words[id(u)] for u in units]), name)

    def kind(self, unit: _Unit) -> object:
        return tuple(self.signature(b) for b in unit.blocks), self.skeleton(unit)

    def skeleton(self, unit: _Unit) -> object:
        """How the blocks of a layer hang together."""
        place = {b: i for i, b in enumerate(unit.blocks)}
        inner = [e for e in self.found.edges if e.source in place and e.target in place]
        fixed = tuple(b.role if b.role in (Role.sum, Role.norm) else None for b in unit.blocks)
        return fixed, frozenset((place[e.source], place[e.target], e.around, e.quiet) for e in inner)

    def signature(self, block: Block) -> int:
        """A number that is equal for blocks which compute the same from parameters of the same types."""
        inside = {v: (i, j) for i, n in enumerate(block.nodes) for j, v in enumerate(n.outputs)}

        def of(v: Value | None) -> object:
            if v is None or v in inside:
                return inside.get(v) if v is not None else None
            return self.still(v) if v in self.found.flow.still else v.type

        parts = [
            (n.op.name, tuple(n.attributes.items()), tuple(map(of, n.operands)), tuple(v.type for v in n.outputs))
            for n in block.nodes
        ]
        return hash((block.role, block.title, block.fork is None, tuple(parts)))

    def still(self, value: Value) -> object:
        """What a value is made of that comes from parameters and constants alone."""
        if value.producer is None:
            return value.type
        if value not in self.signatures:
            n = value.producer
            made = tuple(None if v is None else self.still(v) for v in n.operands)
            self.signatures[value] = hash((n.op.name, tuple(n.attributes.items()), made, value.index))
        return self.signatures[value]

    def lines(self) -> list[Line]:
        """Edges between what is drawn; from one layer to the next only where they are drawn one above the other."""
        found: dict[tuple[Drawn, Drawn, TensorType, bool], Line] = {}
        place = {d: i for i, d in enumerate(dict.fromkeys(self.drawn.values()))}
        for e in self.found.edges:
            source, target = self.source(e), self.drawn[e.target]
            if source is None or source is target or (self.next_layer(e) and place[source] >= place[target]):
                continue
            key = source, target, e.value.type, e.around
            found.setdefault(key, Line(source, target, e.value, e.around, e.quiet))
        return list(found.values())

    def next_layer(self, e: Edge) -> bool:
        a, b = self.unit.get(e.source), self.unit.get(e.target)
        return a is not None and b is not None and a[0] == b[0] and a[1] != b[1]

    def source(self, e: Edge) -> Drawn | None:
        """Where the line of an edge begins; None if it has none.

        What leaves a layer leaves the frame that is drawn below its reader: that of another kind of layer, or the last.
        """
        drawn = self.drawn[e.source]
        kinds = self.kinds.get(self.unit.get(e.source, (0, 0))[0])
        if kinds is None:
            return None if self.next_layer(e) else drawn
        if self.unit[e.source] == self.unit.get(e.target):
            return drawn
        firsts = [members[0].blocks for members in kinds]
        ends = {b for members in kinds for u in members for b in u.blocks[-1:]}
        if not self.next_layer(e):
            return self.drawn[firsts[-1][-1]] if e.source in ends else drawn
        above = next((i for i, blocks in enumerate(firsts) if e.target in blocks), 0)
        return self.drawn[firsts[above - 1][-1]] if above and e.source in ends else None


def looks(block: Block) -> object:
    """What a reader sees of a block."""
    return block.role, block.title, tuple(block.details), sum(v.type.elements for v in (*block.params, *block.tied))


def titles(unit: _Unit) -> list[str]:
    """What a layer consists of besides norms and sums."""
    said = [b.title.lower() for b in unit.blocks if b.role not in (Role.sum, Role.norm)]
    return list(dict.fromkeys(said))


def distinguished(blocks: list[Block]) -> list[str]:
    """A word for each of several blocks that tells it from the others."""
    said = [b.title.lower() for b in blocks]
    if len(set(said)) == len(said):
        return said
    local = [any("window" in line for line in b.details) for b in blocks]
    if len(blocks) == 2 and local[0] != local[1]:
        return ["local" if x else "global" for x in local]
    return [f"{b.title.lower()} {chr(ord('a') + i)}" for i, b in enumerate(blocks)]
