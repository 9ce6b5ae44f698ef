"""The training loop: a run holds its parts and does the steps, for any model and source of batches of the same task.

Each part is told of in its own file and knows nothing of the loop: the objective (what is made small), the learner
(module, optimizer, running average), the evaluator (held-out part, patience), the checkpointer (what is on disk to go
on from) and what is kept (the model the run gives).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from ..data.batch import Batch, tokens_of, unit_of
from ..frontends.dsl import Model
from ..frontends.given import model_of
from ..frontends.own import check_not_reading
from ..ir.errors import ConfigError
from ..ir.silent import silent
from .checkpointing import Checkpointer, DataDigests
from .errors import TrainingError
from .evaluator import Evaluator, Metrics
from .fingerprint import digest_of, fingerprint
from .kept import Kept
from .learner import Learner
from .lock import held
from .log import PLOT, Log, plot_losses
from .objective import Objective, objective_of, shares_of
from .progress import Display, Step, preparing
from .schedule import rate_at
from .seeding import seeded
from .settings import Settings
from .signals import Stop, stoppable
from .source import Source, check_fit, fitted
from .speed import Arithmetic
from .trained_weights import FullWeights, TrainedWeights, Tuned
from .world import World, is_lost, left_on_error, rank_here


def train(
    model: Model,
    source: Source,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    observe: Callable[[Step], None] | None = None,
    metrics: Metrics | None = None,
    **settings: Any,
) -> Model:
    """Train a model; gives it with its new weights and the tokenizer of the data.

    source: a `Corpus`, the `Dataset` that `monograph data` made, or another `Source` for the model's task. settings:
    the fields of `monograph.training.settings.Settings`, of which only `steps` must be given. folder: gets checkpoints,
    log.jsonl, loss.png and, at the end, the model in Hugging Face layout; None keeps all in memory. resume: go on with
    the run in `folder`. observe: called with every Step, on every process. metrics: called at every evaluation with
    the model at that step; what it returns is logged by name.

    Several processes (of `torchrun`, or of a process group that is there) all call it alike and get the same model;
    the first one logs and writes. SIGINT and SIGTERM end the run after a checkpoint. Raises ConfigError for invalid
    settings and for a folder that another run uses, and TrainingError when loss or gradient stop being finite,
    the disk is full, a signal came or another process was lost; the last good weights are in `folder`, and in the
    error's `model`.
    """
    check_not_reading("mg.train is called")
    model_of(model, "train")
    with left_on_error(), preparing("preparing the first step", progress and not rank_here()):
        run = Run(model, source, Settings.of(settings), None if folder is None else Path(folder), metrics)
    return drive(run, resume=resume, progress=progress, tensorboard=tensorboard, observe=observe).model


def drive(
    run: Run,
    *,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    observe: Callable[[Step], None] | None = None,
) -> Tuned:
    """Do the steps of a run and show them; gives what was trained."""
    check_not_reading("a model is trained")
    shown = progress and run.world.first
    with Display(run.settings.steps, shown) as display, contextlib.ExitStack() as stack:
        note = display.note if run.world.first else silent
        stack.callback(run.world.close)
        _lock(run, stack, note)
        stack.enter_context(_told(run))
        run.begin(resume, note)
        if shown:
            run.arithmetic.measure_peak(run.settings)
        if run.folder is not None and run.world.first:
            run.log = stack.enter_context(Log(run.folder, run.done, tensorboard=tensorboard))
        run.stop = stack.enter_context(stoppable())
        for step in run:
            display.show(step)
            (observe or silent)(step)
        return run.finish(note)


def _lock(run: Run, stack: contextlib.ExitStack, note: Callable[[str], None]) -> None:
    """The first process holds the folder for all until the stack ends, after what an error still writes there."""
    folder = run.folder
    if folder is not None:
        with _told(run):
            run.world.told(lambda: stack.enter_context(held(folder, note)))


@contextlib.contextmanager
def _told(run: Run) -> Generator[None]:
    """A full disk, and another process that ends or does not answer, become a TrainingError with the last model."""
    try:
        yield
    except OSError as e:
        raise run.kept.error(f"after step {run.done}: {e.strerror or e}", agreed=run.world.alone) from e
    except RuntimeError as e:
        if run.world.alone or not is_lost(e):
            raise
        # Nothing can be agreed upon any more, and the first process saves what it has.
        first = str(e).strip().splitlines()[:1] or [type(e).__name__]
        what = f"another process was lost after step {run.done}: {first[0]}"
        raise run.kept.error(what, agreed=False) from e


class Run:
    """One training run. Iterating does the steps; `done` of them are behind it.

    objective: None is the loss of the labels. trained: None is all weights of the model.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        settings: Settings,
        folder: Path | None = None,
        metrics: Metrics | None = None,
        *,
        objective: Objective | None = None,
        trained: TrainedWeights | None = None,
    ) -> None:
        source = fitted(model, source)
        check_fit(model, source, settings.length)
        if settings.patience and len(source.held_out) == 0:
            raise ConfigError(f"patience is {settings.patience}, but nothing of the data is held out to measure on")
        self.source, self.settings, self.folder = source, settings, folder
        self.objective = objective or objective_of(model, settings.label_smoothing)
        trained = trained or FullWeights(model, source)
        graph = self.objective.graph(trained.graph)
        self.world = World.of(settings)
        self.arithmetic = Arithmetic(graph, self.world.size, trained.trains)
        rows, static = self.objective.rows_per_unit * settings.batch, bool(getattr(source, "static", False))
        self.learner = Learner(graph, trained, settings, self.world, rows=rows, static=static)
        self.objective.prepare(self.learner)
        self.evaluator = Evaluator(self.learner, self.objective, source, metrics)
        self.kept = Kept(trained, self.world, folder, trained.tuned(self.learner.weights))
        self.checkpointer: Checkpointer | None = None
        data = fingerprint(source, settings)
        if folder is not None:
            digests = DataDigests(data, digest_of(source))
            self.checkpointer = Checkpointer(folder, self.learner, self.evaluator, self.kept, settings, digests)
        self.done = 0
        self.log: Log | None = None
        self.stop = Stop()

    # -- beginning and end -----------------------------------------------------------------------------------------

    def begin(self, resume: bool, note: Callable[[str], None] = silent) -> None:
        """Begin anew or, with `resume`, where the run in the folder stopped, if it got as far as a checkpoint.

        Raises ConfigError if the folder holds another run that a new one would replace.
        """
        if self.learner.module.plan is not None:
            note(str(self.learner.module.plan).partition("\n")[0])
        if self.checkpointer is None:
            if resume:
                raise ConfigError("resume needs the folder of the run to go on with")
            return
        found = self.checkpointer.existing()
        if resume and found:
            self.done = self.checkpointer.resume(note)
            note(f"{self.folder}: going on after step {self.done} of {self.settings.steps}")
        elif resume:
            note(f"{self.folder} holds no checkpoint yet: beginning with step 1")
        elif found:
            what = f"holds a run that got to {found[-1].name}, which a new one would replace"
            hint = "go on with --resume (in Python, resume=True), or take another folder"
            raise ConfigError(what, place=str(self.folder), hint=hint)

    def finish(self, note: Callable[[str], None] = silent) -> Tuned:
        """What was trained; from its folder if it has one, where it is written first, with the plot."""
        result = self.kept.finish()
        if self.log is not None and self.folder is not None:
            try:
                plot_losses(self.folder)
            except ConfigError as e:
                note(f"no {PLOT}: {e}")
        return result

    # -- steps -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Step]:
        s, first, tokens, training = self.settings, self.done, 0, 0.0
        batches = self.source.batches(s.batch, s.length, s.seed, first)
        begin = time.perf_counter()
        while self.done < s.steps and not self.evaluator.exhausted:
            start, batch = time.perf_counter(), next(batches)
            rate = rate_at(self.done, s)
            loss, norm = self.step(batch, rate)
            self.done += 1
            seconds = time.perf_counter() - start
            tokens, training = tokens + tokens_of(batch), training + seconds
            held_out, metrics = None, None
            if self.done % s.between_measurements == 0 or self.done == s.steps:
                held_out, metrics = self.measure()
            passed = time.perf_counter() - begin
            left = passed / (self.done - first) * (s.steps - self.done)
            self.arithmetic.raise_peak(batch, seconds)
            speed, share = tokens / training, self.arithmetic.share(batch, seconds)
            step = Step(
                self.done, s.steps, loss, held_out, rate, norm, speed, passed, left, share, metrics, unit_of(batch)
            )
            self.keep(step)
            yield step

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """One update; (loss before it, gradient norm before clipping). Raises TrainingError, updating nothing."""
        self.learner.begin_update(rate)
        with seeded(self.settings, self.done, self.world):
            loss = self.backward(batch)
        norm = self.learner.clip()
        if not math.isfinite(loss):
            raise self.failure(f"loss of step {self.done + 1}", loss)
        if not math.isfinite(norm) and not self.learner.may_overflow:
            raise self.failure(f"gradient norm of step {self.done + 1}", norm)
        self.learner.update(norm)
        return loss, norm

    def backward(self, batch: Batch) -> float:
        """Gradients of the mean loss over all labels of the batch, share by share; gives that loss."""
        shares = shares_of(self.objective, self.world, batch, self.settings.accumulate)
        mean, total = 0.0, max(self.objective.count(batch), 1)
        for i, (share, number) in enumerate(shares, 1):
            with self.learner.gradients(last=i == len(shares)):
                loss = self.objective.loss(self.learner, share)
                if number != total:
                    loss = loss * (number / total)
                self.learner.backward(loss)
            mean += loss.item()
        return self.world.sum(mean)[0]

    def measure(self) -> tuple[float | None, dict[str, float]]:
        """(held-out loss, metrics by name) of the weights that would be kept now. None without a held-out part."""
        with self.learner.averaged():
            loss, metrics = self.evaluator.measure()
            if loss is not None and not math.isfinite(loss):
                raise self.failure(f"held-out loss after step {self.done}", loss)
            if self.evaluator.worth_keeping and (self.folder is None or self.settings.patience):
                self.kept.hold(self.learner.snapshot(), self.done)
        return loss, metrics

    def keep(self, step: Step) -> None:
        """Log a step and, when it is time, write a checkpoint. Raises TrainingError when a signal ended the run."""
        if self.log is not None:
            self.log.write(step)
        over = self.done == self.settings.steps or self.evaluator.exhausted
        asked = self.world.any(self.stop.asked)
        if self.checkpointer is not None and (self.done % self.settings.between_checkpoints == 0 or over or asked):
            if self.log is not None:
                self.log.flush()
            try:
                self.checkpointer.save(self.done)
            except TrainingError as e:
                raise self.kept.error(e.what, details=e.details) from e
        if asked and not over:
            raise self.stopped()

    def stopped(self) -> TrainingError:
        """The error of a run that a signal ended: what goes on with it, and the exit code that shells expect."""
        name = self.stop.name or "a signal to another process"
        hint = "--resume (in Python, resume=True) goes on from there" if self.checkpointer is not None else ""
        what = f"{name} ended the run after step {self.done} of {self.settings.steps}"
        error = self.kept.error(what, hint=hint)
        error.exit_code = self.stop.exit_code
        return error

    def failure(self, name: str, value: float) -> TrainingError:
        what = f"{name} (of {self.settings.steps}) is {value}, at learning rate {self.learner.rate:.3g}"
        return self.kept.error(what)
