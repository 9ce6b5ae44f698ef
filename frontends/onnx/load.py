"""An ONNX file as a Model, with a task that describes whatever inputs and outputs it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx

from ...ir.graph import Graph
from ...ir.types import Dim, DimLike, DType
from ...ir.weights import Weights
from ..dsl import Model, Program
from ..entries import Note
from ..task import Task
from .equal import Equal, Sizes
from .errors import OnnxFileError, UntypedError
from .file import OnnxFile, checked, open_onnx
from .importer import Importer
from .whole import wrapped

MOST = 64
"""How often a file is read anew with sizes that turned out to be equal."""
TASK = "onnx"
"""The name of the task of a model that is its graph."""


def load_onnx(path: str | Path) -> Model:
    """The model in an ONNX file; its weights are read when they are needed.

    Raises OnnxFileError naming file, place and numbers for what is damaged, points outside its folder, or says what
    the standard does not allow.
    """
    return _model(open_onnx(path))


def model_of_proto(proto: onnx.ModelProto, folder: str | Path = ".", name: str = "model.onnx") -> Model:
    """The model in a message in memory. folder: where its external data lies."""
    return _model(checked(proto, Path(folder) / name))


def _model(file: OnnxFile) -> Model:
    graph, weights, left = read_graph(file)
    if not graph.outputs:
        raise OnnxFileError("has no outputs", place=str(file.path))
    inputs = {k: str(v.type) for k, v in graph.inputs.items()}
    task = Task(TASK, inputs, next(iter(graph.outputs)))
    notes = tuple(Note(str(file.path), name, "foreign", why) for name, why in left.items())
    return Model(Program(file.path.stem, task, as_it_is(graph)), weights=weights, notes=notes)


def read_graph(
    file: OnnxFile, keep: Collection[str] = (), *, wrap: bool = True
) -> tuple[Graph, Weights, Mapping[str, str]]:
    """(the graph, its weights, the nodes that stay foreign with the reason). keep: operators that stay in any case.

    wrap: a graph that cannot be typed value by value becomes one foreign node; else it raises UntypedError.
    """
    untyped = UntypedError(f"has sizes that are not known after {MOST} turns", place=str(file.path))
    bound: dict[str, DimLike] = {}
    refused: set[str] = set()
    for _ in range(MOST):
        importer = Importer(file, Sizes(bound, refused), keep)
        try:
            graph, weights = importer.run()
        except Equal as e:
            bound = _bound(bound, {**importer.equal, e.name: e.value})
        except UntypedError as e:
            untyped = e
            if not importer.equal:
                break
            bound = _bound(bound, importer.equal)
        else:
            if importer.equal:
                bound = _bound(bound, importer.equal)
                continue
            if not importer.sizes.open:
                return graph, weights, importer.left
            refused |= importer.sizes.open
    if not wrap:
        raise untyped
    importer = Importer(wrapped(file), keep=keep)
    graph, weights = importer.run()
    return graph, weights, importer.left


def _bound(bound: Mapping[str, DimLike], more: Mapping[str, DimLike]) -> dict[str, DimLike]:
    """What symbols stand for, with what more of them turned out to be."""
    found = dict(bound)
    for name, value in more.items():
        value = value.substitute(found) if isinstance(value, Dim) else value
        if name in found or (isinstance(value, Dim) and name in value.symbols):
            continue
        found = {k: v.substitute({name: value}) if isinstance(v, Dim) else v for k, v in found.items()}
        found[name] = value
    return found


class _AsItIs:
    """Makes the graph of a file, which has the types that the file has."""

    def __init__(self, graph: Graph) -> None:
        self.made = graph

    def __call__(self, dtype: DType) -> Graph:
        return self.made.copy()


def as_it_is(graph: Graph) -> _AsItIs | Graph:
    """What a Program makes: a graph in one float type, or one that keeps its own types whatever is asked for."""
    floats = {v.dtype for v in (*graph.params.values(), *graph.inputs.values()) if v.dtype.is_float}
    return graph if floats == {DType.f32} else _AsItIs(graph)
