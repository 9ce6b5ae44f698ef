"""What happens to the product of queries and keys before softmax: scales, a cap, biases, masks, a column of sinks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...ir.graph import Node, Value
from ...ir.ops.elementwise import Add, Cast, Div, Mul, Sub, Tanh
from ...ir.ops.logic import Where
from ...ir.ops.scatter import Pad
from ...ir.ops.shape import Concat, Reshape, Transpose
from .constants import scalar_of
from .masks import NEVER, Masks, Truth, negated
from .scores import Obstacle, Step, Way, padded_column
from .views import Group, View, factor, flat, flats, rearranged, view_of


@dataclass
class Terms:
    """Terms in the axes of the product. keys: the axis over which softmax runs.

    scales: what scores are multiplied by that is no single number; divided by where it says so. sinks: one number for
    each head, of a value or the same for all. first: their column comes before the scores.
    """

    masks_of: Masks
    keys: Group
    scale: float = 1.0
    softcap: float | None = None
    tanh: bool = False
    scales: list[tuple[Value, bool, list[Group]]] = field(default_factory=list[tuple[Value, bool, list[Group]]])
    biases: list[tuple[Value, float, list[Group]]] = field(default_factory=list[tuple[Value, float, list[Group]]])
    masks: list[tuple[Truth, list[Group]]] = field(default_factory=list[tuple[Truth, list[Group]]])
    sinks: Value | float | None = None
    first: bool = False

    @property
    def sides(self) -> list[Value]:
        """What scores are multiplied by and what is added, before it was rearranged, whatever it was made of."""
        return [view_of(v).source for v, *_ in (*self.scales, *self.biases)]

    def read(self, step: Step, groups: list[Group]) -> None:
        """One step that is no rearrangement, on scores with axes `groups`."""
        node = step.node
        if isinstance(node.op, Tanh):
            self._capped(node)
        elif (number := factor(node)) is not None:
            self._scaled(number[1], node)
        elif isinstance(node.op, (Mul, Div)):
            self._multiplied(step.sides[0], groups, node)
        elif isinstance(node.op, (Concat, Pad)):
            self._joined(step, node)
        elif isinstance(node.op, Where):
            self._chosen(node, step.carrier, groups)
        elif isinstance(node.op, (Add, Sub)):
            self._added(step.sides[0], -1.0 if isinstance(node.op, Sub) else 1.0, groups, node)
        elif not isinstance(node.op, Cast):
            raise Obstacle(f"{node.op.name} lies between the scores and softmax", node)
        shifts = isinstance(node.op, (Add, Sub)) and step.sides[0].shape[-1:] == (1,)
        if self.sinks is not None and not isinstance(node.op, (Concat, Pad, Cast)) and not shifts:
            raise Obstacle(f"{node.op.name} changes the scores after the sinks were added", node)

    def _capped(self, node: Node) -> None:
        if self.masks or self.biases:
            raise Obstacle("scores are capped after they were masked or biased", node)
        if self.tanh or self.softcap is not None:
            raise Obstacle("scores are capped twice", node)
        self.tanh = True

    def _scaled(self, number: float, node: Node) -> None:
        if self.tanh:
            if number <= 0:
                raise Obstacle(f"the cap of scores is {number:g}", node)
            # attention computes softcap * tanh(scale * q k / softcap).
            self.softcap, self.scale, self.tanh = number, self.scale * number, False
            return
        if self.softcap is not None and (self.masks or self.biases or number != 1):
            raise Obstacle("scores are scaled after they were capped", node)
        if self.masks and number <= 0:
            raise Obstacle(f"masked scores are multiplied by {number:g}", node)
        self.scale *= number
        self.biases = [(v, by * number, at) for v, by, at in self.biases]

    def _multiplied(self, side: Value, groups: list[Group], node: Node) -> None:
        """Scores times what is 0 only where a mask hides them are these scores: numbers show whether one does."""
        if isinstance(node.op, Mul) and self.masks_of.indicator(side) is not None:
            return
        if self.tanh or self.softcap is not None or self.masks or self.biases:
            raise Obstacle("scores are multiplied by a tensor after they were capped, masked or biased", node)
        self.scales.append((side, isinstance(node.op, Div), flats(groups)))

    def _joined(self, step: Step, node: Node) -> None:
        if self.tanh or self.sinks is not None:
            raise Obstacle("a second column is joined to the scores", node)
        self.first = step.carrier == 1
        if isinstance(node.op, Concat):
            self.sinks = step.sides[0]
        else:
            before, self.sinks = padded_column(node) or (False, -math.inf)
            self.first = before

    def _chosen(self, node: Node, carrier: int, groups: list[Group]) -> None:
        if self.tanh:
            raise Obstacle("scores are masked inside of their cap", node)
        fill = scalar_of(node.arguments[3 - carrier])
        if fill is None or fill > NEVER:
            raise Obstacle(f"masked scores become {fill}, which still counts", node)
        condition = self.masks_of.truth(node.value("condition"))
        self.masks.append((condition if carrier == 1 else negated(condition), flats(groups)))

    def _added(self, side: Value, sign: float, groups: list[Group], node: Node) -> None:
        if self.tanh:
            raise Obstacle("something is added inside of the cap of scores", node)
        if self._alike(side, groups):
            return  # Softmax does not change when all scores of a row do alike.
        kept = self.masks_of.keep(side) if sign > 0 else self.masks_of.taken(side)
        hidden = self._hidden(side) if sign > 0 else None
        if kept is not None:
            self.masks.append((kept, flats(groups)))
        elif hidden is not None:  # A bias of which a mask hides a part.
            bias, shown = hidden
            self.masks.append((shown, flats(groups)))
            self._added(bias, sign, groups, node)
        elif side.producer is not None and isinstance(side.producer.op, Add):
            for part in side.producer.arguments:
                self._added(part, sign, groups, node)
        else:
            self.biases.append((side, sign, flats(groups)))

    def _hidden(self, side: Value) -> tuple[Value, Truth] | None:
        """(what is added, where it is) of a value that is never elsewhere."""
        node = side.producer
        if node is None or not isinstance(node.op, Where):
            return None
        for carrier in (1, 2):
            fill = scalar_of(node.arguments[3 - carrier])
            if fill is not None and fill <= NEVER:
                condition = self.masks_of.truth(node.value("condition"))
                return node.arguments[carrier], condition if carrier == 1 else negated(condition)
        return None

    def _alike(self, side: Value, groups: list[Group]) -> bool:
        """Whether a value that broadcasts to axes `groups` of the scores is the same for all keys of a row."""
        keys, added = set(flat(self.keys)), len(groups) - side.rank
        axes = [i for i, g in enumerate(groups) if keys & set(flat(g))]
        return bool(axes) and all(i < added or side.shape[i - added] == 1 for i in axes)


def read_terms(way: Way, scores: View, masks: Masks) -> tuple[Terms, list[Group]]:
    """(terms, axes of the operand of softmax) of the steps before it, in atoms of the scores."""
    groups = list(scores.groups)
    for step in way.before:
        if _moves(step):
            groups = rearranged(step.node, flats(groups))
    axis: int = way.softmax.attributes["axis"]
    terms = Terms(masks, groups[axis])
    groups = list(scores.groups)
    for step in way.before:
        if _moves(step):
            groups = rearranged(step.node, flats(groups))
        else:
            terms.read(step, groups)
    if terms.tanh:
        terms.softcap, terms.tanh = 1.0, False
    return terms, groups


def _moves(step: Step) -> bool:
    return isinstance(step.node.op, (Reshape, Transpose))
