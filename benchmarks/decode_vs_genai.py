"""Decoding speed of SmolLM2-135M in float32: Monograph against onnxruntime-genai, in turn, a process each time.

onnxruntime-genai gets an environment of its own, and its own model builder makes its model from the same weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import venv
from importlib.metadata import version
from pathlib import Path

import monograph as mg
import numpy as np
from monograph.assets import fetch
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.console import working
from monograph.frontends.huggingface import save_pretrained
from monograph.ir import DType
from monograph.machine import median
from report import WORK, Row, parser, publish

GENAI = ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "transformers==5.23.0", "onnx", "onnx-ir")
ENVIRONMENT, HF = WORK / "genai-env", WORK / "smollm2-f32"
OURS, THEIRS = WORK / "smollm2-cpu", WORK / "smollm2-genai"


def prepare() -> None:
    """Both models and the other environment; done once."""
    model = mg.load(fetch("smollm2"))
    if not (HF / "config.json").exists():
        save_pretrained(model, HF, dtype=DType.f32)
    build(model, None, OURS)
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "-q"]
        # torch alone and first: a requirement of the others must not bring another build of it.
        run([*pip, "torch==2.13.0"])
        run([*pip, "torch==2.13.0", *GENAI])
        (ENVIRONMENT / "ready").touch()
    if not (THEIRS / "genai_config.json").exists():
        command = [python, "-m", "onnxruntime_genai.models.builder", "-i", HF, "-o", THEIRS, "-p", "fp32", "-e", "cpu"]
        run([*command, "-c", WORK / "genai-cache"])


def run(command: list[str | Path]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def ours(prompt: int, new: int, threads: int) -> dict[str, float]:
    """The same measurement as genai_decode.py: once to warm up, once for the clock; choosing the token included."""
    session = open_session(OURS, threads=threads)
    tokens = np.array([[(7 * i) % 1000 for i in range(prompt)]], np.int64)

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        chosen = session.prefill(tokens, np.array([prompt])).argmax(-1)
        first = time.perf_counter()
        for _ in range(new):
            chosen = session.step(chosen).argmax(-1)
        return {"prefill": first - start, "decode": time.perf_counter() - first}

    measure()
    return measure()


def once(who: str, prompt: int, new: int, threads: int) -> dict[str, float]:
    here = Path(__file__).parent
    sizes = [str(prompt), str(new), str(threads)]
    if who == "Monograph":
        command: list[str | Path] = [sys.executable, __file__, "--once", *sizes]
    else:
        command = [ENVIRONMENT / "bin" / "python", here / "genai_decode.py", THEIRS, *sizes]
    return json.loads(run(command).splitlines()[-1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--once", nargs=3, type=int, metavar=("PROMPT", "NEW", "THREADS"), help="one measurement")
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--new", type=int, default=128)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    if given.once:
        print(json.dumps(ours(*given.once)))
        return
    with working("preparing both models"):
        prepare()
    names = ("onnxruntime-genai 0.18", "Monograph")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with working(f"{given.rounds} rounds"):
        for _ in range(given.rounds):
            for name in names:
                runs[name].append(once(name, given.prompt, given.new, given.threads))
    speed = {n: given.new / median([r["decode"] for r in runs[n]]) for n in names}
    prefill = {n: given.prompt / median([r["prefill"] for r in runs[n]]) for n in names}
    rows: list[Row] = [
        {
            "runtime": n,
            "prefill (tokens/s)": prefill[n],
            "decode (tokens/s)": speed[n],
            "decode, times genai": speed[n] / speed[names[0]],
        }
        for n in names
    ]
    note = (
        f"float32, {given.threads} threads, {given.prompt} prompt tokens, {given.new} new ones, median of "
        f"{given.rounds} processes, in turn. genai: ONNX Runtime 1.32; Monograph: {version('onnxruntime-gpu')}."
    )
    publish("decode_vs_genai", rows, note=note, only_print=given.no_publish, runs=runs)


if __name__ == "__main__":
    main()
