"""An int4 build of a llama with 8 billion parameters, within its bound under a limit of address space, then opened."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from memory import in_process
from monograph.building import build
from monograph.console import working
from monograph.frontends.dsl import load_family
from monograph.frontends.huggingface import save_pretrained
from monograph.frontends.load import load
from monograph.ir import DType
from monograph.ir.tensors import Array, Tensor
from monograph.ir.types import TensorType
from monograph.ir.weights import Weights
from monograph.machine import peak_memory
from monograph.passes.quantize.settings import Quantization
from report import WORK, Row, parser, publish

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab": 128256, "dim": 4096, "ffn": 14336, "layers": 32, "heads": 32, "kv_heads": 8, "max_positions": 8192,
        "tied": False,
    },
    "0.5b": {
        "vocab": 32000, "dim": 1024, "ffn": 4096, "layers": 28, "heads": 16, "kv_heads": 4, "max_positions": 2048,
        "tied": False,
    },
}  # fmt: skip
"""The shapes of Llama 3 8B and of something that is tried in seconds."""
SHARD = 2_000_000_000
_TILE = 1 << 22


class Tiled(Tensor):
    """Numbers like those of a trained weight, of which only the first few million are drawn. filled: share of the rows
    that has any; the others are zeros, which a file system need not store."""

    def __init__(self, type: TensorType, tile: Array, filled: float) -> None:
        self.type, self.tile, self.filled = type, tile, filled

    def numpy(self) -> Array:
        if len(self.shape) == 1:
            return np.ones(self.shape, self.dtype.numpy)
        x = np.zeros(self.shape, self.dtype.numpy)
        rows = max(1, int(self.filled * len(x)))
        x[:rows] = np.resize(self.tile, (rows, *self.shape[1:]))
        return x


def synthetic(folder: Path, shape: Mapping[str, Any], filled: float) -> int:
    """Write a llama checkpoint of bfloat16 shards; gives its parameters."""
    model = load_family("llama")(**shape)
    types = {k: v.type.with_dtype(DType.bf16) for k, v in model.graph().params.items()}
    tile = (np.random.default_rng(0).standard_normal(_TILE, np.float32) * 0.02).astype(DType.bf16.numpy)
    model.weights = Weights({k: Tiled(t, tile, filled) for k, t in types.items()})
    save_pretrained(model, folder, dtype=DType.bf16, max_shard_bytes=SHARD)
    return sum(int(np.prod(t.shape)) for t in model.weights.values())


def dig(folder: Path) -> None:
    """Give zeros of shards back to the file system, copying each without them."""
    for shard in sorted(folder.glob("*.safetensors")):
        subprocess.run(["fallocate", "--dig-holes", str(shard)], check=False, capture_output=True)


def limited(bytes_: int) -> None:
    """Give this process at most so many bytes of address space beyond what it has now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + bytes_, now + bytes_))


def built(source: Path, folder: Path, method: str) -> dict[str, Any]:
    """Build under a limit of its own bound; gives what is to be said about it."""
    import onnx  # noqa: F401 - libraries map their own files before the limit holds
    import onnxruntime  # noqa: F401

    said: list[int] = []

    def announce(bound: int) -> None:
        said.append(bound)
        limited(bound)

    start = time.perf_counter()
    engine = build(load(source), folder, quantize=Quantization("int4", method), announce=announce)
    report = engine.report
    assert report is not None and report.quantization is not None
    return {
        "bound": said[0],
        "peak": peak_memory(),
        "seconds": time.perf_counter() - start,
        "bytes": report.bytes,
        "summary": report.quantization.summary(),
    }


def opened(folder: Path) -> dict[str, Any]:
    """Open the built folder and read a prompt; gives times and what is resident, mapped from files and not."""
    from monograph.backends.onnxruntime import open as open_session

    start = time.perf_counter()
    session = open_session(folder, threads=2)
    session.prefill(np.arange(1, 9)[None], np.array([8]))
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(4):
        session.step(np.array([5]))
    step = (time.perf_counter() - start) / 4
    status = Path("/proc/self/status").read_text()
    found = {k: int(status.split(f"{k}:")[1].split()[0]) * 1024 for k in ("RssAnon", "RssFile")}
    return {"first": first, "step": step, "own": found["RssAnon"], "mapped": found["RssFile"]}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=sorted(SHAPES), default="8b")
    options.add_argument("--method", default="rtn")
    options.add_argument("--filled", type=float, default=1.0, help="share of rows that are not zeros, for small disks")
    options.add_argument("--step", choices=("build", "open"), help="what a process of its own does")
    given = options.parse_args()
    place = WORK / f"large-{given.size}"
    source, folder = place / "checkpoint", place / "built"
    if given.step:
        step = {"build": lambda: built(source, folder, given.method), "open": lambda: opened(folder)}[given.step]
        print(json.dumps(step()))
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        with working(f"writing a synthetic checkpoint of {given.size}"):
            parameters = synthetic(source, SHAPES[given.size], given.filled)
            dig(source)
        wanted = ("--size", given.size, "--method", given.method)
        made = in_process(__file__, *wanted, "--step", "build")
        run = in_process(__file__, *wanted, "--step", "open")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    row: Row = {
        "parameters (billions)": parameters / 1e9,
        "written (MB)": made["bytes"] / 1e6,
        "bound (MB)": made["bound"] / 1e6,
        "peak (MB)": made["peak"] / 1e6,
        "build (s)": made["seconds"],
        "opened and 8 tokens (s)": run["first"],
        "step (s)": run["step"],
        "resident, own (MB)": run["own"] / 1e6,
        "resident, mapped (MB)": run["mapped"] / 1e6,
    }
    note = (
        f"{made['summary']}. {given.filled:.0%} of the rows of the checkpoint hold random numbers, the others zeros. "
        "Address space of the build was limited to its bound beyond what the libraries had mapped."
    )
    publish("large_model", [row], note=note, only_print=given.no_publish)


if __name__ == "__main__":
    sys.exit(main())
