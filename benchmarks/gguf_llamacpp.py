"""A GGUF file here and in llama.cpp: token ids, greedy continuations, perplexity, size and decoding speed.

llama.cpp is run through node-llama-cpp: give the folder it is installed in by --llamacpp or $MONOGRAPH_LLAMACPP.
Perplexity is over 2,000 tokens of English prose in chunks that each start anew.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph.assets import FetchError, fetch
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.console import working
from monograph.frontends.dsl import Model
from monograph.ir.encoded import plain
from monograph.passes.encode import through_float
from report import ROOT, WORK, Row, parser, publish

MODELS = ("gemma3-270m", "smollm2")
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "1, 1, 2, 3, 5, 8, 13,",
    "La mer est",
    "  Two leading spaces, a tab\tand a line\n\nThen",
    "The three primary colours are red,",
    "日本の首都は",
    "In 1969, Neil Armstrong became the first person to walk on",
)
TOKENS, CHUNK, NEW = 2000, 500, 16
INSTALL = """llama.cpp is not installed: in a folder of its own,
  npm install --ignore-scripts --omit=optional node-llama-cpp@3.22.1
  npm install --ignore-scripts --omit=optional --no-save @node-llama-cpp/linux-x64@3.22.1
and give that folder by --llamacpp FOLDER or $MONOGRAPH_LLAMACPP."""


def peer(given: str | None) -> Path:
    """The node_modules folder of llama.cpp. Leaves the program saying how to install it where there is none."""
    folder = Path(given or os.environ.get("MONOGRAPH_LLAMACPP") or "missing")
    modules = folder if folder.name == "node_modules" else folder / "node_modules"
    if not (modules / "node-llama-cpp").is_dir() or shutil.which("node") is None:
        sys.exit(INSTALL)
    return modules.resolve()


def text() -> str:
    """English prose that every checkout has: the project's own pages."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n\n".join(page.read_text() for page in pages)


def ask(modules: Path, file: Path, threads: int, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What llama.cpp answers to each request, see llamacpp.mjs."""
    command = ["node", str(Path(__file__).parent / "llamacpp.mjs"), str(modules), str(file), str(threads)]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    _ready, *answers = done.stdout.splitlines() or [""]
    if done.returncode or len(answers) != len(requests):
        sys.exit(f"llama.cpp failed on {file}:\n{done.stdout[-2000:]}{done.stderr}")
    return [json.loads(line) for line in answers]


def surprise(session: Session, ids: Sequence[int]) -> float:
    """Minus the log probability of every token after the first, summed."""
    row = np.asarray([ids], np.int64)
    given = {"input_ids": row, "attention_mask": np.ones_like(row), "position_ids": np.arange(row.size)[None]}
    logits = session.run(given)["logits"][0, :-1].astype(np.float64)
    most = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - most).sum(-1)) + most[:, 0]
    return float((total - logits[np.arange(len(ids) - 1), ids[1:]]).sum())


def greedy(session: Session, ids: Sequence[int]) -> tuple[list[int], float]:
    """The likeliest continuation, and the seconds of all tokens after the first."""
    chosen = session.prefill(np.asarray([ids], np.int64), np.array([len(ids)])).argmax(-1)
    found, start = [int(chosen[0])], time.perf_counter()
    for _ in range(NEW - 1):
        chosen = session.step(chosen).argmax(-1)
        found.append(int(chosen[0]))
    return found, time.perf_counter() - start


def measure(folder: Path, prompts: list[list[int]], chunks: list[list[int]], threads: int) -> dict[str, Any]:
    session = open_session(folder, threads=threads)
    runs = [greedy(session, ids) for ids in prompts]
    return {"greedy": [ids for ids, _ in runs], "seconds": [s for _, s in runs],
            "surprise": [surprise(session, ids) for ids in chunks]}  # fmt: skip


def row(name: str, runtime: str, size: int, found: dict[str, Any], theirs: list[list[int]], tokens: int) -> Row:
    same = [len(_alike(a, b)) for a, b in zip(found["greedy"], theirs, strict=True)]
    whole = sum(n == NEW for n in same)
    return {
        "model": name,
        "runtime": runtime,
        "file (MB)": size / 1e6,
        "perplexity": math.exp(sum(found["surprise"]) / tokens),
        "greedy as llama.cpp": f"{whole} of {len(same)} whole, {sum(same)} of {NEW * len(same)} tokens",
        "decode (tokens/s)": (NEW - 1) / sorted(found["seconds"])[len(found["seconds"]) // 2],
    }  # fmt: skip


def _alike(a: Sequence[int], b: Sequence[int]) -> Sequence[int]:
    """The tokens before the first that differs."""
    end = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:end]


def compare(name: str, file: Path, modules: Path, threads: int) -> list[Row]:
    """All rows of one model. Leaves the program if any text gets other token ids than in llama.cpp."""
    model: Model = mg.load(file)
    tokenizer = model.tokenizer
    texts = [*PROMPTS, text()]
    prompts = [tokenizer.encode(t) for t in PROMPTS]
    ids = tokenizer.encode(texts[-1], add_special=False)
    first = [model.generation["bos_token_id"]] if prompts[0][0] == model.generation.get("bos_token_id") else []
    chunks = [first + ids[i : i + CHUNK] for i in range(0, TOKENS, CHUNK)]
    requests: list[dict[str, Any]] = [{"do": "ids", "texts": texts}]
    requests += [{"do": "greedy", "tokens": prompt, "new": NEW} for prompt in prompts]
    requests += [{"do": "surprise", "tokens": chunk} for chunk in chunks]
    with working(f"{name}: llama.cpp"):
        read, *rest = ask(modules, file, threads, requests)
    continued, surprises = rest[: len(prompts)], [answer["nats"] for answer in rest[len(prompts) :]]
    bare = [tokenizer.encode(t, add_special=False) for t in texts]
    wrong = [t[:40] for t, mine, other in zip(texts, bare, read["ids"], strict=True) if mine != other]
    if wrong:
        sys.exit(f"{name}: {len(wrong)} texts have other token ids than in llama.cpp, such as {wrong[0]!r}")
    tokens = sum(len(c) - 1 for c in chunks)
    reference = [g["ids"] for g in continued]
    found = {"greedy": reference, "seconds": [g["seconds"] for g in continued], "surprise": surprises}
    rows = [row(name, "llama.cpp", file.stat().st_size, found, reference, tokens)]
    assert model.weights is not None
    kept = len(through_float(model.graph(encoded=True), model.weights))
    for label, weights in (("blocks kept", model.weights), ("float32", plain(model.weights))):
        with working(f"{name}: Monograph, {label}"):
            report = build(model, weights, WORK / f"{name}-{label.replace(' ', '-')}")
            mine = measure(report.folder, prompts, chunks, threads)
        told = f"{label} ({kept} weights through float)" if kept and label == "blocks kept" else label
        rows.append(row(name, f"Monograph, {told}", report.bytes, mine, reference, tokens))
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--llamacpp", help="the folder that node-llama-cpp is installed in")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--model", action="append", metavar="NAME=FILE", help="a file of your own in place of these")
    given = options.parse_args()
    modules = peer(given.llamacpp)
    files = dict(m.split("=", 1) for m in given.model or ())
    rows: list[Row] = []
    try:
        for name in files or MODELS:
            rows += compare(name, Path(files[name]) if files else fetch(name), modules, given.threads)
    except FetchError as e:
        sys.exit(str(e))
    note = (
        f"{given.threads} threads; ten prompts, {NEW} greedy tokens each, token ids of all texts equal to llama.cpp's; "
        f"perplexity of {TOKENS} tokens in chunks of {CHUNK}; speed: median of the prompts."
    )
    publish("gguf_llamacpp", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
