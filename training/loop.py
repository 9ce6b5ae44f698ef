"""The training loop: AdamW on the PyTorch backend, for causal language models on a corpus."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.torch import load_state, state_of, to_inputs, to_torch
from ..backends.torch.tensors import to_array
from ..frontends.dsl import Model
from ..ir.errors import ConfigError, did_you_mean
from ..ir.graph import Graph
from ..ir.tensors import ArrayTensor, Tensor
from ..ir.weights import Weights
from ..passes.pipelines import train as train_pipeline
from .checkpoint import OPTIMIZER, load_run, save_run
from .corpus import Batch, Source
from .errors import TrainingError
from .loss import IGNORED, with_loss
from .progress import Display, Step
from .schedule import learning_rate as rate_of
from .schedule import parameter_groups

PRECISIONS = {"f32": None, "bf16": torch.bfloat16}
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Settings:
    """How a run goes; `train` documents the fields."""

    steps: int
    batch: int
    length: int
    learning_rate: float
    warmup: int
    final: float
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    seed: int
    precision: str
    device: str
    compile: bool
    evaluate_every: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "evaluate_every", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"no precision is called {self.precision!r}{did_you_mean(self.precision, PRECISIONS)}")


def train(
    model: Model,
    corpus: Source,
    *,
    steps: int,
    batch: int = 16,
    length: int = 128,
    learning_rate: float = 2e-3,
    warmup: int | None = None,
    final: float = 0.1,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    seed: int = 0,
    precision: str = "f32",
    device: str | None = None,
    compile: bool = False,
    evaluate_every: int | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    observe: Callable[[Step], None] = lambda step: None,
) -> Model:
    """Train a causal language model; gives the model with its new weights and the corpus's tokenizer.

    corpus: a `Corpus`, or the `Dataset` that `monograph data` made. steps: updates, each on `batch` windows of
    `length` tokens. The rate rises over `warmup` steps (None: a twentieth) to `learning_rate` and falls along a
    cosine to `final` times it. weight_decay is not put on norms and biases.
    clip: largest gradient norm. seed decides initial weights (if the model has none), order of windows and dropout.
    precision: "f32", or "bf16" for autocast with f32 weights. device: None takes CUDA if there is one.
    evaluate_every: steps between measurements on the held-out part (None: a tenth); the weights of the last one are
    kept in `folder` with the optimizer's state (None: in memory), in Hugging Face layout. resume: go on with the run
    in `folder`. observe: called with every Step.

    Raises ConfigError for settings that cannot be, and TrainingError when loss or gradient stop being finite: its
    `model` holds the weights of the last measurement.
    """
    settings = Settings(
        steps,
        batch,
        length,
        learning_rate,
        steps // 20 if warmup is None else warmup,
        final,
        weight_decay,
        betas,
        clip,
        seed,
        precision,
        device or ("cuda" if torch.cuda.is_available() else "cpu"),
        compile,
        max(steps // 10, 1) if evaluate_every is None else evaluate_every,
    )
    run = Run(model, corpus, settings, None if folder is None else Path(folder))
    if resume:
        run.resume()
    with Display(steps, progress) as display:
        for step in run:
            display.show(step)
            observe(step)
    return run.best()


class Run:
    """One training run: module, optimizer and the state that is known to be good. Iterating does the steps."""

    def __init__(self, model: Model, corpus: Source, settings: Settings, folder: Path | None) -> None:
        _check_fit(model, corpus)
        self.model, self.corpus, self.settings, self.folder = model, corpus, settings, folder
        graph = self.objective()
        self.inputs = list(graph.inputs)
        self.weights = self.first_weights(graph)
        self.module: Any = to_torch(train_pipeline(graph), self.weights).to(settings.device)
        for name, p in self.module.named_parameters():
            p.requires_grad_(self.trains(name))
        self.forward = torch.compile(self.module) if settings.compile else self.module
        groups = parameter_groups(self.module, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, settings.betas, fused=True)
        self.done = self.kept = 0
        self.good = self.snapshot()

    def objective(self) -> Graph:
        """The graph whose output `loss` is made small."""
        return with_loss(self.model.graph())

    def first_weights(self, graph: Graph) -> Weights:
        return self.model.weights or Weights.initialize(graph, self.settings.seed)

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained; the others stay as they are."""
        return True

    def __iter__(self) -> Iterator[Step]:
        s, first, tokens, training = self.settings, self.done, 0, 0.0
        batches = self.corpus.batches(s.batch, s.length, s.seed, first)
        begin = time.perf_counter()
        while self.done < s.steps:
            start, batch = time.perf_counter(), next(batches)
            rate = rate_of(self.done, peak=s.learning_rate, steps=s.steps, warmup=s.warmup, final=s.final)
            loss, norm = self.step(batch, rate)
            self.done += 1
            tokens += int(batch["attention_mask"].sum())
            training += time.perf_counter() - start
            held_out = self.measure() if self.done % s.evaluate_every == 0 or self.done == s.steps else None
            passed = time.perf_counter() - begin
            left = passed / (self.done - first) * (s.steps - self.done)
            yield Step(self.done, s.steps, loss, held_out, rate, norm, tokens / training, passed, left)

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """One update; (loss before it, gradient norm before clipping). Raises TrainingError, updating nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.random(self.done):
            loss = self.loss(batch)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        values = loss.item(), norm.item()
        for name, value in zip(("loss", "gradient norm"), values, strict=True):
            if not math.isfinite(value):
                raise self.failure(f"{name} of step {self.done + 1}", value)
        self.optimizer.step()
        return values

    def loss(self, batch: Batch) -> torch.Tensor:
        s = self.settings
        given = to_inputs({k: batch[k] for k in self.inputs}, s.device)
        narrow = PRECISIONS[s.precision]
        with torch.autocast(s.device.split(":")[0], narrow, enabled=narrow is not None):
            return self.forward(**given)["loss"]

    @contextlib.contextmanager
    def random(self, step: int) -> Iterator[None]:
        """Randomness that depends on the seed and the step only, so that a resumed run goes on exactly."""
        devices = [self.settings.device] if self.settings.device.startswith("cuda") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, step]).generate_state(1)[0]))
            yield

    def measure(self) -> float | None:
        """Held-out loss; remembers, and writes, the weights it belongs to. None without a held-out part."""
        loss = None
        if len(self.corpus.held_out) > 0:
            loss = self.evaluate()
            if not math.isfinite(loss):
                raise self.failure(f"held-out loss after step {self.done}", loss)
        self.good, self.kept = self.snapshot(), self.done
        if self.folder is not None:
            self.save(self.folder)
        return loss

    def save(self, folder: Path) -> None:
        """Write the last good state."""
        save_run(self.good, self.optimizer_state(), self.done, folder)

    def saved(self, folder: Path) -> tuple[Weights, Weights, int]:
        """(weights, optimizer state, steps done) as `save` wrote them."""
        return load_run(folder)

    def evaluate(self) -> float:
        """Mean loss in nats per held-out token."""
        s, total, count = self.settings, 0.0, 0
        self.module.eval()
        with torch.no_grad():
            for batch in self.corpus.held_out_batches(s.batch, s.length):
                number = self.count(batch)
                total += self.loss(batch).item() * number
                count += number
        return total / count

    def count(self, batch: Batch) -> int:
        """How many equal parts the loss of a batch is the mean of: its labels."""
        return int((batch["labels"] != IGNORED).sum())

    def snapshot(self) -> Model:
        """The model with a copy of the weights as they are now."""
        arrays = {k: ArrayTensor(t.numpy().copy()) for k, t in state_of(self.module).items()}
        # A parameter that nothing reads is not in the module but belongs to the checkpoint.
        return self.trained(Weights({k: arrays.get(k, t) for k, t in self.weights.items()}))

    def best(self) -> Model:
        """The trained model; from its folder if it has one."""
        if self.folder is None:
            return self.good
        return replace(self.trained(Weights.open(self.folder)), folder=self.folder)

    def trained(self, weights: Weights) -> Model:
        """The model with other weights and the tokenizer they were trained with."""
        tokenizer = self.corpus.tokenizer
        ends = {"eos_token_id": list(tokenizer.eos_ids)} if tokenizer.eos_ids else {}
        return replace(self.model, weights=weights, tokenizer=tokenizer, generation={**self.model.generation, **ends})

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's moments under `<moment>.<parameter>`."""
        state = self.optimizer.state
        named = self.module.named_parameters()
        return {f"{m}.{k}": ArrayTensor(to_array(state[p][m])) for k, p in named if p in state for m in _MOMENTS}

    def resume(self) -> None:
        """Take weights, moments and step number from the folder. Raises TrainingError or WeightsError."""
        if self.folder is None:
            raise ConfigError("resume needs the folder of the run to go on with")
        weights, moments, self.done = self.saved(self.folder)
        if self.done > self.settings.steps:
            raise TrainingError(
                f"{self.done} steps are done but steps is {self.settings.steps}", place=str(self.folder)
            )
        load_state(self.module, weights)
        for name, p in self.module.named_parameters():
            if not p.requires_grad:
                continue
            arrays = {m: torch.from_numpy(np.array(moments.numpy(f"{m}.{name}"))).to(p.device) for m in _MOMENTS}
            if any(a.shape != p.shape for a in arrays.values()):
                raise TrainingError(f"moments of {name} do not have its shape {list(p.shape)}", place=OPTIMIZER)
            self.optimizer.state[p] = {"step": torch.tensor(float(self.done), device=p.device), **arrays}
        self.good, self.kept = self.snapshot(), self.done

    def failure(self, name: str, value: float) -> TrainingError:
        rate = self.optimizer.param_groups[0]["lr"]
        place = f"in {self.folder}" if self.folder is not None and self.kept else "in this error's `model`"
        error = TrainingError(
            f"{name} (of {self.settings.steps}) is {value}, at learning rate {rate:.3g}",
            details=[f"the weights after step {self.kept} are kept {place}"],
        )
        error.model = self.good
        return error


def _check_fit(model: Model, corpus: Source) -> None:
    if model.task != "causal-lm":
        raise ConfigError(f"{model.family.name} is a {model.task} model; a text trains only causal-lm models")
    vocab = model.graph().outputs["logits"].shape[-1]
    if isinstance(vocab, int) and vocab < corpus.vocab:
        raise ConfigError(f"the model has {vocab} tokens but the tokenizer of the corpus has {corpus.vocab}")
