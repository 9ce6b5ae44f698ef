"""The training loop: AdamW on the PyTorch backend, for any model and source of batches of the same task."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..backends.torch import compiled, load_state, state_of, to_inputs
from ..frontends.dsl import Model
from ..frontends.huggingface import save_pretrained
from ..ir.errors import ConfigError
from ..ir.graph import Graph
from ..ir.tensors import ArrayTensor
from ..ir.weights import SINGLE, Weights
from ..passes.documents import drop_padding_mask
from ..passes.separate import separate_documents
from . import checkpoint as checkpoints
from .average import Average
from .checkpoint import BEST, OPTIMIZER, Checkpoint, write_tensors
from .errors import TrainingError
from .evaluate import Evaluation
from .log import PLOT, Log, plot_losses
from .loss import with_loss
from .memory import module_of
from .progress import Display, Step
from .schedule import parameter_groups, rate_at
from .settings import PRECISIONS, Settings
from .signals import Stop, stoppable
from .source import Batch, Source, check_fit, labels_of, split_rows, tokens_of
from .speed import Arithmetic
from .state import check_course, fingerprint, load_optimizer, means_of, optimizer_state, seeded

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
            run.arithmetic.measure_peak(run.settings)
        try:
            if run.folder is not None:
                run.log = stack.enter_context(Log(run.folder, run.done, tensorboard=tensorboard))
            run.stop = stack.enter_context(stoppable())
            for step in run:
                display.show(step)
                observe(step)
            return run.finish(display.note)
        except OSError as e:  # Most likely a full disk.
            raise run.ended(f"after step {run.done}: {e.strerror or e}") from e


class Run:
    """One training run: module, optimizer and the state that is known to be good. Iterating does the steps."""

    rows = 1
    """Of a batch, to each one that the setting `batch` counts."""

    def __init__(
        self, model: Model, source: Source, settings: Settings, folder: Path | None, metrics: Metrics | None = None
    ) -> None:
        check_fit(model, source)
        self.model, self.source, self.settings, self.folder = model, source, settings, folder
        graph = self.objective()
        self.inputs = list(graph.inputs)
        self.arithmetic = Arithmetic(graph)
        self.weights = self.first_weights(graph)
        self.module: Any = module_of(graph, self.weights, settings, self.trains, self.rows)
        self.forward = compiled(self.module) if settings.compile else self.module
        groups = parameter_groups(self.module, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(settings.kind, enabled=settings.precision == "f16")
        self.average = Average(self.module, settings.ema) if settings.ema else None
        if settings.patience and len(source.held_out) == 0:
            raise ConfigError(f"patience is {settings.patience}, but nothing of the data is held out to measure on")
        self.evaluation = Evaluation(self, metrics)
        self.done = self.updates = self.kept = 0
        self.good, self.safe = self.trained(self.weights), ""
        self.data = fingerprint(source, settings)
        self.log: Log | None = None
        self.stop = Stop()

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
        with seeded(self.settings, self.done):
            loss = self.backward(batch)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip).item()
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

    # -- what is kept ----------------------------------------------------------------------------------------------

    def measure(self) -> tuple[float | None, dict[str, float]]:
        """(held-out loss, metrics by name) of the weights that would be kept now. None without a held-out part."""
        with self.averaged():
            loss, metrics = self.evaluation.run()
            if loss is not None and not math.isfinite(loss):
                raise self.failure(f"held-out loss after step {self.done}", loss)
            if self.evaluation.worth_keeping and (self.folder is None or self.settings.patience):
                self.good, self.kept, self.safe = self.snapshot(), self.done, ""
        return loss, metrics

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            yield

    def keep(self, step: Step) -> None:
        """Log a step and, when it is time, write a checkpoint. Raises TrainingError when a signal ended the run."""
        if self.log is not None:
            self.log.write(step)
        s = self.settings
        assert s.checkpoint_every is not None
        over = self.done == s.steps or self.evaluation.exhausted
        if self.folder is not None and (self.done % s.checkpoint_every == 0 or over or self.stop.asked):
            self.save(self.folder)
        if self.stop.asked and not over:
            raise self.ended(f"{self.stop.name} ended the run after step {self.done} of {s.steps}")

    def save(self, folder: Path) -> None:
        """Write a checkpoint, of a run with patience with the best weights so far. Raises TrainingError."""
        if self.log is not None:
            self.log.flush()
        try:
            with checkpoints.writing(folder, self.done, self.state(), self.settings.keep) as into:
                self.write_weights(into, self.current())
                write_tensors(into / OPTIMIZER, optimizer_state(self.module, self.optimizer, self.average))
                if self.settings.patience and self.kept:
                    self.publish(into / BEST)
        except TrainingError as e:
            raise self.ended(e.what) from e
        written = folder / checkpoints.CHECKPOINTS / f"step-{self.done:08d}"
        self.hold(Checkpoint(written, {"step": self.done, "kept": self.kept}))

    def hold(self, found: Checkpoint) -> None:
        """Take the model that is kept from a checkpoint: the best one if it has one, else the newest."""
        best = self.settings.patience and (found.folder / BEST).is_dir()
        self.good = self.published(found.folder / BEST) if best else self.kept_model(found)
        self.kept, self.safe = int(found.state["kept"]) if best else found.step, str(found.folder)

    def state(self) -> dict[str, Any]:
        """What a checkpoint notes beside tensors. Order of data and random numbers follow from seed and step."""
        scaler = self.scaler.state_dict()
        return {
            "updates": self.updates,
            "kept": self.kept,
            "data": self.data,
            "settings": self.settings.course(),
            "evaluation": self.evaluation.state(),
            **({"scaler": scaler} if scaler else {}),
        }

    def write_weights(self, folder: Path, weights: Weights) -> None:
        """The weights as they are trained, as a folder that loads like any checkpoint."""
        save_pretrained(self.trained(weights), folder, max_shard_bytes=1 << 62)

    def read_weights(self, found: Checkpoint) -> Weights:
        return found.weights()

    def kept_model(self, found: Checkpoint) -> Model:
        """The model of a checkpoint: its weights, or their running mean."""
        if self.average is None:
            return self.trained(self.read_weights(found))
        return self.trained(self.read_weights(found) | means_of(found))

    def current(self) -> Weights:
        """The weights on the device, and those of the checkpoint that the module does not hold."""
        state = state_of(self.module)
        # A parameter that nothing reads is not in the module but belongs to the checkpoint.
        return Weights({k: state.get(k, t) for k, t in self.weights.items()})

    def snapshot(self) -> Model:
        """The model with a copy of the weights as they are now, which becomes the one that is kept."""
        state = state_of(self.module)
        copies = {k: ArrayTensor(t.numpy().copy()) if k in state else t for k, t in self.current().items()}
        return self.trained(Weights(copies))

    def now(self) -> Model:
        """The model with a copy of the weights as they are now, to measure."""
        return self.snapshot()

    def publish(self, folder: Path) -> None:
        """Write the last good model into the folder of the run."""
        save_pretrained(self.good, folder, max_shard_bytes=1 << 62)

    def finish(self, note: Callable[[str], None] = lambda text: None) -> Model:
        """The trained model; from its folder if it has one, where it is written first, with the plot."""
        if self.folder is None:
            return self.good
        self.publish(self.folder)
        if self.log is not None:
            try:
                plot_losses(self.folder)
            except ConfigError as e:
                note(f"no {PLOT}: {e}")
        return self.published(self.folder)

    def published(self, folder: Path) -> Model:
        return replace(self.good, weights=Weights.open(folder / SINGLE), folder=folder)

    def trained(self, weights: Weights) -> Model:
        """The model with other weights and the tokenizer they were trained with."""
        tokenizer = self.source.tokenizer
        ends = {"eos_token_id": list(tokenizer.eos_ids)} if tokenizer.eos_ids else {}
        return replace(self.model, weights=weights, tokenizer=tokenizer, generation={**self.model.generation, **ends})

    def begin(self, resume: bool, note: Callable[[str], None] = lambda text: None) -> None:
        """Begin anew or, with `resume`, where the run in the folder stopped, if it got as far as a checkpoint.

        Raises ConfigError if the folder holds another run that a new one would replace.
        """
        if self.module.plan is not None:
            note(str(self.module.plan).partition("\n")[0])
        if resume and self.folder is None:
            raise ConfigError("resume needs the folder of the run to go on with")
        if self.folder is not None:
            checkpoints.sweep(self.folder)
        found = [] if self.folder is None else sorted((self.folder / checkpoints.CHECKPOINTS).glob("step-*"))
        if resume and found:
            self.resume(note)
        elif resume:
            note(f"{self.folder} holds no checkpoint yet: beginning with step 1")
        elif found:
            what = f"holds a run that got to {found[-1].name}, which a new one would replace"
            raise ConfigError(what, place=str(self.folder), hint="resume it, or take another folder")

    def resume(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Take up the newest whole checkpoint. Raises TrainingError if none is, ConfigError for other settings."""
        assert self.folder is not None
        found = checkpoints.latest(self.folder, note)
        check_course(found, self.settings, self.data)
        load_state(self.module, self.weights | self.read_weights(found))
        load_optimizer(found, self.module, self.optimizer, self.average)
        self.done, self.updates = found.step, int(found.state["updates"])
        self.evaluation.restore(found.state["evaluation"])
        if "scaler" in found.state:
            self.scaler.load_state_dict(found.state["scaler"])
        self.hold(found)
        note(f"{self.folder}: going on after step {self.done} of {self.settings.steps}")

    # -- when it goes wrong ----------------------------------------------------------------------------------------

    def failure(self, name: str, value: float) -> TrainingError:
        rate = self.optimizer.param_groups[0]["lr"]
        return self.ended(f"{name} (of {self.settings.steps}) is {value}, at learning rate {rate:.3g}")

    def ended(self, what: str) -> TrainingError:
        """An error that holds the last good model, which is written to the folder of the run."""
        place = f"in {self.safe}" if self.safe else "in this error's `model`"
        if self.folder is not None and self.kept > 0:
            with contextlib.suppress(OSError):  # A full disk has no room for a second copy.
                self.publish(self.folder)
                place = f"in {self.folder}"
        error = TrainingError(what, details=[f"the weights after step {self.kept} are kept {place}"])
        error.model = self.good
        return error
