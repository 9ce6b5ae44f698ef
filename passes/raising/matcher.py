"""One way through a softmax read as attention: views of q, k, v, the terms between, and the op made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...ir import ops
from ...ir.graph import Node, Value
from ...ir.ops.elementwise import Add, Cast, Mul, Sub, Tanh
from ...ir.ops.logic import Where
from ...ir.ops.shape import Concat, Reshape, Slice, Transpose
from ...ir.types import product
from .constants import scalar_of
from .masks import NEVER, Masks, Truth, both, conjuncts, flipped, negated
from .scores import Obstacle, Step, Way
from .structure import Structure, structured
from .views import Atom, Group, Unaligned, View, align, built, factor, flat, flats, paired, rearranged, view_of


@dataclass
class Terms:
    """What happens to the product of queries and keys before softmax, in the axes of that product."""

    scale: float = 1.0
    softcap: float | None = None
    tanh: bool = False
    biases: list[tuple[Value, float, list[Group]]] = field(default_factory=list[tuple[Value, float, list[Group]]])
    masks: list[tuple[Truth, list[Group]]] = field(default_factory=list[tuple[Truth, list[Group]]])
    zeroed: Truth | None = None
    """Where scores are not 0, until what is added there says that they do not count."""
    sinks: Value | None = None


@dataclass
class Places:
    """Which atoms of the scores are batch, heads, queries and keys."""

    batch: Group
    heads: Group
    rows: Group
    keys: Group

    def groups(self) -> list[Group]:
        return flats([self.batch, self.heads, self.rows, self.keys])


class Matcher:
    """One way read as attention: views of q, k, v and what lies between, and the op made of them."""

    def __init__(self, way: Way, masks: Masks) -> None:
        self.way, self.masks = way, masks
        self.left, self.right = (view_of(x, scales=True) for x in way.product.arguments)
        self.scores = View.of(way.product.output)
        self.terms = Terms()
        self._align_product()
        groups = self._before()
        self.places = self._placed(groups)
        self.swapped = self._orientation()
        self.q, self.k = (self.right, self.left) if self.swapped else (self.left, self.right)
        self.terms.scale *= self.q.scale * self.k.scale
        self.weights = self._after(groups)
        self._align_values()

    # -- the product of queries and keys -------------------------------------------------------------------------

    def _align_product(self) -> None:
        m, left, right = self.scores.groups, self.left, self.right
        rank = len(m)
        a, b = left.padded(rank), right.padded(rank)
        align(a[-1], b[-2])
        for _ in range(2):
            for i in range(rank - 2):
                align(m[i], a[i])
                align(m[i], b[i])
            align(m[-2], a[-2])
            align(m[-1], b[-1])

    def _from_scores(self) -> tuple[dict[Atom, Atom | None], dict[Atom, Atom | None]]:
        """Atoms of the scores => those of queries, those of keys (None: they do not depend on it)."""
        self._align_product()
        m, rank = self.scores.groups, len(self.scores.groups)
        left, right = dict[Atom, Atom | None](), dict[Atom, Atom | None]()
        a, b = self.left.padded(rank), self.right.padded(rank)
        for i in range(rank - 2):
            left |= paired(m[i], a[i])
            right |= paired(m[i], b[i])
        left |= paired(m[-2], a[-2]) | dict.fromkeys(flat(m[-1]))
        right |= paired(m[-1], b[-1]) | dict.fromkeys(flat(m[-2]))
        return (right, left) if self.swapped else (left, right)

    def _before(self) -> list[Group]:
        """Read the steps to softmax; gives the axes of its operand."""
        groups = list(self.scores.groups)
        for node in (s.node for s in self.way.before if isinstance(s.node.op, (Reshape, Transpose))):
            groups = rearranged(node, flats(groups))
        keys, groups = groups[-1], list(self.scores.groups)
        for step in self.way.before:
            node = step.node
            if isinstance(node.op, (Reshape, Transpose)):
                groups = rearranged(node, flats(groups))
            elif isinstance(node.op, Tanh):
                self._tanh(node)
            elif (number := factor(node)) is not None:
                self._scaled(number[1], node)
            elif isinstance(node.op, Concat):
                self._sink(step.sides[0], node)
            elif isinstance(node.op, Where):
                self._where(node, step.carrier, groups)
            elif isinstance(node.op, (Add, Sub)):
                self._added(step.sides[0], -1.0 if isinstance(node.op, Sub) else 1.0, groups, flat(keys), node)
            elif isinstance(node.op, Mul):
                self._zeroed(step.sides[0], node)
            elif not isinstance(node.op, Cast):
                raise Obstacle(f"{node.op.name} lies between the scores and softmax", node)
            if self.terms.sinks is not None and not isinstance(node.op, (Concat, Cast)) and not _shifts(step):
                raise Obstacle(f"{node.op.name} changes the scores after the sinks were added", node)
        if self.terms.tanh:
            self.terms.softcap, self.terms.tanh = 1.0, False
        if self.terms.zeroed is not None:
            raise Obstacle("scores that a mask hides become 0, which still counts", self.way.softmax)
        return groups

    def _tanh(self, node: Node) -> None:
        t = self.terms
        if t.masks or t.biases:
            raise Obstacle("scores are capped after they were masked or biased", node)
        if t.tanh or t.softcap is not None:
            raise Obstacle("scores are capped twice", node)
        t.tanh = True

    def _scaled(self, number: float, node: Node) -> None:
        t = self.terms
        if t.tanh:
            if number <= 0:
                raise Obstacle(f"the cap of scores is {number:g}", node)
            # attention computes softcap * tanh(scale * q k / softcap).
            t.softcap, t.scale, t.tanh = number, t.scale * number, False
            return
        if t.softcap is not None and (t.masks or t.biases or number != 1):
            raise Obstacle("scores are scaled after they were capped", node)
        if t.masks and number <= 0:
            raise Obstacle(f"masked scores are multiplied by {number:g}", node)
        t.scale *= number
        t.biases = [(v, by * number, at) for v, by, at in t.biases]

    def _sink(self, side: Value, node: Node) -> None:
        if self.terms.tanh or self.terms.sinks is not None:
            raise Obstacle("a second column is joined to the scores", node)
        self.terms.sinks = side

    def _where(self, node: Node, carrier: int, groups: list[Group]) -> None:
        if self.terms.tanh:
            raise Obstacle("scores are masked inside of their cap", node)
        fill = scalar_of(node.arguments[3 - carrier])
        if fill is None or fill > NEVER:
            raise Obstacle(f"masked scores become {fill}, which still counts", node)
        condition = self.masks.truth(node.value("condition"))
        self.terms.masks.append((condition if carrier == 1 else negated(condition), flats(groups)))

    def _zeroed(self, side: Value, node: Node) -> None:
        """Scores times zeros and ones: those that become 0 are masked by what is added next."""
        found = self.masks.indicator(side)
        if found is None or self.terms.zeroed is not None or self.terms.tanh:
            raise Obstacle("scores are multiplied by more than one number", node)
        if self.terms.masks or self.terms.biases:
            raise Obstacle("masked scores are multiplied by more than one number", node)
        self.terms.zeroed = found

    def _added(self, side: Value, sign: float, groups: list[Group], keys: Group, node: Node) -> None:
        if self.terms.tanh:
            raise Obstacle("something is added inside of the cap of scores", node)
        behind = len(groups) - next((i for i, g in enumerate(groups) if keys and flat(g) == keys), len(groups))
        if behind and (side.rank < behind or side.shape[-behind] == 1):
            return  # Softmax does not change when all scores of a row do alike.
        kept = self.masks.keep(side) if sign > 0 else self.masks.taken(side)
        if self.terms.zeroed is not None and kept is not self.terms.zeroed:
            raise Obstacle("scores that a mask hides become 0, which still counts", node)
        if kept is not None:
            self.terms.masks.append((kept, flats(groups)))
            self.terms.zeroed = None
        elif side.producer is not None and isinstance(side.producer.op, Add):
            for part in side.producer.arguments:
                self._added(part, sign, groups, keys, node)
        else:
            self.terms.biases.append((side, sign, flats(groups)))

    # -- axes ----------------------------------------------------------------------------------------------------

    def _placed(self, groups: list[Group]) -> Places:
        *rest, keys = groups
        around = {a for g in self.scores.groups[-2:] for a in flat(g)}
        # Queries come from an axis of the product; where an exporter turns the scores, they are not last but one.
        at = next((i for i in reversed(range(len(rest))) if around.issuperset(flat(rest[i]))), -1)
        rows = rest.pop(at)
        while len(rest) > 2 and not flat(rest[0]):
            rest.pop(0)
        if len(rest) == 1:
            atoms = flat(rest[0])
            single = len(atoms) == 1 and isinstance(atoms[0].size, int)
            return Places([] if single else atoms[:1], atoms if single else atoms[1:], rows, keys)
        return Places(rest[0] if rest else [], [a for g in rest[1:] for a in g], rows, keys)

    def _orientation(self) -> bool:
        """Whether keys are the first factor of the product."""
        keys = flat(self.places.keys)
        if keys == flat(self.scores.groups[-1]):
            return False
        if keys == flat(self.scores.groups[-2]):
            return True
        node = self.way.softmax
        raise Obstacle("softmax runs over an axis that is not the keys of the product", node)

    def _after(self, groups: list[Group]) -> list[Group]:
        """Axes of the weights as the second product takes them."""
        for step in self.way.after:
            node = step.node
            if isinstance(node.op, Slice):
                if self.terms.sinks is None or node.output.shape[-1] != product(a.size for a in flat(groups[-1])):
                    raise Obstacle("a part of the weights is taken", node)
            elif isinstance(node.op, (Reshape, Transpose)):
                groups = rearranged(node, flats(groups))
        return groups

    def _align_values(self) -> None:
        node, first = self.way.values, self.way.carrier == 0
        self.v = view_of(node.arguments[1 if first else 0])
        rank = node.output.rank
        w = [Group() for _ in range(rank - len(self.weights))] + self.weights
        v = self.v.padded(rank)
        self.weight_groups = w
        keys, inner = (w[-1], v[-2]) if first else (w[-2], v[-1])
        if flat(keys) != flat(self.places.keys):
            raise Obstacle("the weights are multiplied along an axis that is not the keys", node)
        for _ in range(2):
            align(keys, inner)
            for i in range(rank - 2):
                align(w[i], v[i])
        if any(v[i] and not w[i] for i in range(rank - 2)):
            raise Obstacle("values have a batch axis that the weights do not have", node)

    def _from_weights(self) -> dict[Atom, Atom | None]:
        """Atoms of the scores => those of values."""
        first, rank = self.way.carrier == 0, len(self.weight_groups)
        w, v = self.weight_groups, self.v.padded(rank)
        found = dict[Atom, Atom | None]()
        for i in range(rank - 2):
            found |= paired(w[i], v[i])
        found |= paired(w[-1], v[-2]) if first else paired(w[-2], v[-1])
        rows = w[-2] if first else w[-1]
        return found | dict.fromkeys(flat(rows))

    # -- the op --------------------------------------------------------------------------------------------------

    def attention(self) -> Value:
        """The op on rearranged operands."""
        structure = self._structure()
        self._align_values()
        to_q, to_k = self._from_scores()
        to_v = self._from_weights()
        batch, heads, rows, keys = self.places.groups()
        for a in rows:
            if to_k[a] is not None or to_v[a] is not None:
                raise Obstacle("each query has keys or values of its own", self.way.product)
        if any(to_q[a] is not None for a in keys):
            raise Obstacle("each key has queries of its own", self.way.product)
        shared = len(heads)
        while shared and to_k[heads[shared - 1]] is None and to_v[heads[shared - 1]] is None:
            shared -= 1
        own = heads[:shared]
        channels = flat((self.left if not self.swapped else self.right).groups[-1 if not self.swapped else -2])
        inner = flat((self.right if not self.swapped else self.left).groups[-2 if not self.swapped else -1])
        width = flat(self.v.groups[-1 if self.way.carrier == 0 else -2])
        q = _laid(self.q, to_q, [batch, rows, heads], channels)
        k = _laid(self.k, to_k, [batch, keys, own], inner)
        v = _laid(self.v, to_v, [batch, keys, own], width)
        if self.terms.scale <= 0 or not math.isfinite(self.terms.scale):
            raise Obstacle(f"the scale of scores is {self.terms.scale:g}", self.way.product)
        return ops.attention(
            q, k, v, self._bias(q), structure.mask, structure.lengths, self._sinks(q, heads),
            causal=structure.causal, window=structure.window, scale=self.terms.scale, softcap=self.terms.softcap,
        )  # fmt: skip

    @property
    def parts(self) -> list[Truth]:
        """What must be true of a key, each in the axes that it has in the graph."""
        return [p for truth, _ in self.terms.masks for p in conjuncts(truth, self.masks)]

    def _structure(self) -> Structure:
        kept: list[Value] = []
        whole: Truth = True
        for truth, groups in self.terms.masks:
            if isinstance(truth, bool):
                whole = both(whole, truth)
                continue
            kept += [self._side(part, groups) for part in _parts(truth, self.masks)]
        if whole is False:
            raise Obstacle("every key is masked", self.way.softmax)
        sizes = [product(a.size for a in flat(g)) for g in self.places.groups()]
        return structured(kept, sizes, self.masks.read)

    def _side(self, side: Value, groups: list[Group]) -> Value:
        """A value that broadcasts to axes `groups` of the scores, as one that broadcasts to [B,H,S,T]."""
        view = view_of(side)
        own = view.padded(len(groups))
        found = dict[Atom, Atom | None]()
        for _ in range(2):
            for g, s in zip(groups, own, strict=True):
                align(g, s)
        for g, s in zip(groups, own, strict=True):
            found |= paired(g, s)
        wanted = [[_or_broadcast(found.get(a), a) for a in g] for g in self.places.groups()]
        for a in flat(view.order):
            if all(x is not a for g in wanted for x in g):
                raise Unaligned
        return built(view, wanted, expanded=False)

    def _bias(self, q: Value) -> Value | None:
        total: Value | None = None
        for v, by, groups in self.terms.biases:
            side = self._side(v, groups)
            side = side if side.dtype == q.dtype else side.cast(q.dtype)
            side = side if by == 1 else side * by
            total = side if total is None else total + side
        return total

    def _sinks(self, q: Value, heads: Group) -> Value | None:
        """Sinks [..H..,S,1] as one number for each head."""
        sinks = self.terms.sinks
        if sinks is None:
            return None
        view, size = view_of(sinks), product(a.size for a in flat(heads))
        real = flat(view.order)
        if product(a.size for a in real) != size:
            raise Obstacle("sinks are not one number for each head", self.way.softmax)
        if self.terms.sinks is not None and not any(isinstance(s.node.op, Slice) for s in self.way.after):
            raise Obstacle("the column of sinks goes to the values", self.way.values)
        found = built(view, [real], expanded=False)
        return found if found.dtype == q.dtype else found.cast(q.dtype)

    def output(self, attention: Value) -> Value:
        """The attention [B,S,H,Dv] in the layout of the second product."""
        batch, heads, rows, _ = self.places.groups()
        width = [Atom(a.size) for a in flat(self.v.groups[-1 if self.way.carrier == 0 else -2])]
        view = View(attention, [*batch, *rows, *heads, *width], [])
        groups = flats(self.weight_groups)
        wanted = [*groups[:-1], width] if self.way.carrier == 0 else [*groups[:-2], width, groups[-1]]
        new = built(view, wanted, expanded=True)
        return new if new.dtype == self.way.values.output.dtype else new.cast(self.way.values.output.dtype)


def _shifts(step: Step) -> bool:
    """Whether a step adds one number to all scores of a row."""
    return isinstance(step.node.op, (Add, Sub)) and step.sides[0].shape[-1:] == (1,)


def _parts(truth: Value, masks: Masks) -> list[Value]:
    found = conjuncts(truth, masks)
    if any(p is False for p in found):
        raise Obstacle("every key is masked")
    return [flipped(p) for p in found if isinstance(p, Value)]


def _or_broadcast(atom: Atom | None, place: Atom) -> Atom:
    return atom if atom is not None else Atom(place.size, real=False)


def _laid(view: View, to: dict[Atom, Atom | None], groups: Sequence[Group], channels: Group) -> Value:
    """A value as [B, length, heads, width]."""
    wanted = [[_or_broadcast(to[a], a) for a in g] for g in groups]
    return built(view, [*wanted, channels], expanded=True)
