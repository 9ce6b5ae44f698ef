"""Run a graph over samples one layer at a time, with the activations between layers on disk.

The graph is cut by depth: a value is as deep as the longest chain of linear layers that leads to it. All layers of one
depth read what is stored already, so whoever watches sees the input of each layer before it is multiplied, and may put
another weight in its place: everything behind it then reads what that weight gives. In memory are the activations of
one sample and one weight at a time, whatever the size of the model.

Layers are products of NumPy (BLAS), and the rest is the reference semantics of the ops: the work is nearly all in the
products, every op of the IR has a reference, and no session has to be opened for a graph that is run once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ...ir.dims import bind_dims
from ...ir.errors import WeightsError, WriteError
from ...ir.graph import Graph, Node, Value
from ...ir.interpret import evaluate
from ...ir.ops.linear import Linear
from ...ir.tensors import Array, Tensor, held
from ...ir.value import type_of
from ...ir.weights import param_only
from ..canonicalize import remove_dropout
from ..dce import dce
from ..encode import plain_again
from ..fuse import LAYERS
from ..pipelines import CLEAN

_HEADER = 128
"""Least bytes of a file of NumPy before its numbers."""

Sample = Mapping[str, Array]
"""The inputs of a graph by name."""


@dataclass(frozen=True)
class Layer:
    """A product x @ w.T + b with a stored weight."""

    node: Node

    @property
    def weight(self) -> str:
        """Checkpoint path of the weight."""
        return self.node.value("w").name

    @property
    def turned(self) -> bool:
        """Whether the weight is stored as [in, out]."""
        return bool(self.node.attributes["transposed"])


@dataclass(frozen=True)
class Group:
    """Layers that read one value, and that value for each sample: f32 [tokens, columns]."""

    x: Value
    layers: tuple[Layer, ...]
    rows: Callable[[], Iterator[Array]]


Watch = Callable[[Group], Mapping[str, Tensor]]
"""Looks at the input of layers before they multiply; gives the weights [out, in] to go on with, where others are."""


def layer_of(node: Node) -> Layer | None:
    """The layer that a node is, if it multiplies something by a stored weight."""
    if not isinstance(node.op, Linear) or not node.value("w").is_param:
        return None
    return Layer(node)


def layers_of(graph: Graph) -> list[Layer]:
    """The layers of a graph, as `layered` has them."""
    return [layer for node in layered(graph) if (layer := layer_of(node))]


def layered(graph: Graph) -> Graph:
    """A copy whose products with weights are `linear`, wherever the graph came from; encoded weights are plain."""
    graph = graph.copy()
    plain_again(graph)
    remove_dropout(graph)
    for each in (*CLEAN, LAYERS):
        each.run(graph)
    dce(graph)
    return graph


@dataclass(frozen=True)
class _Stage:
    """All nodes of one depth, and what they read and leave for later ones."""

    nodes: tuple[Node, ...]
    reads: frozenset[Value]
    leaves: frozenset[Value]


class Stream:
    """A graph, its weights and samples, run stage by stage.

    scratch: an empty folder for activations; each is removed after its last reader. What is computed from weights
    alone is computed once a stage. read(weight, x): what a layer multiplies in place of its input x.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        samples: Sequence[Sample],
        scratch: Path,
        read: Callable[[str, Array], Array] = lambda weight, x: x,
    ) -> None:
        self.read = read
        self.graph, self.weights, self.samples, self.scratch = layered(graph), weights, samples, scratch
        self.fixed = param_only(self.graph)
        self.stages = _stages(self.graph, self.fixed)
        types = {k: v.type for k, v in self.graph.inputs.items()}
        self.dims = [bind_dims(types, {k: s[k].shape for k in types}) for s in samples]
        self._last = {v: i for i, stage in enumerate(self.stages) for v in stage.reads}
        self._numbers = {v: n for n, v in enumerate((*self.graph.inputs.values(), *self._made()))}

    @property
    def layers(self) -> list[Layer]:
        """All layers, in the order in which they are reached."""
        return [layer for stage in self.stages for node in stage.nodes if (layer := layer_of(node))]

    def watch(self, watch: Watch) -> None:
        """Let `watch` see every layer; what lies behind the last one is not computed."""
        last = max((i for i, s in enumerate(self.stages) if any(map(layer_of, s.nodes))), default=-1)
        for i, stage in enumerate(self.stages[: last + 1]):
            if i == 0:
                self._begin()
            changed = self._watched(stage, watch)
            if i < last:
                self._pass(stage, changed)
            self._forget(i)
        for v in (*self._last, *self.graph.outputs.values()):
            self._drop(v)

    def outputs(self) -> Iterator[dict[str, Array]]:
        """The outputs of the graph for each sample; those of the last stage are never stored."""
        self._begin()
        for i, stage in enumerate(self.stages[:-1]):
            self._pass(stage, {})
            self._forget(i)
        stage, kept = self.stages[-1], _Kept(self.weights)
        for s in range(len(self.samples)):
            found = self._computed(stage, s, kept, stage.nodes)
            yield {k: found[v] if v in found else self._load(v, s) for k, v in self.graph.outputs.items()}
        self._forget(len(self.stages) - 1)

    # -- one stage ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        for s, sample in enumerate(self.samples):
            for name, v in self.graph.inputs.items():
                if v not in self._last:
                    continue
                self._store(v, s, np.ascontiguousarray(sample[name].astype(v.dtype.numpy, copy=False)))

    def _watched(self, stage: _Stage, watch: Watch) -> dict[str, Tensor]:
        groups: dict[Value, list[Layer]] = {}
        for node in stage.nodes:
            layer = layer_of(node)
            if layer is not None:
                groups.setdefault(node.value("x"), []).append(layer)
        changed: dict[str, Tensor] = {}
        for x, layers in groups.items():
            changed |= watch(Group(x, tuple(layers), lambda x=x: self._rows(x)))
        return changed

    def _rows(self, x: Value) -> Iterator[Array]:
        for s in range(len(self.samples)):
            found = self._load(x, s)
            yield found.reshape(-1, found.shape[-1]).astype(np.float32, copy=False)

    def _pass(self, stage: _Stage, changed: Mapping[str, Tensor]) -> None:
        """Compute a stage: first its layers, each with its weight in memory alone, then the rest."""
        layers = [node for node in stage.nodes if layer_of(node)]
        for node in layers:
            w, b = self._weight(node, changed), node["b"]
            bias = None if b is None else _evaluated(b, self.weights)
            for s in range(len(self.samples)):
                x = self.read(Layer(node).weight, self._load(node.value("x"), s))
                self._store(node.output, s, _product(x, w, bias))
            del w
        kept = _Kept(self.weights)
        rest = tuple(node for node in stage.nodes if not layer_of(node))
        for s in range(len(self.samples)):
            found = self._computed(stage, s, kept, rest)
            for v in stage.leaves & found.keys():
                self._store(v, s, found[v])
        for node in layers:
            if node.output not in stage.leaves:
                self._drop(node.output)

    def _weight(self, node: Node, changed: Mapping[str, Tensor]) -> Array:
        """The weight [out, in] of a layer."""
        layer = Layer(node)
        if layer.weight in changed:
            return changed[layer.weight].numpy()
        found = _evaluated(node.value("w"), self.weights)
        return found.T if layer.turned else found

    def _computed(self, stage: _Stage, s: int, kept: _Kept, nodes: Sequence[Node]) -> dict[Value, Array]:
        """What `nodes` make of sample s, as far as it is read behind the stage or is an output."""
        values: dict[Value, Array] = {}
        waiting: dict[Value, int] = {}
        for node in nodes:
            for v in node.arguments:
                waiting[v] = waiting.get(v, 0) + 1
        outputs = {*self.graph.outputs.values()}
        for node in nodes:
            operands = [None if v is None else self._operand(v, s, values, kept) for v in node.operands]
            layer = layer_of(node)
            if layer is not None:
                operands[0] = self.read(layer.weight, cast("Array", operands[0]))
            results = evaluate(node.op, operands, node.attributes, self.dims[s], [type_of(v) for v in node.operands])
            values.update(zip(node.outputs, results, strict=True))
            for v in node.arguments:
                waiting[v] -= 1
                if not waiting[v] and v not in stage.leaves and v not in outputs:
                    values.pop(v, None)
        return values

    def _operand(self, v: Value, s: int, values: dict[Value, Array], kept: _Kept) -> Array:
        if v not in values:
            values[v] = kept[v] if v in self.fixed else self._load(v, s)
        return values[v]

    # -- the disk ----------------------------------------------------------------------------------------------

    def _made(self) -> Iterator[Value]:
        return (v for node in self.graph for v in node.outputs)

    def _file(self, v: Value, s: int) -> Path:
        return self.scratch / f"{self._numbers[v]}.{s}.npy"

    def _store(self, v: Value, s: int, x: Array) -> None:
        file = self._file(v, s)
        try:
            np.save(file, x)
            # The last bytes go out when the file is closed, and NumPy does not look whether they do.
            if file.stat().st_size < _HEADER + x.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as e:
            raise WriteError(e, place=str(self.scratch)) from e

    def _load(self, v: Value, s: int) -> Array:
        try:
            return np.load(self._file(v, s), mmap_mode="r")
        except (OSError, ValueError) as e:
            raise WeightsError(f"activations of {v!r} cannot be read: {e}", place=str(self.scratch)) from None

    def _drop(self, v: Value) -> None:
        for s in range(len(self.samples)):
            self._file(v, s).unlink(missing_ok=True)

    def _forget(self, stage: int) -> None:
        """Remove what no later stage reads."""
        outputs = {*self.graph.outputs.values()}
        for v, last in self._last.items():
            if last == stage and v not in outputs:
                self._drop(v)
        if stage == len(self.stages) - 1:
            for v in outputs:
                self._drop(v)


class _Kept:
    """Parameters, and what is computed from them, evaluated once and kept as long as a stage runs."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.found: dict[Value, Array] = {}

    def __getitem__(self, v: Value) -> Array:
        if v not in self.found:
            self.found[v] = _evaluated(v, self.weights)
        return self.found[v]


def _evaluated(v: Value, weights: Mapping[str, Tensor]) -> Array:
    """The value of a parameter, or of what is computed from parameters and constants."""
    if v.is_param:
        return held(weights[v.name].cast(v.dtype), v.type, v.name)
    node = v.producer
    assert node is not None
    operands = [None if o is None else _evaluated(o, weights) for o in node.operands]
    return evaluate(node.op, operands, node.attributes, {}, [type_of(o) for o in node.operands])[v.index]


def _product(x: Array, w: Array, bias: Array | None) -> Array:
    y = x.reshape(-1, x.shape[-1]).astype(np.float32, copy=False) @ w.T.astype(np.float32, copy=False)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], y.shape[-1]).astype(x.dtype, copy=False)


def _stages(graph: Graph, fixed: set[Value]) -> list[_Stage]:
    """The nodes by depth. A node that depends on weights alone belongs to whoever reads it."""
    depth: dict[Value, int] = dict.fromkeys(graph.inputs.values(), 0)
    found: dict[int, list[Node]] = {}
    for node in graph:
        if all(v in fixed for v in node.outputs):
            continue
        level = max((depth[v] for v in node.arguments if v not in fixed), default=0)
        level += layer_of(node) is not None
        depth.update(dict.fromkeys(node.outputs, level))
        found.setdefault(level, []).append(node)
    outputs = {*graph.outputs.values()}
    stages: list[_Stage] = []
    for level in sorted(found):
        nodes = found[level]
        made = {v for node in nodes for v in node.outputs}
        reads = frozenset(v for node in nodes for v in node.arguments if v not in made and v not in fixed)
        leaves = frozenset(v for v in made if v in outputs or any(depth[o] > level for u in v.users for o in u.outputs))
        stages.append(_Stage(tuple(nodes), reads, leaves))
    return stages
