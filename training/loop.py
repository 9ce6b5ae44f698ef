"""The training loop: AdamW on the PyTorch backend, for any model and source of batches of the same task."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..backends.torch import compiled, to_inputs
from ..backends.torch.allocator import keep_pages
from ..data.batch import Batch, labels_of, split_rows, tokens_of
from ..frontends.dsl import Model
from ..ir.errors import ConfigError
from ..ir.graph import Graph
from ..ir.weights import Weights
from ..passes.documents import drop_padding_mask
from ..passes.separate import separate_documents
from .average import Average
from .evaluate import Evaluation
from .keeping import Keeping
from .layout import Spread, unread
from .lock import held
from .log import Log
from .loss import with_loss
from .memory import budget
from .progress import Display, Step
from .schedule import parameter_groups, rate_at
from .settings import PRECISIONS, Settings
from .signals import Stop, stoppable
from .source import Source, check_fit
from .speed import Arithmetic
from .state import digest_of, fingerprint, seeded
from .world import World, is_lost, left_on_error

_LEAST_SCALE = 2.0**-14
"""Of the loss in f16: below, something other than its range is wrong."""

Metrics = Callable[[Model], Mapping[str, float]]


def train(
    model: Model,
    source: Source,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    observe: Callable[[Step], None] = lambda step: None,
    metrics: Metrics | None = None,
    **settings: Any,
) -> Model:
    """Train a model; gives it with its new weights and the tokenizer of the data.

    source: a `Corpus`, the `Dataset` that `monograph data` made, or another `Source` for the model's task. settings:
    the fields of `Settings`, of which only `steps` must be given. folder: gets checkpoints, log.jsonl, loss.png and,
    at the end, the model in Hugging Face layout; None keeps all in memory. resume: go on with the run in `folder`.
    observe: called with every Step, on every process. metrics: called at every measurement with the model as it is
    then; what it gives is logged by name.

    Several processes (of `torchrun`, or of a process group that is there) all call it alike and get the same model;
    the first one logs and writes. SIGINT and SIGTERM end the run after a checkpoint. Raises ConfigError for settings
    that cannot be and for a folder that another run is in, and TrainingError when loss or gradient stop being finite,
    the disk is full, a signal came or another process was lost; the last good weights are in `folder`, and in the
    error's `model`.
    """
    with left_on_error():
        run = Run(model, source, Settings.of(settings), None if folder is None else Path(folder), metrics)
    return drive(run, resume=resume, progress=progress, tensorboard=tensorboard, observe=observe)


def drive(
    run: Run,
    *,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    observe: Callable[[Step], None] = lambda step: None,
) -> Model:
    """Do the steps of a run and show them; gives the trained model."""
    shown = progress and run.world.first
    with Display(run.settings.steps, shown) as display, contextlib.ExitStack() as stack:
        note = display.note if run.world.first else _silent
        stack.callback(run.world.close)
        _lock(run, stack, note)
        stack.enter_context(_heard(run))
        run.begin(resume, note)
        if shown:
            run.arithmetic.measure_peak(run.settings)
        if run.folder is not None and run.world.first:
            run.log = stack.enter_context(Log(run.folder, run.done, tensorboard=tensorboard))
        run.stop = stack.enter_context(stoppable())
        for step in run:
            display.show(step)
            observe(step)
        return run.finish(note)


def _silent(text: str) -> None:
    pass


def _lock(run: Run, stack: contextlib.ExitStack, note: Callable[[str], None]) -> None:
    """The first process holds the folder for all until the stack ends, after what an error still writes there."""
    folder = run.folder
    if folder is not None:
        with _heard(run):
            run.world.told(lambda: stack.enter_context(held(folder, note)))


@contextlib.contextmanager
def _heard(run: Run) -> Iterator[None]:
    """A full disk, and another process that ends or does not answer, become a TrainingError with the last model."""
    try:
        yield
    except OSError as e:
        raise run.ended(f"after step {run.done}: {e.strerror or e}", agreed=run.world.alone) from e
    except RuntimeError as e:
        if run.world.alone or not is_lost(e):
            raise
        raise run.lost(e) from e


class Run(Keeping):
    """One training run: module, optimizer and the state that is known to be good. Iterating does the steps."""

    rows = 1
    """Of a batch, to each one that the setting `batch` counts."""

    def __init__(
        self, model: Model, source: Source, settings: Settings, folder: Path | None, metrics: Metrics | None = None
    ) -> None:
        check_fit(model, source, settings.length)
        if settings.patience and len(source.held_out) == 0:
            raise ConfigError(f"patience is {settings.patience}, but nothing of the data is held out to measure on")
        self.model, self.source, self.settings, self.folder = model, source, settings, folder
        graph = self.objective()
        self.inputs = list(graph.inputs)
        self.world = World.of(settings)
        self.spread = Spread(self.world, graph)
        self.arithmetic = Arithmetic(graph, self.world.size)
        self.weights = self.first_weights(graph)
        if settings.kind == "cpu":
            keep_pages()
        module = self.built(graph)
        self.module: Any = self.spread.shard(module)
        self.wrapped = self.spread.parallel(self.module)
        self.forward = compiled(self.wrapped) if settings.compile else self.wrapped
        groups = parameter_groups(self.module, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(settings.kind, enabled=settings.precision == "f16")
        self.average = Average(self.module, settings.ema) if settings.ema else None
        self.evaluation = Evaluation(self, metrics)
        self.done = self.updates = self.kept = 0
        self.good, self.safe = self.trained(self.weights), ""
        self.data, self.digest = fingerprint(source, settings), "" if folder is None else digest_of(source)
        self.log: Log | None = None
        self.stop = Stop()

    @property
    def static(self) -> bool:
        """Whether every batch has the same shape; a source that does not tell may have any."""
        return bool(getattr(self.source, "static", False))

    def built(self, graph: Graph) -> Any:
        """The module of this process, in which only what is trained gets a gradient."""
        s = self.settings
        frozen = [name for name in graph.params if not self.trains(name)]
        rows = self.rows * s.batch // (s.accumulate * self.world.data)
        kept = budget(graph, s, rows, frozen, shared=self.world.sharded or self.world.tensor > 1)
        module = self.spread.build(graph, self.weights, static=self.static, **kept)
        idle = unread(module)
        for name, p in module.named_parameters():
            p.requires_grad_(self.trains(name) and name not in idle)
        return module

    # -- what is learned -------------------------------------------------------------------------------------------

    def objective(self) -> Graph:
        """The graph of a step: its output `loss` is made small, or that of `Run.loss`."""
        return self.head(self.learner())

    def learner(self) -> Graph:
        """The graph that learns, up to its logits."""
        return self.plain_graph()

    def head(self, graph: Graph) -> Graph:
        """What is computed from the logits inside the graph."""
        return with_loss(graph, label_smoothing=self.settings.label_smoothing)

    def plain_graph(self, model: Model | None = None) -> Graph:
        """A model's graph for this data: documents apart, and no mask where nothing can see what it hides."""
        graph = (model or self.model).graph()
        if self.source.task == "causal-lm":
            # Rows are padded on the right only: no token that counts sees the padding.
            drop_padding_mask(graph)
        if getattr(self.source, "documents", False):
            separate_documents(graph)
        return graph

    def first_weights(self, graph: Graph) -> Weights:
        return self.model.weights or Weights.initialize(graph, self.settings.seed)

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained; the others stay as they are."""
        return True

    def count(self, batch: Batch) -> int:
        """How many equal parts the loss of a batch is the mean of: its labels."""
        return labels_of(batch)

    # -- steps -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Step]:
        s, first, tokens, training = self.settings, self.done, 0, 0.0
        batches = self.source.batches(s.batch, s.length, s.seed, first)
        begin = time.perf_counter()
        while self.done < s.steps and not self.evaluation.exhausted:
            start, batch = time.perf_counter(), next(batches)
            rate = rate_at(self.done, s)
            loss, norm = self.step(batch, rate)
            self.done += 1
            seconds = time.perf_counter() - start
            tokens, training = tokens + tokens_of(batch), training + seconds
            held_out, metrics = None, None
            if self.done % s.evaluate_every == 0 or self.done == s.steps:
                held_out, metrics = self.measure()
            passed = time.perf_counter() - begin
            left = passed / (self.done - first) * (s.steps - self.done)
            speed, share = tokens / training, self.arithmetic.share(batch, seconds)
            step = Step(self.done, s.steps, loss, held_out, rate, norm, speed, passed, left, share, metrics)
            self.keep(step)
            yield step

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """One update; (loss before it, gradient norm before clipping). Raises TrainingError, updating nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(self.settings, self.done, self.world):
            loss = self.backward(batch)
        self.scaler.unscale_(self.optimizer)
        norm = self.clip()
        if not math.isfinite(loss):
            raise self.failure(f"loss of step {self.done + 1}", loss)
        if not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE):
            raise self.failure(f"gradient norm of step {self.done + 1}", norm)
        self.scaler.step(self.optimizer)  # In f16 it leaves out a step whose gradient overflowed.
        self.scaler.update()
        if math.isfinite(norm):
            self.updates += 1
            if self.average is not None:
                self.average.update()
        return loss, norm

    def clip(self) -> float:
        """Scale the gradients down to the largest norm there may be; gives the norm before, of all of them."""
        if self.world.alone:
            return torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip).item()
        return self.spread.clip(self.module.named_parameters(), self.settings.clip)

    def backward(self, batch: Batch) -> float:
        """Gradients of the mean loss over all labels of the batch, part by part; gives that loss."""
        shares = self.shares(batch, self.settings.accumulate)
        mean, total = 0.0, max(self.count(batch), 1)
        for i, (part, number) in enumerate(shares, 1):
            with self.spread.gradients(self.module, self.wrapped, i == len(shares)):
                loss = self.loss(part)
                if number != total:
                    loss = loss * (number / total)
                # The processes' gradients are averaged where their losses are to be added.
                self.scaler.scale(loss * self.world.data if self.world.data > 1 else loss).backward()
            mean += loss.item()
        return self.world.sum(mean)[0]

    def shares(self, batch: Batch, number: int) -> list[tuple[Batch, int]]:
        """At most `number` parts of a batch that this process computes one after another, and what each counts for.

        All processes get equally many: where a batch has too few rows, some get one that counts for nothing.
        """
        found = [(part, self.count(part)) for part in self.split(batch, number * self.world.data)]
        return self.world.mine(found + [(found[0][0], 0)] * (-len(found) % self.world.data))

    def split(self, batch: Batch, number: int) -> Sequence[Batch]:
        """A batch in at most `number` nearly equal parts."""
        return split_rows(batch, number)

    def loss(self, batch: Batch) -> torch.Tensor:
        given = to_inputs({k: batch[k] for k in self.inputs}, self.settings.device)
        with self.autocast():
            return self.forward(**given)["loss"]

    def autocast(self) -> torch.autocast:
        narrow = PRECISIONS[self.settings.precision]
        return torch.autocast(self.settings.kind, narrow, enabled=narrow is not None)
