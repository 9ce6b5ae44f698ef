"""ONNX's own backend interface: any model through the importer, run by the reference or after it is written again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx.backend.base import Backend, BackendRep, namedtupledict
from onnx.reference import ReferenceEvaluator

from ...frontends.dsl import Model
from ...frontends.onnx import model_of_proto
from ...frontends.onnx.foreign import is_plain
from ...frontends.onnx.runtime import open_session
from ...ir.errors import RuntimeInputError
from ...ir.graph import Graph
from ...ir.interpret import interpret
from ...ir.tensors import Array, held
from ...ir.weights import Weights
from .lower import lower

REFERENCE, WRITTEN = "reference", "onnx"
Run = Callable[[list[str], dict[str, Array]], Sequence[Array]]
NUMPY, RUNTIME, EVALUATOR = "NumPy", "ONNX Runtime", "ONNX's evaluator"


class Prepared(BackendRep):
    """A model that is ready to run. graph: what the importer made of it. engine: what runs it. why: if that is ONNX's
    evaluator, the reason: what ONNX Runtime says of the original, or a type that NumPy does not have."""

    def __init__(self, model: Model, mode: str, opset: int, original: onnx.ModelProto) -> None:
        self.graph, self.mode = model.graph(), mode
        self.weights = model.weights or Weights({})
        self.session: Run | None = None
        self.engine, self.why = NUMPY, ""
        if mode == WRITTEN:
            written = onnx_ir.to_proto(lower(self.graph, self.weights, opset))
            self.session, self.why = _session(written, original, self.graph)
            self.engine = EVALUATOR if self.why else RUNTIME

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Outputs in the order of the model. inputs: in that order, or by name."""
        given = _named(self.graph, inputs)
        if self.session is None:
            params = {k: held(self.weights[k], v.type, k) for k, v in self.graph.params.items()}
            found = interpret(self.graph, given, params)
        else:
            names = list(self.graph.outputs)
            found = dict(zip(names, self.session(names, given), strict=True))
        return namedtupledict("Outputs", [*found])(*found.values())


def _named(graph: Graph, inputs: Any) -> dict[str, Array]:
    given: dict[str, Any] = dict(inputs) if isinstance(inputs, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(inputs, Mapping):
        sequence: list[Any] = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]  # pyright: ignore[reportUnknownArgumentType]
        if len(sequence) != len(graph.inputs):
            raise RuntimeInputError(f"{len(sequence)} inputs are given, expected {len(graph.inputs)}")
        given = dict(zip(graph.inputs, sequence, strict=True))
    found: dict[str, Array] = {k: np.asarray(v) for k, v in given.items()}
    return {k: v.astype(object) if v.dtype.kind in "US" else v for k, v in found.items()}


def _session(written: onnx.ModelProto, original: onnx.ModelProto, graph: Graph) -> tuple[Run, str]:
    """(what runs a written model; why that is ONNX's evaluator and not ONNX Runtime, "" if it is the runtime).

    Raises RuntimeInputError where ONNX Runtime takes the original, but not what was written.
    """
    evaluated: Any = ReferenceEvaluator
    try:
        run: Run = open_session(written.SerializeToString()).run
    except RuntimeInputError:
        try:
            open_session(original.SerializeToString())
        except RuntimeInputError as e:
            return evaluated(written).run, e.what
        raise
    types = [v.dtype for v in (*graph.inputs.values(), *graph.outputs.values())]
    rare = next((t for t in types if not is_plain(t)), None)
    return (run, "") if rare is None else (evaluated(written).run, f"NumPy has no {rare}")


class MonographBackend(Backend):
    """`onnx.backend` over Monograph. mode: "reference" runs in NumPy, "onnx" writes the graph and runs ONNX Runtime."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether a model is one that the importer takes."""
        return cls.supports_device(device)

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", mode: str = REFERENCE, opset: int = 23, **kwargs: Any
    ) -> Prepared:
        """Import a model. opset: that is written in mode "onnx".

        Raises OnnxFileError, LoweringError, and RuntimeInputError where ONNX Runtime takes the model, but not what was
        written of it.
        """
        return Prepared(model_of_proto(model), mode, opset, model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether a device is the CPU."""
        return device == "CPU"
