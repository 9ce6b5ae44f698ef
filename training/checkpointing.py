"""What a checkpoint of a run contains, written and read; how its files are kept whole is told in checkpoint.py.

| file | what |
|------|------|
| model.safetensors and its config, or the adapter in PEFT's format | the weights as they are trained |
| optimizer.safetensors | `exp_avg.NAME` and `exp_avg_sq.NAME`: AdamW's moments; `ema.NAME`: the running average |
| sharded/ | in place of both, where several processes wrote: the same tensors in blocks, as they lie on each |
| best/ | the model with the lowest held-out loss, of a run with patience |
| state.json | `step`, `updates`, `kept` (step of best/), digests of the data, settings, what the evaluator and the scaler know |

The order of the data and random numbers follow from the seed and the step.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.torch import load_state
from ..backends.torch.tensors import to_array
from ..backends.torch.untyped import from_array
from ..ir.errors import ConfigError
from ..ir.tensors import ArrayTensor
from ..ir.weights import Weights
from . import sharded
from .checkpoint import BEST, CHECKPOINTS, MEANS, MOMENTS, OPTIMIZER, Checkpoint, latest, sweep, write_tensors, writing
from .errors import TrainingError
from .evaluator import Evaluator
from .kept import Kept
from .learner import Learner
from .settings import Settings
from .sharded import Blocks


@dataclass(frozen=True)
class DataDigests:
    """data: SHA-256 of the first batch; digest: of all the data, empty if the source does not say."""

    data: str
    digest: str


class Checkpointer:
    """Writes checkpoints into `folder`/checkpoints and takes a run up from them."""

    def __init__(
        self, folder: Path, learner: Learner, evaluator: Evaluator, kept: Kept, settings: Settings, digests: DataDigests
    ) -> None:
        self.folder, self.learner, self.evaluator, self.kept = folder, learner, evaluator, kept
        self.settings, self.digests, self.world = settings, digests, learner.world

    def existing(self) -> list[Path]:
        """The checkpoints in the folder, without what kills left half written."""
        return self.world.told(self._swept)

    def _swept(self) -> list[Path]:
        sweep(self.folder)
        return sorted((self.folder / CHECKPOINTS).glob("step-*"))

    # -- writing ---------------------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """Write a checkpoint, of a run with patience with the best weights so far. Raises TrainingError."""
        patience = self.settings.patience
        with writing(self.folder, step, self._state(), self.settings.keep, self.world) as into:
            self._write(into)
            if patience and self.kept.step and self.world.first:
                self.learner.trained.publish(into / BEST, self.kept.tuned)
        written = self.folder / CHECKPOINTS / f"step-{step:08d}"
        self._keep(Checkpoint(written, {"step": step, "kept": self.kept.step}))

    def _state(self) -> dict[str, Any]:
        """state.json, but for what checkpoint.py adds."""
        scaler = self.learner.scaler.state_dict()
        return {
            "updates": self.learner.updates,
            "kept": self.kept.step,
            "data": self.digests.data,
            "digest": self.digests.digest,
            "settings": self.settings.course(),
            "evaluation": self.evaluator.state(),
            **({"scaler": scaler} if scaler else {}),
            **self.learner.trained.notes(),
        }

    def _write(self, into: Path) -> None:
        """The tensors: one process writes files that load like a model, several write their blocks."""
        if self.world.alone:
            self.learner.trained.write(into, self.learner.stored())
            states = {f"{kind}.{k}": ArrayTensor(to_array(t)) for kind, k, t in _states(self.learner)}
            write_tensors(into / OPTIMIZER, states)
        else:
            sharded.write(into, _blocks(self.learner))

    # -- reading ---------------------------------------------------------------------------------------------------

    def resume(self, note: Callable[[str], None]) -> int:
        """Take up the newest whole checkpoint; gives its step.

        Raises TrainingError if none is whole, ConfigError for other settings or data.
        """
        found = self.world.told(lambda: latest(self.folder, note))
        _check_course(found, self.settings, self.digests)
        weights = self.learner.trained.read(found)
        if self.world.alone:
            load_state(self.learner.module, self.learner.weights | weights)
            _load_states(found, self.learner)
        else:
            _load_blocks(found, self.learner, weights)
        self.learner.updates = int(found.state["updates"])
        if not self.settings.patience or (found.folder / BEST).is_dir():
            # A best loss whose weights were not kept is none that a run with patience could go back to.
            self.evaluator.restore(found.state["evaluation"])
        if "scaler" in found.state:
            self.learner.scaler.load_state_dict(found.state["scaler"])
        self._keep(found)
        return found.step

    def _keep(self, found: Checkpoint) -> None:
        """The model of a checkpoint is the one that is kept: the best one if it has one, else the newest."""
        trained, place = self.learner.trained, str(found.folder)
        if self.settings.patience and (found.folder / BEST).is_dir():
            self.kept.hold(trained.published(found.folder / BEST), int(found.state["kept"]), place)
            return
        weights = trained.read(found)
        if found.sharded:
            weights = self.learner.weights | weights
        if self.learner.average is not None:
            weights = weights | _averages(found)
        self.kept.hold(trained.tuned(weights), found.step, place)


def _check_course(found: Checkpoint, settings: Settings, digests: DataDigests) -> None:
    """A run goes on to the same numbers only with the settings and the data it was begun with. Raises ConfigError."""
    before, now = found.state["settings"], settings.course()
    changed = [
        f"{k} is {now[k]!r}, but the run was begun with {before.get(k)!r}" for k in now if before.get(k) != now[k]
    ]
    if changed:
        hint = "to train on with other settings, begin a new run from the checkpoint"
        raise ConfigError(changed[0], place=str(found.folder), details=changed[1:], hint=hint)
    if found.state["data"] != digests.data:
        raise ConfigError("the first batch of the data is not the one the run was begun with", place=str(found.folder))
    if found.state.get("digest", digests.digest) != digests.digest:
        what = "the data is not the one the run was begun with: its first batch is the same, what comes later is not"
        raise ConfigError(what, place=str(found.folder))


# -- tensors beside the weights ------------------------------------------------------------------------------------


def _states(learner: Learner) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(kind, name of the parameter, tensor) of the moments of the optimizer and of the running average."""
    state = learner.optimizer.state
    for k, p in learner.module.named_parameters():
        if p in state:
            yield from ((m, k, state[p][m]) for m in MOMENTS)
    if learner.average is not None:
        yield from ((MEANS, k, t) for k, t in learner.average.means.items())


def _load_states(found: Checkpoint, learner: Learner) -> None:
    """Put back what `_states` gave. Raises TrainingError for a tensor of another shape."""
    stored, updates = found.optimizer(), float(found.state["updates"])
    for name, p in learner.module.named_parameters():
        if not p.requires_grad or f"{MOMENTS[0]}.{name}" not in stored:
            continue
        moments = {m: _like(stored, f"{m}.{name}", p) for m in MOMENTS}
        learner.optimizer.state[p] = {"step": torch.tensor(updates, device=p.device), **moments}
    if learner.average is not None:
        for name, mean in learner.average.means.items():
            mean.copy_(_like(stored, f"{MEANS}.{name}", mean))


def _averages(found: Checkpoint) -> Weights:
    """The running average in a checkpoint, by parameter."""
    stored = found.optimizer()
    return Weights({k.removeprefix(f"{MEANS}."): t for k, t in stored.items() if k.startswith(f"{MEANS}.")})


def _blocks(learner: Learner) -> dict[str, Blocks]:
    """What of optimizer and weights lies on this process, for a sharded checkpoint."""
    layout, trained = learner.layout, learner.trained
    every = [(k, k, t) for k, t in learner.module.state_dict(keep_vars=True).items() if trained.stores(k)]
    every += [(f"{kind}.{k}", k, t) for kind, k, t in _states(learner)]
    return {name: Blocks(layout.shape(k, t), t.dtype, layout.pieces(k, t)) for name, k, t in every}


def _load_blocks(found: Checkpoint, learner: Learner, weights: Weights) -> None:
    """Read what lies on this process of a checkpoint; `weights` are those in it, whole. Raises TrainingError."""
    states, updates = found.optimizer(), float(found.state["updates"])
    stored = states.keys() | weights.keys()
    for k, p in learner.module.named_parameters():
        if p.requires_grad and f"{MOMENTS[0]}.{k}" in stored:
            moments = {m: torch.zeros_like(p) for m in MOMENTS}
            learner.optimizer.state[p] = {"step": torch.tensor(updates, device=p.device), **moments}
    blocks = _blocks(learner)
    missing = sorted(blocks.keys() - stored)
    if missing:
        raise TrainingError(f"{missing[0]} is missing, and {len(missing) - 1} more", place=str(found.folder))
    if found.sharded:
        sharded.read(found.folder, blocks)
    else:
        for k, b in blocks.items():
            b.fill(states[k] if k in states else weights[k])


def _like(stored: Weights, name: str, like: torch.Tensor) -> torch.Tensor:
    array = from_array(np.array(stored.numpy(name)))
    if array.shape != like.shape:
        raise TrainingError(f"{name} is {list(array.shape)}, expected {list(like.shape)}", place=OPTIMIZER)
    return array.to(like.device)
