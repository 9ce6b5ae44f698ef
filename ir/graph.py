"""The graph: SSA values with use-lists, nodes in topological order, and the three mutations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .builder import building as building
from .builder import current_graph as current_graph
from .builder import inserting, place_of, point_of
from .clone import clone
from .display import Shown, Table
from .errors import MonographError, OpError, did_you_mean
from .init import Init
from .plain_numbers import with_numbers
from .slots import Slot, Stream
from .types import DType, TensorType
from .value import NOWHERE as NOWHERE
from .value import Attributes as Attributes
from .value import Location as Location
from .value import Node as Node
from .value import Operand as Operand
from .value import Value as Value

if TYPE_CHECKING:
    from .op import Op

_GAP = 1 << 20


def _shown(given: object) -> str:
    """What somebody gave in place of a value: numbers and texts as they are, the kind of anything else."""
    return repr(given) if isinstance(given, (int, float, str)) else f"a {type(given).__name__}"


class Graph(Shown):
    """Inputs, parameters, nodes in topological order, and named outputs.

    stream: the tokens that are read one after another, if there are such. slots: what is remembered between calls.
    Invariants: every operand is an input, a parameter or an output of an earlier node of the same graph;
    `uses` of a value lists exactly the operands that read it. Nodes change through `insert`, `replace`, `erase`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: dict[str, Value] = {}
        self.params: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.stream: Stream | None = None
        self.slots: tuple[Slot, ...] = ()
        self._first: Node | None = None
        self._last: Node | None = None

    # -- declaring -------------------------------------------------------------------------------------------

    def input(self, name: str, type: TensorType) -> Value:
        """A new input. Raises MonographError for a name that is taken."""
        if name in self.inputs:
            raise MonographError(f"graph {self.name} already has an input named {name}")
        self.inputs[name] = Value(self, type, name)
        return self.inputs[name]

    def input_of(self, name: str, type: TensorType) -> Value:
        """The input of that name, declared with `type` if there is none."""
        return self.inputs[name] if name in self.inputs else self.input(name, type)

    def param(self, path: str, type: TensorType, init: Init | None = None) -> Value:
        """A parameter by checkpoint path; asking twice for one path gives the same value (tied weights)."""
        known = self.params.get(path)
        if known is None:
            known = self.params[path] = Value(self, type, path)
            known.init = init
        elif known.type != type:
            what = f"parameter {path} is used as {known.type} and as {type}"
            raise MonographError(what, place=str(place_of(self)), hint="each layer needs a name of its own")
        return known

    def output(self, name: str, value: Value) -> None:
        """Make a value an output. Raises MonographError for a name that is taken, and for a value of another graph."""
        if value.graph is not self:
            raise MonographError(f"output {name} belongs to graph {value.graph.name}, not to {self.name}")
        if name in self.outputs:
            raise MonographError(f"graph {self.name} already has an output named {name}")
        self.outputs[name] = value

    # -- building --------------------------------------------------------------------------------------------

    def add(
        self, op: Op, operands: Sequence[Value | None], attributes: Attributes, location: Location | None = None
    ) -> tuple[Value, ...]:
        """Insert a node at the current point; its types come from the op's shape rule.

        location: place in the user's source, if it is not that of the current point or of the caller.
        """
        location = location or place_of(self)
        for v in operands:
            if v is not None and not isinstance(v, Value):  # pyright: ignore[reportUnnecessaryIsInstance]
                what = f"{op.name}: {_shown(v)} is not a value of a graph"
                hint = "numbers and arrays become values by `ops.constant(value=..., dtype=...)`"
                raise OpError(what, place=str(location), hint=hint)
            if v is not None and v.graph is not self:
                raise MonographError(f"{op.name}: {v!r} belongs to another graph", place=str(location))
        operands = [*operands, *[None] * (len(op.signature.operands) - len(operands))]
        attributes, types = op.typed(operands, attributes, location)
        node = Node(op, operands, attributes, location)
        node.outputs = [Value(self, t, producer=node, index=i) for i, t in enumerate(types)]
        self.place(node)
        return tuple(node.outputs)

    def place(self, node: Node) -> None:
        """Insert a finished node at the current point."""
        self.insert(node, point_of(self).before)

    def apply(self, name: str, operands: Sequence[Operand | None], attributes: Attributes) -> Any:
        """Add the op called `name`; plain numbers become constants."""
        from .op import OPS

        op = OPS.get(name)
        if op is None:
            raise MonographError(f"no op is called {name!r}{did_you_mean(name, OPS)}")
        outputs = self.add(op, self.lifted(op, operands), attributes)
        return outputs[0] if len(outputs) == 1 else outputs

    def lifted(self, op: Op, operands: Sequence[Operand | None]) -> list[Value | None]:
        """Operands with plain numbers as values of this graph, see `with_numbers`."""
        return with_numbers(self, op, operands)

    def constant(self, value: Any, dtype: DType) -> Value:
        """A number, or nested tuples of numbers, as a node."""
        from .op import OPS

        return self.add(OPS["constant"], (), {"value": value, "dtype": dtype})[0]

    def at(self, node: Node | None, location: Location | None = None) -> AbstractContextManager[None]:
        """Insert before `node` (None: at the end) and stamp new nodes with `location` (default: the node's)."""
        return inserting(self, node, location)

    # -- the three mutations -----------------------------------------------------------------------------------

    def insert(self, node: Node, before: Node | None = None) -> None:
        """Link a node in before another (None: last) and record its uses."""
        previous = before.previous if before is not None else self._last
        node.previous, node.next = previous, before
        if previous is None:
            self._first = node
        else:
            previous.next = node
        if before is None:
            self._last = node
            node.order = (previous.order if previous else 0) + _GAP
        else:
            before.previous = node
            low = previous.order if previous else 0
            node.order = (low + before.order) // 2
            if node.order in (low, before.order):
                self._renumber()
        for i, v in enumerate(node.operands):
            if v is not None:
                v.uses[node, i] = None

    def replace(self, old: Value, new: Value) -> None:
        """Make every reader of `old`, and every output that is `old`, take `new` instead."""
        for node, i in list(old.uses):
            self.set_operand(node, i, new)
        for name, v in self.outputs.items():
            if v is old:
                self.outputs[name] = new

    def set_operand(self, node: Node, i: int, new: Value | None) -> None:
        """Replace one operand of one node."""
        old = node.operands[i]
        if old is not None:
            old.uses.pop((node, i), None)
        node.operands[i] = new
        if new is not None:
            new.uses[node, i] = None

    def erase(self, node: Node) -> None:
        """Remove a node none of whose outputs is used. Raises MonographError otherwise."""
        for v in node.outputs:
            if v.uses or any(v is o for o in self.outputs.values()):
                raise MonographError(f"{node!r} is still used and cannot be erased")
        if node.previous is None:
            self._first = node.next
        else:
            node.previous.next = node.next
        if node.next is None:
            self._last = node.previous
        else:
            node.next.previous = node.previous
        for i, v in enumerate(node.operands):
            if v is not None:
                v.uses.pop((node, i), None)
        node.order = -1

    def _renumber(self) -> None:
        for i, node in enumerate(self):
            node.order = (i + 1) * _GAP

    # -- reading -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Node]:
        """Nodes in topological order; the node just given may be erased, and nodes inserted before it."""
        node = self._first
        while node is not None:
            following = node.next
            yield node
            node = following

    def reversed(self) -> Iterator[Node]:
        """Nodes from last to first; the node just given may be erased."""
        node = self._last
        while node is not None:
            following = node.previous
            yield node
            node = following

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def is_output(self, value: Value) -> bool:
        """Whether the value is one of the outputs."""
        return any(value is v for v in self.outputs.values())

    def counts(self) -> dict[str, int]:
        """Nodes per op name, most frequent first."""
        total: dict[str, int] = {}
        for node in self:
            total[node.op.name] = total.get(node.op.name, 0) + 1
        return dict(sorted(total.items(), key=lambda kv: (-kv[1], kv[0])))

    def copy(self, name: str | None = None) -> Graph:
        """A graph with the same content and no shared values."""
        new = Graph(name or self.name)
        new.stream, new.slots = self.stream, self.slots
        mapping: dict[Value, Value] = {v: new.input(k, v.type) for k, v in self.inputs.items()}
        mapping |= {v: new.param(k, v.type, v.init) for k, v in self.params.items()}
        clone(self, new, mapping)
        new.outputs = {k: mapping[v] for k, v in self.outputs.items()}
        return new

    def become(self, other: Graph) -> None:
        """Take over all content of another graph, which must not be used any more."""
        self.inputs, self.params, self.outputs = other.inputs, other.params, other.outputs
        self.stream, self.slots = other.stream, other.slots
        self._first, self._last = other._first, other._last
        for v in (*self.inputs.values(), *self.params.values(), *(v for node in self for v in node.outputs)):
            v.graph = self

    def inline(self, body: Graph, operands: Mapping[str, Value]) -> list[Value]:
        """Insert the nodes of `body` at the current point, its inputs bound to `operands`; gives its outputs."""
        mapping: dict[Value, Value] = {v: operands[k] for k, v in body.inputs.items() if k in operands}
        clone(body, self, mapping, location=place_of(self))
        return [mapping[v] for v in body.outputs.values()]

    def table(self) -> Table:
        """Counts and first lines; `str(graph)` is all of it."""
        from .summary import graph_table

        return graph_table(self)

    def __str__(self) -> str:
        from .text import print_graph

        return print_graph(self)
