"""The training loop: AdamW on the PyTorch backend, for any model and source of batches of the same task."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.torch import to_inputs
from ..backends.torch.limits import peak_flops
from ..frontends.dsl import Model
from ..ir.cost import at, flops_of
from ..ir.graph import Graph
from ..ir.interpret import bind_dims
from ..ir.types import Dim
from ..ir.weights import Weights
from ..passes.documents import drop_padding_mask
from ..passes.separate import separate_documents
from .average import Average
from .evaluate import Evaluation
from .keeping import Keeping
from .log import Log
from .loss import with_loss
from .progress import Display, Step
from .schedule import learning_rate as rate_of
from .schedule import parameter_groups
from .settings import PRECISIONS, Settings
from .signals import Stop, stoppable
from .source import Batch, Source, check_fit, labels_of, split_rows, tokens_of
from .spread import Spread, unread
from .world import World, is_lost

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
    that cannot be, and TrainingError when loss or gradient stop being finite, the disk is full, a signal came or
    another process was lost; the last good weights are in `folder`, and in the error's `model`.
    """
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
        stack.callback(run.world.close)
        stack.enter_context(_heard(run))
        run.begin(resume, display.note)
        if shown:
            run.measure_peak()
        if run.folder is not None and run.world.first:
            run.log = stack.enter_context(Log(run.folder, run.done, tensorboard=tensorboard))
        run.stop = stack.enter_context(stoppable())
        for step in run:
            display.show(step)
            observe(step)
        return run.finish(display.note)


@contextlib.contextmanager
def _heard(run: Run) -> Iterator[None]:
    """What PyTorch says when another process ends or does not answer becomes a TrainingError with the last model."""
    try:
        yield
    except RuntimeError as e:
        if run.world.alone or not is_lost(e):
            raise
        raise run.lost(e) from e


class Run(Keeping):
    """One training run: module, optimizer and the state that is known to be good. Iterating does the steps."""

    def __init__(
        self, model: Model, source: Source, settings: Settings, folder: Path | None, metrics: Metrics | None = None
    ) -> None:
        check_fit(model, source)
        self.model, self.source, self.settings, self.folder = model, source, settings, folder
        graph = self.objective()
        self.inputs = list(graph.inputs)
        self.types = {k: v.type for k, v in graph.inputs.items()}
        self.world = World.of(settings)
        self.spread = Spread(self.world, graph)
        self.cost = 3 * flops_of(graph)  # The backward pass multiplies twice for each product of the forward pass.
        self.peak: float | None = None
        self.weights = self.first_weights(graph)
        module = self.spread.build(graph, self.weights)
        idle = unread(module)
        for name, p in module.named_parameters():
            p.requires_grad_(self.trains(name) and name not in idle)
        self.module: Any = self.spread.shard(module)
        self.wrapped = self.spread.parallel(self.module)
        self.forward = torch.compile(self.wrapped) if settings.compile else self.wrapped
        groups = parameter_groups(self.module, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(settings.kind, enabled=settings.precision == "f16")
        self.average = Average(self.module, settings.ema) if settings.ema else None
        self.evaluation = Evaluation(self, metrics)
        self.done = self.updates = self.kept = 0
        self.good = self.trained(self.weights)
        self.log: Log | None = None
        self.stop = Stop()

    # -- what is learned -------------------------------------------------------------------------------------------

    def objective(self) -> Graph:
        """The graph whose output `loss` is made small."""
        return with_loss(self.plain_graph(), label_smoothing=self.settings.label_smoothing)

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
            rate = self.rate(self.done)
            loss, norm = self.step(batch, rate)
            self.done += 1
            seconds = time.perf_counter() - start
            tokens, training = tokens + tokens_of(batch), training + seconds
            held_out, metrics = None, None
            if self.done % s.evaluate_every == 0 or self.done == s.steps:
                held_out, metrics = self.measure()
            passed = time.perf_counter() - begin
            left = passed / (self.done - first) * (s.steps - self.done)
            speed, share = tokens / training, self.share(batch, seconds)
            step = Step(self.done, s.steps, loss, held_out, rate, norm, speed, passed, left, share, metrics)
            self.keep(step)
            yield step

    def rate(self, step: int) -> float:
        s = self.settings
        assert s.warmup is not None
        return rate_of(
            step, peak=s.learning_rate, steps=s.steps, warmup=s.warmup, final=s.final, schedule=s.schedule,
            decay=s.decay,
        )  # fmt: skip

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """One update; (loss before it, gradient norm before clipping). Raises TrainingError, updating nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.random(self.done):
            loss = self.backward(batch)
        self.scaler.unscale_(self.optimizer)
        norm = self.clip()
        if not math.isfinite(loss):
            raise self.failure(f"loss of step {self.done + 1}", loss)
        if not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE):
            raise self.failure(f"gradient norm of step {self.done + 1}", norm)
        self.scaler.step(self.optimizer)  # In f16 it leaves out a step whose gradient overflowed.
        self.scaler.update()
        self.updates += math.isfinite(norm)
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

    @contextlib.contextmanager
    def random(self, step: int) -> Iterator[None]:
        """Randomness that depends on the seed and the step only, so that a resumed run goes on exactly.

        Processes that share layers draw the same numbers, those that have other rows draw others.
        """
        devices = [self.world.device] if self.settings.kind == "cuda" else []
        numbers = [self.settings.seed, step, *([self.world.data_rank] if self.world.data_rank else [])]
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
            yield

    def measure_peak(self) -> None:
        """Measure what the device can do at most, so that steps tell their share of it."""
        self.peak = peak_flops(self.settings.device or "cpu", PRECISIONS[self.settings.precision] or torch.float32)

    def share(self, batch: Batch, seconds: float) -> float | None:
        """Of the device's arithmetic, by the cost model of the graph; None where the peak was not measured."""
        if self.peak is None:
            return None
        sizes = bind_dims(self.types, {k: batch[k].shape for k in self.types})
        flops = self.cost.substitute(sizes) if isinstance(self.cost, Dim) else self.cost
        return at(flops, sizes) / seconds / (self.peak * self.world.size)
