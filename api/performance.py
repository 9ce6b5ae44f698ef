"""How fast a model decodes, before and after the passes, and how much of the machine that is."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .building import export, weights_of, write_export
from .frontends.dsl import Model
from .frontends.given import model_of
from .ir import Graph
from .ir.cost import at
from .ir.dims import bind_dims
from .ir.display import Shown, Table
from .ir.errors import ConfigError
from .ir.ops.attention import Attention
from .ir.ops.linear import Embedding
from .ir.silent import silent
from .ir.slots import TOKENS
from .ir.tensors import Array
from .ir.types import f32
from .machine import Ceilings, cores, interleaved, measure, median, seconds
from .parity import spans
from .passes import pipelines
from .passes.differential import Case, rows_indexed
from .portable import first_state, next_state, slots_of, stream_of
from .runners import Call, Runner, onnx_runner, run_runner
from .samples import inputs_of, mask_of, streams_of


class Decoder(Protocol):
    """What is measured: a prompt i64 [1,S], then one token a step; logits [1,V] each time."""

    def prefill(self, tokens: Array, lengths: Array) -> Array: ...

    def step(self, tokens: Array) -> Array: ...


@dataclass(frozen=True)
class Speed:
    """Medians of one variant. Shares are of the measured limits: arithmetic for prefill, bandwidth for decode."""

    variant: str
    nodes: int
    prefill: float
    prefill_share: float
    decode: float
    decode_share: float


@dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """A table of variants, what the machine can do at most, and what was measured.

    unit: what a prompt is counted in: tokens, or calls for a model without tokens. new_tokens: 0 for a model that does
    not continue a text, whose decode columns are 0, too.
    """

    rows: list[Speed]
    ceilings: Ceilings
    prompt: int
    new_tokens: int
    rounds: int
    flops_per_prompt: int
    bytes_per_token: int
    unit: str = "tokens"

    def table(self) -> Table:
        """What every variant does in a second, and the share of what this machine can do."""
        decodes = self.new_tokens > 0
        shown = [("variant", "nodes", f"{self.unit}/s", "of peak", *(("decoded/s", "of peak") if decodes else ()))]
        for r in self.rows:
            decode = (f"{r.decode:,.1f}", f"{r.decode_share:.0%}") if decodes else ()
            shown.append((r.variant, f"{r.nodes:,}", f"{r.prefill:,.1f}", f"{r.prefill_share:.0%}", *decode))
        c = self.ceilings
        note = f"peak: {c.flops / 1e9:,.0f} GFLOP/s, {c.bandwidth / 1e9:.1f} GB/s with {c.threads} threads"
        more = f", then {self.new_tokens} tokens one by one" if decodes else ""
        title = f"benchmark: {self.prompt} {self.unit} at once{more}; medians of {self.rounds} rounds"
        return Table(title, shown, headed=True, note=note)


PROMPT, NEW_TOKENS = 128, 32
"""Lengths that are measured where none are said."""


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
    model: Model,
    *,
    prompt: int | None = None,
    new_tokens: int | None = None,
    rounds: int = 5,
    threads: int | None = None,
    observe: Callable[[str], None] | None = None,
) -> Benchmark:
    """Measure tokens per second on ONNX Runtime of three variants: decomposed, in standard ops, and fused for the CPU.

    Each round opens every variant in turn, alone, and runs it once to warm up and once with the clock: a prompt of
    `prompt` tokens and `new_tokens` steps, batch 1. For a model that does not generate text, one call is timed, on
    random inputs whose open lengths are all `prompt`, in standard ops and fused. threads: None takes all cores. The
    runtime's own optimizer is on for all. Where it is not said, a prompt has 128 tokens, behind which there are 32
    steps, or as many as the model has positions for. Raises WeightsError for a model without weights, and
    ConfigError for more tokens than it has positions.
    """
    model_of(model, "bench")
    observe = observe or silent
    threads = threads or cores()
    observe("measuring the machine")
    ceilings = measure(threads)
    stream = model.task.stream
    if stream is None or not model.task.generates or model.task.separated:
        return _calls(model, prompt or PROMPT, rounds, threads, ceilings, observe)
    known = min(100, rows_indexed(model.graph().inputs[stream.ids]))
    prompt, new_tokens = lengths_of(model, prompt, new_tokens)
    with tempfile.TemporaryDirectory(prefix="monograph-") as folder:
        observe("building")
        variants, nodes = build_variants(model, Path(folder), threads)

        def clock(name: str) -> Callable[[], tuple[float, float]]:
            def run() -> tuple[float, float]:
                observe(name)
                gc.collect()  # The sessions of the variant before are closed: their threads would spin beside this one.
                return time_of(variants[name](), prompt, new_tokens, known)

            return run

        times = interleaved({name: clock(name) for name in variants}, rounds)
    flops, moved = work(model.graph(), model.task.output, prompt, prompt + new_tokens // 2)
    fastest = [min(t[i] for found in times.values() for t in found) for i in (0, 1)]
    reached = Ceilings(new_tokens * moved / fastest[1], flops / fastest[0], threads)
    ceilings = ceilings.best(measure(threads, working_set=moved)).best(reached)
    rows = [_speed(name, nodes[name], times[name], prompt, new_tokens, flops, moved, ceilings) for name in variants]
    return Benchmark(rows, ceilings, prompt, new_tokens, rounds, flops, moved)


def _calls(
    model: Model, length: int, rounds: int, threads: int, ceilings: Ceilings, observe: Callable[[str], None]
) -> Benchmark:
    """One call of a model that does not continue a text."""
    from .backends import onnxruntime as fused

    graph = model.graph()
    case = Case("all-ones", 1, length)
    call = Call(inputs_of(model.task, graph, case), spans(case), mask_of(case))
    with tempfile.TemporaryDirectory(prefix="monograph-") as place:
        observe("building")
        folder = Path(place)
        plain = write_export(model, folder / "onnx").nodes
        nodes = {"standard ops": plain, "fused for ONNX Runtime": fused.build(model, None, folder / "cpu", "cpu").nodes}
        openers: dict[str, Callable[[], Runner]] = {
            "standard ops": lambda: onnx_runner(folder / "onnx", graph, threads=threads),
            "fused for ONNX Runtime": lambda: run_runner(fused.open(folder / "cpu", threads=threads), graph),
        }

        def clock(name: str) -> Callable[[], float]:
            def run() -> float:
                observe(name)
                gc.collect()
                runner = openers[name]()
                runner(call)
                return seconds(lambda: runner(call))

            return run

        times = interleaved({name: clock(name) for name in openers}, rounds)
    flops = sum(at(n.op.flops(*n.operands, **n.attributes), sizes_of(graph, call.inputs)) for n in graph)
    ceilings = ceilings.best(Ceilings(0.0, flops / min(min(found) for found in times.values()), threads))
    tokens = bool(streams_of(model.task, graph))
    count = length if tokens else 1
    rows = [
        Speed(name, sum(_first(nodes[name]).values()), count / t, flops / t / ceilings.flops, 0.0, 0.0)
        for name, t in ((name, median(found)) for name, found in times.items())
    ]
    return Benchmark(rows, ceilings, count, 0, rounds, flops, 0, "tokens" if tokens else "calls")


def sizes_of(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Values of the symbols of a graph, from its inputs."""
    return bind_dims({k: v.type for k, v in graph.inputs.items()}, {k: inputs[k].shape for k in graph.inputs})


def _first(nodes: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
    """Nodes by op type of all files, but for the second of two that compute the same."""
    counted = {file: ops for file, ops in nodes.items() if file != "model.masked.onnx" or "model.onnx" not in nodes}
    return {f"{file} {op}": n for file, ops in counted.items() for op, n in ops.items()}


def _speed(
    name: str,
    nodes: int,
    times: list[tuple[float, float]],
    prompt: int,
    new_tokens: int,
    flops: int,
    moved: int,
    ceilings: Ceilings,
) -> Speed:
    prefill, decode = (median([t[i] for t in times]) for i in (0, 1))
    steps = new_tokens / decode
    shares = flops / prefill / ceilings.flops, steps * moved / ceilings.bandwidth
    return Speed(name, nodes, prompt / prefill, shares[0], steps, shares[1])


def build_variants(model: Model, folder: Path, threads: int) -> tuple[dict[str, Callable[[], Decoder]], dict[str, int]]:
    """How to open each variant, and the nodes of its graph, by name."""
    from .backends import onnx as portable
    from .backends import onnxruntime as fused

    cached = pipelines.decode(model.graph())
    apart = pipelines.decompose(cached)
    portable.export(apart, weights_of(model), folder / "apart", pipeline=portable.AS_IT_IS)
    export(model, folder / "onnx")
    report = fused.build(model, None, folder / "cpu", "cpu")
    variants: dict[str, Callable[[], Decoder]] = {
        "before the passes": lambda: Growing(folder / "apart", threads, model.task.output),
        "standard ops": lambda: Growing(folder / "onnx", threads, model.task.output),
        "fused for ONNX Runtime": lambda: fused.open(folder / "cpu", threads=threads),
    }
    counts = (_count(folder / "apart"), _count(folder / "onnx"), sum(report.nodes["model.onnx"].values()))
    return variants, dict(zip(variants, counts, strict=True))


def _count(folder: Path) -> int:
    from .backends.onnx.untyped import read_graph

    return len(read_graph(folder / "model.onnx").graph.node)


class Growing:
    """A portable export: caches are inputs and outputs, handed back without a copy, and grow by one entry a step."""

    def __init__(self, folder: Path, threads: int, output: str) -> None:
        from .backends import ort

        library = ort.library()
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._value = library.OrtValue.ortvalue_from_numpy
        file = str(folder / "model.onnx")
        self.session: Any = library.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs: list[str] = [o.name for o in self.session.get_outputs()]
        self.inputs: list[str] = [i.name for i in self.session.get_inputs()]
        self.slots, self.stream = slots_of(self.session), stream_of(self.session) or TOKENS
        self.state: dict[str, Any] = {}
        self.output, self.length = output, 0

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        self.length = 0
        self.state = {k: self._value(v) for k, v in first_state(self.session, 1).items()}
        return self._call(tokens)

    def step(self, tokens: Array) -> Array:
        return self._call(tokens[:, None])

    def _call(self, tokens: Array) -> Array:
        start, self.length = self.length, self.length + tokens.shape[1]
        given = {
            self.stream.ids: self._value(tokens),
            self.stream.mask: self._value(np.ones((1, self.length), np.int64)),
            self.stream.positions: self._value(np.arange(start, self.length, dtype=np.int64)[None]),
        }
        feeds = {k: v for k, v in {**given, **self.state}.items() if k in self.inputs}
        found = dict(zip(self.outputs, self.session.run_with_ort_values(self.outputs, feeds), strict=True))
        self.state = next_state(found, self.slots)
        return found[self.output].numpy()[:, -1]


def time_of(decoder: Decoder, prompt: int, new_tokens: int, known: int) -> tuple[float, float]:
    """Seconds of a prompt and of the steps after it, once everything has been run before.

    known: how many tokens there are to choose from.
    """
    tokens, lengths = np.arange(prompt, dtype=np.int64)[None] % known, np.array([prompt])
    one = np.array([1 % known], np.int64)

    def steps() -> None:
        for _ in range(new_tokens):
            decoder.step(one)

    decoder.prefill(tokens, lengths)
    decoder.step(one)
    return seconds(lambda: decoder.prefill(tokens, lengths)), seconds(steps)


def work(graph: Graph, output: str, prompt: int, total: int) -> tuple[int, int]:
    """(float operations of a prompt, bytes that one token at position `total` must read), both in float32.

    Operations: those of every node, as the ops count them, less the main output of all tokens but the last. Bytes:
    every weight that is multiplied with, once, and all keys and values before the token.
    """
    flops = sum(at(n.op.flops(*n.operands, **n.attributes), {"B": 1, "S": prompt}) for n in graph)
    logits = graph.outputs[output].producer
    if logits is not None:
        flops -= at(logits.op.flops(*logits.operands, **logits.attributes), {"B": 1, "S": prompt - 1})
    weights = {v for v in graph.params.values() if not all(isinstance(n.op, Embedding) for n in v.users)}
    read = sum(at(v.type.with_dtype(f32).bytes, {}) for v in weights)
    caches = [n.value(name) for n in graph if isinstance(n.op, Attention) for name in ("k", "v")]
    return flops, read + sum(at(v.type.bytes, {"B": 1, "S": total}) for v in caches)
