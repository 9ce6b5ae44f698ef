"""The graph inside of an If or a Loop as a model of its own: the branch that was taken, the first step that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .ir.tensors import Array
from .subgraphs import run

MOST = 1000
"""Steps of a loop that are looked at."""

Differs = Callable[[Mapping[str, Array], Mapping[str, Array]], bool]


@dataclass(frozen=True)
class Part:
    """A model, and which of its values is made by a node with graphs inside."""

    model: onnx.ModelProto
    value: str
    path: Path

    @property
    def node(self) -> onnx.NodeProto:
        return next(n for n in self.model.graph.node if self.value in n.output)

    def numbers(self, names: Iterable[str], inputs: Mapping[str, Array]) -> list[Array | None]:
        """What values are; None for one that is left out."""
        names = list(names)
        known: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        known |= inputs
        made = [n for n in dict.fromkeys(names) if n and n not in known]
        if made:
            shown = onnx.ModelProto()
            shown.CopyFrom(self.model)
            del shown.graph.output[:]
            shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in made)
            known |= run(shown, inputs, self.path)
        return [known[n] if n else None for n in names]

    def opened(self, body: onnx.GraphProto, states: Mapping[str, Array], made: Mapping[str, str]) -> onnx.ModelProto:
        """The model with the nodes of a graph inside in the place of its node.

        states: inputs of that graph. made: what its results are called => their names in it.
        """
        node, model = self.node, onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        rest = [n for n in self.model.graph.node if n is not node]
        del graph.node[:], graph.output[:], graph.value_info[:]
        graph.input.extend(
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
            for k, x in states.items()
        )
        graph.initializer.extend(body.initializer)
        graph.node.extend([*rest, *body.node])
        graph.node.extend(helper.make_node("Identity", [v], [k], name=f"{k} is {v}") for k, v in made.items())
        graph.output.extend(onnx.ValueInfoProto(name=k) for k in made)
        return model


def inside(
    a: Part, b: Part, inputs: Mapping[str, Array], differs: Differs
) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, Array]] | None:
    """Both parts opened, and their inputs; None where what makes the values has no graphs that can be.

    differs: whether results by name do. Of a loop it is the first step after which they do, from the same states.
    """
    kinds = {a.node.op_type, b.node.op_type}
    if kinds == {"If"}:
        return _branches(a, b, inputs)
    return _steps(a, b, inputs, differs) if kinds == {"Loop"} else None


def _graph(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return next(x.g for x in node.attribute if x.name == name)


def _branches(a: Part, b: Part, inputs: Mapping[str, Array]) -> Any:
    made: list[onnx.ModelProto] = []
    for part in (a, b):
        node = part.node
        (condition,) = part.numbers(node.input, inputs)
        body = _graph(node, "then_branch" if condition is not None and condition.all() else "else_branch")
        made.append(part.opened(body, {}, {b.value: body.output[list(node.output).index(part.value)].name}))
    return made[0], made[1], dict(inputs)


def _steps(a: Part, b: Part, inputs: Mapping[str, Array], differs: Differs) -> Any:
    bodies = [_graph(p.node, "body") for p in (a, b)]
    if len(bodies[0].input) != len(bodies[1].input) or len(bodies[0].output) != len(bodies[1].output):
        return None
    trips, condition, *first = a.numbers(a.node.input, inputs)
    count = MOST if trips is None else min(int(trips.reshape(())), MOST)
    going: Any = np.asarray(True) if condition is None else condition
    states: list[Any] = first
    names = [f"{b.value}.{i}" for i in range(len(bodies[0].output))]
    for step in range(count):
        if not np.all(going):
            return None
        given = [np.asarray(step, np.int64), np.asarray(going), *states]
        fed = [dict(zip((v.name for v in body.input), given, strict=True)) for body in bodies]
        models = [
            p.opened(body, own, dict(zip(names, (v.name for v in body.output), strict=True)))
            for p, body, own in zip((a, b), bodies, fed, strict=True)
        ]
        old, new = (run(m, {**inputs, **own}, p.path) for m, own, p in zip(models, fed, (a, b), strict=True))
        if differs(old, new):
            return models[0], models[1], {**inputs, **fed[0], **fed[1]}
        going, *states = (old[n] for n in names[: 1 + len(states)])
    return None
