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

from ..backends.torch import to_inputs, to_torch
from ..backends.torch.limits import peak_flops
from ..frontends.dsl import Model
from ..ir.cost import at, flops_of
from ..ir.graph import Graph
from ..ir.interpret import bind_dims
from ..ir.types import Dim
from ..ir.weights import Weights
from ..passes.documents import drop_padding_mask
from ..passes.pipelines import train as train_pipeline
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
    observe: called with every Step. metrics: called at every measurement with the model as it is then; what it gives
    is logged by name.

    SIGINT and SIGTERM end the run after a checkpoint. Raises ConfigError for settings that cannot be, and
    TrainingError when loss or gradient stop being finite, the disk is full, or a signal came; the last good weights
    are in `folder`, and in the error's `model`.
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
    with Display(run.settings.steps, progress) as display, contextlib.ExitStack() as stack:
        run.begin(resume, display.note)
        if progress:
            run.measure_peak()
        if run.folder is not None:
            run.log = stack.enter_context(Log(run.folder, run.done, tensorboard=tensorboard))
        run.stop = stack.enter_context(stoppable())
        for step in run:
            display.show(step)
            observe(step)
        return run.finish(display.note)


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
        self.cost = 3 * flops_of(graph)  # The backward pass multiplies twice for each product of the forward pass.
        self.peak: float | None = None
        self.weights = self.first_weights(graph)
        self.module: Any = to_torch(train_pipeline(graph), self.weights).to(settings.device)
        for name, p in self.module.named_parameters():
            p.requires_grad_(self.trains(name))
        self.forward = torch.compile(self.module) if settings.compile else self.module
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
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip).item()
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

    def backward(self, batch: Batch) -> float:
        """Gradients of the mean loss over all labels of the batch, part by part; gives that loss."""
        parts = self.parts(batch)
        counts = [self.count(part) for part in parts]
        mean, total = 0.0, max(sum(counts), 1)
        for part, number in zip(parts, counts, strict=True):
            loss = self.loss(part)
            if number != total:
                loss = loss * (number / total)
            self.scaler.scale(loss).backward()
            mean += loss.item()
        return mean

    def parts(self, batch: Batch) -> Sequence[Batch]:
        """What is computed one after another."""
        return split_rows(batch, self.settings.accumulate)

    def loss(self, batch: Batch) -> torch.Tensor:
        given = to_inputs({k: batch[k] for k in self.inputs}, self.settings.device)
        with self.autocast():
            return self.forward(**given)["loss"]

    def autocast(self) -> torch.autocast:
        narrow = PRECISIONS[self.settings.precision]
        return torch.autocast(self.settings.kind, narrow, enabled=narrow is not None)

    @contextlib.contextmanager
    def random(self, step: int) -> Iterator[None]:
        """Randomness that depends on the seed and the step only, so that a resumed run goes on exactly."""
        devices = [self.settings.device] if self.settings.kind == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, step]).generate_state(1)[0]))
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
        return at(flops, sizes) / seconds / self.peak
