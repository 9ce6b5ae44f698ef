"""What was tuned before: by machine, runtime, provider, types, form of the weights, shape of the model and loads."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...frontends.dsl import Model, plain_graph
from ...ir.documents import parse_json, read_text
from ...ir.errors import ConfigError
from ...ir.files import cache_folder, write_file
from ...ir.tensors import Tensor
from ..target import Target
from .choices import choices_of
from .options import physical_cores
from .tune_loads import Load
from .tune_result import Tuning

FORMAT = 1
"""Of the files; another one is measured again."""

_TELLING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)
"""Instruction sets that kernels are chosen by."""


def machine() -> str:
    """Model, cores and instruction sets of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    said = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    sets = set((said.get("flags") or said.get("Features") or "").split())
    name = said.get("model name") or platform.processor() or platform.machine()
    return f"{name}, {physical_cores()} cores, {' '.join(s for s in _TELLING if s in sets) or platform.machine()}"


def key_of(
    model: Model, weights: Mapping[str, Tensor], target: Target, loads: Sequence[Load], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that a measurement depends on."""
    graph = plain_graph(model, target.dtype)
    forms = "\n".join(f"{k} {weights[k].type}" for k in graph.params if k in weights)
    return {
        "format": FORMAT,
        "machine": machine(),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "runtime": target.runtime,
        "provider": target.provider,
        "dtype": str(target.dtype),
        "shipped": choices_of(target).said(),
        "weights": hashlib.sha256(forms.encode()).hexdigest(),
        "graph": hashlib.sha256(str(graph).encode()).hexdigest(),
        "loads": [str(load) for load in loads],
        **settings,
    }


def _file(key: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "tuned" / f"{name}.json"


def read(key: Mapping[str, Any]) -> Tuning | None:
    """What was measured for the same, or None; what is damaged counts as nothing."""
    try:
        said = parse_json(read_text(_file(key)))
        return Tuning.of(said["tuning"]) if said["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None


def write(key: Mapping[str, Any], tuning: Tuning) -> None:
    """Keep a tuning for the next build of the same. Where nothing can be written it is measured again."""
    file = _file(key)
    text = json.dumps({"key": dict(key), "tuning": json.loads(tuning.to_json())}, indent=2) + "\n"
    write_file(file, text.encode())
