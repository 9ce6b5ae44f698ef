"""Losses of the first steps of every recipe, to the last bit: two states of the code that train alike print the same.

The recipes of examples/recipes/, DPO with a LoRA and of all weights, and a run with every feature of the loop. Data is
made by examples/king_james.py and examples/english_french.py; weights are fetched. Compare two files with `diff`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monograph.frontends.huggingface import save_pretrained
from monograph.ir.weights import Weights
from monograph.runs import follow, prepare
from monograph.training.progress import Step
from monograph.training.recipe import Recipe

ROOT = Path(__file__).parent.parent
RECIPES, DATA = ROOT / "examples" / "recipes", ROOT / "out" / "data"
PAIRS = 400
"""Of answers, in the preferences that are made of the translations: the right one and that of the next row."""

MORE: dict[str, dict[str, Any]] = {
    "dpo_lora": {
        "model": {"path": "smollm2"},
        "data": {"kind": "preferences", "paths": ["preferences.jsonl"], "held_out": 0.02},
        "dpo": {"beta": 0.1},
        "lora": {"rank": 8, "dropout": 0.1},
        "train": {"steps": 200, "batch": 2, "length": 64},
    },
    "dpo": {
        "model": {"path": "smollm2"},
        "data": {"kind": "preferences", "paths": ["preferences.jsonl"], "held_out": 0.02},
        "dpo": {"beta": 0.3},
        "train": {"steps": 200, "batch": 1, "length": 64, "learning_rate": 1e-5},
    },
    "lora_8_bits": {
        "model": {"path": "smollm2"},
        "data": {"kind": "instructions", "paths": ["en-fr-chat.jsonl"], "held_out": 0.01},
        "lora": {"rank": 4, "quantized": True},
        "train": {"steps": 200, "batch": 2, "length": 64},
    },
    "features": {
        "model": {
            "family": "gpt2",
            "config": {"dim": 64, "heads": 4, "layers": 2, "max_positions": 64, "dropout": 0.1},
        },
        "data": {"paths": ["kjv.txt"], "held_out": 0.01},
        "tokenizer": {"vocab": 512},
        "train": {
            "steps": 200, "batch": 8, "length": 64, "accumulate": 2, "ema": 0.9, "label_smoothing": 0.1, "memory": 1,
            "precision": "bf16", "schedule": "wsd", "patience": 3, "seed": 7,
        },
    },
}  # fmt: skip
"""Recipes beside those of the examples; data and models without a folder are those of the examples."""


class EnoughStepsError(Exception):
    """The run has shown what was asked for."""


def recipes(work: Path) -> dict[str, dict[str, Any]]:
    """Tables of every recipe by name, with whole paths."""
    found = {p.stem: tomllib.loads(p.read_text()) for p in sorted(RECIPES.glob("*.toml"))} | MORE
    for tables in found.values():
        paths = [work / p if p == "preferences.jsonl" else DATA / Path(p).name for p in tables["data"]["paths"]]
        tables["data"]["paths"] = [str(p) for p in paths]
    found["classify"]["model"]["path"] = str(work / "bert")
    found["bert"]["tokenizer"] = {"path": str(wordpiece(found["bert"]))}
    return found


def write_preferences(path: Path) -> None:
    """Pairs of answers: each translation against that of the next row."""
    lines = (DATA / "en-fr-chat.jsonl").read_text().splitlines()[: PAIRS + 1]
    chats = [json.loads(line)["messages"] for line in lines]
    rows = [{"prompt": a[:1], "chosen": a[1:], "rejected": b[1:]} for a, b in itertools.pairwise(chats)]
    path.write_text("\n".join(map(json.dumps, rows)))


def wordpiece(tables: Mapping[str, Any]) -> Path:
    """The tokenizer of bert.toml, beside the data and trained once: its trainer does not give the same one twice."""
    folder = DATA / "bert-tokenizer"
    if not folder.exists():
        prepare(Recipe.of(tables))[1].tokenizer.save(folder)
    return folder


def write_bert(tables: Mapping[str, Any], folder: Path) -> None:
    """The BERT that `classify` begins with: that of bert.toml before its first step."""
    model, source, _ = prepare(Recipe.of(tables))
    model.weights, model.tokenizer = Weights.initialize(model.graph(), 0), source.tokenizer
    save_pretrained(model, folder)


def losses(tables: Mapping[str, Any], steps: int, folder: Path) -> dict[str, list[str]]:
    """Loss and gradient norm of each step, and what was measured, by `repr`."""
    found: dict[str, list[str]] = {"loss": [], "norm": [], "measured": []}

    def observe(step: Step) -> None:
        found["loss"].append(repr(step.loss))
        found["norm"].append(repr(step.gradient_norm))
        if step.held_out is not None:
            found["measured"].append(f"{step.held_out!r} {dict(step.metrics or {})!r}")
        if step.step == steps:
            raise EnoughStepsError

    every = {"evaluate_every": steps, "checkpoint_every": 10**9, "device": "cpu"}
    recipe = Recipe.of({**tables, "train": {**tables["train"], **every}})
    try:
        follow(recipe, folder, progress=False, observe=observe)
    except EnoughStepsError:
        return found
    raise SystemExit(f"the run ended after {len(found['loss'])} steps, before step {steps}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("output", type=Path, help="the JSON file to write")
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--only", nargs="+", default=None, help="names of recipes")
    given = options.parse_args()
    torch.set_num_threads(1)
    result: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_preferences(work / "preferences.jsonl")
        found = recipes(work)
        write_bert(found["bert"], work / "bert")
        for name in given.only or found:
            result[name] = losses(found[name], given.steps, work / "runs" / name)
            print(name, result[name]["loss"][-1], result[name]["measured"], flush=True)
            given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
