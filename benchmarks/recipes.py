"""Every recipe of examples/recipes from data to serving: train, build, verify, run; metric and wall time of each.

A recipe that has been trained already is not trained again: what its run says is read from its folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monograph as mg
from monograph.training.log import read_log
from report import ROOT, Row, parser, publish

RECIPES, OUT, DATA = ROOT / "examples" / "recipes", ROOT / "out" / "recipes", ROOT / "out" / "data"
SOURCES = {"king_james": ("kjv.txt", "kjv-parts.tsv"), "english_french": ("en-fr.tsv", "en-fr-chat.jsonl")}
"""Scripts in examples/ and the files they write."""


@dataclass(frozen=True)
class Recipe:
    """A recipe and what its model is asked once it is served. metric: a name in the last measurement or the metrics."""

    name: str
    metric: str
    texts: tuple[str, ...] = ()
    chat: bool = False

    @property
    def folder(self) -> Path:
        return OUT / self.name

    @property
    def model(self) -> Path:
        """The checkpoint that is served: of an adapter the one it is merged into."""
        return OUT / f"{self.name}-merged" if (self.folder / "adapter_config.json").exists() else self.folder


ALL = (
    Recipe("king_james", "perplexity", ("And it came to pass",)),
    Recipe("bert", "accuracy", ("And God said, Let there be [MASK] : and there was light .",)),
    Recipe("classify", "accuracy", ("In the beginning God created the heaven and the earth.", "Paul, an apostle.")),
    Recipe("translate", "bleu", ("Select the file that you want to open.",)),
    Recipe("lora", "perplexity", ("Translate into French: Open the file",), chat=True),
    Recipe("distill", "perplexity", ("And it came to pass",)),
)


def monograph(*arguments: Any) -> Any:
    """What a command prints with --json. Ends the benchmark with its message if it fails."""
    command = [sys.executable, "-m", "monograph", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def prepare() -> None:
    for script, files in SOURCES.items():
        if not all((DATA / name).exists() for name in files):
            subprocess.run([sys.executable, str(ROOT / "examples" / f"{script}.py"), str(DATA)], check=True)


def trained(recipe: Recipe) -> dict[str, Any]:
    """Last measurement, metrics, steps and seconds of a run; trains or goes on if it is not done."""
    about = OUT / f"{recipe.name}.json"
    if not about.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        resume = ["--resume"] if (recipe.folder / "checkpoints").exists() else []
        before = read_log(recipe.folder)[-1]["seconds"] if resume else 0.0
        start = time.perf_counter()
        found = monograph("train", RECIPES / f"{recipe.name}.toml", recipe.folder, *resume)
        seconds = before + time.perf_counter() - start
        # A run that was done already measures nothing more: its log tells.
        last = (found["measured"] or [line for line in read_log(recipe.folder) if "held_out" in line])[-1]
        about.write_text(json.dumps({**found, "wall": seconds, "last": last}))
    return json.loads(about.read_text())


def served(recipe: Recipe) -> tuple[dict[str, Any], Path]:
    """(the parity table, the built folder)."""
    if recipe.model != recipe.folder and not recipe.model.exists():
        base = tomllib.loads((RECIPES / f"{recipe.name}.toml").read_text())["model"]["path"]
        monograph("merge", base, recipe.folder, recipe.model)
    built = OUT / f"{recipe.name}-built"
    monograph("build", recipe.model, built)
    return monograph("verify", recipe.model, built), built


def said(recipe: Recipe, built: Path, texts: Sequence[str]) -> list[str]:
    """What `monograph run` answers to each text, in one line."""
    chat = ["--chat"] if recipe.chat else []
    found = monograph("run", built, *texts, "--max-new-tokens", 64, *chat)
    answers = found if isinstance(found, list) else [found]
    return [one_line(a) for a in answers]


def one_line(answer: dict[str, Any]) -> str:
    if "masks" in answer:
        return "; ".join(
            ", ".join(f"{g['token']} {g['probability']:.2f}" for g in mask[:3]) for mask in answer["masks"]
        )
    if "label" in answer:
        return f"{answer['label']} {max(answer['probabilities'].values()):.2f}"
    return " ".join(answer["text"].split())


def row(recipe: Recipe, run: dict[str, Any], parity: dict[str, Any], answer: str) -> Row:
    last = run["last"]
    numbers = {"held-out loss": last["held_out"], **(last.get("metrics") or {}), **run["metrics"]}
    worst = max(r["difference"] / max(1.0, r["scale"]) for r in parity["rows"])
    parameters: Any = sum(v.type.elements for v in mg.load(recipe.model).graph().params.values())
    return {
        "recipe": f"`monograph train examples/recipes/{recipe.name}.toml out/recipes/{recipe.name}`",
        "parameters (M)": parameters / 1e6,
        "steps": last["step"],
        "held-out loss": last["held_out"],
        "metric": f"{recipe.metric} {numbers[recipe.metric]:.4g}",
        "wall time (s)": run["wall"],
        "verified": f"{len(parity['rows'])} rows, worst {worst:.1e}" if parity["passed"] else "FAILED",
        "`monograph run` says": answer,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", default=[r.name for r in ALL], choices=[r.name for r in ALL])
    given = options.parse_args()
    prepare()
    rows: list[Row] = []
    for recipe in (r for r in ALL if r.name in given.only):
        run = trained(recipe)
        parity, built = served(recipe)
        answers = said(recipe, built, recipe.texts)
        answer = "; ".join(f"{text} → {a}" for text, a in zip(recipe.texts, answers, strict=True))
        rows.append(row(recipe, run, parity, answer.replace("|", "/")))
    note = (
        "Wall time: the whole train command, data and tokenizer included. Verified: differences of PyTorch, portable "
        "ONNX and ONNX Runtime from the NumPy reference on all masks, relative to the largest logit."
    )
    publish("recipes", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
