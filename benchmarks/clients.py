"""The folders of `monograph build --for` in the clients they are for: the same ids, vectors and logits, or not.

Optimum (1.x and 2.x) and onnxruntime-genai get an environment each, transformers.js a folder of npm packages; it runs
in node and, where there is a Chromium, in a page. Each is given the same ids, a batch with padding and its rows one by
one, and compared with Monograph's own engine and with transformers. Rows that differ are shown like the others.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import venv
from pathlib import Path
from shutil import which
from typing import Any

import monograph as mg
import numpy as np
import torch
import transformers
from clients_models import CASES, Case
from clients_worker import padded
from monograph.backends import ort
from monograph.console import working
from monograph.frontends.huggingface import save_pretrained
from monograph.ir import DType
from report import ROOT, WORK, Row, parser, publish

NEW = 32
QUESTION = "What is the capital of France?"
"""What the page of examples/web is asked."""
HERE, PLACE = Path(__file__).parent, WORK / "clients"
ENVIRONMENTS = {
    "optimum 1.x": ("optimum", ("optimum[onnxruntime]==1.27.0",)),
    "optimum 2.x": ("optimum", ("optimum-onnx[onnxruntime]==0.1.0",)),
    "genai": ("genai", ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0")),
}
PACKAGES = ("@huggingface/transformers@4.3.2", "playwright-core@1.65.1")
Result = dict[str, Any]


def environment(name: str) -> Path:
    """The Python of a client, in an environment of its own; made once. torch comes first: no other build of it."""
    folder = PLACE / name.replace(" ", "-").replace(".x", "")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        for packages in (("torch==2.13.0",), ("torch==2.13.0", *ENVIRONMENTS[name][1])):
            subprocess.run([*pip, *packages], check=True)
        (folder / "ready").touch()
    return python


def modules() -> Path:
    """The npm packages of transformers.js and of what drives a browser; installed once."""
    folder = PLACE / "js"
    if not (folder / "node_modules" / "playwright-core").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        subprocess.run(["npm", "install", "--ignore-scripts", "--silent", *PACKAGES], cwd=folder, check=True)
    return folder / "node_modules"


def place(case: Case, layout: str) -> str:
    """The name of a case's folder."""
    return f"{case.name.replace(' ', '-')}-{layout}"


def opened(case: Case) -> tuple[Any, Path]:
    """(model, checkpoint in float32 that transformers reads)."""
    folder = case.folder()
    model = mg.load(folder)
    if folder.is_dir():
        return model, folder
    checkpoint = PLACE / "checkpoints" / folder.stem
    if not (checkpoint / "config.json").exists():
        save_pretrained(model, checkpoint, dtype=DType.f32)
    return model if case.blocks else mg.load(checkpoint), checkpoint


def rows_of(case: Case, model: Any) -> list[list[int]]:
    """The ids that clients get: those of the case, or of its texts."""
    return [list(r) for r in case.rows] or [model.tokenizer.encode(t) for t in case.texts]


def job(case: Case, model: Any, layout: str) -> dict[str, Any]:
    """What a client is told of a folder."""
    found = {"name": place(case, layout), "task": case.task, "pad": case.pad, "new": NEW, "texts": case.texts}
    if case.features is not None:
        return found | {"features": case.features}
    found |= {"rows": rows_of(case, model)}
    return found | {"page": QUESTION} if layout == "web" and case.blocks else found


# -- what is expected -------------------------------------------------------------------------------------------------


def ours(case: Case, model: Any) -> Result:
    """What Monograph's own engine gives."""
    texts = [model.tokenizer.encode(t) for t in case.texts]
    with mg.build(model) as engine:
        if case.task in ("causal-lm", "seq2seq-lm"):
            found = engine.generate(rows_of(case, model), max_new_tokens=NEW, eos=[])
            ends = set(model.tokenizer.eos_ids)
            return {"texts": texts, "batch": [until(g.ids, ends) for g in found]}
        if case.task == "speech-to-text":
            found = engine.generate(inputs={"input_features": array(case)}, max_new_tokens=NEW, eos=[])
            return {"texts": texts, "batch": [g.ids for g in found]}
        if case.features is not None:
            results = engine.run({"pixel_values": array(case)})
        else:
            ids, mask = map(np.array, padded(rows_of(case, model), case.pad, "right"))
            results = engine.run({"input_ids": ids, "attention_mask": mask})
        return {"texts": texts, "values": results[str(model.task.output)].flatten().tolist()}


def until(ids: list[int], ends: set[int]) -> list[int]:
    """Ids before the first that ends a text: other clients are told to go on, and choose another one there."""
    return ids[: next((i for i, x in enumerate(ids) if x in ends), len(ids))]


def array(case: Case) -> Any:
    return np.array(case.features["values"], np.float32).reshape(case.features["shape"])


def reference(case: Case, model: Any, folder: Path) -> Result:
    """What transformers gives, from weights in float32."""
    loaded = getattr(transformers, case.transformers_class).from_pretrained(folder, dtype=torch.float32).eval()
    length: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "num_beams": 1}
    with torch.no_grad():
        if case.task == "speech-to-text":
            found = loaded.generate(input_features=torch.tensor(array(case)), **length)
            return {"batch": [r[-NEW:] for r in found.tolist()]}
        if case.features is not None:
            return {"values": loaded(torch.tensor(array(case))).logits.flatten().tolist()}
        side = "left" if case.task == "causal-lm" else "right"
        ids, mask = map(torch.tensor, padded(rows_of(case, model), case.pad, side))
        if case.task in ("causal-lm", "seq2seq-lm"):
            start = ids.shape[1] if side == "left" else 1
            made = loaded.generate(input_ids=ids, attention_mask=mask, **length).tolist()
            return {"batch": [r[start:] for r in made]}
        found = loaded(input_ids=ids, attention_mask=mask)
        return {
            "values": (found.last_hidden_state if "last_hidden_state" in found else found.logits).flatten().tolist()
        }


# -- clients ----------------------------------------------------------------------------------------------------------


def asked(command: list[str | Path], jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client answers to jobs."""
    file = PLACE / "jobs.json"
    file.write_text(json.dumps({"models": f"{PLACE / 'folders'}/", "jobs": jobs}))
    done = subprocess.run(
        [str(c) if c != "JOBS" else str(file) for c in command], capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.strip():
        return {"version": "", "results": {}, "error": (done.stderr or done.stdout)[-300:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def plain(case: Case, model: Any) -> Result:
    """Plain ONNX Runtime over the folder without a layout, one row at a time, as the example does it."""
    greedy = runpy.run_path(str(ROOT / "examples" / "plain_onnxruntime.py"))["greedy"]
    return {"single": [greedy(PLACE / "folders" / place(case, "plain"), r, NEW) for r in rows_of(case, model)]}


# -- comparing --------------------------------------------------------------------------------------------------------


def alike(found: list[list[int]], wanted: list[list[int]]) -> str:
    """How many of the wanted ids come before the first that differs, over all rows."""
    same = 0
    for a, b in zip(found, wanted, strict=True):
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    total = sum(map(len, wanted))
    return "all ids" if same == total else f"{same} of {total} ids"


def close(found: list[float], wanted: list[float]) -> str:
    if len(found) != len(wanted):
        return f"{len(found)} numbers, not {len(wanted)}"
    return f"within {np.abs(np.array(found) - np.array(wanted)).max() / max(1.0, np.abs(wanted).max()):.1g}"


def row(client: str, version: str, case: Case, found: Result, mine: Result, theirs: Result) -> Row:
    """One line of the table."""
    said = {"client": client, "version": version, "model": case.name, "task": case.task}
    texts, together = "", ""
    if "texts" in found:
        texts = "same ids" if found["texts"] == mine["texts"] else "OTHER IDS"
    if "error" in found:
        agreement = [found["error"][:80], ""]
    elif "values" in mine:
        agreement = [close(found["values"], w["values"]) for w in (mine, theirs)]
    else:
        given = found.get("single") or found["batch"]
        agreement = [alike(given, w["batch"]) for w in (mine, theirs)]
        together = alike(found["batch"], found["single"]) if "single" in found and "batch" in found else ""
    compared = dict(zip(("as Monograph", "as transformers"), agreement, strict=True))
    return said | {"texts": texts} | compared | {"batch as rows alone": together}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", action="append", help="a model of clients_models.py")
    options.add_argument("--chromium", default=which("chromium"), help="a browser to run the page in")
    given = options.parse_args()
    cases = [c for c in CASES if not given.only or c.name in given.only]
    jobs: dict[str, list[dict[str, Any]]] = {"optimum": [], "genai": [], "web": []}
    expected: dict[str, tuple[Case, Result, Result]] = {}
    rows: list[Row] = []
    answers: dict[str, str] = {}
    for case in cases:
        with working(f"{case.name}: folders, and what is expected"):
            model, checkpoint = opened(case)
            mine, theirs = ours(case, model), reference(case, model, checkpoint)
            mg.export(model, PLACE / "folders" / place(case, "plain"))
            for layout in case.layouts:
                mg.export(model, PLACE / "folders" / place(case, layout), layout=layout)
                jobs[layout].append(job(case, model, layout))
                expected[place(case, layout)] = case, mine, theirs
            if case.task == "causal-lm":
                version = f"onnxruntime {ort.library().__version__}"
                rows.append(row("plain onnxruntime", version, case, plain(case, model), mine, theirs))
    commands: dict[str, tuple[str, list[str | Path]]] = {}
    for name, (kind, _) in ENVIRONMENTS.items():
        commands[name] = kind, [environment(name), HERE / "clients_worker.py", kind, "JOBS"]
    commands["transformers.js, node"] = "web", ["node", HERE / "clients.mjs", modules(), "JOBS"]
    if given.chromium:
        page = [given.chromium, ROOT / "examples" / "web"]
        commands["transformers.js, page"] = "web", ["node", HERE / "clients.mjs", modules(), "JOBS", *page]
    for name, (layout, command) in commands.items():
        with working(name):
            answer = asked(command, jobs[layout])
        chromium = f"Chromium {answer['browser']}" if "browser" in answer else ""
        versions = ", ".join(v for v in (answer["version"], chromium) if v)
        for told in jobs[layout]:
            case, mine, theirs = expected[told["name"]]
            found = answer["results"].get(told["name"], {"error": answer.get("error", "no answer")})
            rows.append(row(name, versions, case, found, mine, theirs))
            if "text" in found:
                answers[told["name"]] = found["text"]
    note = (
        f"{NEW} greedy ids a row, three rows; values relative to the largest, or as they are below 1. Clients and "
        "transformers are told not to end a text before; the plain lines do not know of ends."
    )
    publish("clients", rows, note=note, only_print=given.no_publish, page=answers)


if __name__ == "__main__":
    main()
