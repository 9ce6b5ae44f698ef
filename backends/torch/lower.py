"""Graph -> torch.fx graph: one IR node becomes the call its `torch` method makes, parameters become attributes."""

from __future__ import annotations

import functools
import keyword
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from ...ir.dims import sources
from ...ir.errors import LoweringError
from ...ir.graph import Graph, Node, Value
from ...ir.op import Op
from ...ir.ops.division import FloorDiv, Mod
from ...ir.ops.foreign import Foreign
from ...ir.ops.linear import Embedding, Linear
from ...ir.ops.logic import Where
from ...ir.ops.norm import RMSNorm
from ...ir.ops.quant import Dequantize
from ...ir.types import Dim, DType
from ...passes.cse import cse
from ...passes.dce import dce
from ...passes.decompose import decompose
from ...passes.encode import open_encodings
from ...passes.pattern import apply_rewrites
from ...passes.recompute import Plan
from .attention import AttentionToSDPA
from .division import floor_divide, remainder
from .experts import choose_experts, chosen_experts
from .feed_forward import ACTIVATED, LinearAfterActivation, activated_linear
from .frozen import over_encodings
from .loss import FUSED, LossOverVocabulary, linear_cross_entropy
from .norm import rms_norm
from .products import linear
from .recompute import NOT_AGAIN, RECOMPUTE, Recomputation, Step
from .tensors import torch_dtype
from .tied import tied_embedding
from .untyped import library

_KERNELS: dict[type[Op], Callable[..., Any]] = {RMSNorm: rms_norm, FloorDiv: floor_divide, Mod: remainder}
"""Functions of this backend that take the place of an op's `torch` method."""
_STATIC_KERNELS: dict[type[Op], Callable[..., Any]] = {Linear: linear}
"""The same where shapes do not change."""

CONSTANTS = "monograph_constants"
"""Name of the submodule that gives constant tensors by name."""


def prepare(graph: Graph) -> Graph:
    """A copy in which every node has a `torch` method: attention on SDPA, the loss in chunks, the rest in parts."""
    ready = graph.copy()
    apply_rewrites(ready, [AttentionToSDPA(), LossOverVocabulary()])
    choose_experts(ready)
    decompose(ready, keep=lambda node: node.op.torch is not None or isinstance(node.op, Dequantize))
    over_encodings(ready)
    dce(ready)
    open_encodings(ready)
    apply_rewrites(ready, [LinearAfterActivation()])
    cse(ready)
    dce(ready)
    return ready


class Tracer(fx.Tracer):
    """Traces a module again, as pickle does, without looking into the functions of this backend."""

    def __init__(self) -> None:
        ours = activated_linear, chosen_experts, linear, linear_cross_entropy, rms_norm, tied_embedding
        super().__init__(autowrap_functions=(*ours, floor_divide, remainder))


class Lowering:
    """One translation. `constants` holds the arrays that the module must hold, by name.

    static: linear layers go to the library that is faster if shapes do not change (see products.py).
    With a `plan`, calls whose values are made again in the backward pass go through the submodule `recomputation`.
    """

    plan: Plan | None = None
    static: bool = False

    def __init__(self, graph: Graph) -> None:
        self.graph, self.fx = prepare(graph), fx.Graph(tracer_cls=Tracer)
        self.params = list(graph.params)
        self.tracer: Any = library.fx.proxy.GraphAppendingTracer(self.fx)
        self.namespace = Recorder(self, torch)
        self.values: dict[Value, Any] = {}
        self.sizes: dict[Dim, Any] = {}
        self.sources = sources({k: v.type for k, v in self.graph.inputs.items()})
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.recomputation = Recomputation()
        self._training: Any = None
        self._device: Any = None

    def run(self) -> fx.Graph:
        """The fx graph: keyword inputs by name (dotted ones through `**others`), a dict of outputs by name."""
        self.inputs()
        if self.plan is not None:
            self.proxy("call_module", RECOMPUTE, (-1,))
        for position, node in enumerate(self.graph):
            made = self.node(node)
            if self.plan is not None and position in self.plan.recomputed | self.plan.readers:
                self.through_plan(self.plan, position, node, made)
        for path in self.params:
            # Also what nothing reads: it belongs to the checkpoint, and GraphModule keeps only what its code names.
            if path not in self.graph.params:
                self.proxy("get_attr", path)
        outputs = {k: self.tensor(v) for k, v in self.graph.outputs.items()}
        if self.plan is not None:
            self.proxy("call_module", RECOMPUTE, (-1,))
        self.fx.output({k: v.node for k, v in outputs.items()})
        return self.fx

    def inputs(self) -> None:
        plain = [k for k in self.graph.inputs if k.isidentifier() and not keyword.iskeyword(k) and k != "self"]
        for k in plain:
            self.values[self.graph.inputs[k]] = self.proxy("placeholder", k)
        if len(plain) == len(self.graph.inputs):
            return
        rest = self.proxy("placeholder", "**others")
        for k, v in self.graph.inputs.items():
            if k not in plain:
                self.values[v] = self.call(operator.getitem, rest, k)

    def proxy(self, kind: str, target: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return self.tracer.create_proxy(kind, target, args, kwargs or {})

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.proxy("call_function", function, args, kwargs)

    # -- values ----------------------------------------------------------------------------------------------

    def value(self, v: Value) -> Any:
        """The proxy, or the plain number, that stands for a value."""
        if v not in self.values:
            self.values[v] = self.proxy("get_attr", v.name)  # Only parameters have no producer by now.
        return self.values[v]

    def tensor(self, v: Value) -> Any:
        """The proxy that stands for a value; a plain number becomes a scalar tensor."""
        x = self.value(v)
        if isinstance(x, fx.Proxy):
            return x
        self.values[v] = self.call(torch.full, (), x, dtype=torch_dtype(v.dtype), device=self.device)
        return self.values[v]

    @property
    def device(self) -> Any:
        """The device of the first input, or of the first parameter of a graph without inputs."""
        if self._device is None:
            first = next(iter([*self.graph.inputs.values(), *self.graph.params.values()]), None)
            self._device = torch.device("cpu") if first is None else self.call(getattr, self.value(first), "device")
        return self._device

    @property
    def training(self) -> Any:
        if self._training is None:
            self._training = self.proxy("get_attr", "training")
        return self._training

    def size(self, d: Dim) -> Any:
        """The number a symbolic dimension has at run time. Raises LoweringError if no input shows it."""
        if d not in self.sizes:
            self.sizes[d] = self.symbol(d.name) if d.name else self.polynomial(d)
        return self.sizes[d]

    def symbol(self, name: str) -> Any:
        source = self.sources.get(name)
        if source is None:
            given = ", ".join(f"{k}: {v.type}" for k, v in self.graph.inputs.items())
            raise LoweringError(f"dimension {name} does not follow from any input ({given})", place=self.graph.name)
        found = self.proxy("call_method", "size", (self.values[self.graph.inputs[source.input]], source.axis))
        if source.rest != 0:
            found = found - self.attribute(source.rest)
        return found if source.factor == 1 else found // self.attribute(source.factor)

    def polynomial(self, d: Dim) -> Any:
        total: Any = 0
        for monomial, coefficient in d.terms:
            term: Any = coefficient
            for s in monomial:
                size = self.size(Dim.symbol(s))
                term = size if isinstance(term, int) and term == 1 else term * size
            total = term if isinstance(total, int) and total == 0 else total + term
        return total

    def attribute(self, value: Any) -> Any:
        if isinstance(value, Dim):
            return self.size(value)
        if isinstance(value, DType):
            return torch_dtype(value)
        return tuple(map(self.attribute, cast("tuple[Any, ...]", value))) if isinstance(value, tuple) else value

    # -- nodes -----------------------------------------------------------------------------------------------

    def node(self, node: Node) -> list[fx.Node]:
        """Translate one node; gives its calls. Raises LoweringError naming one PyTorch has no way to express."""
        if node.op.constant:
            self.values[node.output] = self.constant(node)
            return []
        before = next(iter(reversed(self.fx.nodes)), None)
        result = self.with_numbers(node)
        if result is None:
            result = self.lowered(node)
        results = (result,) if len(node.outputs) == 1 else tuple(result[i] for i in range(len(node.outputs)))
        self.values.update(zip(node.outputs, results, strict=True))
        made: list[fx.Node] = []
        for new in reversed(self.fx.nodes):
            if new is before:
                break
            new.meta["location"], new.meta["scope"] = str(node.location), node.location.scope
            made.append(new)
        return made

    def through_plan(self, plan: Plan, position: int, node: Node, made: Sequence[fx.Node]) -> None:
        """Send the calls of a node through the plan."""
        kept = {self.values[v].node for v in node.outputs if (position, v.index) in plan.kept}
        for call in made:
            if call.op not in ("call_function", "call_method") or call.target in NOT_AGAIN:
                continue
            function = getattr(torch.Tensor, call.target) if isinstance(call.target, str) else call.target
            step = Step(function, position in plan.recomputed, call in kept, node.op.random, node.op.autocast)
            call.args = (self.recomputation.add(step), *call.args)
            call.op, call.target = "call_module", RECOMPUTE

    def constant(self, node: Node) -> Any:
        array = np.asarray(node.attributes["value"], node.attributes["dtype"].numpy)
        if array.ndim == 0:
            return array.item()
        name = f"constant{len(self.constants)}"
        self.constants[name] = array
        return self.proxy("call_module", CONSTANTS, (name,))

    def with_numbers(self, node: Node) -> Any:
        """The node with its scalar constants as plain numbers, or None where PyTorch wants tensors."""
        function, data = node.op.operator, node.arguments
        if isinstance(node.op, Where):
            function, data = torch.where, [node.value("x"), node.value("y")]
        given = [self.value(v) for v in data]
        if function is None or all(isinstance(x, fx.Proxy) for x in given):
            return None
        if not any(isinstance(x, fx.Proxy) for x in given):
            return None
        return self.call(function, *(self.tensor(v) for v in node.arguments[: -len(data)]), *given)

    def lowered(self, node: Node) -> Any:
        if node.op.torch is None:
            raise LoweringError(f"{node.op.name} has no PyTorch form and no body", place=str(node.location))
        if isinstance(node.op, Foreign):
            shown = f"{node.attributes['domain']}.{node.attributes['name']}".lstrip(".")
            hint = "a model with foreign nodes is exported, built and run, and not trained"
            what = f"{shown} is a foreign node, which PyTorch has no form of"
            raise LoweringError(what, place=str(node.location), hint=hint)
        if self.is_tied(node):
            return self.tied(node)
        operands = self.operands(node)
        attributes = {k: self.attribute(v) for k, v in node.attributes.items()}
        if not operands:
            attributes["device"] = self.device
        if node.op.random:
            attributes["training"] = self.training
        if self.static and node.op is ACTIVATED:
            attributes["static"] = True
        kernel = _STATIC_KERNELS.get(type(node.op)) if self.static else None
        kernel = kernel or _KERNELS.get(type(node.op))
        if kernel is not None:
            return self.call(kernel, *operands, **attributes)
        return node.op.torch(self.namespace, *operands, **attributes)

    def is_tied(self, node: Node) -> bool:
        """Whether a node is an embedding of the table that the loss takes as head, in a graph that gives only the loss.

        Then both gradients are there whenever one is. Not with a plan, which knows calls of one result only; `static`
        is said of modules that train with one loss, again and again.
        """
        if self.plan is not None or not self.static or not isinstance(node.op, Embedding):
            return False
        table, outputs = node.value("table"), list(self.graph.outputs.values())
        loss = outputs[0].producer if len(outputs) == 1 else None
        return loss is not None and loss.op is FUSED and loss["w"] is table and table.is_param

    def tied(self, node: Node) -> Any:
        ids, table = node.value("ids"), node.value("table")
        found = self.call(tied_embedding, self.tensor(ids), self.tensor(table))
        self.values[table] = found[1]
        return found[0]

    def operands(self, node: Node) -> Sequence[Any]:
        return [None if v is None else self.tensor(v) for v in node.operands]


class Recorder:
    """Stands for a module such as `torch`: its functions append a call to the graph instead of running."""

    def __init__(self, lowering: Lowering, module: types.ModuleType) -> None:
        self._lowering, self._module = lowering, module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, types.ModuleType):
            return Recorder(self._lowering, found)
        if callable(found):
            return functools.partial(self._lowering.call, found)
        return found
