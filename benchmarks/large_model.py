"""An int4 build of a llama with 8 billion parameters, within its bound under a limit of address space, then opened."""

from __future__ import annotations

import json
import math
import resource
import shutil
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
from monograph.frontends.huggingface import hf_config
from monograph.frontends.load import load
from monograph.ir import DType
from monograph.ir.tensors import Array, sizes
from monograph.ir.types import TensorType
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


def synthetic(folder: Path, shape: Mapping[str, Any], filled: float) -> int:
    """Write a llama checkpoint of bfloat16 shards; gives its parameters.

    filled: share of each matrix that has numbers like those of a trained one, of which only the first few million are
    drawn; the rest is never written, and reads as zeros.
    """
    model = load_family("llama")(**shape)
    types = {k: v.type.with_dtype(DType.bf16) for k, v in model.graph().params.items()}
    tile = (np.random.default_rng(0).standard_normal(_TILE, np.float32) * 0.02).astype(DType.bf16.numpy)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf_config(model, None)))
    shards: list[list[str]] = [[]]
    for name, t in types.items():
        if sum(size_of(types[k]) for k in shards[-1]) + size_of(t) > SHARD and shards[-1]:
            shards.append([])
        shards[-1].append(name)
    where: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        where |= dict.fromkeys(names, file)
        write_sparse(folder / file, {k: types[k] for k in names}, tile, filled)
    total = sum(map(size_of, types.values()))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total // 2


def size_of(type: TensorType) -> int:
    """Bytes of a tensor."""
    return math.prod(sizes(type)) * 2


def write_sparse(file: Path, types: Mapping[str, TensorType], tile: Array, filled: float) -> None:
    """A safetensors file of which only the share `filled` of each matrix takes space on the disk; vectors are ones."""
    header, end = dict[str, Any](), 0
    for name, t in types.items():
        header[name] = {"dtype": "BF16", "shape": t.shape, "data_offsets": [end, end + size_of(t)]}
        end += size_of(t)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        start = f.tell()
        for name, t in types.items():
            f.seek(start + header[name]["data_offsets"][0])
            left = size_of(t) // 2 if len(t.shape) == 1 else int(filled * size_of(t)) // 2
            source = np.ones_like(tile) if len(t.shape) == 1 else tile
            while left > 0:
                f.write(source[:left].tobytes())
                left -= len(tile)
        f.truncate(start + end)


RESERVED = 256_000_000
"""Address space that threads and libraries reserve and do not touch: arenas of the allocator, stacks, buffers."""


def limited(bytes_: int) -> None:
    """Give this process at most so many bytes of address space beyond what it has now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = now + bytes_ + RESERVED
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


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
    options.add_argument(
        "--filled", type=float, default=1.0, help="share of the weights that are not zeros, for small disks"
    )
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
        f"{made['summary']}. {given.filled:.0%} of the weights of the checkpoint are random, the others zeros. "
        f"Address space was limited to the bound and {RESERVED / 1e6:.0f} MB beyond what the libraries had mapped."
    )
    publish("large_model", [row], note=note, only_print=given.no_publish)


if __name__ == "__main__":
    sys.exit(main())
