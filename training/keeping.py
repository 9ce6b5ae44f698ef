"""What is kept of a run: measurements, checkpoints, the last good model, and how a run begins, resumes and ends."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..backends.torch import load_state, state_of
from ..frontends.dsl import Model
from ..frontends.huggingface import save_pretrained
from ..ir.errors import ConfigError
from ..ir.tensors import ArrayTensor
from ..ir.weights import SINGLE, Weights
from . import checkpoint as checkpoints
from . import sharded
from .average import Average
from .checkpoint import BEST, OPTIMIZER, Checkpoint, write_tensors
from .errors import TrainingError
from .evaluate import Evaluation
from .layout import Spread
from .log import PLOT, Log, plot_losses
from .progress import Step
from .settings import Settings
from .signals import Stop
from .source import Source
from .state import blocks_of, check_course, load_blocks, load_optimizer, means_of, optimizer_state
from .world import World


class Keeping:
    """The half of a `Run` that looks after its state; `Run` sets the attributes and does the steps."""

    model: Model
    source: Source
    settings: Settings
    world: World
    spread: Spread
    folder: Path | None
    weights: Weights
    module: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    evaluation: Evaluation
    good: Model
    log: Log | None
    stop: Stop
    done: int
    updates: int
    kept: int
    safe: str
    data: str
    digest: str

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
        asked = self.world.any(self.stop.asked)
        if self.folder is not None and (self.done % s.checkpoint_every == 0 or over or asked):
            self.save(self.folder)
        if asked and not over:
            raise self.stopped()

    def save(self, folder: Path) -> None:
        """Write a checkpoint, of a run with patience with the best weights so far. Raises TrainingError."""
        if self.log is not None:
            self.log.flush()
        try:
            with checkpoints.writing(folder, self.done, self.state(), self.settings.keep, self.world) as into:
                self.write(into)
                if self.settings.patience and self.kept and self.world.first:
                    self.publish(into / BEST)
        except TrainingError as e:
            raise self.ended(e.what, details=e.details) from e
        written = folder / checkpoints.CHECKPOINTS / f"step-{self.done:08d}"
        self.hold(Checkpoint(written, {"step": self.done, "kept": self.kept}))

    def hold(self, found: Checkpoint) -> None:
        """Take the model that is kept from a checkpoint: the best one if it has one, else the newest."""
        best = self.settings.patience and (found.folder / BEST).is_dir()
        self.good = self.published(found.folder / BEST) if best else self.kept_model(found)
        self.kept, self.safe = int(found.state["kept"]) if best else found.step, str(found.folder)

    def write(self, into: Path) -> None:
        """The tensors of a checkpoint: one process writes files that load like a model, several write their parts."""
        if self.world.alone:
            self.write_weights(into, self.current())
            write_tensors(into / OPTIMIZER, optimizer_state(self.module, self.optimizer, self.average))
        else:
            sharded.write(into, blocks_of(self.spread, self.module, self.optimizer, self.average, self.keeps))

    def keeps(self, name: str) -> bool:
        """Whether a weight belongs to the checkpoint."""
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint notes beside tensors. Order of data and random numbers follow from seed and step."""
        scaler = self.scaler.state_dict()
        return {
            "updates": self.updates,
            "kept": self.kept,
            "data": self.data,
            "digest": self.digest,
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
        weights = self.weights | self.read_weights(found) if found.sharded else self.read_weights(found)
        return self.trained(weights if self.average is None else weights | means_of(found))

    def current(self) -> Weights:
        """The weights on the device, and those of the checkpoint that the module does not hold."""
        state = self.state_now()
        # A parameter that nothing reads is not in the module but belongs to the checkpoint.
        return Weights({k: state.get(k, t) for k, t in self.weights.items()})

    def snapshot(self) -> Model:
        """The model with a copy of the weights as they are now, which becomes the one that is kept."""
        now, held = self.current(), self.module.state_dict()
        copies = {k: ArrayTensor(t.numpy().copy()) if k in held else t for k, t in now.items()}
        return self.trained(Weights(copies))

    def now(self) -> Model:
        """The model with a copy of the weights as they are now, to measure."""
        return self.snapshot()

    def state_now(self) -> Weights:
        """What the module holds; of several processes, every one must ask, and each gets all of it."""
        if self.world.alone:
            return state_of(self.module)
        return Weights({k: ArrayTensor(self.spread.whole(k, t)) for k, t in self.module.state_dict().items()})

    def publish(self, folder: Path) -> None:
        """Write the last good model into the folder of the run."""
        save_pretrained(self.good, folder, max_shard_bytes=1 << 62)

    def finish(self, note: Callable[[str], None] = lambda text: None) -> Model:
        """The trained model; from its folder if it has one, where it is written first, with the plot."""
        if self.folder is None:
            return self.good
        folder = self.folder
        self.world.told(lambda: self.publish(folder))
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
        found = [] if self.folder is None else self.world.told(self.left)
        if resume and found:
            self.resume(note)
        elif resume:
            note(f"{self.folder} holds no checkpoint yet: beginning with step 1")
        elif found:
            what = f"holds a run that got to {found[-1].name}, which a new one would replace"
            raise ConfigError(what, place=str(self.folder), hint="resume it, or take another folder")

    def left(self) -> list[Path]:
        """The checkpoints in the folder of the run, without what kills left half written."""
        assert self.folder is not None
        checkpoints.sweep(self.folder)
        return sorted((self.folder / checkpoints.CHECKPOINTS).glob("step-*"))

    def resume(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Take up the newest whole checkpoint. Raises TrainingError if none is, ConfigError for other settings."""
        assert self.folder is not None
        folder = self.folder
        found = self.world.told(lambda: checkpoints.latest(folder, note))
        check_course(found, self.settings, self.data, self.digest)
        if self.world.alone:
            load_state(self.module, self.weights | self.read_weights(found))
            load_optimizer(found, self.module, self.optimizer, self.average)
        else:
            weights = self.read_weights(found)
            load_blocks(found, self.spread, self.module, self.optimizer, self.average, self.keeps, weights)
        self.done, self.updates = found.step, int(found.state["updates"])
        if not self.settings.patience or (found.folder / BEST).is_dir():
            # A best loss whose weights were not kept is none that a run with patience could go back to.
            self.evaluation.restore(found.state["evaluation"])
        if "scaler" in found.state:
            self.scaler.load_state_dict(found.state["scaler"])
        self.hold(found)
        note(f"{self.folder}: going on after step {self.done} of {self.settings.steps}")

    # -- when it goes wrong ----------------------------------------------------------------------------------------

    def failure(self, name: str, value: float) -> TrainingError:
        rate = self.optimizer.param_groups[0]["lr"]
        return self.ended(f"{name} (of {self.settings.steps}) is {value}, at learning rate {rate:.3g}")

    def stopped(self) -> TrainingError:
        name = self.stop.name or "a signal to another process"
        return self.ended(f"{name} ended the run after step {self.done} of {self.settings.steps}")

    def lost(self, e: Exception) -> TrainingError:
        """Another process does not answer any more: nothing can be agreed upon, and the first one saves what it has."""
        first = str(e).strip().splitlines()[:1] or [type(e).__name__]
        return self.ended(f"another process was lost after step {self.done}: {first[0]}", agreed=False)

    def ended(self, what: str, *, details: Sequence[str] = (), agreed: bool = True) -> TrainingError:
        """An error that holds the last good model, which is written to the folder of the run.

        agreed: all processes end here, so that the first one can tell whether it could write.
        """
        place = f"in {self.safe}" if self.safe else "in this error's `model`"
        if self.folder is not None and self.kept > 0:
            folder = self.folder
            with contextlib.suppress(OSError, TrainingError):  # A full disk has no room for a second copy.
                if agreed:
                    self.world.told(lambda: self.publish(folder))
                elif self.world.first:
                    self.publish(folder)
                place = f"in {folder}"
        error = TrainingError(what, details=[*details, f"the weights after step {self.kept} are kept {place}"])
        error.model = self.good
        return error
