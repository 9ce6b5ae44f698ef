"""The tasks of a run by name: what a worker does, given the run folder and a few numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .duplicates import exact, near
from .encode import pack_shard, tokenize_part
from .files import read_json
from .minhash import related
from .parts import clean_piece
from .readers import Span
from .recipe import Recipe


def run_task(task: dict[str, Any]) -> Any:
    """Do a task unless its result is there already; gives the result. Raises DataError."""
    target = Path(task["target"])
    if not target.is_dir():
        run = Path(task["run"])
        TASKS[task["do"]](run, task, target)
    return read_json(target / "result.json")


def _recipe(run: Path) -> Recipe:
    return Recipe.of(read_json(run / "recipe.json"), str(run / "recipe.json"))


def _clean(run: Path, task: dict[str, Any], target: Path) -> None:
    with (run / "plan.jsonl").open(encoding="utf-8") as f:
        f.seek(task["at"])
        line = f.readline()
    clean_piece(_recipe(run), [Span(**span) for span in json.loads(line)], target)


def _exact(run: Path, task: dict[str, Any], target: Path) -> None:
    exact(run, task["range"], task["ranges"], target)


def _near(run: Path, task: dict[str, Any], target: Path) -> None:
    least = related(_recipe(run).duplicates)
    near(run, task["range"], task["ranges"], task["band"], least, target)


def _tokenize(run: Path, task: dict[str, Any], target: Path) -> None:
    tokenize_part(run, _recipe(run), task["part"], target)


def _pack(run: Path, task: dict[str, Any], target: Path) -> None:
    pack_shard(run, task["split"], task["number"], task["members"], target)


TASKS = {"clean": _clean, "exact": _exact, "near": _near, "tokenize": _tokenize, "pack": _pack}
