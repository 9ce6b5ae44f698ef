"""A data run from a recipe to shards: stages in order, each done once, resumed at the task where a run was stopped.

The manifest of a run names for each stage its key: a digest of the stage's settings and of the key before it, which
starts with the names, sizes and times of the input files. A stage whose key is in the manifest is not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..frontends.tokenizer import Tokenizer
from . import report, tokenizers
from .duplicates import clusters, merge_exact, ranges
from .encode import open_tokenizer, plan_shards, tokenizer_texts
from .engine import Engine, Local, Task
from .errors import DataError
from .files import exclusive, read_json, remove_unfinished, whole_folder, write_json
from .minhash import bands
from .parts import Parts
from .readers import find, plan, to_json
from .recipe import Recipe, digest
from .shards import SIDES, Shards
from .tables import is_table

FORMAT = 1
"""Raised when a stage gives another result for the same input: older runs are then not gone on with."""
STAGES = ("plan", "clean", "exact", "near", "clusters", "tokenizer", "tokenize", "pack", "report")
_MADE = {
    "plan": ("plan.jsonl",),
    "clean": ("clean", "parts.json"),
    "exact": ("exact",),
    "near": ("near",),
    "clusters": ("clusters",),
    "tokenizer": ("tokenizer", "tokenizer.json"),
    "tokenize": ("tokens",),
    "pack": ("packed", "shards"),
    "report": ("report.json", "report.html"),
}
_EXACT_ROW, _NEAR_ROW = 20, 12

Show = Callable[[str, int, int], None]
"""Told (stage, tasks done, tasks in all) as a run goes on."""


def prepare(
    recipe: Recipe | str | Path,
    folder: str | Path,
    *,
    engine: Engine | None = None,
    redo: bool = False,
    show: Show | None = None,
) -> dict[str, Any]:
    """Turn a corpus into shards under `folder`; gives the report (report.json). Training reads it by `Dataset.open`.

    engine: who does the work; None: this process. What the shards hold depends on recipe and input only. A run that
    was stopped goes on where it stopped. redo: make again what was made with other settings or input, which is
    otherwise an error. Raises ConfigError for the recipe and DataError for input, run folder or engine.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    engine = engine or Local()
    try:
        return _Run(recipe, Path(folder), engine, redo, show or (lambda stage, done, of: None)).go()
    finally:
        engine.close()


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, engine: Engine, redo: bool, show: Show) -> None:
        self.recipe, self.folder, self.engine, self.redo, self.show = recipe, folder.absolute(), engine, redo, show
        self.manifest: dict[str, Any] = {"format": FORMAT, "stages": {}}

    def go(self) -> dict[str, Any]:
        keys = self._keys()
        if not (self.folder / "manifest.json").exists():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise DataError("is not empty and holds no data run", place=str(self.folder))
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "manifest.json", self.manifest)
        with exclusive(self.folder):
            self._open(keys)
            write_json(self.folder / "recipe.json", self.recipe.to_dict())
            self._stages(keys)
        return read_json(self.folder / "report.json")

    def _stages(self, keys: dict[str, str]) -> None:
        for name in STAGES:
            entry = self.manifest["stages"].get(name, {})
            if "counts" in entry:
                continue
            # The key is written before the work: a run that was killed must not mix results of two recipes.
            entry = self.manifest["stages"][name] = {"key": keys[name], "settings": self._settings(name)}
            write_json(self.folder / "manifest.json", self.manifest)
            began = time.perf_counter()
            counts = getattr(self, f"_{name}")()
            entry |= {"seconds": round(time.perf_counter() - began, 3), "counts": counts}
            write_json(self.folder / "manifest.json", self.manifest)

    def counts(self, stage: str) -> dict[str, Any]:
        return self.manifest["stages"][stage]["counts"]

    # Settings and keys

    def _settings(self, stage: str) -> dict[str, Any]:
        """What a stage depends on besides the stages before it."""
        r = self.recipe.to_dict()
        signatures = {k: v for k, v in r["duplicates"].items() if k != "exact"}
        return {
            "plan": {"input": r["input"], "piece_bytes": r["work"]["piece_bytes"]},
            "clean": {"clean": r["clean"], "signatures": signatures},
            "exact": {"memory_bytes": r["work"]["memory_bytes"]},
            "near": {"duplicates": r["duplicates"]},
            "tokenizer": {"tokenizer": r["tokenizer"], "split": r["split"], "file": self._given_tokenizer()},
            "pack": {"shards": r["shards"]},
        }.get(stage, {})

    def _given_tokenizer(self) -> str | None:
        path = Path(self.recipe.tokenizer.path) / "tokenizer.json"
        return digest(path.read_text(encoding="utf-8")) if self.recipe.tokenizer.path and path.is_file() else None

    def _keys(self) -> dict[str, str]:
        files = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in find(self.recipe.input)]
        keys: dict[str, str] = {}
        before = digest([FORMAT, files])
        for name in STAGES:
            before = keys[name] = digest([name, before, self._settings(name)])
        return keys

    def _open(self, keys: dict[str, str]) -> None:
        """Read the manifest, and take away what does not fit it. Raises DataError when that would lose results."""
        self.manifest = read_json(self.folder / "manifest.json")
        remove_unfinished(self.folder)
        done = self.manifest.get("stages", {})
        stale = next((s for s in STAGES if s in done and done[s]["key"] != keys[s]), None)
        if stale is not None and not self.redo:
            raise DataError(
                f"was made with other settings or another input from the stage {stale!r} on",
                place=str(self.folder),
                details=_differences(done[stale]["settings"], self._settings(stale)),
                hint="--redo makes it anew from there; or choose another folder",
            )
        if stale is not None:
            self._forget(STAGES[: STAGES.index(stale)])

    def _forget(self, valid: tuple[str, ...]) -> None:
        """Keep the results of the stages in `valid` only."""
        self.manifest["stages"] = {s: e for s, e in self.manifest["stages"].items() if s in valid}
        write_json(self.folder / "manifest.json", self.manifest)
        for stage in STAGES:
            for name in () if stage in valid else _MADE[stage]:
                made = self.folder / name
                if made.is_dir():
                    shutil.rmtree(made)
                else:
                    made.unlink(missing_ok=True)

    # Stages

    def _map(self, stage: str, tasks: list[Task], keep: Callable[[Any], Any] = lambda result: result) -> list[Any]:
        """What `keep` takes of each result, in the order of the tasks; all else stays on disk."""
        results: list[Any] = [None] * len(tasks)
        self.show(stage, 0, len(tasks))
        for done, (i, result) in enumerate(self.engine.map(tasks), 1):
            results[i] = keep(result)
            self.show(stage, done, len(tasks))
        return results

    def _task(self, do: str, target: str, **more: Any) -> Task:
        return {"do": do, "run": str(self.folder), "target": str(self.folder / target), **more}

    def _plan(self) -> dict[str, Any]:
        work = self.folder / ".plan.jsonl.tmp"
        pieces = files = size = 0
        with work.open("w", encoding="utf-8") as f:
            for piece in plan(self.recipe.input, self.recipe.work.piece_bytes):
                f.write(json.dumps(to_json(piece)) + "\n")
                pieces, files, size = pieces + 1, files + len(piece), size + sum(s.size for s in piece)
        work.replace(self.folder / "plan.jsonl")
        return {"pieces": pieces, "spans": files, "bytes": size}

    def _clean(self) -> dict[str, Any]:
        tasks: list[Task] = []
        at = 0
        with (self.folder / "plan.jsonl").open("rb") as f:
            for i, line in enumerate(f):
                tasks.append(self._task("clean", f"clean/{i:06d}", at=at))
                at += len(line)
        results = self._map("clean", tasks, lambda r: {"parts": r["parts"], "digest": r["digest"]})
        parts = [[i, j, p["documents"]] for i, r in enumerate(results) for j, p in enumerate(r["parts"])]
        if not parts:
            raise DataError("no document is left after cleaning", details=report.removals(self.folder))
        write_json(self.folder / "parts.json", parts)
        characters = sum(p["characters"] for r in results for p in r["parts"])
        inputs = digest([r["digest"] for r in results])
        return {"parts": len(parts), "documents": sum(n for *_, n in parts), "characters": characters, "inputs": inputs}

    def _exact(self) -> dict[str, Any]:
        documents = self.counts("clean")["documents"]
        count = ranges(documents, _EXACT_ROW, self.recipe.work.memory_bytes)
        tasks = [self._task("exact", f"exact/{i:06d}", range=i, ranges=count) for i in range(count)]
        self._map("exact", tasks)
        shutil.rmtree(self.folder / "exact" / "merged", ignore_errors=True)
        found = merge_exact(self.folder, documents, [Path(t["target"]) for t in tasks])
        return {"ranges": count, "duplicates": found}

    def _near(self) -> dict[str, Any]:
        tasks = self._near_tasks()
        results = self._map("near", tasks)
        return {
            "bands": list(bands(self.recipe.duplicates)) if tasks else [],
            "candidates": sum(r["candidates"] for r in results),
            "links": sum(r["links"] for r in results),
        }

    def _near_tasks(self) -> list[Task]:
        if self.recipe.duplicates.near == "off":
            return []
        count = ranges(self.counts("clean")["documents"], _NEAR_ROW, self.recipe.work.memory_bytes)
        return [
            self._task("near", f"near/{band:03d}-{i:06d}", band=band, range=i, ranges=count)
            for band in range(bands(self.recipe.duplicates)[0])
            for i in range(count)
        ]

    def _clusters(self) -> dict[str, Any]:
        shutil.rmtree(self.folder / "clusters", ignore_errors=True)
        edges = [Path(t["target"]) for t in self._near_tasks()]
        return clusters(self.folder, self.counts("clean")["documents"], edges, self.recipe.duplicates.threshold)

    def _tokenizer(self) -> dict[str, Any]:
        settings = self.recipe.tokenizer
        if not (self.folder / "tokenizer").is_dir():
            self.show("tokenizer", 0, 1)
            if settings.path:
                tokenizer = open_tokenizer(settings.path)
            else:
                sample = settings.sample_bytes / max(self.counts("clean")["characters"], 1)
                texts = tokenizer_texts(self.folder, self.recipe, sample)
                tokenizer = tokenizers.train(settings.kind, texts, settings.vocab, settings.task)
            with whole_folder(self.folder / "tokenizer") as folder:
                tokenizer.save(folder)
        tokenizer = Tokenizer.open(self.folder / "tokenizer")
        about = {
            "vocab": tokenizer.size,
            "digest": digest(json.loads((self.folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))),
            "document_end": tokenizers.document_end(tokenizer),
        }
        write_json(self.folder / "tokenizer.json", about)
        self.show("tokenizer", 1, 1)
        return about

    def _tokenize(self) -> dict[str, Any]:
        parts = Parts.of(self.folder)
        results = self._map("tokenize", [self._task("tokenize", f"tokens/{i:06d}", part=i) for i in range(len(parts))])
        totals = {s: {k: sum(r[s][k] for r in results) for k in results[0][s]} for s in SIDES}
        return {"splits": totals}

    def _pack(self) -> dict[str, Any]:
        count = len(Parts.of(self.folder))
        results = [read_json(self.folder / "tokens" / f"{i:06d}" / "result.json") for i in range(count)]
        tasks: list[Task] = []
        numbers = dict.fromkeys(SIDES, 0)
        for split, members in plan_shards(results, self.recipe.shards.tokens):
            target = f"packed/{split}-{numbers[split]:06d}"
            tasks.append(self._task("pack", target, split=split, number=numbers[split], members=members))
            numbers[split] += 1
        headers = self._map("pack", tasks)
        about = read_json(self.folder / "tokenizer.json")
        splits = {
            s: {
                "shards": numbers[s],
                **{k: sum(h[k] for h in headers if h["split"] == s) for k in ("documents", "tokens")},
            }
            for s in SIDES
        }
        tokenizer = {"tokenizer": about["digest"], "vocab": about["vocab"], "document_end": about["document_end"]}
        self._publish(tasks, {"format": FORMAT, "splits": splits, **tokenizer})
        return {"splits": splits}

    def _publish(self, tasks: list[Task], about: dict[str, Any]) -> None:
        """Move the shards of all tasks into one folder, which appears whole."""
        shutil.rmtree(self.folder / "shards", ignore_errors=True)
        with whole_folder(self.folder / "shards") as folder:
            for task in tasks:
                for file in Path(task["target"]).iterdir():
                    if file.name != "result.json":
                        _link(file, folder / file.name)
            shutil.copytree(self.folder / "tokenizer", folder / "tokenizer")
            write_json(folder / "dataset.json", about)
        Shards(self.folder / "shards")

    def _report(self) -> dict[str, Any]:
        report.write(self.folder, self.recipe, self.manifest, self.engine.name)
        return {}


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if is_table(before) and is_table(now):
        keys = dict.fromkeys([*before, *now])
        return [line for k in keys for line in _differences(before.get(k), now.get(k), f"{name}.{k}".lstrip("."))]
    return [] if before == now else [f"{name} was {before!r} and is {now!r}"]
