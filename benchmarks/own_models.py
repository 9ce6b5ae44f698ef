"""Seven models of one's own, each one file, through the whole command line: examples/models in one table.

Each is shown, explained, trained for some steps from a recipe, built, verified, measured, run, exported and, if it
continues a text, fine-tuned with a LoRA that is merged. python benchmarks/own_models.py [--steps 40] [--only NAME]
"""

from __future__ import annotations

import json
import runpy
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monograph.cli import app
from report import parser, publish
from typer.testing import CliRunner

MODELS = Path(__file__).parent.parent / "examples" / "models"
TEXT = "".join(f"Line {i}: the cat sat on mat {i % 7} and the dog lay on the log.\n\n" for i in range(400))
PAIRS = "".join(f"the cat {i} sat\tle chat {i} dort\n" for i in range(400))
ROWS = "".join(f'{{"prompt": "the cat {i}", "completion": " sat"}}\n' for i in range(40))


def call(*arguments: object) -> Any:
    """The JSON that a command prints. Raises RuntimeError if it fails."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exit_code:
        raise RuntimeError(f"monograph {' '.join(map(str, arguments))}: {result.output}")
    return json.loads(result.stdout)


def data_of(model: Path, folder: Path) -> tuple[str, Path]:
    """(kind of data, its file) that a model trains on: what the file makes itself, else text, or pairs of it."""
    namespace = runpy.run_path(str(model))
    made_up: Callable[[int], dict[str, Any]] | None = namespace.get("made_up")
    if made_up is not None:
        np.savez(folder / "data.npz", **made_up(256))
        return "arrays", folder / "data.npz"
    kind, name, text = ("pairs", "pairs.tsv", PAIRS) if model.stem == "t5_like" else ("text", "text.txt", TEXT)
    (folder / name).write_text(text)
    return kind, folder / name


def through(model: Path, folder: Path, steps: int = 40) -> dict[str, Any]:
    """Take a model file through every command that is for its kind; gives its row of the table."""
    kind, data = data_of(model, folder)
    run, built = folder / "run", folder / "built"
    nodes = call("show", model)["nodes"]
    call("explain", model, "--pipeline", "decode" if kind in ("text", "pairs") else "encode")
    call("optimize", model, "--pipeline", "train", "--check")
    untrained = worst(call("verify", model, "--random"))
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[model]\npath = "{model}"\n[data]\nkind = "{kind}"\npaths = ["{data}"]\n'
        f"[train]\nsteps = {steps}\nbatch = 8\nlength = 32\nlearning_rate = 5e-3\n"
    )
    trained = call("train", recipe, run)
    first, last = trained["measured"][0]["held_out"], trained["measured"][-1]["held_out"]
    assert tomllib.loads((run / "recipe.toml").read_text())["model"]["path"] == str(model)
    build = call("build", run, built)
    errors = [untrained, worst(call("verify", run, built))]
    call("build", run, folder / "portable", "--target", "onnx")
    errors.append(worst(call("verify", run, folder / "portable", "--no-torch")))
    size = ("--prompt", 8, "--new-tokens", 4, "--rounds", 1)
    assert all(row["prefill"] > 0 for row in call("bench", run, *size)["rows"])
    if kind == "arrays":
        call("run", built, "--input", f"{sample(data, folder)}")
    else:
        call("run", built, "the cat", "--max-new-tokens", 4)
    done = "show explain optimize verify train build export bench run".split()
    if kind == "text":
        (folder / "rows.jsonl").write_text(ROWS)
        settings = ("--lora", "--steps", 2, "--batch", 2, "--length", 32)
        call("finetune", run, folder / "adapter", "-d", folder / "rows.jsonl", *settings)
        call("merge", run, folder / "adapter", folder / "merged")
        errors.append(worst(call("verify", folder / "merged", "--no-torch")))
        done += ["finetune", "merge"]
    return {
        "file": f"{model.name}",
        "lines": len(model.read_text().splitlines()),
        "nodes": nodes,
        "held-out loss, first": first,
        "last": last,
        "attentions fused": f"{build['fused']} of {build['attentions']['total']}",
        "worst error": max(errors),
        "commands": len(done),
    }


def worst(parity: dict[str, Any]) -> float:
    """Largest difference of a parity table, relative to the largest expected value if that is above 1."""
    return max(r["difference"] / max(1.0, r["scale"]) for r in parity["rows"])


def sample(data: Path, folder: Path) -> Path:
    """The first rows of what the served model reads."""
    arrays = np.load(data)
    np.savez(folder / "sample.npz", **{k: arrays[k][:2] for k in ("readings", "pixel_values") if k in arrays.files})
    return folder / "sample.npz"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=40, help="of training")
    options.add_argument("--only", help="the name of one file")
    given = options.parse_args()
    rows: list[dict[str, Any]] = []
    for model in sorted(MODELS.glob("*.py")):
        if given.only in (None, model.stem, model.name):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(through(model, Path(folder), given.steps))
    note = (
        f"Each model trained {given.steps} steps on made-up data. The error is relative to the largest expected value."
    )
    publish("own_models", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
