"""What of a run lies in tensors beside its weights: moments of the optimizer and the running mean, out and in."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..backends.torch.tensors import to_array
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import ConfigError
from ..ir.tensors import ArrayTensor, Tensor
from ..ir.weights import Weights
from . import sharded
from .average import Average
from .checkpoint import MEANS as _MEANS
from .checkpoint import MOMENTS as _MOMENTS
from .checkpoint import OPTIMIZER, Checkpoint
from .errors import TrainingError
from .layout import Spread
from .settings import Settings
from .sharded import Blocks
from .source import Source
from .world import World

_PLAIN = (str, int, float, type(None))
"""What JSON writes at once, as whole lists too."""


def optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> dict[str, Tensor]:
    """AdamW's moments under `<moment>.<parameter>`, and the running mean under `ema.<parameter>`."""
    return {f"{kind}.{k}": ArrayTensor(to_array(t)) for kind, k, t in _states(module, optimizer, average)}


def _states(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(what it is, name of the parameter, tensor) of all that is like a parameter."""
    for k, p in module.named_parameters():
        if p in optimizer.state:
            yield from ((m, k, optimizer.state[p][m]) for m in _MOMENTS)
    if average is not None:
        yield from ((_MEANS, k, t) for k, t in average.means.items())


def blocks_of(
    spread: Spread,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    kept: Callable[[str], bool],
) -> dict[str, Blocks]:
    """What of optimizer and weights, those that are `kept`, lies on this process, for a sharded checkpoint."""
    every = [(k, k, t) for k, t in module.state_dict(keep_vars=True).items() if kept(k)]
    every += [(f"{kind}.{k}", k, t) for kind, k, t in _states(module, optimizer, average)]
    return {name: Blocks(spread.shape(k, t), t.dtype, spread.pieces(k, t)) for name, k, t in every}


def load_blocks(
    found: Checkpoint,
    spread: Spread,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    kept: Callable[[str], bool],
    weights: Weights,
) -> None:
    """Read what lies on this process of a checkpoint; `weights` are those in it, whole. Raises TrainingError."""
    states, updates = found.optimizer(), float(found.state["updates"])
    stored = states.keys() | weights.keys()
    for k, p in module.named_parameters():
        if p.requires_grad and f"{_MOMENTS[0]}.{k}" in stored:
            moments = {m: torch.zeros_like(p) for m in _MOMENTS}
            optimizer.state[p] = {"step": torch.tensor(updates, device=p.device), **moments}
    blocks = blocks_of(spread, module, optimizer, average, kept)
    missing = sorted(blocks.keys() - stored)
    if missing:
        raise TrainingError(f"{missing[0]} is missing, and {len(missing) - 1} more", place=str(found.folder))
    if found.sharded:
        sharded.read(found.folder, blocks)
    else:
        for k, b in blocks.items():
            b.fill(states[k] if k in states else weights[k])


def load_optimizer(
    found: Checkpoint, module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Put back what `optimizer_state` gave. Raises TrainingError for a tensor of another shape."""
    stored, updates = found.optimizer(), float(found.state["updates"])
    for name, p in module.named_parameters():
        if not p.requires_grad or f"{_MOMENTS[0]}.{name}" not in stored:
            continue
        arrays = {m: _like(stored, f"{m}.{name}", p) for m in _MOMENTS}
        optimizer.state[p] = {"step": torch.tensor(updates, device=p.device), **arrays}
    for name, mean in {} if average is None else average.means.items():
        mean.copy_(_like(stored, f"{_MEANS}.{name}", mean))


def means_of(found: Checkpoint) -> Weights:
    """The running mean in a checkpoint, by parameter."""
    stored = found.optimizer()
    return Weights({k.removeprefix(f"{_MEANS}."): t for k, t in stored.items() if k.startswith(f"{_MEANS}.")})


@contextlib.contextmanager
def seeded(settings: Settings, step: int, world: World) -> Iterator[None]:
    """Randomness that depends on the seed and the step only, so that a resumed run goes on exactly.

    Processes that share layers draw the same numbers, those that have other rows draw others.
    """
    devices = [world.device] if settings.kind == "cuda" else []
    numbers = [settings.seed, step, *([world.data_rank] if world.data_rank else [])]
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        yield


def fingerprint(source: Source, settings: Settings) -> str:
    """SHA-256 of the first batch: another text, tokenizer or order of the data gives another."""
    first, digest = next(source.batches(settings.batch, settings.length, settings.seed, 0)), hashlib.sha256()
    for name in sorted(first):
        digest.update(f"{name} {first[name].dtype} {first[name].shape}".encode())
        digest.update(np.ascontiguousarray(first[name]).tobytes())
    return digest.hexdigest()


def digest_of(source: Source) -> str:
    """SHA-256 of all the data of a source but its tokenizer, also of what later batches take; empty if it does not say.

    Arrays and rows of its fields are read; what has a `digest` of its own, such as shards, is not read again.
    """
    digest = hashlib.sha256()
    try:
        _read_into(digest, source)
    except TypeError:  # Something that only its own class can read.
        return ""
    return digest.hexdigest()


def _read_into(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(getattr(value, "digest", None), str):
        digest.update(value.digest.encode())
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            field = getattr(value, f.name)
            # The ids tell of it; written out, a tokenizer is not the same text before and after a stay on the disk.
            if not isinstance(field, Tokenizer):
                digest.update(f.name.encode())
                _read_into(digest, field)
    elif isinstance(value, np.generic):
        _read_into(digest, np.asarray(value))
    elif isinstance(value, dict):
        _read_into(digest, sorted(value.items()))
    elif isinstance(value, (tuple, list)) and not all(isinstance(part, _PLAIN) for part in value):
        digest.update(f"{len(value)}".encode())
        for part in value:
            _read_into(digest, part)
    else:
        digest.update(json.dumps(value).encode())


def check_course(found: Checkpoint, settings: Settings, data: str, digest: str) -> None:
    """A run goes on to the same numbers only with the settings and the data it was begun with.

    data: of the first batch (see `fingerprint`); digest: of all the data (see `digest_of`). Raises ConfigError.
    """
    before, now = found.state["settings"], settings.course()
    changed = [
        f"{k} is {now[k]!r}, but the run was begun with {before.get(k)!r}" for k in now if before.get(k) != now[k]
    ]
    if changed:
        hint = "to train on with other settings, begin a new run from the checkpoint"
        raise ConfigError(changed[0], place=str(found.folder), details=changed[1:], hint=hint)
    if found.state["data"] != data:
        raise ConfigError("the first batch of the data is not the one the run was begun with", place=str(found.folder))
    if found.state.get("digest", digest) != digest:
        what = "the data is not the one the run was begun with: its first batch is the same, what comes later is not"
        raise ConfigError(what, place=str(found.folder))


def _like(stored: Weights, name: str, like: torch.Tensor) -> torch.Tensor:
    array = torch.from_numpy(np.array(stored.numpy(name)))
    if array.shape != like.shape:
        raise TrainingError(f"{name} is {list(array.shape)}, expected {list(like.shape)}", place=OPTIMIZER)
    return array.to(like.device)
