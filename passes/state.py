"""One mechanism for everything that a model remembers between calls: from S tokens at once to S new ones behind P.

A plain graph has one length S for all tokens, whoever reads them. The serving graph tells apart who reads which: a
*version* of a value says for each axis over tokens how many of the past it has before the S new ones: none, all P, or
those of a window. `versions` finds which are needed; here they are built.
"""

from __future__ import annotations

from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.cache import cache_append, cache_read
from ..ir.ops.shape import Iota, concat, slice_
from ..ir.slots import PAST, Growth, Slot, Stream, key_value, remembered, state
from ..ir.types import Dim, TensorType
from ..ir.value import Attributes
from .dce import dce
from .token_flow import TokenFlow, stream_of
from .versions import ALL, Emit, Remember, Tail, Version, Versions


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
    versions = Versions(flow)
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
        hint = "of a module of PyTorch, say with dynamic_shapes that its rows and its length vary"
        raise PassError(what, place=graph.name, hint=hint)
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
        said = [d for d in node.attributes.values() if isinstance(d, Dim)]
        lost = {s for v in node.outputs for s in v.type.symbols} | {s for d in said for s in d.symbols}
        lost -= known
        if lost:
            what = f"{node.op.name} needs the number of tokens before the new ones, which no input tells"
            hint = "give the model an attention_mask"
            raise PassError(what, place=str(node.location), hint=hint)


def _place(slot: Slot) -> tuple[str, int, bool]:
    """A key that sorts slots by what they are for and by layer, keys before values."""
    kind, _, rest = slot.input.partition(".")
    number, _, part = rest.partition(".")
    return kind, int(number) if number.isdecimal() else -1, part.startswith("value")


class _Serving:
    """Builds the graph over new tokens from the versions that are needed."""

    def __init__(self, flow: TokenFlow, versions: Versions) -> None:
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
            elif isinstance(recipe, Emit):
                self.emit(v, version, recipe, number)
            elif isinstance(recipe, Tail):
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

    def tail(self, longer: Value, recipe: Tail, version: Version) -> Value:
        have, want = recipe.longer[recipe.axis], version[recipe.axis]
        assert have is not None and want is not None
        symbol = Dim.symbol(self.flow.symbol)
        return slice_(longer, axis=recipe.axis, start=have - want, length=want + symbol)

    def remember(self, v: Value, version: Version, recipe: Remember) -> Value:
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

    def emit(self, v: Value, version: Version, recipe: Emit, number: int | None) -> None:
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
