"""A model repository for Triton Inference Server: a built folder, its configuration and the few lines that load it.

The Python backend runs our own sessions: state, any mask and pooling are theirs, and are not in the graph that Triton's
ONNX Runtime backend could open.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ...backends.onnxruntime.contract import Contract
from ...frontends.json_file import read_json
from ...frontends.pooling import Pooling
from ...ir.errors import ConfigError
from ...ir.files import whole

MODEL, BUILT = "model.py", "built"

LOADER = '''"""Written by Monograph: what Triton's Python backend loads. The `monograph` package does the rest."""

import triton_python_backend_utils as pb_utils
from monograph.inference.server.triton_model import Model


class TritonPythonModel:
    def initialize(self, args):
        self.model = Model(pb_utils, args)

    def execute(self, requests):
        return self.model.execute(requests)

    def finalize(self):
        self.model.close()
'''

TEXT = [("text_input", "TYPE_STRING", [1], False)]
GENERATE = [
    *TEXT,
    ("stream", "TYPE_BOOL", [1], True),
    ("sampling_parameters", "TYPE_STRING", [1], True),
]
"""Inputs of a model that generates, named as Triton's vLLM backend names them: (name, type, dims, may be left out)."""

GENERATED = [
    ("text_output", "TYPE_STRING", [1], False),
    ("token_ids", "TYPE_INT64", [-1], False),
    ("finish_reason", "TYPE_STRING", [1], False),
]


def write_repository(
    folder: str | Path, repository: str | Path, *, name: str | None = None, rows: int = 8, threads: int | None = None
) -> Path:
    """Write REPOSITORY/NAME with a copy of a built folder inside; the folder of the model.

    name: of the model (None: that of the folder). rows: requests computed at once, or texts of a batch. threads: of
    the session. Raises ConfigError for a folder that `build` did not write, a model that neither generates from tokens
    nor gives vectors, and a name that is none.
    """
    folder = Path(folder)
    contract = Contract.read(folder)
    name = name or folder.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
        raise ConfigError(f"{name!r} cannot be the name of a model: letters, digits, '_', '-' and '.'")
    config = configuration(contract, width_of(folder), name, rows, threads)
    target = Path(repository) / name
    with whole(target, replaces=_replaces) as stage:
        version = stage.work / "1"
        version.mkdir()
        (version / MODEL).write_text(LOADER, "utf-8")
        shutil.copytree(folder, version / BUILT)
        (stage.work / "config.pbtxt").write_text(config, "utf-8")
    return target


def _replaces(folder: Path) -> str:
    """Why a folder may not be replaced; empty for one that this wrote, and for an empty one."""
    ours = (folder / "config.pbtxt").is_file() and (folder / "1" / BUILT / "monograph.json").is_file()
    return "" if ours or not folder.exists() or not any(folder.iterdir()) else "it is no model that this wrote"


def width_of(folder: Path) -> int:
    """The width of the vectors of an encoder, after its pooling; -1 (any) where its configuration does not say."""
    pooling = Pooling.read(folder) or Pooling()
    if pooling.dense:
        return int(pooling.dense[-1].weight.shape[0])
    width = read_json(folder / "config.json").get("hidden_size")
    return len(pooling.modes) * width if isinstance(width, int) else -1


def configuration(contract: Contract, width: int, name: str, rows: int, threads: int | None) -> str:
    """The text of config.pbtxt. Raises ConfigError for a model that cannot be served so."""
    generates = contract.kind == "decoder" and not contract.encoder
    if not generates and contract.task != "feature-extraction":
        raise ConfigError(
            f"a {contract.task} model is not served by Triton: one that generates, or gives embeddings is"
        )
    inputs = GENERATE if generates else TEXT
    outputs = GENERATED if generates else [("embedding", "TYPE_FP32", [width], False)]
    lines = [f"name: {json.dumps(name)}", 'backend: "python"', f"max_batch_size: {0 if generates else rows}"]
    if generates:
        # One request may have many responses, and ends when its last one says so.
        lines.append("model_transaction_policy { decoupled: true }")
    else:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 1000 }")
    for kind, fields in (("input", inputs), ("output", outputs)):
        for field, type, dims, optional in fields:
            more = " optional: true" if optional else ""
            shape = ", ".join(map(str, dims))
            lines.append(f'{kind} {{ name: "{field}" data_type: {type} dims: [ {shape} ]{more} }}')
    device = "KIND_GPU" if contract.provider == "cuda" else "KIND_CPU"
    lines.append(f"instance_group {{ count: 1 kind: {device} }}")
    settings = {"rows": rows, "threads": threads or 0, "family": contract.family}
    lines += [
        f'parameters {{ key: "{k}" value {{ string_value: {json.dumps(str(v))} }} }}' for k, v in settings.items()
    ]
    return "\n".join(lines) + "\n"
