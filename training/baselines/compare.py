"""What came before, and the Transformer, on one text: the same tokenizer, split, batches, steps and size of model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ...backends.torch import to_inputs, to_torch
from ...data.batch import IGNORED
from ...frontends.dsl import Model, load_family
from ...frontends.task import LABELS
from ...ir.cost import at, flops_of
from ...ir.errors import ConfigError, did_you_mean
from ...ir.files import staged
from ...ir.graph import Graph
from ...ir.silent import silent
from ...ir.slots import TOKENS
from ...ir.types import Dim, DimLike
from ...passes import pipelines
from ..corpus import Corpus, make_batch
from ..loop import train
from ..progress import Step
from .ngram import NGram

NGRAM = "ngram"
FAMILIES: dict[str, tuple[str, dict[str, Any], float]] = {
    "rnn": ("rnn_lm", {"layers": 2, "tied": True}, 5e-3),
    "lstm": ("lstm_lm", {"layers": 2, "tied": True}, 1e-2),
    "gru": ("gru_lm", {"layers": 2, "tied": True}, 1e-2),
    "transformer": ("llama", {"layers": 4, "tied": True}, 2e-3),
}
"""Neural models by the name in the table: family, what is fixed of its config, and its learning rate.

One rate for all would only compare how well it fits; these were the best of 2e-3, 5e-3, 1e-2 and 2e-2 in short runs.
"""

NAMES = (NGRAM, *FAMILIES)
HEAD, WIDTHS = 32, 16
MEASUREMENTS = 6
"""How often the held-out loss is taken in a run."""

CONTEXTS = (64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Point:
    """Cost at one context length: of reading `context` tokens at once (batch 1), and of one more token after them.

    flops: by the IR's cost model; seconds: measured, median; step_flops: of the next token; state_bytes: what must
    be kept to go on (KV cache, recurrent states, or the last tokens).
    """

    context: int
    flops: int
    seconds: float
    step_flops: int
    state_bytes: int


@dataclass(frozen=True)
class Result:
    """One model. held_out: nats per token on the held-out part; seconds: of training, measurements left out.

    tokens_per_second: of training. entries: parameters, or numbers in the n-gram table. cost: flops of reading S
    tokens as an expression. curve: (training tokens seen, held-out loss).
    """

    name: str
    config: dict[str, Any]
    entries: int
    held_out: float
    seconds: float
    tokens_per_second: float
    cost: str
    points: list[Point] = field(default_factory=list[Point])
    curve: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    @property
    def perplexity(self) -> float:
        return math.exp(self.held_out)


@dataclass(frozen=True)
class Settings:
    """Of a comparison. parameters: what each neural model should have, met by its width; order: of the n-gram.

    steps, batch, length, seed: of training, the same for all. learning_rate: for all neural models (None: the rate
    that suits each). contexts: at which costs are taken.
    """

    steps: int = 800
    batch: int = 8
    length: int = 64
    parameters: int = 500_000
    order: int = 5
    learning_rate: float | None = None
    seed: int = 0
    contexts: tuple[int, ...] = CONTEXTS

    def __post_init__(self) -> None:
        if not self.contexts or min(self.contexts) < 1:
            raise ConfigError(f"contexts are {list(self.contexts)}, expected at least one, each at least 1")


def compare(
    corpus: Corpus,
    names: Iterable[str] = NAMES,
    settings: Settings | None = None,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
    begin: Callable[[str], None] | None = None,
    observe: Callable[[str, Step], None] | None = None,
) -> list[Result]:
    """Train each model on `corpus` and measure it; results in the order of `names`.

    folder: where trained models go, one folder by name. begin: called with the name of each model; observe: also
    with every training step. Raises ConfigError for a name that is not in NAMES or settings that cannot be.
    """
    settings, names = settings or Settings(), list(names)
    for name in names:
        if name not in NAMES:
            raise ConfigError(
                f"no model is called {name!r}{did_you_mean(name, NAMES)}", hint=f"known: {', '.join(NAMES)}"
            )
    if len(corpus.held_out) < 2:
        raise ConfigError(f"the held-out part has {len(corpus.held_out)} tokens: there is nothing to compare on")
    models = {name: sized(name, corpus.vocab, settings.parameters) for name in names if name != NGRAM}
    results: list[Result] = []
    for name in names:
        (begin or silent)(name)
        into = None if folder is None else Path(folder) / name
        if name == NGRAM:
            results.append(_ngram(corpus, settings, into))
        else:
            results.append(_neural(name, models[name], corpus, settings, into, progress, observe or silent))
    return results


# -- the n-gram table ------------------------------------------------------------------------------------------------


def _ngram(corpus: Corpus, s: Settings, folder: Path | None) -> Result:
    start = time.perf_counter()
    model = NGram.fit(corpus.train, corpus.vocab, s.order, tokenizer=corpus.tokenizer)
    seconds = time.perf_counter() - start
    if folder is not None:
        model.save(folder)
    held_out = table_loss(model, corpus, s.batch, s.length)
    # At most one product for each order that backs off; the rest is order - 1 binary searches.
    each = s.order - 1
    points: list[Point] = []
    for n in s.contexts:
        row = np.resize(corpus.train, n)
        points.append(Point(n, each * n, _seconds(lambda row=row: model.log_probabilities(row)), each, 8 * each))
    config = {"order": s.order, "discounts": model.discounts.tolist()}
    speed = len(corpus.train) / seconds
    cost = str(each * Dim.symbol("S")) if each else "0"
    return Result(NGRAM, config, model.entries, held_out, seconds, speed, cost, points)


def table_loss(model: NGram, corpus: Corpus, batch: int, length: int) -> float:
    """Mean loss in nats over the same labels and with the same contexts as the neural models have."""
    total, count = 0.0, 0
    for rows in corpus.held_out_batches(batch, length):
        labels = rows[LABELS]
        tokens = np.concatenate([rows[TOKENS.ids][:, :1], np.where(labels == IGNORED, 0, labels)], axis=1)
        scores = model.log_probabilities(tokens)[:, 1:]
        total -= float(scores[labels != IGNORED].sum())
        count += int((labels != IGNORED).sum())
    return total / count


# -- neural models ---------------------------------------------------------------------------------------------------


def _neural(
    name: str,
    model: Model,
    corpus: Corpus,
    s: Settings,
    folder: Path | None,
    progress: bool,
    observe: Callable[[str, Step], None],
) -> Result:
    steps: list[Step] = []

    def note(step: Step) -> None:
        steps.append(step)
        observe(name, step)

    trained = train(
        model,
        corpus,
        steps=s.steps,
        batch=s.batch,
        length=s.length,
        learning_rate=s.learning_rate or FAMILIES[name][2],
        seed=s.seed,
        device="cpu",
        evaluate_every=max(s.steps // MEASUREMENTS, 1),
        folder=folder,
        progress=progress,
        observe=note,
    )
    last = steps[-1]
    curve = [(x.step * s.batch * s.length, x.held_out) for x in steps if x.held_out is not None]
    made = Result(
        name,
        {} if model.config is None else model.config.to_dict(),
        parameters_of(model.graph()),
        curve[-1][1],
        last.seconds,
        last.tokens_per_second,
        str(flops_of(pipelines.encode(model.graph()), B=1)),
        curve=curve,
    )
    return replace(made, points=costs(trained, s.contexts))


def sized(name: str, vocab: int, parameters: int) -> Model:
    """The model called `name` whose number of parameters comes nearest to `parameters`.

    The width is a multiple of 16. Raises ConfigError if even the narrowest has more than half as many again.
    """
    family, fixed, _ = FAMILIES[name]
    best: tuple[float, Model] | None = None
    for width in range(WIDTHS, 1 << 14, WIDTHS):
        sizes: dict[str, Any] = {"vocab": vocab, "dim": width, **fixed}
        if name == "transformer":
            sizes |= {"ffn": _ffn(width), "heads": _heads(width)}
        model = load_family(family)(**sizes)
        found = parameters_of(model.graph())
        distance = abs(found - parameters)
        if best is not None and distance >= best[0]:
            break
        best = distance, model
    assert best is not None
    if best[0] > parameters / 2:
        found = parameters_of(best[1].graph())
        raise ConfigError(f"{name} has {found} parameters or more with {vocab} tokens, not {parameters}")
    return best[1]


def _ffn(width: int) -> int:
    """Two thirds of four times the width: a gated block then has as many weights as a plain one."""
    return round(8 * width / 3 / 16) * 16


def _heads(width: int) -> int:
    """As many heads of equal and even width as there can be, none narrower than HEAD; else one."""
    return next((n for n in range(width // HEAD, 0, -1) if width % (2 * n) == 0), 1)


def parameters_of(graph: Graph) -> int:
    """How many numbers a model learns; tied ones once."""
    total: DimLike = 0
    for v in graph.params.values():
        total = total + v.type.elements
    return at(total, {})


def costs(model: Model, contexts: Sequence[int]) -> list[Point]:
    """Cost of a model at each context length, by its graphs and by the clock."""
    graph, decode = model.graph(), pipelines.decode(model.graph())
    whole, step = flops_of(pipelines.encode(graph), B=1), flops_of(decode)
    state: DimLike = 0
    for slot in decode.slots:
        state = state + slot.type.bytes
    module = to_torch(pipelines.encode(graph), model.weights).eval()
    points: list[Point] = []
    for n in contexts:
        sizes = {"B": 1, "S": 1, "P": n, "T": n + 1}
        seconds = _forward_seconds(module, list(graph.inputs), n)
        points.append(Point(n, at(whole, {"S": n}), seconds, at(step, sizes), at(state, sizes)))
    return points


def _forward_seconds(module: torch.nn.Module, names: list[str], length: int) -> float:
    batch = make_batch(np.zeros((1, length + 1), np.int64))
    inputs = to_inputs({k: batch[k] for k in names})
    with torch.no_grad():
        return _seconds(lambda: module(**inputs))


def _seconds(run: Callable[[], Any], least: float = 0.2, most: int = 20) -> float:
    """Median time of a call, after one that does not count; calls until `least` seconds or `most` calls are over."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < least and len(times) < most):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


# -- the plot --------------------------------------------------------------------------------------------------------


def plot(results: Sequence[Result], file: str | Path) -> Path:
    """Write a PNG: held-out loss over training tokens, and cost against context length in three ways.

    Raises ConfigError if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a plot needs matplotlib", hint='pip install "monograph[plot]"') from None
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, *panels = figure.subplots(2, 2).flat
    most = max((tokens for r in results for tokens, _ in r.curve), default=1)
    for i, r in enumerate(results):
        curve = r.curve or [(0, r.held_out), (most, r.held_out)]
        style = {"color": f"C{i}", "label": r.name}
        loss.plot(*zip(*curve, strict=True), "--" if not r.curve else "-", **style)
        contexts = [p.context for p in r.points]
        for axes, name in zip(panels, ("flops", "seconds", "state_bytes"), strict=True):
            axes.plot(contexts, [getattr(p, name) for p in r.points], "o-", markersize=3, **style)
    loss.set(title="held-out loss", xlabel="training tokens", ylabel="nats per token")
    titles = ("operations to read a context", "time to read a context", "state kept to go on")
    for axes, title, unit in zip(panels, titles, ("flops", "seconds", "bytes"), strict=True):
        # On plain axes a straight line is linear cost and a curve is not.
        axes.set(
            title=title, xlabel="context length, tokens", ylabel=unit, yscale="log" if unit == "bytes" else "linear"
        )
        axes.grid(alpha=0.3)
    loss.legend()
    path = Path(file)
    with staged(path.parent) as stage, stage.open(path.name) as f:
        cast(Any, figure).savefig(f, format="png", dpi=110)
    return path
