"""Checkpoints of a run: `checkpoints/step-N` folders that appear whole, are checked on reading, and replace each other.

A checkpoint is written under a hidden name, flushed to disk, and renamed. Its last file, state.json, lists size and
SHA-256 of the others, so a checkpoint that a disk or a stray program damaged later is found out and passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.documents import parse_json, read_text
from ..ir.errors import MonographError
from ..ir.files import sync
from ..ir.manifest import sha256_of, sha256_of_json
from ..ir.safetensors import write_file
from ..ir.silent import silent
from ..ir.tensors import Tensor
from ..ir.weights import SINGLE, Weights
from . import sharded
from .errors import TrainingError
from .world import World

CHECKPOINTS, STATE, OPTIMIZER, BEST = "checkpoints", "state.json", "optimizer.safetensors", "best"
FORMAT = "monograph-run-2"
MOMENTS, MEANS = ("exp_avg", "exp_avg_sq"), "ema"
STATES = tuple(f"{name}." for name in (*MOMENTS, MEANS))
"""What names of tensors begin with that are no weights."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint. state: what the run noted, with `step` and its settings."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def sharded(self) -> bool:
        """Whether several processes wrote it."""
        return (self.folder / sharded.SHARDED).is_dir()

    def weights(self) -> Weights:
        if self.sharded:
            return sharded.open_sharded(self.folder, lambda name: not name.startswith(STATES))
        return Weights.open(self.folder / SINGLE)

    def optimizer(self) -> Weights:
        if self.sharded:
            return sharded.open_sharded(self.folder, lambda name: name.startswith(STATES))
        return Weights.open(self.folder / OPTIMIZER)


@contextlib.contextmanager
def writing(
    run: Path, step: int, state: Mapping[str, Any], keep: int, world: World | None = None
) -> Generator[Path, None, None]:
    """A folder to write the files of a checkpoint into; it becomes checkpoints/step-N when the block ends.

    With several processes each writes into the same folder, and the first one seals it when all have. Only the newest
    `keep` stay. Raises TrainingError when the disk is full or cannot be written, on all processes alike; then nothing
    of the new checkpoint is left and the older ones are untouched.
    """
    world = world or World()
    into = run / CHECKPOINTS
    hidden = into / world.told(lambda: f".step-{step:08d}.{uuid.uuid4().hex}.tmp")
    try:
        world.told(lambda: hidden.mkdir(parents=True))
        with world.together():
            yield hidden
        world.told(lambda: _put(hidden, into / f"step-{step:08d}", {**state, "format": FORMAT, "step": step}))
    except BaseException as e:
        if world.first:
            shutil.rmtree(hidden, ignore_errors=True)
        if isinstance(e, OSError):
            raise TrainingError(f"the checkpoint of step {step} cannot be written: {e.strerror}", place=str(run)) from e
        raise
    world.told(lambda: prune(into, keep, step))


def _put(hidden: Path, final: Path, state: Mapping[str, Any]) -> None:
    """Seal a folder and give it its name."""
    seal(hidden, state)
    if final.exists():  # Damaged, or the run was told to do the step again.
        final.rename(final.parent / f".{uuid.uuid4().hex}.tmp")
    hidden.rename(final)
    sync(final.parent)


def seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Write state.json over files that are there, and bring all of them to the disk."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        sync(path)
    told = {**state, "files": files}
    with (folder / STATE).open("w") as f:
        json.dump({**told, "sha256": sha256_of_json(told)}, f, indent=2)
        f.flush()
        os.fsync(f.fileno())
    for inner in (p for p in folder.rglob("*") if p.is_dir()):
        sync(inner)
    sync(folder)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with path.open("w+b") as f:
        write_file(f, tensors, {"format": "pt"})


def latest(run: Path, note: Callable[[str], None] | None = None) -> Checkpoint:
    """The newest whole checkpoint; `note` is told of newer, damaged ones. Raises TrainingError if none is whole."""
    problems: list[str] = []
    for folder in sorted((run / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            found = open_checkpoint(folder)
        except MonographError as e:
            problems.append(str(e))
            continue
        for text in problems:
            (note or silent)(f"{text}; going on from step {found.step}")
        return found
    raise TrainingError("has no whole checkpoint to go on from", place=str(run), details=problems)


def open_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint, every file of which has the size and the digest it was written with. Raises TrainingError."""
    try:
        state = parse_json(read_text(folder / STATE))
        fits = state["format"] == FORMAT and f"step-{state['step']:08d}" == folder.name
        whole = state.pop("sha256") == sha256_of_json(state)
        files = dict(state["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise TrainingError(f"{STATE} is damaged: {e!r}", place=str(folder)) from None
    if not fits:
        raise TrainingError(f"{STATE} is of {state['format']} and step {state['step']}", place=str(folder))
    if not whole:
        raise TrainingError(f"{STATE} is damaged: its SHA-256 is not the one it was written with", place=str(folder))
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["size"]:
            found = "is missing" if size is None else f"has {size} bytes, expected {expected['size']}"
            raise TrainingError(f"{name} {found}", place=str(folder))
        try:
            digest = sha256_of(path)
        except OSError as e:
            raise TrainingError(f"{name} cannot be read: {e.strerror}", place=str(folder)) from None
        if digest != expected["sha256"]:
            raise TrainingError(f"{name} is damaged: its SHA-256 is not the one it was written with", place=str(folder))
    return Checkpoint(folder, state)


def prune(into: Path, keep: int, step: int) -> None:
    """Remove all but the newest `keep` up to `step`, and what killed runs left half written.

    A checkpoint of a later step is one that was damaged when the run went on from an older one.
    """
    steps = sorted(into.glob("step-*"))
    past = [p for p in steps if p.name <= f"step-{step:08d}"]
    for old in [*past[:-keep], *steps[len(past) :]]:
        # Hidden first: a kill while files go leaves nothing that looks like a checkpoint.
        old.rename(into / f".{old.name}.{uuid.uuid4().hex}.tmp")
    sweep(into.parent)


def sweep(run: Path) -> None:
    """Remove what a kill left half written, or half removed, in the folder of a run."""
    for left in [*run.glob(".*.tmp"), *(run / CHECKPOINTS).glob(".*.tmp")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
