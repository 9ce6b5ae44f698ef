"""From a model to something that runs: a PyTorch module, a portable ONNX folder, an ONNX Runtime engine."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .backends.target import Target, float_type, meant
from .frontends.dsl import Model, Program, plain_graph
from .frontends.given import model_of
from .frontends.own import check_not_reading
from .ir import DType, Graph, MonographError
from .ir.display import Shown, Table, size
from .ir.errors import ConfigError, LoweringError, WeightsError
from .ir.files import check_writable
from .ir.missing import needed
from .ir.silent import silent
from .ir.types import f32
from .ir.weights import NO_WEIGHTS, Weights
from .measured import after_build, after_export
from .passes import pipelines
from .passes.encode import keep_encodings
from .passes.encoder_decoder import separate
from .passes.precision import DEFAULT_POSITIONS, Precision, is_f32, narrowed
from .passes.quantize.report import QuantizationReport
from .passes.quantize.settings import Quantization
from .quantizing import fine_of, quantized

if TYPE_CHECKING:
    import torch.fx

    from .backends.onnxruntime.choices import Choices
    from .backends.onnxruntime.tune_result import Tuning
    from .inference.engine import Engine
    from .passes.adapters import Adapters
    from .training.adapters import Adapter

Progress = Callable[[int, int, str], None]
"""(bytes written, bytes in all, tensor just written)."""

TARGETS = ("cpu", "cuda", "onnx")
"""`cpu`, `cuda`: ONNX Runtime's own fused ops for that provider. `onnx`: standard opset, runs in any runtime."""


def memory_bound(model: Model, target: str = "cpu") -> int:
    """Most bytes of resident memory that a build may take: what `build` announces. Raises as it does."""
    from .backends.onnxruntime.build import memory_bound_of

    return memory_bound_of(model, target)


def weights_of(model: Model) -> Weights:
    """The weights of a model. Raises WeightsError when it has none yet."""
    if model.weights is None:
        raise WeightsError(f"model {model.name} has no weights", hint=NO_WEIGHTS)
    return model.weights


def once(model: Model, dtype: DType | None = None) -> Model:
    """The same model with its graph made: whatever is done with it afterwards starts from a copy of that."""
    return dataclasses.replace(model, source=Program(model.name, model.task, model.graph(dtype)))


def to_torch(model: Model, dtype: DType | None = None, *, seed: int = 0) -> torch.fx.GraphModule:
    """A trainable PyTorch module whose parameter names are the checkpoint's; random weights if the model has none.

    Call it with the graph's inputs by name; it gives a dict of outputs by name. dtype: of its floats (None: f32, or
    what the module or file has that it came from). seed: of random weights.
    """
    model_of(model, "to_torch")
    with needed("to_torch"):
        from .backends import torch as backend

    plain = model.graph(dtype)
    graph = pipelines.train(plain)
    for path, v in plain.params.items():
        graph.param(path, v.type, v.init)  # Also what nothing reads: it belongs to the checkpoint.
    return backend.to_torch(graph, model.weights, seed=seed)


@dataclass(repr=False)
class ExportReport(Shown):
    """What an export did.

    nodes: ONNX nodes by op type, by file. through_float: block format by name of each weight that became plain numbers
    on its way. quantization: what was done to each weight, if that was asked. bound: most bytes of resident memory it
    may take. precision: what was decided about 16-bit floats, if those were asked for. raised: layers found in a graph
    from elsewhere, and what was not, with the reason ("": it is a model of our own).
    """

    folder: Path
    nodes: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    through_float: dict[str, str] = field(default_factory=dict[str, str])
    quantization: QuantizationReport | None = None
    bound: int = 0
    precision: list[Precision] = field(default_factory=list[Precision])
    raised: str = ""

    def table(self) -> Table:
        """What was exported, for `repr` and notebooks."""
        made = {name: f"{sum(counts.values()):,} nodes" for name, counts in self.nodes.items()}
        plain = f"{len(self.through_float):,} weights" if self.through_float else "none"
        rows = [("folder", str(self.folder)), *made.items(), ("through float", plain)]
        rows += [("quantization", self.quantization.summary())] if self.quantization is not None else []
        rows += [("raised", self.raised)] if self.raised else []
        return Table("export", [*rows, ("memory", f"at most {size(self.bound)}")])


def export(
    model: Model,
    folder: str | Path,
    *,
    target: str = "onnx",
    dtype: str | DType | None = None,
    opset: int | None = None,
    layout: str | None = None,
    quantize: str | Quantization | None = None,
    dump: Path | None = None,
    announce: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a folder with the ONNX model, its config and its tokenizer; gives the folder.

    target: only "onnx", standard ops for any runtime (`build` uses those of ONNX Runtime, too). dtype: None for that of
    the model, f32 if it has no graph of its own. opset: None: that of
    the layout, or 23. layout: "optimum", "genai" or "web" (transformers.js) for the files and names that this client
    expects (None: those of `docs/folder.md`). quantize: as of `build`. Weights are written tensor by tensor, never all
    in memory. dump: folder for the text of each graph after every pass. announce(bytes): called once with the most
    memory that writing may take. The folder appears whole or not at all, in the place of an older one. Raises
    MonographError subclasses for a folder that holds other files, an unknown target, missing weights, an op that the
    target cannot express, or a model that the client of the layout has no class for.
    """
    if target != "onnx":
        hint = "known: onnx; mg.build(model, folder, target=...) builds for ONNX Runtime on cpu or cuda"
        raise MonographError(f"no export target is called {target!r}{meant(target, ['onnx'])}", hint=hint)
    told: dict[str, Any] = {"dump": dump, "announce": announce, "progress": progress}
    return write_export(model, folder, dtype, opset, layout=layout, quantize=quantize, **told).folder


def write_export(
    model: Model,
    folder: str | Path,
    dtype: str | DType | None = None,
    opset: int | None = None,
    *,
    layout: str | None = None,
    quantize: str | Quantization | None = None,
    dump: Path | None = None,
    announce: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """`export`, for those who want to know what it did."""
    from .backends.onnx.clients import layout_of
    from .backends.onnx.exporting import Exported, write
    from .backends.onnx.folder import check_outside, foreign
    from .backends.onnx.quantized import SINCE
    from .backends.onnx.rewrites import PORTABLE, portable
    from .backends.onnxruntime.quantized import exact_layers
    from .raising import with_layers

    check_not_reading("mg.export is called")
    dtype = None if dtype is None else float_type(dtype)
    check_outside(check_writable(folder, foreign))
    client = layout_of(layout)
    # The clients all run ONNX Runtime; without a layout the ops are those that every runtime has.
    pipeline = PORTABLE if client is None else portable(exact_layers())
    weights_of(model_of(model, "export"))
    oldest = opset if opset is not None else client.opset if client is not None else SINCE
    asked = Quantization.of(quantize)
    if asked is not None:
        _check_portable(asked, oldest, SINCE)
    given = model
    layered, raised = with_layers(model)
    dtype = layered.dtype if dtype is None else dtype  # A table of another type may be gone.
    settings: dict[str, Any] = {"dtype": dtype, "announce": announce, "progress": progress}
    with quantized(layered, asked, None, Path(folder), **settings) as (model, done):
        weights, report = weights_of(model), ExportReport(Path(folder), quantization=done, raised=raised)
        graphs = serving_graphs(model, dtype, dump, report.precision)
        exported = Exported.of(model, graphs, weights, opset, client, dump, pipeline)
        exported.quantization, exported.finish = done, after_export(given, asked, done)
        report.nodes, report.through_float, report.bound = exported.nodes, exported.through_float, exported.bound
        if done is None:
            (announce or silent)(report.bound)
        write(exported, folder, progress)
    return report


def _check_portable(asked: Quantization, opset: int, since: int) -> None:
    """Raises LoweringError for what no standard op expresses."""
    if asked.cache:
        what = f"a portable export has no cache in 8 bits, but cache is {asked.cache!r}"
        raise LoweringError(what, hint="target cpu has one")
    if asked.prompts:
        what = f"a portable export leaves to its runtime how prompts are multiplied, but prompts is {asked.prompts!r}"
        raise LoweringError(what, hint="target cpu has a choice")
    if opset < since:
        raise LoweringError(f"opset {opset} has no integers of 4 bits and no blocks: they exist since {since}")


def serving_graphs(
    model: Model, dtype: DType = f32, dump: Path | None = None, precision: list[Precision] | None = None
) -> dict[str, Graph]:
    """The graphs a served model consists of, by file name without its ending: one, or encoder and decoder.

    Weights that are stored in blocks stay in them. dump: folder for the text after every pass. precision: gets what was
    decided about 16-bit floats.
    """
    graph = plain_graph(model, dtype)
    if model.weights is not None:
        keep_encodings(graph, model.weights)
    place = None if dump is None else dump / "0-graph"
    pipelines.PIPELINES["decode" if model.task.generates else "encode"].run(graph, dump=place)
    if dtype.bits < f32.bits and is_f32(graph):
        places = getattr(model.config, "max_positions", None) or DEFAULT_POSITIONS
        graph, decided = narrowed(graph, dtype, weights_of(model), places)
        if precision is not None:
            precision.append(decided)
    if not (model.task.generates and model.task.separated):
        return {"model": graph}
    encoder, decoder = separate(graph)
    return {"encoder_model": encoder, "decoder_model": decoder}


def build(
    model: Model,
    folder: str | Path | None = None,
    *,
    target: str = "cpu",
    quantize: str | Quantization | None = None,
    dtype: str | DType | None = None,
    tune: bool | str = False,
    loads: Sequence[str] = (),
    tune_seconds: float = 60.0,
    adapters: Mapping[str, str | Path | Adapter] | None = None,
    max_positions: int | None = None,
    strict: bool = False,
    twin: bool = True,
    threads: int | None = None,
    dump: Path | None = None,
    announce: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Build a model for ONNX Runtime; gives an engine that generates, embeds or runs, with a report of the build.

    folder: where it goes (None: a temporary folder that the engine owns, gone when it is closed). target: "cpu" or
    "cuda". quantize: "int4", "int8", "int2", "int8-dynamic" or a Quantization, for weights in fewer bits. dtype: of
    activations and of weights that stay wide (None: the model's own on cpu, which is f32 if it is made by a function,
    and f16 on cuda). tune: measure on this machine which of
    several legal ops and settings is fastest ("again": also what was measured here before). loads: what for, as rows x
    tokens + new tokens: "1x512+128" (none: that, or 32x128 and 1x16 for encoders). tune_seconds: about how long that
    takes. adapters: LoRA adapters or their folders by name, chosen by row. max_positions: most tokens a row may have
    (None: what the config says). strict: fail unless every attention is fused. twin: compute a small twin of the model
    before and after the passes, in NumPy. threads: of the engine (None: one a physical core). dump: folder for the text
    of each graph after every pass. announce(bytes): called once with the most memory that writing may take. The engine
    opens what was built when it is first used. Raises LoweringError for what the target cannot do, PassError where the
    passes change what the twin computes, ConfigError for a quantization that cannot be, WeightsError for missing or
    damaged weights, MonographError for a folder that holds other files.
    """
    from .backends import onnxruntime as backend
    from .backends.onnxruntime.choices import chosen
    from .inference.engine import Engine
    from .narrowing import narrowed as with_narrow_cache
    from .raising import with_layers
    from .twins import check_passes

    check_not_reading("mg.build is called")
    model_of(model, "build")
    asked = Quantization.of(quantize)
    by_row = _adapters(model, adapters)
    _check_tuning(tune, loads)
    place = Path(tempfile.mkdtemp(prefix="monograph-") if folder is None else folder)
    try:
        aim = Target.of(target, dtype)
        model, raised = with_layers(model, check=twin)
        if target == "cpu" and dtype is None:
            aim = Target.of(target, model.dtype)  # Of what was raised: a table of another type may be gone.
        rounding = quantized(model, asked, aim, place, dtype=aim.dtype, announce=announce, progress=progress)
        with rounding as (served, done):
            _check_prompts(served, asked)
            served, cache = with_narrow_cache(served, asked, aim, place, max_positions)
            fine = fine_of(model, aim, place) if done is None else done.fine
            settings = {"budget": tune_seconds, "positions": max_positions, "threads": threads, "fine": fine}
            tuning = _tuned(served, aim, tune, loads, progress, settings) if tune else None
            beside = backend.Beside(
                by_row,
                fine,
                done,
                cache=str(cache) if cache is not None else "",
                evidence=tuning.to_json() if tuning is not None else "",
                dump=dump,
                finish=after_build(model, asked, aim.provider, done),
            )
            choices = _choices(aim, asked, tuning)
            compared = str(check_passes(model, chosen(aim, choices))) if twin else ""
            report = backend.build(
                served,
                None,
                place,
                aim,
                max_positions=max_positions,
                strict=strict,
                choices=choices,
                beside=beside,
                announce=announce if done is None else None,
                progress=progress,
            )
    except BaseException:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
        raise
    report.tuning, report.compared, report.raised = tuning, compared, raised
    return Engine.built(report, threads=threads, owned=folder is None)


def _tuned(
    model: Model,
    target: Target,
    tune: bool | str,
    loads: Sequence[str],
    progress: Progress | None,
    settings: Mapping[str, Any],
) -> Tuning:
    """What is fastest for a model here. progress: as of `build`, in thousandths of the work. settings: of `tune`."""
    from .backends.onnxruntime.tune import tune as measure
    from .backends.onnxruntime.tune_loads import Load

    def show(share: float, what: str) -> None:
        (progress or silent)(int(1000 * share), 1000, f"tuning: {what}")

    told: dict[str, Any] = {**settings, "again": tune == "again", "progress": show}
    return measure(model, weights_of(model), target, loads=[Load.parse(text) for text in loads], **told)


def _choices(target: Target, asked: Quantization | None, tuning: Tuning | None) -> Choices | None:
    """The choices of a build: those measured, else those shipped (None), with what was asked for in their place."""
    from .backends.onnxruntime.choices import choices_of, why

    found = None if tuning is None else tuning.chosen
    if asked is None or not asked.prompts:
        return found
    lead, *rest = why(target) if found is None else found.evidence
    evidence = (f"prompts {asked.prompts}, as asked; {lead}", *rest)
    return dataclasses.replace(found or choices_of(target), prompts=cast("Any", asked.prompts), evidence=evidence)


def _check_prompts(model: Model, asked: Quantization | None) -> None:
    """Raises ConfigError where it is said how blocks multiply prompts, but no weight has blocks."""
    if asked is None or not asked.prompts or model.weights is None:
        return
    encodings = (t.type.encoding for t in model.weights.values())
    if not any(e is not None and e.block for e in encodings):
        what = f"prompts is {asked.prompts!r}, but no weight has blocks, as in int4 and int8"
        raise ConfigError(what, place="quantize")


def _adapters(model: Model, adapters: Mapping[str, str | Path | Adapter] | None) -> Adapters | None:
    """Adapters as a build stores them beside the base."""
    if not adapters:
        return None
    from .training.adapters_by_row import adapters_by_row

    return adapters_by_row(model, adapters)


def _check_tuning(tune: bool | str, loads: Sequence[str]) -> None:
    """Raises MonographError for a value of `tune` that means nothing, and for loads that nothing measures."""
    if isinstance(tune, str) and tune != "again":
        raise MonographError(f"tune is {tune!r}, expected True, False or 'again'")
    if loads and not tune:
        raise MonographError(f"loads are {', '.join(loads)}, but nothing is measured", hint="tune=True")


def open(folder: str | Path, *, threads: int | None = None, every_byte: bool = False) -> Engine:
    """The engine of a folder that `build` wrote, also one that came from elsewhere.

    threads: None for one a physical core. every_byte: compare the digests of all files first, whenever they were last
    compared. Raises ConfigError for a folder that is none, or of another version, WeightsError for a damaged one.
    """
    from .inference.engine import Engine

    return Engine.open(folder, threads=threads, every_byte=every_byte)
