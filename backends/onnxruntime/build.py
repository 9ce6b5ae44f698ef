"""From a model to a folder that ONNX Runtime serves: variants of the graph, one data file, the contract."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir

from ...frontends.dsl import Model
from ...frontends.huggingface import hf_config
from ...frontends.pooling import FILE as POOLING
from ...frontends.pooling import Pooling
from ...ir.encoded import memory_bound
from ...ir.errors import LoweringError, WeightsError
from ...ir.files import Stage, staged
from ...ir.graph import Graph
from ...ir.weights import Tensor
from ...passes.cache import self_attentions
from ...passes.encode import keep_encodings, through_float
from ...passes.manager import Pipeline, PipelineReport, Step
from ...passes.pattern import NearMiss
from ...passes.pipelines import PIPELINES
from ...passes.split import split
from ...passes.state import recurrences
from ..onnx.lower import lower
from ..target import Target
from .attention import past_layers, windows
from .cache import STATE
from .contract import FILE, VERSION, Contract
from .files import Progress, write_variants
from .logits import ROWS
from .quantized import quantized_layers
from .rewrites import DISABLED_OPTIMIZERS, common, lengths_variant, mask_variant

OPSET = 23
MASKED, LENGTHS, ENCODER = "model.masked.onnx", "model.onnx", "encoder.onnx"
DEFAULT_POSITIONS = 4096
FUSED = ("ort_group_query_attention", "ort_multi_head_attention")
_NOTHING = Pipeline("lowered", [])


@dataclass
class BuildReport:
    """What a build did.

    attentions: how many there are (`total`) and how many became which op in the graph that serves first.
    nodes: ONNX nodes by op type, by file. misses: what was not fused, where and why. steps: passes with their
    seconds. through_float: block format by weight, of those that
    the target has no blocks for, which became plain numbers. bytes: of the data file. bound: most bytes of resident
    memory the build may take. seconds: all of it.
    """

    folder: Path
    contract: Contract
    attentions: dict[str, int] = field(default_factory=dict[str, int])
    nodes: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])
    steps: list[Step] = field(default_factory=list[Step])
    through_float: dict[str, str] = field(default_factory=dict[str, str])
    kernels: str = ""
    bytes: int = 0
    bound: int = 0
    seconds: float = 0.0

    @property
    def fused(self) -> int:
        """Attentions that became one of ONNX Runtime's own attention ops."""
        return sum(self.attentions.get(k, 0) for k in FUSED)

    def summary(self) -> str:
        """One line for people."""
        total = self.attentions.get("total", 0)
        return (
            f"{self.fused} of {total} attentions fused, {self.bytes / 1e6:.1f} MB, {self.seconds:.1f} s, "
            f"{len(self.misses)} near misses"
        )


@dataclass
class _Variants:
    """The graphs of a build by file name, and what was noted on the way."""

    graphs: dict[str, Graph] = field(default_factory=dict[str, Graph])
    reports: dict[str, PipelineReport] = field(default_factory=dict[str, PipelineReport])
    attentions: int = 0
    windowed: bool = False
    masked: str = MASKED

    def run(self, name: str, pipeline: Pipeline, graph: Graph) -> Graph:
        self.reports[name] = pipeline.run(graph)
        return graph


def build(
    model: Model | Graph,
    weights: Mapping[str, Tensor] | None,
    folder: str | Path,
    target: str | Target = "cpu",
    *,
    max_positions: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Write a folder that `open` serves; gives the report, prints nothing.

    model: a Model, or a plain graph (then nothing but the model is written). weights: None for the model's own.
    max_positions: most tokens a row may have (None: what the config says). strict: raise LoweringError unless every
    attention became one of ONNX Runtime's own attention ops. progress(bytes done, bytes in all, tensor).
    Nothing is visible in the folder before everything is written. Raises LoweringError for a node that the target
    has no kernel for, WeightsError for missing or damaged tensors.
    """
    start = time.perf_counter()
    if max_positions is not None and (not isinstance(max_positions, int) or max_positions < 1):
        raise LoweringError(f"max_positions is {max_positions!r}, expected a whole number of at least 1")
    target = Target.of(target)
    graph = model.graph(target.dtype) if isinstance(model, Model) else model
    found = weights if weights is not None else model.weights if isinstance(model, Model) else None
    if found is None:
        raise WeightsError(f"model {graph.name} has no weights", hint="load a checkpoint, or train it")
    missing = [f"missing: {k}: {v.type}" for k, v in graph.params.items() if k not in found]
    if missing:
        raise WeightsError(f"{len(missing)} weights of {graph.name} are missing", details=missing)
    graph = graph.copy()
    keep_encodings(graph, found)
    positions = positions_of(model) if max_positions is None else max_positions
    variants = variants_of(graph, positions)
    report = _report(variants, Path(folder), _contract(model, graph, target, variants, positions))
    if strict:
        _check_fused(report)
    models = _lowered(variants, found, target, report)
    with staged(folder) as stage:
        report.bytes = write_variants(stage, models, progress)
        _text(stage, FILE, report.contract.to_json())
        if isinstance(model, Model):
            _companions(stage, model)
    report.seconds = time.perf_counter() - start
    return report


def positions_of(model: Model | Graph) -> int:
    """Most tokens a row may have by the model's config, or DEFAULT_POSITIONS when it does not say."""
    found = getattr(model.config, "max_positions", None) if isinstance(model, Model) else None
    return found if isinstance(found, int) and found > 0 else DEFAULT_POSITIONS


def variants_of(graph: Graph, positions: int) -> _Variants:
    """The graphs that are built for a plain (or already cached) graph."""
    variants = _Variants()
    cached = any(k.startswith("past_key_values.") for k in graph.inputs)
    remembers = bool(self_attentions(graph)) or bool(recurrences(graph))
    serves = cached or (remembers and "logits" in graph.outputs)
    graph = graph.copy()
    if not cached:
        variants.run("graph", PIPELINES["decode" if serves else "encode"], graph)
    if "decoder_input_ids" in graph.inputs:
        encoder, graph = split(graph)
        encoder = variants.run(f"{ENCODER} common", common(), encoder)
        variants.graphs[ENCODER] = variants.run(ENCODER, mask_variant(), encoder)
    variants.run("common", common(), graph)
    variants.attentions, variants.windowed = graph.counts().get("attention", 0), windows(graph)
    if serves and self_attentions(graph):
        shared = variants.run(LENGTHS, lengths_variant(positions), graph.copy())
        if variants.reports[LENGTHS].counts.get("ort_group_query_attention"):
            variants.graphs[LENGTHS] = shared
    # A model with one graph for everything has it under the name that everybody looks for.
    only = MASKED if LENGTHS in variants.graphs else LENGTHS
    variants.graphs[only] = variants.run(MASKED, mask_variant(), graph)
    variants.masked = only
    return variants


def _contract(model: Model | Graph, graph: Graph, target: Target, variants: _Variants, positions: int) -> Contract:
    last = variants.graphs[variants.masked]
    is_model = isinstance(model, Model)
    layers = past_layers(last)
    return Contract(
        version=VERSION,
        kind="decoder" if layers or any(k.startswith(STATE) for k in last.inputs) else "encoder",
        family=model.name if is_model else graph.name,
        task=model.task.name if is_model else "",
        provider=target.provider,
        dtype=str(target.dtype),
        runtime=target.runtime,
        masked=variants.masked,
        lengths=LENGTHS if variants.masked == MASKED else "",
        encoder=ENCODER if ENCODER in variants.graphs else "",
        layers=tuple(layers),
        positions=positions if layers or any(k.endswith("position_ids") for k in last.inputs) else 0,
        windowed=variants.windowed,
        rows=ROWS in last.inputs,
        disabled_optimizers=DISABLED_OPTIMIZERS,
    )


def _report(variants: _Variants, folder: Path, contract: Contract) -> BuildReport:
    report = BuildReport(folder, contract)
    counts = variants.graphs[LENGTHS].counts()
    names = (*FUSED, "onnx_attention", "onnx_cached_attention", "attention")
    report.attentions = {"total": variants.attentions} | {k: counts[k] for k in names if k in counts}
    for r in variants.reports.values():
        report.steps += r.steps
        report.misses += r.misses
    if variants.masked == MASKED:
        # The second graph is meant to do without; what the first one missed is what counts.
        own = {id(m) for m in variants.reports[MASKED].misses}
        report.misses = [m for m in report.misses if id(m) not in own]
    return report


def _check_fused(report: BuildReport) -> None:
    total = report.attentions["total"]
    if report.fused < total:
        reasons = [str(m) for m in report.misses if m.rewrite in FUSED or "attention" in m.rewrite]
        raise LoweringError(f"{report.fused} of {total} attentions were fused, and all were asked for", details=reasons)


def _lowered(
    variants: _Variants, weights: Mapping[str, Tensor], target: Target, report: BuildReport
) -> dict[str, onnx_ir.Model]:
    """The ONNX models by file name, with every node known to have a kernel."""
    models: dict[str, onnx_ir.Model] = {}
    table = target.table
    quantized = Pipeline("quantized", [quantized_layers(target)])
    report.kernels = table.source
    for name, graph in variants.graphs.items():
        passes = quantized.run(graph)
        report.steps += passes.steps
        report.misses += passes.misses
        models[name] = lower(graph, weights, OPSET, pipeline=_NOTHING)
        table.check(models[name])
        report.nodes[name] = _count(models[name])
        report.through_float |= through_float(graph, weights)
    report.bound = memory_bound(weights.values())
    return models


def _count(model: onnx_ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def _companions(stage: Stage, model: Model) -> None:
    """What clients expect beside a model: its config, how to generate with it, its tokenizer."""
    _text(stage, "config.json", json.dumps(hf_config(model, model.weights), indent=2, ensure_ascii=False) + "\n")
    if model.generation:
        _text(stage, "generation_config.json", json.dumps(model.generation, indent=2, ensure_ascii=False) + "\n")
    if model.tokenizer is not None:
        model.tokenizer.write(stage)
    pooling = Pooling.read(model.folder) if model.folder is not None else None
    if pooling is not None:
        _text(stage, POOLING, pooling.to_json())


def _text(stage: Stage, name: str, text: str) -> None:
    with stage.open(name) as file:
        file.write(text.encode())
