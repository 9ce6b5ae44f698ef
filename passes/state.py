"""One mechanism for everything that a model remembers between calls: from S tokens at once to S new ones behind P.

A plain graph has one length S for all tokens, whoever reads them. The serving graph tells apart who reads which: a
*version* of a value says for each axis over tokens how many of the past it has before the S new ones: none, all P, or
those of a window. Versions are asked for from the outputs on, which want new tokens only. Attention asks for all keys;
what follows from masks and positions alone is computed for all tokens; what does not is remembered in a slot.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.errors import PassError
from ..ir.flow import Link
from ..ir.graph import Graph, Node, Value
from ..ir.ops.attention import Attention
from ..ir.ops.cache import cache_append, cache_read
from ..ir.ops.shape import Concat, Expand, Iota, concat, slice_
from ..ir.slots import PAST, Growth, Slot, Stream, key_value, past_of, remembered, state
from ..ir.types import Dim, DimLike, TensorType
from ..ir.value import Attributes
from .dce import dce
from .token_flow import TokenFlow, extra, is_over, stream_of

ALL = Dim.symbol(PAST)

Version = tuple[DimLike | None, ...]
"""For each axis how much of the past it has (None: it does not run over tokens), then what is meant by all tokens."""

Label = tuple[int, str]
"""The attention, and the operand of it, that something is remembered for."""


@dataclass(frozen=True)
class _Emit:
    """The node again, on these versions of its operands."""

    operands: tuple[Version | None, ...]


@dataclass(frozen=True)
class _Tail:
    """The newest tokens of a longer version, along one axis."""

    longer: Version
    axis: int


@dataclass(frozen=True)
class _Remember:
    """New tokens behind the remembered ones, along one axis."""

    new: Version
    axis: int


_Recipe = _Emit | _Tail | _Remember


def add_state(graph: Graph) -> int:
    """Turn a graph over all tokens into one over new tokens with slots; gives the number of slots.

    The mask of the stream becomes [B,P+S]; other inputs keep the S new tokens. A graph without a stream of tokens that
    it makes is left as it is. Raises PassError naming the node for what cannot be computed from token to token: a node
    that reads tokens which come later, or mixes tokens in a way that no slot can carry.
    """
    if graph.slots:
        raise PassError(f"graph {graph.name} already has {len(graph.slots)} slots")
    stream = stream_of(graph)
    if stream is None or stream.ids not in graph.inputs:
        return 0
    _check_symbols(graph, stream)
    flow = TokenFlow(graph, stream)
    for name, v in graph.outputs.items():
        if flow.axes(v):
            flow.check(v, f"output {name}")
    versions = _Versions(flow)
    new = _Serving(flow, versions).graph()
    graph.become(new)
    dce(graph)
    _check_past(graph)
    return len(graph.slots)


def _check_symbols(graph: Graph, stream: Stream) -> None:
    """Tokens are counted by one symbol, and those before them by one that is free."""
    ids = graph.inputs[stream.ids]
    if ids.rank < 2 or ids.shape[1] != Dim.symbol(stream.length):
        what = f"{stream.ids} is {ids.type}: its length is not {stream.length}, which a past could be told from"
        raise PassError(what, place=graph.name)
    mask = graph.inputs.get(stream.mask)
    if mask is not None and mask.shape != ids.shape[:2]:
        what = f"{stream.mask} is {mask.type}, expected one number a token, [{ids.shape[0]},{ids.shape[1]}]"
        hint = "masks that depend on the query are made of it and of positions inside the model"
        raise PassError(what, place=graph.name, hint=hint)
    for v in graph.inputs.values():
        if any((s.startswith(PAST) and s[len(PAST) :].isdecimal()) or s == PAST for s in v.type.symbols):
            raise PassError(f"{v.name} is {v.type}, but {PAST} counts the tokens before the new ones", place=graph.name)


def _check_past(graph: Graph) -> None:
    """Every length that a node names must follow from an input."""
    known = {s for v in graph.inputs.values() for s in v.type.symbols}
    for node in graph:
        lost = {s for v in node.outputs for s in v.type.symbols} - known
        if lost:
            what = f"{node.op.name} needs the number of tokens before the new ones, which no input tells"
            hint = "give the model an attention_mask"
            raise PassError(what, place=str(node.location), hint=hint)


class _Versions:
    """Which versions of each value are needed, and how each is made; found from the outputs on."""

    def __init__(self, flow: TokenFlow) -> None:
        self.flow, self.graph = flow, flow.graph
        self.needed: dict[Value, dict[Version, Label | None]] = {}
        self.recipes: dict[tuple[Value, Version], _Recipe] = {}
        self.attentions = [n for n in self.graph if isinstance(n.op, Attention) and flow.axes(n.value("k"))]
        self.index = {n: i for i, n in enumerate(self.attentions)}
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
            if isinstance(recipe, _Emit):
                self.need_operands(v, recipe, self.needed[v][version])
            else:
                other = recipe.longer if isinstance(recipe, _Tail) else recipe.new
                self.need(v, other, self.needed[v][version] if isinstance(recipe, _Tail) else None)
                waiting.append(other)

    def need_operands(self, v: Value, recipe: _Emit, label: Label | None) -> None:
        node = v.producer
        assert node is not None
        names = node.op.signature.operand_names(len(node.operands))
        for i, (given, version) in enumerate(zip(node.operands, recipe.operands, strict=True)):
            if given is None or version is None:
                continue
            inner = label
            if node in self.index:
                part = {"k": "key", "v": "value"}.get(names[i])
                inner = None if part is None else (self.index[node], part)
            elif label is not None and isinstance(node.op, Concat):
                inner = (label[0], f"{label[1]}.{i}")
            self.need(given, version, inner)

    def keep_states(self, node: Node) -> None:
        """A layer with a state of its own that reads new tokens: its first state, if the graph computes one."""
        if self.is_stateful(node) and any(v in self.needed for v in node.outputs):
            for name in node.op.states:
                first = node[name]
                if first is not None:
                    self.flow.check(first, f"the first state {name} of {node.op.name}")
                    self.need(first, self.new(first))

    def is_stateful(self, node: Node) -> bool:
        return bool(node.op.states) and bool(self.flow.links[node])

    # -- how one version is made -----------------------------------------------------------------------------------

    def recipe(self, v: Value, version: Version) -> _Recipe | None:
        """None for what the graph is given: parameters, constants, and inputs as they come."""
        node = v.producer
        longer = next((i for i, past in enumerate(version[:-1]) if past not in (None, 0)), None)
        if node is None:
            return self.given(v, version, longer)
        if longer is not None and v not in self.flow.structural and self.stored(v, node, longer):
            return self.remember(v, version, longer)
        if self.is_stateful(node):
            return _Emit(tuple(self.state_operand(node, i) for i in range(len(node.operands))))
        return self.lifted(v, node, version) or self.emit(v, node, version)

    def given(self, v: Value, version: Version, longer: int | None) -> _Recipe | None:
        if longer is None or v.name == self.flow.stream.mask:
            return None
        return self.remember(v, version, longer)

    def stored(self, v: Value, node: Node, axis: int) -> bool:
        """Whether the value itself is remembered, and not what it is put together from."""
        if extra(v.shape[axis], self.flow.symbol) != 0 or isinstance(node.op, (Expand, Concat)):
            return False
        return not any(link.to == axis and link.shift != 0 for link in self.flow.links[node])

    def remember(self, v: Value, version: Version, axis: int) -> _Remember:
        others = [p for i, p in enumerate(version[:-1]) if i != axis and p is not None]
        if others or extra(v.shape[axis], self.flow.symbol) != 0:
            place = str(v.producer.location) if v.producer else ""
            raise PassError(f"{v!r} cannot be remembered: it has several axes over tokens", place=place)
        self.flow.check(v, f"{v!r} is remembered")
        return _Remember(_with(version, axis, 0), axis)

    def lifted(self, v: Value, node: Node, version: Version) -> _Recipe | None:
        """The tail of a longer version, where columns read others that a shorter one does not have."""
        for axis, past in enumerate(version[:-1]):
            if past is None or isinstance(node.op, Attention):
                continue
            own = [k for k in self.flow.links[node] if node.outputs[k.output] is v]
            links, whole = [k for k in own if k.to == axis], {(k.operand, k.axis) for k in own if k.to is None}
            if any(k.upto or (k.operand, k.axis) in whole for k in links):
                needed: DimLike = ALL
            elif past == 0 and any(k.shift != 0 for k in links):
                needed = Dim.symbol(past_of(1 + self.lookback(v)))
            else:
                continue
            if past != needed:
                self.check_length(v, node, axis)
                return _Tail(_with(version, axis, needed), axis)
        return None

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

    def emit(self, v: Value, node: Node, version: Version) -> _Emit:
        output = node.outputs.index(v)
        wanted = [None if o is None else list(self.new(o, version[-1])) for o in node.operands]
        for axis, past in enumerate(version[:-1]):
            # Of an attention whose keys have more columns than it has queries, the past is behind what comes first.
            if past == 0 and not isinstance(node.op, Attention) and not isinstance(node.op, Iota):
                reads = [k for k in self.flow.links[node] if k.to == axis and k.output == output]
                if any(k.shift != 0 for k in reads):
                    self.check_length(v, node, axis)
        for link in self.flow.links[node]:
            roles = wanted[link.operand]
            if roles is not None and link.output == output:
                roles[link.axis] = self.past_of(link, node, version)
        return _Emit(tuple(None if w is None else tuple(w) for w in wanted))

    def past_of(self, link: Link, node: Node, version: Version) -> DimLike | None:
        """How much of the past an operand needs along the axis of a link."""
        if isinstance(node.op, Attention) and (link.upto or link.to is None):
            return self.past_of_keys(node)
        if link.to is None or version[link.to] is None:
            return version[-1]
        return version[link.to]

    def past_of_keys(self, node: Node) -> DimLike:
        """What an attention reads: the tokens of its window and what those look back to, or all."""
        window: int | None = node.attributes["window"]
        # What stands before the first token belongs to every window, so that its columns are no distances.
        if window is None or extra(node.value("k").shape[1], self.flow.symbol) != 0:
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


def _place(slot: Slot) -> tuple[str, int, bool]:
    """A key that sorts slots by what they are for and by layer, keys before values."""
    kind, _, rest = slot.input.partition(".")
    number, _, part = rest.partition(".")
    return kind, int(number) if number.isdecimal() else -1, part.startswith("value")


class _Serving:
    """Builds the graph over new tokens from the versions that are needed."""

    def __init__(self, flow: TokenFlow, versions: _Versions) -> None:
        self.flow, self.versions = flow, versions
        self.out = Graph(flow.graph.name)
        self.made: dict[tuple[Value, Version], Value] = {}
        self.nodes: dict[tuple[Node, tuple[Version | None, ...], Version], tuple[Value, ...]] = {}
        self.slots: list[Slot] = []
        self.plain = 0

    def graph(self) -> Graph:
        source, stream = self.flow.graph, self.flow.stream
        for name, v in source.inputs.items():
            if v in self.versions.needed or name not in stream.names:
                given = v.type if name != stream.mask else self.long(v, self.everything(v))
                self.made[v, ()] = self.out.input(name, given)
        for v in source.params.values():
            self.made[v, ()] = self.out.param(v.name, v.type, v.init)
        number = 0
        for node in source:
            stateful = self.versions.is_stateful(node) and any(v in self.versions.needed for v in node.outputs)
            with self.out.at(None, node.location):
                for v in node.outputs:
                    for version in self.versions.needed.get(v, {}):
                        self.value(v, version, number if stateful else None)
            number += stateful
        for name, v in source.outputs.items():
            self.out.output(name, self.value(v, self.versions.new(v)))
        self.out.stream, self.out.slots = self.flow.stream, tuple(sorted(self.slots, key=_place))
        self.in_order()
        return self.out

    def in_order(self) -> None:
        """What the model has itself before what is remembered, and that by number."""
        out = self.out
        inputs, outputs = [s.input for s in out.slots], [s.output for s in out.slots]
        own = [k for k in out.inputs if k not in inputs]
        out.inputs = {k: out.inputs[k] for k in (*own, *inputs)}
        own = [k for k in out.outputs if k not in outputs]
        out.outputs = {k: out.outputs[k] for k in (*own, *outputs)}

    def everything(self, v: Value) -> Version:
        return tuple(ALL if p == 0 else p for p in self.versions.new(v))

    def long(self, v: Value, version: Version) -> TensorType:
        """The type of a version of a value."""
        symbol = self.flow.symbol
        shape = tuple(
            d.substitute({symbol: past + Dim.symbol(symbol)}) if past is not None and isinstance(d, Dim) else d
            for d, past in zip(v.shape, version[:-1], strict=True)
        )
        return TensorType(v.dtype, shape)

    def value(self, v: Value, version: Version, number: int | None = None) -> Value:
        """A version of a value, made now unless it is there."""
        if (v, version) not in self.made:
            recipe = self.versions.recipes.get((v, version))
            if recipe is None:
                self.made[v, version] = self.given(v, version)
            elif isinstance(recipe, _Emit):
                self.emit(v, version, recipe, number)
            elif isinstance(recipe, _Tail):
                self.made[v, version] = self.tail(self.value(v, recipe.longer, number), recipe, version)
            else:
                self.made[v, version] = self.remember(v, version, recipe)
        return self.made[v, version]

    def given(self, v: Value, version: Version) -> Value:
        whole = self.made[v, ()]
        if v.name != self.flow.stream.mask or v.is_param:
            return whole
        for axis, past in enumerate(version[:-1]):
            if past is not None and past != ALL:
                symbol = Dim.symbol(self.flow.symbol)
                return slice_(whole, axis=axis, start=ALL - past, length=past + symbol)
        return whole

    def tail(self, longer: Value, recipe: _Tail, version: Version) -> Value:
        have, want = recipe.longer[recipe.axis], version[recipe.axis]
        assert have is not None and want is not None
        symbol = Dim.symbol(self.flow.symbol)
        return slice_(longer, axis=recipe.axis, start=have - want, length=want + symbol)

    def remember(self, v: Value, version: Version, recipe: _Remember) -> Value:
        new = self.value(v, recipe.new)
        past = version[recipe.axis]
        assert isinstance(past, Dim) and past.name is not None
        label = self.versions.needed[v][version]
        if v.producer is None:
            name, output = f"past_{v.name}", f"present_{v.name}"
        elif label is not None:
            name, output = key_value(*label)
        else:
            name, output = remembered(self.plain)
            self.plain += 1
        window = int(past.name.removeprefix(PAST) or 0)
        growth = Growth.window if window else Growth.append
        if name in self.out.inputs:  # The same, read by one layer whole and by another in a window.
            name, output = f"{name}.window{window}", f"{output}.window{window}"
        if v.rank == 4 and recipe.axis == 1:
            batch, _, heads, width = v.shape
            before = self.out.input(name, TensorType(v.dtype, (batch, heads, past, width)))
            after = cache_append(before, new)
            result, axis = cache_read(after), 2
        else:
            shape = (*v.shape[: recipe.axis], past, *v.shape[recipe.axis + 1 :])
            before = self.out.input(name, TensorType(v.dtype, shape))
            result = after = concat(before, new, axis=recipe.axis)
            axis = recipe.axis
        self.out.output(output, after)
        self.slots.append(Slot(name, output, growth, before.type, axis, window))
        return result

    def emit(self, v: Value, version: Version, recipe: _Emit, number: int | None) -> None:
        node = v.producer
        assert node is not None
        key = (node, recipe.operands, version if not node.operands else version[-1:])
        if key not in self.nodes:
            operands = [
                None if o is None or w is None else self.value(o, w)
                for o, w in zip(node.operands, recipe.operands, strict=True)
            ]
            if number is not None:
                self.bring_states(node, operands, number)
            attributes = self.attributes(node, v, version)
            self.nodes[key] = self.out.add(node.op, operands, attributes)
            if number is not None:
                self.give_states(node, self.nodes[key], number)
        result = self.nodes[key][v.index]
        expected = self.long(v, version)
        if result.type != expected:
            what = f"{node.op.name} is {result.type} over new tokens, expected {expected}: it mixes tokens"
            raise PassError(what, place=str(node.location))
        self.made[v, version] = result

    def attributes(self, node: Node, v: Value, version: Version) -> Attributes:
        """Attributes of a node with its lengths changed to those of a version."""
        symbol = self.flow.symbol
        pasts = {p for p in version[:-1] if p is not None}
        if isinstance(node.op, Iota) and pasts:
            (past,) = pasts
            # Columns count all tokens, the first ones included that a window does not have any more.
            length, start = node.attributes["length"] + past, node.attributes["start"] + ALL - past
            return {**node.attributes, "start": start, "length": length}
        changed: Attributes = {}
        for name, value in node.attributes.items():
            if value == v.shape and isinstance(value, tuple):
                changed[name] = self.long(v, version).shape
            elif isinstance(value, Dim) and symbol in value.symbols:
                if len(pasts) != 1:
                    what = f"{name} of {node.op.name} is {value}, and which tokens it counts is open"
                    raise PassError(what, place=str(node.location))
                changed[name] = value.substitute({symbol: next(iter(pasts)) + Dim.symbol(symbol)})
        return {**node.attributes, **changed}

    # -- layers with a state of their own ----------------------------------------------------------------------------

    def bring_states(self, node: Node, operands: list[Value | None], number: int) -> None:
        for name, output in node.op.states.items():
            given, _, first = state(number, node.op.state_names[name])
            v, own = node[name], node.outputs[output]
            if v is not None:
                self.out.output(first, self.value(v, self.versions.new(v)))
            operands[node.op.signature.operands.index(name)] = self.out.input(given, own.type)

    def give_states(self, node: Node, outputs: tuple[Value, ...], number: int) -> None:
        for name, output in node.op.states.items():
            given, after, first = state(number, node.op.state_names[name])
            self.out.output(after, outputs[output])
            first = first if node[name] is not None else ""
            self.slots.append(Slot(given, after, Growth.replace, outputs[output].type, first=first))
