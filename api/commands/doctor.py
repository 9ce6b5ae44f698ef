"""`monograph doctor`: what is installed here, what really runs, and how fast this machine can be at most."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..console import Json, command, out, print_json, table, working
from ..ir.display import size
from ..machine import cores, cpu_name, has_torch, measure, memory_bytes

PACKAGES = (
    "monograph",
    "numpy",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "transformers",
    "tokenizers",
)
SHOWN_KERNELS = (
    ("", "MatMul"),
    ("com.microsoft", "MatMulNBits"),
    ("", "Attention"),
    ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "MultiHeadAttention"),
    ("com.microsoft", "RotaryEmbedding"),
    ("", "RMSNormalization"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"),
    ("", "LayerNormalization"),
    ("", "Gelu"),
)
FLOATS = {"double": "f64", "float": "f32", "float16": "f16", "bfloat16": "bf16"}
_ONE = "uninstall both, then install the extra that you want again"
PATIENCE = 120
"""Seconds a provider may take to open a session on a one-node model."""


@command
def doctor(
    speed: Annotated[bool, typer.Option("--speed", help="also measure memory bandwidth and arithmetic")] = False,
    json_output: Json = False,
) -> None:
    """Check versions, execution providers (by opening a session on each), PyTorch, cores and memory.

    Exit code 1 if no provider can run a model.
    """
    with working("opening a session on every provider", json_output):
        found = providers()
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "packages": versions(),
        "torch": torch_build(),
        "providers": found,
        "cuda": cuda(found),
        "kernels": kernels(),
    }
    if speed:
        with working("measuring memory bandwidth and arithmetic", json_output):
            facts["ceilings"] = asdict(measure())
    if json_output:
        print_json(facts)
    else:
        _print(facts)
    if not any(p["works"] for p in found):
        raise typer.Exit(1)


def versions() -> dict[str, str | None]:
    """Version of each package that matters; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def torch_build() -> dict[str, Any] | None:
    """How PyTorch was built and what it sees; None where it is not installed."""
    if not has_torch():
        return None
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": devices,
        "threads": torch.get_num_threads(),
    }


def providers() -> list[dict[str, Any]]:
    """Every provider the runtime lists, and whether a session that asks for it really gets it.

    A provider whose libraries are missing is still listed as available, and the runtime falls back to another with
    no more than a line in its log. So each is tried with a one-node model, in a process of its own.
    """
    from ..backends import ort

    found: list[dict[str, Any]] = []
    for name in ort.library().get_available_providers():
        got, log = _probe(name)
        reason = "" if got == name else _missing(log)
        found.append({"provider": name, "works": got == name, "got": got, "reason": reason})
    return found


def cuda(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Whether sessions open on CUDA, which of its libraries cannot be loaded, and what brings them; None where the
    installed runtime is not built for it."""
    from ..backends.onnxruntime.options import LIBRARIES
    from ..backends.onnxruntime.runtime import missing_libraries
    from ..backends.target import PROVIDERS

    mine = [p for p in found if p["provider"] == PROVIDERS["cuda"]]
    if not mine:
        return None
    works = bool(mine[0]["works"])
    return {"works": works, "missing": list(missing_libraries()), "hint": "" if works else LIBRARIES}


def _probe(name: str) -> tuple[str, str]:
    """(provider that the session got, what was printed on the way)."""
    command = [sys.executable, "-m", "monograph.commands.probe", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "none", f"error: no answer in {PATIENCE} s"
    got = done.stdout.splitlines()[-1] if done.returncode == 0 and done.stdout else "none"
    return got, done.stdout + done.stderr


def _missing(log: str) -> str:
    """The library that a provider failed to load, as its log tells."""
    library = re.search(r"error: (\S+): cannot open shared object file", log)
    if library:
        return f"{library[1]} is missing"
    return log.removeprefix("error: ") if log.startswith("error: ") else "its libraries or a device are missing"


def kernels() -> dict[str, Any]:
    """Float types that the ops of transformers have kernels for, by provider, and where each table comes from."""
    from ..backends.target import PROVIDERS, kernel_table

    tables = {name: kernel_table(name) for name in PROVIDERS}
    rows = [
        {"op": op, "domain": domain or "ai.onnx"} | {name: _floats(t, domain, op) for name, t in tables.items()}
        for domain, op in SHOWN_KERNELS
    ]
    return {"sources": {name: f"{t.source}, {len(t)} kernels" for name, t in tables.items()}, "rows": rows}


def _floats(table: Any, domain: str, op: str) -> str:
    given = {t for k in table.kernels.get((domain, op), []) for types in k.types.values() for t in types}
    return " ".join(short for name, short in FLOATS.items() if name in given) or "none"


def _print(facts: dict[str, Any]) -> None:
    console = out()
    console.print(f"{facts['cpu']}, {facts['cores']} cores, {size(facts['memory_bytes'])} memory")
    console.print(f"{facts['system']}, Python {facts['python']}")
    console.print(table("packages", [{"package": k, "version": v} for k, v in facts["packages"].items()]))
    if all(facts["packages"][name] for name in ("onnxruntime", "onnxruntime-gpu")):
        console.print(f"both builds of ONNX Runtime are installed, one over the other: {_ONE}", markup=False)
    torch = facts["torch"]
    if torch is None:
        console.print(
            'no PyTorch: models are built and served, not trained; pip install "monograph[train]"', markup=False
        )
    else:
        cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU build"
        devices = ", ".join(torch["devices"]) or "no CUDA device"
        console.print(f"torch {torch['version']}: {cuda}, {devices}, {torch['threads']} threads")
    console.print(table("execution providers (each tried with a model)", facts["providers"]))
    if (on_cuda := facts["cuda"]) is not None and not on_cuda["works"]:
        lost = ", ".join(on_cuda["missing"])
        why = f"{lost} cannot be loaded" if lost else "its libraries are there, so a device or its driver is missing"
        console.print(f"no session opens on CUDA: {why}; {on_cuda['hint']}", markup=False)
    console.print(table("kernels", facts["kernels"]["rows"]))
    for name, source in facts["kernels"]["sources"].items():
        console.print(f"{name}: {source}")
    if "ceilings" in facts:
        c = facts["ceilings"]
        console.print(
            f"memory {c['bandwidth'] / 1e9:.1f} GB/s, fp32 {c['flops'] / 1e9:.0f} GFLOP/s, {c['threads']} threads"
        )
    if os.environ.get("OMP_NUM_THREADS"):
        console.print(
            f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} is set: PyTorch and the runtime may use fewer threads"
        )
