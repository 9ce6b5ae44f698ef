"""From a model to a folder that ONNX Runtime serves: variants of the graph, one data file, the contract."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir

from ...frontends.dsl import Model, Program, plain_graph
from ...frontends.onnx.runtime import CRASHING
from ...frontends.task import TOKEN_TYPES
from ...ir.bounds import bounds_of, most_counted
from ...ir.display import Shown, Table, size
from ...ir.errors import LoweringError, WeightsError
from ...ir.files import check_writable, whole
from ...ir.graph import Graph
from ...ir.manifest import seal
from ...ir.silent import silent
from ...ir.slots import TOKENS
from ...ir.types import f16
from ...ir.weights import NO_WEIGHTS, Tensor
from ...passes.encode import keep_encodings, through_float
from ...passes.manager import Step
from ...passes.pattern import NearMiss
from ...passes.precision import Precision
from ...passes.quantize.report import FILE as QUANTIZATION
from ...passes.quantize.report import QuantizationReport
from ..onnx.folder import TUNING, check_outside, foreign, write_companions, write_text
from ..onnx.lower import lower
from ..onnx.metadata import TASK, task_json
from ..onnx.rewrites import AS_IT_IS
from ..onnx.save import count, memory_bound
from ..target import Target
from .attention import GroupQuery
from .beside import PLAIN, Beside
from .capturable import by_op, capture_refusals
from .choices import Choices, choices_of, chosen, why
from .contract import FILE, VERSION, Contract
from .feeds import check_feeds
from .files import Progress, write_variants
from .held import bytes_of
from .logits import ROWS
from .multi_head import MultiHead
from .quantized import OrtMatMulNBits
from .tune_result import Tuning
from .variants import ENCODER, LENGTHS, MASKED, PROMPTS, Variants, variants_of
from .widened import widen

OPSET = 23
DEFAULT_POSITIONS = 4096
FUSED = (GroupQuery.name, MultiHead.name)


@dataclass(repr=False)
class BuildReport(Shown):
    """What a build did.

    attentions: how many there are (`total`) and how many became which op in the graph that serves first. nodes:
    ONNX nodes by op type, by file. misses: what was not fused, where and why. steps: passes with their seconds.
    through_float: block format by name of each weight that became plain numbers on its way. quantization: what was
    done to each weight, if that was asked. tuning: what was measured to choose, if that was asked. bytes: of the
    data file. state_bytes: of what one row remembers when it has as many tokens as it may, but for what depends on
    the length of a source. bound: most bytes of resident memory the build may take. written: the peak of these bytes
    once all was written, if the quality was measured after that (else 0). seconds: all of it. precision: which
    values are 16 bits wide. widened: ops with casts around them, which the provider has in f32 only.
    compared: of which graphs a small twin was computed before and after the passes ("": of none). raised: layers found
    in a graph from elsewhere, and what was not, with the reason ("": it is a model of our own).
    """

    folder: Path
    contract: Contract
    attentions: dict[str, int] = field(default_factory=dict[str, int])
    nodes: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])
    steps: list[Step] = field(default_factory=list[Step])
    through_float: dict[str, str] = field(default_factory=dict[str, str])
    quantization: QuantizationReport | None = None
    kernels: str = ""
    tuning: Tuning | None = None
    bytes: int = 0
    state_bytes: int = 0
    bound: int = 0
    written: int = 0
    seconds: float = 0.0
    precision: Precision | None = None
    widened: list[str] = field(default_factory=list[str])
    compared: str = ""
    raised: str = ""

    @property
    def fused(self) -> int:
        """Attentions that became one of ONNX Runtime's own attention ops."""
        return sum(self.attentions.get(k, 0) for k in FUSED)

    def table(self) -> Table:
        """What was built, for `repr` and notebooks."""
        kinds = ", ".join(f"{name} {n}" for name, n in self.attentions.items()) or "none"
        made = {name: f"{sum(counts.values()):,} nodes" for name, counts in self.nodes.items()}
        rows = [
            ("folder", str(self.folder)),
            ("model", f"{self.contract.family}, {self.contract.task}, {self.contract.provider}, {self.contract.dtype}"),
            ("attentions", kinds),
            ("choices", self.contract.why[0] if self.contract.why else ""),
            *([("raised", self.raised)] if self.raised else []),
            *made.items(),
            ("weights", size(self.bytes)),
            *([("quantization", self.quantization.summary())] if self.quantization is not None else []),
            ("state", f"{size(self.state_bytes)} a row" if self.state_bytes else "none"),
            *([("capture", self._capture)] if self.contract.provider == "cuda" else []),
            ("near misses", "\n".join(map(str, self.misses)) or "none"),
            ("precision", str(self.precision) if self.precision is not None else "f32"),
            ("through float", f"{len(self.through_float):,} weights" if self.through_float else "none"),
            ("compared", self.compared or "nothing: it was not asked for"),
            ("memory", f"at most {size(self.bound)}"),
            ("took", f"{self.seconds:.1f} s"),
        ]
        return Table("build", rows)

    @property
    def _capture(self) -> str:
        """Whether steps can be captured as CUDA graphs, else how many nodes of which ops stand in the way."""
        if not self.contract.lengths:
            return "none: caches grow"
        counts = by_op(list(self.contract.uncaptured))
        return ", ".join(f"{name} {n}" for name, n in counts.items()) or "every step"

    def summary(self) -> str:
        """One line for people."""
        total = self.attentions.get("total", 0)
        return (
            f"{self.fused} of {total} attentions fused, {size(self.bytes)}, {self.seconds:.1f} s, "
            f"{len(self.misses)} near misses"
        )


def build(
    model: Model | Graph,
    weights: Mapping[str, Tensor] | None,
    folder: str | Path,
    target: str | Target = "cpu",
    *,
    max_positions: int | None = None,
    strict: bool = False,
    choices: Choices | None = None,
    beside: Beside = PLAIN,
    announce: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Write a folder that `open` serves; gives the report, prints nothing.

    model: a Model, or a plain graph (then nothing but the model is written). weights: None for the model's own.
    max_positions: most tokens a row may have (None: what the config says). strict: raise LoweringError unless every
    attention became one of ONNX Runtime's own attention ops. choices: which of several legal ops and settings are
    taken (None: those shipped for the target's provider). beside: adapters, reports and what else belongs to it.
    announce(bytes): called once with the most memory that writing may take. progress(bytes done, bytes in all, tensor).
    Nothing is visible in the folder before everything is written; an older build in it is replaced as a whole. Raises
    MonographError for a folder that holds other files, LoweringError for a node that the target has no kernel for,
    WeightsError for missing or damaged tensors.
    """
    start = time.perf_counter()
    check_outside(check_writable(folder, foreign))
    target = chosen(Target.of(target), choices)
    report, models = planned(model, weights, Path(folder), target, max_positions, strict=strict, beside=beside)
    (announce or silent)(report.bound)
    with whole(folder, replaces=foreign) as stage:
        report.bytes = write_variants(stage, models, progress)
        write_text(stage, FILE, report.contract.to_json())
        if beside.evidence:
            write_text(stage, TUNING, beside.evidence)
        if isinstance(model, Model):
            write_companions(stage, model, {k for types in report.contract.inputs.values() for k in types})
        if beside.finish is not None:
            seal(stage.work)
            beside.finish(replace(report, folder=stage.work))
        if beside.quantization is not None:
            write_text(stage, QUANTIZATION, beside.quantization.to_json())
        seal(stage.work)
    report.seconds = time.perf_counter() - start
    return report


def memory_bound_of(model: Model, target: str | Target = "cpu", max_positions: int | None = None) -> int:
    """Most bytes of resident memory that `build` may take for a model. Nothing is written. Errors as for `build`."""
    return planned(model, None, Path(), Target.of(target), max_positions)[0].bound


def planned(
    model: Model | Graph,
    weights: Mapping[str, Tensor] | None,
    folder: Path,
    target: Target,
    max_positions: int | None = None,
    *,
    strict: bool = False,
    beside: Beside = PLAIN,
) -> tuple[BuildReport, dict[str, onnx_ir.Model]]:
    """The report of a build and the ONNX models by file name, before any byte is written."""
    given: Any = max_positions  # callers without types give anything
    if given is not None and (not isinstance(given, int) or given < 1):
        raise LoweringError(f"max_positions is {max_positions!r}, expected a whole number of at least 1")
    graph = plain_graph(model, target.dtype) if isinstance(model, Model) else model
    found = weights if weights is not None else model.weights if isinstance(model, Model) else None
    if found is None:
        raise WeightsError(f"model {graph.name} has no weights", hint=NO_WEIGHTS)
    missing = [f"missing: {k}: {v.type}" for k, v in graph.params.items() if k not in found]
    if missing:
        raise WeightsError(f"{len(missing)} weights of {graph.name} are missing", details=missing)
    graph = graph.copy()
    keep_encodings(graph, found)
    positions = positions_of(model) if max_positions is None else max_positions
    streams = not isinstance(model, Model) or model.task.generates or not isinstance(model.source, Program)
    variants = variants_of(graph, target, positions, found, beside, streams=streams)
    if variants.adapters is not None:
        variants.adapters.check(graph.name)
        found = {**found, **variants.adapters.weights}
    contract = _contract(model, graph, target, variants, positions)
    names = () if beside.adapters is None else beside.adapters.names
    contract = replace(contract, adapters=names, cache=beside.cache)
    contract = _check_positions(contract, variants, max_positions)
    report = _report(variants, folder, contract)
    report.quantization = beside.quantization
    check_feeds(report.contract, variants.graphs)
    if strict:
        _check_fused(report)
    models = _lowered(variants, found, target, report)
    if target.provider == "cuda" and LENGTHS in models:
        refusals = capture_refusals(models[LENGTHS], target)
        report.contract = replace(report.contract, uncaptured=tuple(refusals))
    if isinstance(model, Model):
        for made in models.values():
            made.metadata_props[TASK] = json.dumps(task_json(model.task))
    for lowered in variants.graphs.values():
        report.through_float |= through_float(lowered, found)
    return report, models


def positions_of(model: Model | Graph) -> int:
    """Most tokens a row may have by the model's config, or DEFAULT_POSITIONS when it does not say."""
    found = getattr(model.config, "max_positions", None) if isinstance(model, Model) else None
    return found if isinstance(found, int) and found > 0 else DEFAULT_POSITIONS


def _contract(model: Model | Graph, graph: Graph, target: Target, variants: Variants, positions: int) -> Contract:
    last = variants.graphs[variants.masked]
    is_model = isinstance(model, Model)
    stream = last.stream or graph.stream or (TOKENS if TOKENS.ids in last.inputs else None)
    counted = any(s.axis is not None and s.output for s in last.slots)
    counted = counted or (stream is not None and stream.positions in last.inputs)
    return Contract(
        version=VERSION,
        kind="decoder" if last.slots or last.stream is not None else "encoder",
        family=model.name if is_model else graph.name,
        task=model.task.name if is_model else "",
        provider=target.provider,
        dtype=str(target.dtype),
        runtime=target.runtime,
        masked=variants.masked,
        lengths=LENGTHS if variants.masked == MASKED else "",
        encoder=ENCODER if ENCODER in variants.graphs else "",
        mapped=_mapped(variants),
        prompts=PROMPTS if PROMPTS in variants.graphs else "",
        slots=last.slots,
        stream=stream,
        alone=variants.alone,
        inputs={file: {k: v.type for k, v in g.inputs.items()} for file, g in variants.graphs.items()},
        output=model.task.output if is_model else next(iter(last.outputs)),
        bounds=bounds_of(*variants.graphs.values()),
        unread=tuple(k for k in graph.inputs if all(k not in g.inputs for g in variants.graphs.values())),
        zeros=model.task.zeros if is_model else (TOKEN_TYPES,),
        positions=positions if counted else 0,
        rows=ROWS in last.inputs,
        disabled_optimizers=(*choices_of(target).disabled, *_crashing(variants)),
        choices=choices_of(target),
        why=why(target),
    )


def _crashing(variants: Variants) -> tuple[str, ...]:
    """What graphs in f16 are opened without."""
    given = (v for g in variants.graphs.values() for v in (*g.params.values(), *g.inputs.values()))
    return CRASHING if any(v.dtype == f16 for v in given) else ()


def _mapped(variants: Variants) -> tuple[str, ...]:
    """The second graph over the same weights, which must not cost their memory again, and is a fifth slower for it.

    Not where it multiplies blocks: those are small, and 24 times slower where they are mapped.
    """
    second = variants.masked == MASKED
    blocks = any(isinstance(n.op, OrtMatMulNBits) for n in variants.graphs[variants.masked])
    return (MASKED,) if second and not blocks else ()


def _check_positions(contract: Contract, variants: Variants, asked: int | None) -> Contract:
    """A contract for no more tokens than a learned table of positions has. Raises LoweringError if more were asked."""
    stream = contract.stream
    given = contract.bounds.get(stream.positions) if stream is not None else None
    counted = most_counted(stream.mask, *variants.graphs.values()) if stream is not None else None
    rows = min((n for n in (given, counted) if n is not None), default=None)
    if rows is None or contract.positions <= rows:
        return contract
    if asked is not None:
        what = f"max_positions is {asked}, but the model's table of positions has {rows} rows"
        raise LoweringError(what, place=contract.family)
    return replace(contract, positions=rows)


def _report(variants: Variants, folder: Path, contract: Contract) -> BuildReport:
    report = BuildReport(folder, contract, state_bytes=sum(bytes_of(s, contract.limit) for s in contract.slots))
    report.precision = variants.precision
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
    variants: Variants, weights: Mapping[str, Tensor], target: Target, report: BuildReport
) -> dict[str, onnx_ir.Model]:
    """The ONNX models by file name, with every node known to have a kernel."""
    models: dict[str, onnx_ir.Model] = {}
    table = target.table
    report.kernels = table.source
    for name, graph in variants.graphs.items():
        models[name] = lower(graph, weights, OPSET, pipeline=AS_IT_IS)
        report.widened += widen(models[name], table) if target.provider == "cuda" else []
        table.check(models[name])
        report.nodes[name] = count(models[name])
    report.bound = memory_bound(models.values(), (weights[k] for g in variants.graphs.values() for k in g.params))
    return models
