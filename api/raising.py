"""A model that came as a graph, raised before it is built: attention that is written in parts becomes attention."""

from __future__ import annotations

import dataclasses

from .exact import Unchecked, exact_difference, raising_stages
from .frontends.dsl import Model, Program
from .frontends.onnx.load import as_it_is
from .ir.graph import Graph
from .ir.tensors import Array, held
from .passes.raising import raise_graph


def with_layers(model: Model, *, check: bool = True) -> tuple[Model, str]:
    """A model of an ONNX file or a PyTorch module with its layers raised, and what was; others as they are, and "".

    Every row of every output keeps its numbers, also those at padding. A decoder was raised when it got its cache.
    check: compute both graphs in f64; where they differ, the model stays as it came, which the text says with the
    numbers.
    """
    weights = model.weights
    if not isinstance(model.source, Program) or weights is None or model.task.generates:
        return model, ""
    given = model.source.make
    plain = given if isinstance(given, Graph) else model.graph()
    made = plain.copy()

    def read(name: str) -> Array:
        return held(weights[name], plain.params[name].type, name)

    report = raise_graph(made, read, every_row=True)
    said = str(report)
    if not report.counts:
        return model, said
    if check:
        try:
            wrong = exact_difference(raising_stages(plain, made), weights, report.read)
        except Unchecked as e:
            said += f"\nin f64: nothing, {e}"
        else:
            if wrong:
                return model, f"raised: nothing, it would change what is computed: {wrong}"
            said += "\nin f64: the same"
    make = made if isinstance(given, Graph) else as_it_is(made)
    return dataclasses.replace(model, source=Program(model.source.name, model.task, make)), said
