"""Bytes of state and peak memory of a long decode with windows: rings of their size against caches of all tokens."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from monograph.backends.onnxruntime import build, open
from monograph.frontends.dsl import load_family
from monograph.ir.weights import Weights
from report import Row, parser, publish

RINGS, ALL = "rings", "all tokens"
WINDOW = 512
SHAPE = {
    "vocab": 4096, "dim": 640, "ffn": 2048, "layers": 12, "heads": 4, "kv_heads": 1, "head_dim": 256,
    "max_positions": 8192,
}  # fmt: skip
"""Gemma-3-270m with two thirds of its layers and a small vocabulary; every sixth layer sees all tokens."""


def decode(slots: str, tokens: int) -> dict[str, float]:
    """In this process: a prompt of 16 tokens, then one at a time; sizes in bytes, and seconds."""
    kinds: dict[str, Any] = {} if slots == RINGS else {"layer_types": ["full_attention"] * SHAPE["layers"]}
    model = load_family("gemma3_text")(**SHAPE, window=WINDOW, **kinds)
    model.weights = Weights.initialize(model.graph(), 0)
    with tempfile.TemporaryDirectory() as folder:
        build(model, None, folder)
        session = open(folder, threads=1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ids = np.random.default_rng(0).integers(0, SHAPE["vocab"], (1, tokens))
        session.prefill(ids[:, :16], [16])
        start = time.perf_counter()
        for t in range(16, tokens):
            session.step(ids[:, t])
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"state": session.state_bytes, "peak": 1024 * peak, "before": 1024 * before, "seconds": seconds}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--slots", choices=(RINGS, ALL), help="run one decode in this process and print JSON")
    given = options.parse_args()
    if given.slots:
        print(json.dumps(decode(given.slots, given.tokens)))
        return
    found = {}
    for name in (RINGS, ALL):
        command = [sys.executable, __file__, "--tokens", str(given.tokens), "--slots", name]
        found[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows: list[Row] = [
        {
            "slots": name,
            "state (MB)": r["state"] / 1e6,
            "peak (MB)": r["peak"] / 1e6,
            "peak above the start of decoding (MB)": (r["peak"] - r["before"]) / 1e6,
            "tokens/s": (given.tokens - 16) / r["seconds"],
        }
        for name, r in found.items()
    ]
    share = found[RINGS]["state"] / found[ALL]["state"]
    note = (
        f"{given.tokens} tokens of gemma3_text, 12 layers, 10 of them with a window of {WINDOW}, one thread; "
        f"rings hold {100 * share:.0f} % of the bytes."
    )
    publish("state_memory", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
