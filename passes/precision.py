"""Which values of a graph 16-bit floats can hold, and the graph in which those are narrow and all others f32.

A value stays wide where its bounds, proved from the weights or seen in a run and taken times MARGIN, do not fit; where
a step of it would round what counts (sums of a long residual stream, what is exponentiated next); and where the op says
that 16 bits spoil it. Products whose result does not fit are computed of a smaller operand and made larger in f32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..ir.graph import Graph, Node, Value
from ..ir.ops.attention import Attention
from ..ir.ops.elementwise import Cast
from ..ir.ops.experts import Moe
from ..ir.ops.feed_forward import FeedForward, GatedFeedForward
from ..ir.ops.linear import Linear, Matmul
from ..ir.ops.quant import Dequantize
from ..ir.ranges import Range, most_inside, of_array, ranges_of
from ..ir.slots import TARGETS, TOKENS, Growth
from ..ir.tensors import Tensor
from ..ir.types import DType, bf16, f16, f32
from .decompose import inline_body
from .finite import check_finite
from .observe import Observed, observe
from .residual import shrink, streams_of, sum_of

DEFAULT_POSITIONS = 4096
"""Most tokens of a row where a model does not say how many."""
MARGIN = 8.0
"""How many times larger than in a run a value may be elsewhere."""
STREAM_ERROR = 0.01
"""Most relative error that the sums of a residual stream may gather."""
MOST_STEPS = 8
"""Most times that an operand of a product is halved: below, its small elements would be lost."""


@dataclass
class Precision:
    """What was decided. dtype: of the narrow values. proved, seen: how many of the float values fit by the weights
    alone, and by a run. decisions: what stays wide and why, in words, by layer where it is one.
    """

    dtype: DType
    proved: int = 0
    seen: int = 0
    wide: int = 0
    decisions: list[str] = field(default_factory=list[str])

    def lines(self) -> list[str]:
        """What was decided, for people: the numbers, then each group of values that stays wide."""
        return [str(self), *self.decisions]

    def __str__(self) -> str:
        return (
            f"{self.dtype}: {self.proved} values fit by their bounds, {self.seen} as seen in a run, {self.wide} in f32"
        )


def param_ranges(graph: Graph, weights: Mapping[str, Tensor], dtype: DType) -> dict[str, Range]:
    """Bounds of the weights, read one at a time. For bf16, which holds what f32 holds, of small ones only.

    Raises WeightsError for a weight that is not finite.
    """
    found: dict[str, Range] = {}
    for path, v in graph.params.items():
        if path not in weights:
            continue
        size, values = v.type.elements, weights[path].numpy()
        check_finite(path, values)
        if dtype != bf16 or (isinstance(size, int) and size <= _SMALL):
            found[path] = of_array(values)
    return found


_SMALL = 1 << 16


def is_f32(graph: Graph) -> bool:
    """Whether all floats of a graph that come from outside are f32."""
    return all(v.dtype == f32 for v in (*graph.params.values(), *graph.inputs.values()) if v.dtype.is_float)


def narrowed(
    graph: Graph,
    dtype: DType,
    weights: Mapping[str, Tensor],
    positions: int,
    inputs: Mapping[str, Range] | None = None,
    calibrate: bool = True,
) -> tuple[Graph, Precision]:
    """The f32 graph with everything in `dtype` that fits it, and what was decided; the graph itself is taken apart.

    weights: by checkpoint path. positions: most tokens of a row. inputs: bounds of inputs by name, where they are
    known. calibrate: look at a run with random inputs, too.
    """
    for node in [n for n in graph if isinstance(n.op, (FeedForward, GatedFeedForward))]:
        inline_body(graph, node)
    known: dict[str, Range] = {}
    for stream in (TOKENS, TARGETS, graph.stream or TOKENS):
        known |= {stream.mask: Range(0.0, 1.0), stream.positions: Range(0.0, float(positions))}
    params = param_ranges(graph, weights, dtype)

    def looked() -> _Plan:
        bounds = ranges_of(graph, {**known, **(inputs or {})}, params)
        return _Plan(graph, dtype, bounds, observe(graph, weights) if calibrate and dtype == f16 else Observed())

    plan = looked()
    smaller = plan.shrunk() if dtype == f16 else []
    plan = looked() if smaller else plan
    plan.report.decisions[:0] = smaller
    return _Narrowing(plan).graph(), plan.report


class _Plan:
    """In which type each node runs, and why."""

    def __init__(self, graph: Graph, dtype: DType, bounds: Mapping[Value, Range], seen: Observed) -> None:
        self.graph, self.dtype, self.bounds = graph, dtype, bounds
        self.seen, self.inner = seen.values, seen.inside
        self.limit = -dtype.lowest / 2 if dtype == f16 else -dtype.lowest
        self.report = Precision(dtype)
        self.places: dict[str, list[str]] = {}
        self.home: dict[Value, DType] = {}
        self.halved: dict[Node, int] = {}
        self.run: dict[Node, DType] = {}
        self.stream = self.streams()
        self.slots = {s.input: self.slot(s.growth, graph.inputs[s.input]) for s in graph.slots}
        for name, v in graph.inputs.items():
            self.home[v] = self.slots.get(name, v.dtype)
        for node in graph:
            self.decide(node)
        self.tell()

    # -- what fits -----------------------------------------------------------------------------------------------

    def most(self, v: Value) -> float:
        """The largest size of an element that must be held, as far as is known."""
        proved = self.bounds[v].most
        return min(proved, self.seen[v].most * MARGIN) if v in self.seen and v.producer is not None else proved

    def rows(self, v: Value) -> float:
        proved = self.bounds[v].rows
        return min(proved, self.seen[v].rows * MARGIN) if v in self.seen else proved

    def fits(self, v: Value) -> bool:
        if self.dtype == bf16:
            return not v.is_constant or self.bounds[v].most <= self.limit
        return self.most(v) <= self.limit

    def slot(self, growth: Growth, v: Value) -> DType:
        """The type in which something is remembered: states that are computed anew each time stay wide."""
        return f32 if not v.dtype.is_float or growth is Growth.replace or not self.fits(v) else self.dtype

    def shrunk(self) -> list[str]:
        """Make residual streams smaller that are too large by a few powers of two; what was done, in words."""
        said: list[str] = []
        for members in streams_of(self.graph):
            largest = max(self.most(sum_of(n)) for n in members)
            if self.limit < largest <= self.limit * 2**MOST_STEPS:
                steps = math.ceil(math.log2(largest / self.limit))
                said.append(f"the residual stream may reach {largest:.3g}: it is kept at 1/{2**steps} of its size")
                shrink(self.graph, members, steps)
        return said

    def streams(self) -> dict[Node, str]:
        """The sums of residual streams that stay wide, and why."""
        found: dict[Node, str] = {}
        for members in streams_of(self.graph):
            error = len(members) ** 0.5 * 2.0 ** -(8 if self.dtype == bf16 else 11)
            if not all(self.fits(sum_of(n)) for n in members):
                largest = max(self.most(sum_of(n)) for n in members)
                found |= dict.fromkeys(members, f"the residual stream may reach {largest:.3g}")
            elif error > STREAM_ERROR:
                found |= dict.fromkeys(members, f"its {len(members)} sums would be off by {error:.1%}")
        return found

    # -- decisions -----------------------------------------------------------------------------------------------

    def decide(self, node: Node) -> None:
        floats = [v for v in node.outputs if v.dtype.is_float]
        if not floats and not any(v.dtype.is_float for v in node.arguments):
            return
        dtype, why = self.choice(node)
        self.run[node] = dtype
        for v in floats:
            made = f32 if node in self.halved else dtype
            self.home[v] = made
            self.report.wide += made == f32
            proved = self.dtype == bf16 or self.bounds[v].most <= self.limit
            self.report.proved += made != f32 and proved
            self.report.seen += made != f32 and not proved
        if why:
            self.note(node, why)

    def choice(self, node: Node) -> tuple[DType, str]:
        """The type in which a node runs, and why it is f32 where that is no matter of course."""
        slots = [self.slots[v.name] for v in node.arguments if v.name in self.slots and v.producer is None]
        if slots:
            return slots[0], ""
        if node in self.stream:
            return f32, self.stream[node]
        if isinstance(node.op, (Dequantize, Cast)) or node.op.constant:
            return self.source(node)
        if node.op.sensitive:
            return f32, f"{node.op.name} in 16 bits loses what counts"
        given = [v for v in node.arguments if v.dtype.is_float]
        for name, most in node.op.rounding.items():
            v = node[name]
            if v is not None and self.bounds[v].most * 2.0 ** -(8 if self.dtype == bf16 else 11) > most:
                return f32, f"{name} of {node.op.name} is exponentiated and may reach {self.bounds[v].most:.3g}"
        if not given:
            return f32, ""
        if isinstance(node.op, Attention):
            q, k = node.value("q"), node.value("k")
            scores = self.rows(q) * self.rows(k) * abs(node.attributes["scale"])
            if self.dtype == f16 and scores > self.limit:
                return f32, f"attention scores may reach {scores:.3g}"
        if isinstance(node.op, (Linear, Matmul)):
            return self.product(node)
        large = [v for v in (*given, *node.outputs) if v.dtype.is_float and not self.fits(v)]
        if large:
            return f32, f"{node.op.name} meets numbers of up to {max(map(self.most, large)):.3g}"
        inside = self.inside(node)
        if inside > self.limit and self.dtype == f16:
            return f32, f"inside {node.op.name} numbers may reach {inside:.3g}"
        costly = node.op.heavy or isinstance(node.op, (Attention, Moe))
        if not costly and any(self.home.get(v) == f32 and not v.is_constant for v in given):
            return f32, ""
        return self.dtype, ""

    def decides(self, v: Value) -> bool:
        """Whether what reads a value exponentiates or orders it: then a rounding may change the choice."""
        return any(v in (n[k] for k in n.op.rounding) and not n.op.keys for n in v.users)

    def inside(self, node: Node) -> float:
        """The largest number inside a composite whose steps are narrow as it is."""
        if node.op.body is None or node.op.wide:
            return 0.0
        given = [None if v is None else self.bounds[v] for v in node.operands]
        return min(most_inside(node, given), self.inner.get(node, math.inf) * MARGIN)

    def source(self, node: Node) -> tuple[DType, str]:
        """Constants are written as they are read; what is cast or dequantized is narrow if it fits."""
        if node.op.constant:
            return f32, ""
        wide = isinstance(node.op, Cast) and node.value("x").dtype.is_float and self.home.get(node.value("x")) == f32
        fits = node.output.dtype.is_float and self.fits(node.output)
        if isinstance(node.op, Cast) and not node.value("x").dtype.is_float:
            # Beyond this, 16 bits do not tell one whole number from the next.
            fits = fits and self.bounds[node.output].most <= 2.0 ** (8 if self.dtype == bf16 else 11)
        return (self.dtype if fits and not wide else f32), ""

    def product(self, node: Node) -> tuple[DType, str]:
        """Products run narrow, of an operand that is made smaller where the result, or the operand, does not fit."""
        x, *others = (v for v in node.arguments if v.dtype.is_float and v is not bias_of(node))
        if isinstance(node.op, Linear) and self.decides(node.output):
            return f32, "its small differences decide between experts"
        if not all(map(self.fits, others)):
            worst = max(map(self.most, others))
            return f32, f"a weight or operand of {node.op.name} has numbers of up to {worst:.3g}"
        bias = bias_of(node)
        if self.fits(x) and self.fits(node.output) and (bias is None or self.fits(bias)):
            return self.dtype, ""
        most = max(self.most(x), self.most(node.output))
        steps = max(0, math.ceil(math.log2(most / self.limit))) if math.isfinite(most) else MOST_STEPS + 1
        if steps > MOST_STEPS:
            return f32, f"{node.op.name} may reach {most:.3g}"
        self.halved[node] = steps
        how = f"computed of 1/{2**steps} of its operand and made larger" if steps else "its bias is added"
        return self.dtype, f"{node.op.name} may reach {most:.3g}: {how} in f32"

    # -- words ---------------------------------------------------------------------------------------------------

    def note(self, node: Node, why: str) -> None:
        if all(v.is_param or v.is_constant for v in node.arguments):
            return  # What becomes of weights alone is stored.
        self.places.setdefault(why, []).append(node.location.scope or str(node.location))

    def tell(self) -> None:
        for why, places in self.places.items():
            first = next(iter(dict.fromkeys(places)))
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            self.report.decisions.append(f"{first}{more}: {why}")


def bias_of(node: Node) -> Value | None:
    """What is added to a product last."""
    return node["b"] if isinstance(node.op, Linear) else None


class _Narrowing:
    """The graph of a plan: every node in its type, with casts where a value is read in another one."""

    def __init__(self, plan: _Plan) -> None:
        self.plan, self.old, self.dtype = plan, plan.graph, plan.dtype
        self.new = Graph(self.old.name)
        self.made: dict[Value, Value] = {}
        self.casts: dict[tuple[Value, DType], Value] = {}

    def graph(self) -> Graph:
        new, old = self.new, self.old
        new.stream = old.stream
        for name, v in old.inputs.items():
            self.made[v] = new.input(name, v.type.with_dtype(self.plan.home[v]))
        for name, v in old.params.items():
            self.made[v] = new.param(name, v.type.with_dtype(self.param(v)), v.init)
        for node in old:
            self.node(node)
        kept = {name: self.plan.slots[s.input] for s in old.slots for name in (s.output, s.first) if name}
        for name, v in old.outputs.items():
            new.output(name, self.read(v, kept[name]) if name in kept else self.made[v])
        new.slots = tuple(replace(s, type=s.type.with_dtype(self.plan.slots[s.input])) for s in old.slots)
        return new

    def param(self, v: Value) -> DType:
        """Narrow if it fits and anybody reads it so; a bias that is added in f32 is read so."""
        if not v.dtype.is_float or not self.plan.fits(v):
            return v.dtype
        added = {node for node in v.users if node in self.plan.halved and v is bias_of(node)}
        read = {self.plan.run.get(node, f32) for node in v.users if node not in added}
        return self.dtype if self.dtype in read else v.dtype

    def node(self, node: Node) -> None:
        """Put a node into the new graph."""
        dtype = self.plan.run.get(node, f32)
        steps = self.plan.halved.get(node)
        apart = bias_of(node) if steps is not None else None
        with self.new.at(None, node.location):
            operands = [
                None if v is None or v is apart else self.operand(node, i, v, dtype)
                for i, v in enumerate(node.operands)
            ]
            if steps is not None:
                self.made[node.output] = self.smaller(node, operands, steps)
                return
            attributes = dict(node.attributes)
            if isinstance(node.op, Cast) and node.output.dtype.is_float:
                attributes["dtype"] = dtype
            outputs = self.new.add(node.op, operands, attributes, node.location)
        self.made.update(zip(node.outputs, outputs, strict=True))

    def operand(self, node: Node, i: int, v: Value, dtype: DType) -> Value:
        names = node.op.signature.operand_names(len(node.operands))
        if not v.dtype.is_float or names[i] in node.op.own_dtype or isinstance(node.op, (Cast, Dequantize)):
            return self.made[v]
        return self.read(v, dtype)

    def read(self, v: Value, dtype: DType) -> Value:
        """A value in a type; a constant is written in it."""
        made = self.made[v]
        if made.dtype == dtype or not v.dtype.is_float:
            return made
        if (v, dtype) not in self.casts:
            if v.is_constant and v.producer is not None:
                attributes = {**v.producer.attributes, "dtype": dtype}
                (found,) = self.new.add(v.producer.op, (), attributes, v.producer.location)
            else:
                found = made.cast(dtype)
            self.casts[v, dtype] = found
        return self.casts[v, dtype]

    def smaller(self, node: Node, operands: list[Value | None], steps: int) -> Value:
        """The product of a smaller operand, made larger in f32, and then its bias."""
        x, bias = node.arguments[0], bias_of(node)
        factor = 2.0**-steps
        made = self.made[x]
        part = made * factor if steps else made
        part = part if part.dtype == self.dtype else part.cast(self.dtype)
        rest = zip(node.operands[1:], operands[1:], strict=True)
        given = [part, *(None if v is bias else new for v, new in rest)]
        (y,) = self.new.add(node.op, given, dict(node.attributes), node.location)
        y = y.cast(f32)
        y = y * (1.0 / factor) if steps else y
        return y if bias is None else y + self.read(bias, f32)
