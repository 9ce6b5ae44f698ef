"""Peak memory and time of `monograph build`, for SmolLM2 and for 1.1 billion parameters, against the stated bound."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from monograph.assets import fetch
from monograph.console import working
from monograph.frontends.dsl import load_family
from monograph.frontends.huggingface import save_pretrained
from monograph.ir import DType
from monograph.ir.weights import Weights
from report import WORK, Row, parser, publish

SHARD = 500_000_000
BILLION: dict[str, Any] = {
    "vocab": 32000,
    "dim": 2048,
    "ffn": 5632,
    "layers": 22,
    "heads": 32,
    "kv_heads": 4,
    "max_positions": 2048,
}
"""The shape of TinyLlama 1.1B."""


def synthetic(folder: Path) -> Path:
    """A llama checkpoint of 1.1 billion random bfloat16 numbers in shards, written tensor by tensor."""
    if not (folder / "config.json").exists():
        model = load_family("llama")(**BILLION)
        model.weights = Weights.initialize(model.graph(), seed=0)
        save_pretrained(model, folder, dtype=DType.bf16, max_shard_bytes=SHARD)
    return folder


def build(source: Path, target: str) -> dict[str, float]:
    """What a build in a process of its own says about itself, and its wall-clock seconds from start to end."""
    folder = WORK / "build-memory"
    command = [sys.executable, "-m", "monograph", "build", str(source), str(folder), "--target", target, "--json"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    size = sum(p.stat().st_size for p in folder.iterdir())
    shutil.rmtree(folder)
    return {**json.loads(done.stdout), "wall": seconds, "written": size}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--keep", action="store_true", help="keep the synthetic checkpoint (2.2 GB)")
    given = options.parse_args()
    with working("writing a synthetic checkpoint of 1.1 billion parameters"):
        sources = {
            "SmolLM2 135M, 4-bit GGUF": fetch("smollm2"),
            "llama 1.1B, bf16 shards": synthetic(WORK / "llama-1b"),
        }
    rows: list[Row] = []
    for name, source in sources.items():
        for target in ("cpu", "onnx"):
            runs = [build(source, target) for _ in range(given.rounds)]
            peak = max(r["peak_bytes"] for r in runs)
            rows.append(
                {
                    "model": name,
                    "target": target,
                    "written (MB)": runs[0]["written"] / 1e6,
                    "bound (MB)": runs[0]["bound_bytes"] / 1e6,
                    "peak (MB)": peak / 1e6,
                    "of the bound (%)": 100 * peak / runs[0]["bound_bytes"],
                    "time (s)": min(r["wall"] for r in runs),
                }
            )
    if not given.keep:
        shutil.rmtree(sources["llama 1.1B, bf16 shards"])
    note = "Peak: highest resident memory of the process, worst of all runs. Time: whole process, best run."
    publish("build_memory", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
