"""Which versions of each value a serving graph needs, and how each is made; found from the outputs on.

A version says for each axis over tokens how many of the past it has before the new ones: none, all, or those of a
window. Outputs want new tokens only. Attention asks for all keys; what follows from masks and positions alone is
computed for all tokens; what does not is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.errors import PassError
from ..ir.flow import Link
from ..ir.graph import Node, Value
from ..ir.ops.shape import Concat, Expand, Iota
from ..ir.slots import PAST, past_of
from ..ir.types import Dim, DimLike
from .token_flow import TokenFlow, extra, is_over

ALL = Dim.symbol(PAST)

Version = tuple[DimLike | None, ...]
"""For each axis how much of the past it has (None: it does not run over tokens), then what is meant by all tokens."""

Label = tuple[int, str]
"""The attention, and the operand of it, that something is remembered for."""


@dataclass(frozen=True)
class Emit:
    """The node again, on these versions of its operands."""

    operands: tuple[Version | None, ...]


@dataclass(frozen=True)
class Tail:
    """The newest tokens of a longer version, along one axis."""

    longer: Version
    axis: int


@dataclass(frozen=True)
class Remember:
    """New tokens behind the remembered ones, along one axis."""

    new: Version
    axis: int


Recipe = Emit | Tail | Remember


class Versions:
    """Which versions of each value are needed, and how each is made; found from the outputs on."""

    def __init__(self, flow: TokenFlow) -> None:
        self.flow, self.graph = flow, flow.graph
        self.batch = flow.graph.inputs[flow.stream.ids].shape[0]
        self.needed: dict[Value, dict[Version, Label | None]] = {}
        self.recipes: dict[tuple[Value, Version], Recipe] = {}
        looking = [n for n in self.graph if any(flow.axes(n.value(k)) for k in n.op.keys)]
        self.index = {n: i for i, n in enumerate(looking)}
        for v in self.graph.outputs.values():
            self.need(v, self.new(v))
        for node in self.graph.reversed():
            for v in node.outputs:
                self.settle(v)
            self.keep_states(node)
        for v in self.graph.inputs.values():
            self.settle(v)

    def new(self, v: Value, whole: DimLike = ALL) -> Version:
        """The version over the new tokens."""
        return (*(0 if is_over(d, self.flow.symbol) else None for d in v.shape), whole)

    def need(self, v: Value, version: Version, label: Label | None = None) -> None:
        known = self.needed.setdefault(v, {})
        before = known.get(version)
        known[version] = min(label or before, before or label) if label or before else None  # type: ignore[type-var]

    def settle(self, v: Value) -> None:
        """Find recipes for all versions of a value; those that one version needs of the same value come after it."""
        waiting = list(self.needed.get(v, {}))
        while waiting:
            version = waiting.pop()
            if (v, version) in self.recipes:
                continue
            recipe = self.recipe(v, version)
            if recipe is None:
                continue
            self.recipes[v, version] = recipe
            if isinstance(recipe, Emit):
                self.need_operands(v, recipe, self.needed[v][version])
            else:
                other = recipe.longer if isinstance(recipe, Tail) else recipe.new
                self.need(v, other, self.needed[v][version] if isinstance(recipe, Tail) else None)
                waiting.append(other)

    def need_operands(self, v: Value, recipe: Emit, label: Label | None) -> None:
        node = v.producer
        assert node is not None
        names = node.op.signature.operand_names(len(node.operands))
        for i, (given, version) in enumerate(zip(node.operands, recipe.operands, strict=True)):
            if given is None or version is None:
                continue
            inner = label
            if node in self.index:
                part = node.op.keys.get(names[i])
                inner = None if part is None else (self.index[node], part)
            elif label is not None and isinstance(node.op, Concat):
                inner = (label[0], f"{label[1]}.{i}")
            self.need(given, version, inner)

    def keep_states(self, node: Node) -> None:
        """A layer with a state of its own that reads new tokens: its first state, if the graph computes one."""
        if self.is_stateful(node) and any(v in self.needed for v in node.outputs):
            for name in node.op.states:
                first = node[name]
                self.check_rows(node.outputs[node.op.states[name]])
                if first is not None:
                    self.flow.check(first, f"the first state {name} of {node.op.name}")
                    self.need(first, self.new(first))

    def is_stateful(self, node: Node) -> bool:
        """Whether a layer with a state goes from token to token, and not along another axis of each."""
        return bool(node.op.states) and any(link.upto for link in self.flow.links[node])

    # -- how one version is made -----------------------------------------------------------------------------------

    def recipe(self, v: Value, version: Version) -> Recipe | None:
        """None for what the graph is given: parameters, constants, and inputs as they come."""
        node = v.producer
        longer = next((i for i, past in enumerate(version[:-1]) if past not in (None, 0)), None)
        if node is None:
            return self.given(v, version, longer)
        if longer is not None and v not in self.flow.structural and self.stored(v, node, longer):
            return self.remember(v, version, longer)
        if self.is_stateful(node):
            return Emit(tuple(self.state_operand(node, i) for i in range(len(node.operands))))
        return self.lifted(v, node, version) or self.emit(v, node, version)

    def given(self, v: Value, version: Version, longer: int | None) -> Recipe | None:
        if longer is None or v.name == self.flow.stream.mask:
            return None
        return self.remember(v, version, longer)

    def stored(self, v: Value, node: Node, axis: int) -> bool:
        """Whether the value itself is remembered, and not what it is put together from."""
        if extra(v.shape[axis], self.flow.symbol) != 0 or isinstance(node.op, (Expand, Concat)):
            return False
        # A pair of tokens is put together from what is remembered of each; rows of slots are those of the batch.
        if len(self.flow.axes(v)) > 1 or axis == 0 or v.shape[0] != self.batch:
            return False
        links = [link for link in self.flow.links[node] if link.to == axis and node.outputs[link.output] is v]
        sequential = bool(node.op.keys) or self.is_stateful(node)
        return not any(self.moves(link, node) or (link.upto and not sequential) for link in links)

    def remember(self, v: Value, version: Version, axis: int) -> Remember:
        others = [p for i, p in enumerate(version[:-1]) if i != axis and p is not None]
        if others or extra(v.shape[axis], self.flow.symbol) != 0:
            place = str(v.producer.location) if v.producer else ""
            raise PassError(f"{v!r} cannot be remembered: it has several axes over tokens", place=place)
        self.check_rows(v, axis)
        self.flow.check(v, f"{v!r} is remembered")
        return Remember(_with(version, axis, 0), axis)

    def check_rows(self, v: Value, axis: int | None = None) -> None:
        """Raise PassError unless a value has one entry for each row of the batch, of a known size but for `axis`."""
        sizes = [d for i, d in enumerate(v.shape[1:], 1) if i != axis]
        if v.shape[:1] != (self.batch,) or axis == 0 or any(isinstance(d, Dim) for d in sizes):
            place = str(v.producer.location) if v.producer else ""
            what = f"{v!r} cannot be remembered: it is not one entry of a known size for each of the {self.batch} rows"
            raise PassError(what, place=place)

    def lifted(self, v: Value, node: Node, version: Version) -> Recipe | None:
        """The tail of a longer version, where columns read others that a shorter one does not have."""
        for axis, past in enumerate(version[:-1]):
            if past is None or node.op.keys:
                continue
            own = [k for k in self.flow.links[node] if node.outputs[k.output] is v]
            links, whole = [k for k in own if k.to == axis], {(k.operand, k.axis) for k in own if k.to is None}
            if any(k.upto or (k.operand, k.axis) in whole for k in links):
                needed: DimLike = ALL
            elif past == 0 and any(self.moves(k, node) for k in links):
                needed = Dim.symbol(past_of(1 + self.lookback(v)))
            else:
                continue
            if past != needed:
                self.check_length(v, node, axis)
                return Tail(_with(version, axis, needed), axis)
        return None

    def moves(self, link: Link, node: Node) -> bool:
        """Whether column j of a result is not that of the operand: it is shifted, or has others before or behind it."""
        given, v = node.operands[link.operand], node.outputs[link.output]
        if node.op.keys or given is None or link.to is None:
            return False
        symbol = self.flow.symbol
        return link.shift != 0 or extra(given.shape[link.axis], symbol) != extra(v.shape[link.to], symbol)

    def check_length(self, v: Value, node: Node, axis: int) -> None:
        if extra(v.shape[axis], self.flow.symbol) != 0:
            what = f"{node.op.name} gives {v.shape[axis]} columns for {self.flow.symbol} tokens: which are new is open"
            raise PassError(what, place=str(node.location))

    def lookback(self, v: Value) -> int:
        """Most columns that one column reads back through nodes that shift tokens, up to what is remembered."""
        node = v.producer
        most = 0
        for link in self.flow.links[node] if node is not None else ():
            given = node.operands[link.operand] if node is not None else None
            if given is not None and link.to is not None and isinstance(link.shift, int):
                most = max(most, max(link.shift, 0) + self.lookback_of_all(given))
        return most

    def lookback_of_all(self, v: Value) -> int:
        """The same for a value of which the past is needed, too: nothing where that is remembered."""
        axes = self.flow.axes(v)
        ends = v.producer is None or not axes
        if not ends and v not in self.flow.structural and v.producer is not None:
            ends = self.stored(v, v.producer, axes[0])
        return 0 if ends else self.lookback(v)

    def emit(self, v: Value, node: Node, version: Version) -> Emit:
        output = node.outputs.index(v)
        *_, whole = version
        wanted = [None if o is None else list(self.new(o, ALL if whole is None else whole)) for o in node.operands]
        for axis, past in enumerate(version[:-1]):
            # Of an attention whose keys have more columns than it has queries, the past is behind what comes first.
            if past == 0 and not node.op.keys and not isinstance(node.op, Iota):
                reads = [k for k in self.flow.links[node] if k.to == axis and k.output == output]
                if any(self.moves(k, node) for k in reads):
                    self.check_length(v, node, axis)
        for link in self.flow.links[node]:
            roles = wanted[link.operand]
            if roles is not None and link.output == output:
                roles[link.axis] = self.past_of(link, node, version)
        return Emit(tuple(None if w is None else tuple(w) for w in wanted))

    def past_of(self, link: Link, node: Node, version: Version) -> DimLike | None:
        """How much of the past an operand needs along the axis of a link."""
        if node.op.keys and (link.upto or link.to is None):
            return self.past_of_keys(node)
        if link.to is None or version[link.to] is None:
            return version[-1]
        return version[link.to]

    def past_of_keys(self, node: Node) -> DimLike:
        """What an attention reads: the tokens of its window and what those look back to, or all."""
        window: int | None = node.attributes.get("window")
        # What stands before the first token belongs to every window, so that its columns are no distances.
        if window is None or any(extra(node.value(k).shape[1], self.flow.symbol) != 0 for k in node.op.keys):
            return ALL
        back = max(self.lookback_of_all(v) for v in node.arguments[1:])
        return Dim.symbol(past_of(window + back))

    def state_operand(self, node: Node, i: int) -> Version | None:
        v = node.operands[i]
        names = node.op.signature.operand_names(len(node.operands))
        if v is None or names[i] in node.op.states:
            return None
        return self.new(v, 0 if names[i] in node.op.counts else ALL)


def _with(version: Version, axis: int, past: DimLike) -> Version:
    return (*version[:axis], past, *version[axis + 1 :])
