"""One way through a softmax read as attention: views of q, k, v, the terms between, and the op made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...ir import ops
from ...ir.graph import Value
from ...ir.ops.shape import Reshape, Slice, Transpose
from ...ir.types import product
from .conjuncts import conjuncts, flipped
from .masks import Masks, Truth, both
from .scores import Obstacle, Way
from .structure import Structure, structured
from .terms import read_terms
from .views import Atom, Group, Unaligned, View, align, built, flat, flats, paired, rearranged, view_of


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
        self._align_product()
        self.axis: int = way.softmax.attributes["axis"]
        self.terms, groups = read_terms(way, self.scores, masks)
        self.places = self._placed(groups)
        self.swapped = self._orientation()
        self.q, self.k = (self.right, self.left) if self.swapped else (self.left, self.right)
        self.terms.scale *= self.q.scale * self.k.scale
        self.sign = -1.0 if self.terms.scale < 0 else 1.0
        self.terms.scale *= self.sign
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

    # -- axes ----------------------------------------------------------------------------------------------------

    def _placed(self, groups: list[Group]) -> Places:
        """Batch and heads are alike in what is computed: what has no fixed size is batch, whatever its place."""
        at = self.axis % len(groups)
        keys, (*leading, rows) = groups[at], groups[:at] + groups[at + 1 :]
        first, *others = leading or [Group()]
        rest = [a for g in others for a in g]
        if not others:
            atoms = flat(first)
            single = len(atoms) == 1 and isinstance(atoms[0].size, int)
            first, rest = ([], atoms) if single else (atoms[:1], atoms[1:])
        varying = [a for a in rest if not isinstance(a.size, int)]
        fixed = [a for a in rest if isinstance(a.size, int)]
        if varying and all(isinstance(a.size, int) for a in first):
            return Places(varying, [*first, *fixed], rows, keys)
        return Places([*first, *varying], fixed, rows, keys)

    def _settle(self) -> None:
        """Queries are what neither keys nor values depend on; what else was taken for them is batch and heads."""
        to_q, to_k = self._from_scores()
        to_v = self._from_weights()
        batch, heads, rows, keys = self.places.groups()
        own = {a for a in (*batch, *heads, *rows) if to_k[a] is not None or to_v[a] is not None}
        free = [a for a in (*batch, *heads, *rows) if a not in own and to_q[a] is not None]
        if own.isdisjoint(rows) or not free:
            return
        queries = [a for a in free if not isinstance(a.size, int)] or free[:1]
        rest = [a for a in (*batch, *heads, *rows) if a not in queries]
        first = [a for a in rest if a in batch or not isinstance(a.size, int)]
        self.places = Places(first, [a for a in rest if a not in first], queries, keys)

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
                keeps = node.output.shape[-1] == product(a.size for a in flat(groups[-1]))
                if self.terms.sinks is None or not keeps or node.attributes["start"] != self.terms.first:
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
            what = "the weights are multiplied along an axis that is not the keys"
            raise Obstacle(f"{what}: softmax runs over axis {self.axis}", node)
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
        self._settle()
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
        q, k = self._multiplied(q * self.sign if self.sign < 0 else q, k)
        if self.terms.scale <= 0 or not math.isfinite(self.terms.scale):
            raise Obstacle(f"the scale of scores is {self.terms.scale:g}", self.way.product)
        return ops.attention(
            q, k, v, self._bias(q), structure.mask, structure.lengths, self._sinks(q, heads),
            causal=structure.causal, window=structure.window, scale=self.terms.scale, softcap=self.terms.softcap,
        )  # fmt: skip

    @property
    def parts(self) -> list[Truth]:
        """What must be true of a key, each in the axes that it has in the graph."""
        return [p for truth, _ in self.terms.masks for p in conjuncts(truth)]

    def _structure(self) -> Structure:
        kept: list[Value] = []
        whole: Truth = True
        for truth, groups in self.terms.masks:
            if isinstance(truth, bool):
                whole = both(whole, truth)
                continue
            kept += [self._side(part, groups) for part in _parts(truth)]
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

    def _multiplied(self, q: Value, k: Value) -> tuple[Value, Value]:
        """Queries and keys [B,length,heads,width] times what their scores are multiplied by."""
        for v, divides, groups in self.terms.scales:
            side = self._side(v, groups)
            _, heads, rows, keys = side.shape
            if keys == 1:
                q = _by(q, side.transpose(0, 2, 1, 3), divides=divides)
            elif rows == 1 and heads in (1, k.shape[2]):
                k = _by(k, side.transpose(0, 3, 1, 2), divides=divides)
            else:
                raise Obstacle("scores are multiplied by a tensor over queries and keys", self.way.product)
        return q, k

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
        sinks, size = self.terms.sinks, product(a.size for a in flat(heads))
        if sinks is None:
            return None
        if not any(isinstance(s.node.op, Slice) for s in self.way.after):
            raise Obstacle("the column of sinks goes to the values", self.way.values)
        if not isinstance(sinks, Value):
            return ops.expand(ops.constant(value=(sinks,), dtype=q.dtype), shape=(size,))
        view = view_of(sinks)
        real = flat(view.order)
        if product(a.size for a in real) != size:
            raise Obstacle("sinks are not one number for each head", self.way.softmax)
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


def _by(x: Value, side: Value, *, divides: bool) -> Value:
    side = side if side.dtype == x.dtype else side.cast(x.dtype)
    return x / side if divides else x * side


def _parts(truth: Value) -> list[Value]:
    found = conjuncts(truth)
    if any(p is False for p in found):
        raise Obstacle("every key is masked")
    return [flipped(p) for p in found if isinstance(p, Value)]


def _or_broadcast(atom: Atom | None, place: Atom) -> Atom:
    return atom if atom is not None else Atom(place.size, real=False)


def _laid(view: View, to: dict[Atom, Atom | None], groups: Sequence[Group], channels: Group) -> Value:
    """A value as [B, length, heads, width]."""
    wanted = [[_or_broadcast(to[a], a) for a in g] for g in groups]
    return built(view, [*wanted, channels], expanded=True)
