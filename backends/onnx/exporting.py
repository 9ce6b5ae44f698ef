"""A portable folder of a model: its graphs in standard ops, as any runtime or as one client wants them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir

from ...frontends.dsl import Model
from ...frontends.huggingface import hf_config
from ...ir.files import whole
from ...ir.graph import Graph
from ...ir.manifest import seal
from ...ir.weights import Tensor, Weights
from ...passes.encode import through_float
from ...passes.manager import Pipeline
from ...passes.quantize.report import FILE as QUANTIZATION
from ...passes.quantize.report import QuantizationReport
from .client_graphs import client_graphs, with_columns
from .clients import CROSS, MERGED, Layout, check_class
from .folder import foreign, write_companions, write_json, write_text
from .genai import FILE as GENAI
from .genai import genai_config
from .lower import lower, prepared
from .merged import merged
from .metadata import TASK, task_json
from .rewrites import AS_IT_IS, PORTABLE
from .save import checked, count, memory_bound, save

OPSET = 23
POSITIONS = 4096
"""Most tokens a row may have where a config does not say."""


@dataclass
class Exported:
    """What an export will write.

    models: the ONNX models by their place in the folder. inputs: names that they take in. settings: the content of
    genai_config.json, if there is one. quantization: what was done to the weights, if that was asked. nodes: ONNX nodes
    by op type, by file. through_float: block format by name of each weight that becomes plain numbers on its way.
    bound: most bytes of resident memory that writing may take. finish(folder): called when the folder is complete, but
    not in its place yet; what it writes there belongs to the export.
    """

    model: Model
    layout: Layout | None
    models: dict[str, onnx_ir.Model] = field(repr=False)
    inputs: frozenset[str] = frozenset()
    settings: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    quantization: QuantizationReport | None = None
    nodes: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    through_float: dict[str, str] = field(default_factory=dict[str, str])
    bound: int = 0
    finish: Callable[[Path], None] | None = None

    @staticmethod
    def of(
        model: Model,
        graphs: Mapping[str, Graph],
        weights: Weights,
        opset: int | None = None,
        layout: Layout | None = None,
        dump: Path | None = None,
        pipeline: Pipeline = PORTABLE,
    ) -> Exported:
        """Everything but the bytes of the weights. graphs: those that serve the model, by name.

        opset: None for the layout's. pipeline: the rewrites to ops of the target. dump: folder for the text of each
        graph after every pass. Raises LoweringError for what a client has no class for, and for an op without an ONNX
        form.
        """
        opset = opset if opset is not None else layout.opset if layout is not None else OPSET
        settings: dict[str, Any] = {}
        if layout is not None:
            config = hf_config(model, model.weights)
            kind = str(config["model_type"])
            check_class(layout, model, kind)
            graphs = client_graphs(layout, model, kind, config, graphs)
            if layout.name == "genai":
                positions = getattr(model.config, "max_positions", None) or POSITIONS
                settings = genai_config(model, graphs["model"], kind, "model.onnx", positions)
        elif model.task.by_column:
            graphs = {name: with_columns(g) for name, g in graphs.items()}
        ready = {
            name: prepared(g, opset, pipeline, dump=None if dump is None else dump / f"{i}-{name}")
            for i, (name, g) in enumerate(graphs.items(), 1)
        }
        models = {name: lower(g, weights, opset, pipeline=AS_IT_IS) for name, g in ready.items()}
        if MERGED in models:
            models[MERGED] = merged(models[MERGED], models.pop(CROSS))
        for made in models.values():
            made.metadata_props[TASK] = json.dumps(task_json(model.task))
        placed = {(f"{k}.onnx" if layout is None else layout.path(k)): made for k, made in models.items()}
        found = Exported(model, layout, placed, frozenset(_inputs(placed.values())), settings)
        found.nodes = {name: count(made) for name, made in placed.items()}
        for g in ready.values():
            found.through_float |= through_float(g, weights)
        found.bound = memory_bound(placed.values(), _read(ready.values(), weights))
        return found


def write(exported: Exported, folder: str | Path, progress: Callable[[int, int, str], None] | None = None) -> None:
    """Write the folder whole or not at all. Raises MonographError for one that holds what no build wrote."""
    layout = exported.layout
    with whole(folder, replaces=foreign) as stage:
        for name, made in exported.models.items():
            checked(save(made, stage.work / name, progress, data=".data" if layout is None else layout.data))
        if exported.settings:
            write_json(stage, GENAI, exported.settings)
        write_companions(stage, exported.model, exported.inputs, layout)
        if exported.finish is not None:
            exported.finish(stage.work)
        if exported.quantization is not None:
            write_text(stage, QUANTIZATION, exported.quantization.to_json())
        seal(stage.work)


def _read(graphs: Iterable[Graph], weights: Weights) -> Iterable[Tensor]:
    return (weights[k] for g in graphs for k in g.params)


def _inputs(models: Iterable[onnx_ir.Model]) -> Iterable[str]:
    return (str(v.name) for made in models for v in made.graph.inputs)
