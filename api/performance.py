"""How fast models run here, side by side, and how much of the machine that is."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .building import export, weights_of, write_export
from .frontends.dsl import Model
from .frontends.given import init, model_of
from .ir import Graph
from .ir.cost import at
from .ir.dims import bind_dims
from .ir.display import Shown, Table, size
from .ir.errors import ConfigError
from .ir.ops.attention import Attention
from .ir.ops.linear import Embedding
from .ir.silent import silent
from .ir.tensors import Array
from .ir.types import f32
from .machine import Ceilings, cores, measure, median, peak_memory, reset_peak, resident_memory, seconds
from .passes import pipelines
from .passes.differential import Case, rows_indexed
from .profiling import Layer, layers_of
from .samples import inputs_of, streams_of
from .subjects import TORCH, Runs, Subject, of_module, of_path

PROMPT, NEW_TOKENS = 128, 32
"""Lengths that are measured where none are said."""


@dataclass(frozen=True)
class Times:
    """One round of one subject: seconds of a prompt and of all steps behind it, peak bytes, limits measured with it."""

    prefill: float
    decode: float
    peak: int
    limits: Ceilings


@dataclass(frozen=True)
class Speed:
    """Medians of one subject. Shares are of the limits measured between the rounds: arithmetic for prefill, bandwidth
    for decode; 0 where its work is not known. Spreads are half the range of the rounds as a share of the median.
    peak: bytes by which memory rose at most while it was open. intensity: float operations a byte of (prefill, decode).
    """

    variant: str
    nodes: int
    prefill: float
    prefill_share: float
    decode: float
    decode_share: float
    prefill_spread: float = 0.0
    decode_spread: float = 0.0
    peak: int = 0
    intensity: tuple[float, float] = (0.0, 0.0)
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """A table of subjects, what the machine can do at most, and what was measured.

    unit: what a prompt is counted in: tokens, or calls for a model without tokens. new_tokens: 0 for a model that does
    not continue a text, whose decode columns are 0, too. warnings: of differences that are smaller than the noise.
    """

    rows: list[Speed]
    ceilings: Ceilings
    prompt: int
    new_tokens: int
    rounds: int
    flops_per_prompt: int
    bytes_per_token: int
    unit: str = "tokens"
    batch: int = 1
    warnings: list[str] = field(default_factory=list[str])

    def table(self) -> Table:
        """What every subject does in a second, and the share of what this machine can do."""
        decodes = self.new_tokens > 0
        columns = ("decoded/s", "of peak") if decodes else ()
        shown = [("variant", "nodes", f"{self.unit}/s", "of peak", *columns, "memory")]
        for r in self.rows:
            decode = (f"{r.decode:,.1f} ±{r.decode_spread:.0%}", share(r.decode_share)) if decodes else ()
            prefill = f"{r.prefill:,.1f} ±{r.prefill_spread:.0%}"
            shown.append((r.variant, f"{r.nodes:,}", prefill, share(r.prefill_share), *decode, size(r.peak)))
        c = self.ceilings
        note = f"peak: {c.flops / 1e9:,.0f} GFLOP/s, {c.bandwidth / 1e9:.1f} GB/s with {c.threads} threads"
        more = f", then {self.new_tokens} tokens one by one" if decodes else ""
        rows = f" in each of {self.batch} rows" if self.batch > 1 else ""
        title = f"benchmark: {self.prompt} {self.unit} at once{rows}{more}; medians of {self.rounds} rounds"
        return Table(title, shown, headed=True, note="\n".join([note, *self.warnings]))


def share(value: float) -> str:
    """A share as people read it; nothing where it is not known."""
    return f"{value:.0%}" if value else "?"


@dataclass(frozen=True)
class _Load:
    """What every subject is asked for. call: inputs of one call, of a model that continues no text."""

    tokens: Array
    new_tokens: int
    call: Mapping[str, Array] | None = None


def lengths_of(model: Model, prompt: int | None, new_tokens: int | None) -> tuple[int, int]:
    """(tokens of a prompt, steps behind it) that a model has positions for. Raises ConfigError for more."""
    from .backends.onnxruntime.build import positions_of

    most = positions_of(model)
    new_tokens = min(NEW_TOKENS, most // 2) if new_tokens is None else new_tokens
    prompt = max(1, min(PROMPT, most - new_tokens)) if prompt is None else prompt
    if prompt + new_tokens > most:
        what = f"a prompt of {prompt} and {new_tokens} new tokens are more than the {most} positions of the model"
        raise ConfigError(what, hint="give a smaller prompt or fewer new tokens")
    return prompt, new_tokens


def bench(
    model: Model | str | Path,
    *,
    against: Sequence[str | Path] = (),
    batch: int = 1,
    prompt: int | None = None,
    new_tokens: int | None = None,
    rounds: int = 5,
    threads: int | None = None,
    profile: bool = False,
    observe: Callable[[str], None] | None = None,
) -> Benchmark:
    """Measure tokens per second, side by side: a model built for ONNX Runtime, and what it is compared with.

    model: a Model (without weights: with random ones), or the path of a built folder, an exported one or an ONNX file.
    against: paths of such, or for a Model "eager" and "compiled", itself in PyTorch; without any, a Model is compared
    with its graph before the passes and in standard ops. Each round opens every subject in turn, alone, runs it once to
    warm up and once with the clock: prompts of `prompt` tokens in `batch` rows and `new_tokens` steps; and measures the
    limits of the machine beside it. For a model that does not continue a text one call is timed. threads: None takes
    all cores. profile: also run each subject once with the profiler of the runtime, and give the time of its layers.
    Where it is not said, a prompt has 128 tokens, behind which there are 32 steps, or as many as the model has
    positions for. Raises ConfigError for more tokens than it has positions, and for a path with nothing to measure.
    """
    observe, threads = observe or silent, threads or cores()
    with tempfile.TemporaryDirectory(prefix="monograph-") as place:
        observe("building")
        if isinstance(model, Model):
            model = model if model.weights is not None else init(model_of(model, "bench"))
            subjects = _of_model(model, Path(place), threads, against)
        else:
            # Callers without types give anything; a path is a text, or says what text it is.
            if not hasattr(model, "__fspath__") and not hasattr(model, "encode"):
                model_of(model, "bench")
            subjects = [of_path(Path(model), threads), *(of_path(Path(p), threads) for p in against)]
        _check_names(subjects)
        load, unit = _load(model, subjects, batch, prompt, new_tokens)
        times = _rounds(subjects, load, rounds, threads, observe)
        layers = {s.name: _profiled(s, load, Path(place), observe) if profile else () for s in subjects}
    return _told(model, subjects, times, layers, load, unit)


def _of_model(model: Model, folder: Path, threads: int, against: Sequence[str | Path]) -> list[Subject]:
    """A model as it is built, and what it is compared with."""
    from .backends import onnxruntime as fused

    generates = model.task.generates and not model.task.separated and model.task.stream is not None
    fused.build(model, None, folder / "cpu", "cpu")
    built = _named(of_path(folder / "cpu", threads), "fused for ONNX Runtime", generates)
    if against:
        others = [of_module(model, str(x), threads) if str(x) in TORCH else of_path(Path(x), threads) for x in against]
        return [built, *others]
    files: dict[str, Path] = {}
    if generates:
        from .backends import onnx as portable

        apart = pipelines.decompose(pipelines.decode(model.graph()))
        portable.export(apart, weights_of(model), folder / "apart", pipeline=portable.AS_IT_IS)
        files["before the passes"] = folder / "apart"
    if model.task.separated:
        write_export(model, folder / "onnx")
    else:
        export(model, folder / "onnx")
    files["standard ops"] = folder / "onnx"
    return [*(_named(of_path(path, threads), name, generates) for name, path in files.items()), built]


def _named(subject: Subject, name: str, generates: bool) -> Subject:
    return Subject(name, subject.open, subject.nodes, subject.flops, subject.moved, generates)


def _check_names(subjects: Sequence[Subject]) -> None:
    """Raises ConfigError where two subjects would have one row."""
    names = [s.name for s in subjects]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two subjects are called {name!r}", hint="rename one of the folders")


def _load(
    model: Model | str | Path, subjects: Sequence[Subject], batch: int, prompt: int | None, new_tokens: int | None
) -> tuple[_Load, str]:
    """What is asked of all subjects, and in what unit. Raises ConfigError where they do not do the same."""
    kinds = {s.generates for s in subjects}
    if len(kinds) > 1:
        named = ", ".join(f"{s.name} {'continues texts' if s.generates else 'does not'}" for s in subjects)
        raise ConfigError(f"these cannot be compared: {named}")
    if not isinstance(model, Model):
        prompt, new_tokens = prompt or PROMPT, NEW_TOKENS if new_tokens is None else new_tokens
        if all(kinds):
            return _Load(_ids(batch, prompt, 100), new_tokens), "tokens"
        given: dict[str, Array] = {}
        for each in subjects:
            given = {**each.sample(batch, prompt), **given}
        return _Load(_ids(batch, prompt, 100), 0, given), "tokens"
    if all(kinds):
        stream = model.task.stream
        assert stream is not None
        known = min(100, rows_indexed(model.graph().inputs[stream.ids]))
        prompt, new_tokens = lengths_of(model, prompt, new_tokens)
        return _Load(_ids(batch, prompt, known), new_tokens), "tokens"
    graph, length = model.graph(), prompt or PROMPT
    given = inputs_of(model.task, graph, Case("all-ones", batch, length))
    tokens = bool(streams_of(model.task, graph))
    return _Load(_ids(batch, length if tokens else 1, 100), 0, given), "tokens" if tokens else "calls"


def _ids(rows: int, count: int, known: int) -> Array:
    return np.tile(np.arange(count, dtype=np.int64) % known, (rows, 1))


def _rounds(
    subjects: Sequence[Subject], load: _Load, rounds: int, threads: int, observe: Callable[[str], None]
) -> dict[str, list[Times]]:
    """Every subject in turn, alone, each with the limits of the machine in the same moment."""
    found: dict[str, list[Times]] = {s.name: [] for s in subjects}
    for number in range(rounds):
        for subject in subjects:
            observe(f"{subject.name}, round {number + 1} of {rounds}")
            gc.collect()  # Sessions of the one before are closed: their threads would spin beside this one.
            reset_peak()
            before = resident_memory()
            prefill, decode = _timed(subject.open(""), load)
            peak = max(peak_memory() - before, 0)
            gc.collect()
            limits = measure(threads, megabytes=256, rounds=2, working_set=subject.moved)
            found[subject.name].append(Times(prefill, decode, peak, limits))
    return found


def _timed(runs: Runs, load: _Load) -> tuple[float, float]:
    """Seconds of a prompt and of the steps behind it, once everything has been run before; or of one call."""
    if load.call is not None:
        given = load.call
        runs.call(given)
        return seconds(lambda: runs.call(given)), 0.0
    rows, count = load.tokens.shape
    lengths, one = np.full(rows, count), load.tokens[:, -1].copy()

    def steps() -> None:
        for _ in range(load.new_tokens):
            runs.step(one)

    runs.prefill(load.tokens, lengths)
    runs.step(one)
    return seconds(lambda: runs.prefill(load.tokens, lengths)), seconds(steps)


def _profiled(subject: Subject, load: _Load, folder: Path, observe: Callable[[str], None]) -> tuple[Layer, ...]:
    """The layers of one more run, by the runtime's own clock; nothing for what it does not run."""
    observe(f"{subject.name}: profile")
    runs = subject.open(str(folder / "profile"))
    _timed(runs, load)
    return layers_of(runs.events())


# -- what comes out ------------------------------------------------------------------------------------------------


def _told(
    model: Model | str | Path,
    subjects: Sequence[Subject],
    times: Mapping[str, list[Times]],
    layers: Mapping[str, tuple[Layer, ...]],
    load: _Load,
    unit: str,
) -> Benchmark:
    batch, count = load.tokens.shape
    flops, moved = _work_of(model, load)
    works = {s.name: (flops or s.flops * batch * count, min(moved, s.moved) or moved or s.moved) for s in subjects}
    rows = [_speed(s, times[s.name], layers[s.name], works[s.name], load) for s in subjects]
    limits = [t.limits for found in times.values() for t in found]
    ceilings = Ceilings(max(x.bandwidth for x in limits), max(x.flops for x in limits), limits[0].threads)
    warnings = _noise(rows, decodes=load.new_tokens > 0)
    rounds = len(times[subjects[0].name])
    return Benchmark(rows, ceilings, count, load.new_tokens, rounds, flops, moved, unit, batch, warnings)


def _work_of(model: Model | str | Path, load: _Load) -> tuple[int, int]:
    """(float operations of a prompt or a call, bytes a step reads) by the graph of a model; zeros for a file."""
    if not isinstance(model, Model):
        return 0, 0
    graph = model.graph()
    if load.call is not None:
        return sum(at(n.op.flops(*n.operands, **n.attributes), sizes_of(graph, load.call)) for n in graph), 0
    batch, count = load.tokens.shape
    return work(graph, model.task.output, count, count + load.new_tokens // 2, batch)


def _speed(
    subject: Subject, times: Sequence[Times], layers: tuple[Layer, ...], work: tuple[int, int], load: _Load
) -> Speed:
    """Medians. A share is of the limit in the same rounds; one that is beaten was measured in a busy moment."""
    flops, moved = work
    prefill, decode = median([t.prefill for t in times]), median([t.decode for t in times])
    batch, count = load.tokens.shape
    step = decode / load.new_tokens if load.new_tokens else 0.0
    arithmetic = max(median([t.limits.flops for t in times]), flops / prefill)
    bandwidth = max(median([t.limits.bandwidth for t in times]), moved / step if step else 0.0)
    return Speed(
        subject.name,
        subject.nodes,
        batch * count / prefill,
        flops / prefill / arithmetic,
        batch / step if step else 0.0,
        moved / step / bandwidth if step else 0.0,
        _spread([t.prefill for t in times]),
        _spread([t.decode for t in times]),
        int(median([t.peak for t in times])),
        (flops / moved, flops / count / moved) if moved else (0.0, 0.0),
        layers,
    )


def _spread(values: Sequence[float]) -> float:
    """Half the distance between the fastest and the slowest, as a share of the median."""
    middle = median(list(values))
    return (max(values) - min(values)) / 2 / middle if middle else 0.0


def _noise(rows: Sequence[Speed], *, decodes: bool) -> list[str]:
    """Which differences to the first subject are smaller than the spread of the rounds."""
    found: list[str] = []
    for row in rows[1:]:
        for kind in ("prefill", *(("decode",) if decodes else ())):
            mine, first = getattr(row, kind), getattr(rows[0], kind)
            noise = max(getattr(row, f"{kind}_spread"), getattr(rows[0], f"{kind}_spread"))
            off = abs(mine / first - 1)
            if off < noise:
                names = f"{row.variant} and {rows[0].variant}"
                found.append(
                    f"{kind}: {names} differ by {off:.0%}, less than the noise of {noise:.0%}: give more rounds"
                )
    return found


def sizes_of(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Values of the symbols of a graph, from its inputs."""
    return bind_dims({k: v.type for k, v in graph.inputs.items()}, {k: inputs[k].shape for k in graph.inputs})


def work(graph: Graph, output: str, prompt: int, total: int, batch: int = 1) -> tuple[int, int]:
    """(float operations of prompts, bytes that a step at position `total` must read), both in float32, of all rows.

    Operations: those of every node, as the ops count them, less the main output of all tokens but the last. Bytes:
    every weight that is multiplied with, once, and all keys and values before the token.
    """
    sizes = {"B": batch, "S": prompt}
    flops = sum(at(n.op.flops(*n.operands, **n.attributes), sizes) for n in graph)
    logits = graph.outputs[output].producer
    if logits is not None:
        flops -= at(logits.op.flops(*logits.operands, **logits.attributes), {**sizes, "S": prompt - 1})
    weights = {v for v in graph.params.values() if not all(isinstance(n.op, Embedding) for n in v.users)}
    read = sum(at(v.type.with_dtype(f32).bytes, {}) for v in weights)
    caches = [n.value(name) for n in graph if isinstance(n.op, Attention) for name in ("k", "v")]
    return flops, read + sum(at(v.type.bytes, {"B": batch, "S": total}) for v in caches)
