"""The folder of an exported or a built model: what stands beside the graphs, and what such a folder may replace."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from ...frontends.dsl import Model
from ...frontends.huggingface import GENERATION, PREPROCESSOR
from ...frontends.huggingface import write_companions as companions
from ...frontends.own import FILE as SOURCE
from ...frontends.pooling import FILE as POOLING
from ...frontends.pooling import Pooling
from ...ir.files import Stage
from ...ir.manifest import MANIFEST, VERIFIED
from .lower import PRODUCER
from .untyped import read_graph

CONTRACT = "monograph.json"
GRAPHS = ("model", "model.masked", "encoder", "encoder_model", "decoder_model")
NAMES = frozenset(
    {
        CONTRACT, MANIFEST, VERIFIED, POOLING, SOURCE, "config.json", GENERATION, PREPROCESSOR, "tokenizer.json",
        "tokenizer_config.json", *(f"{g}.onnx" for g in GRAPHS), *(f"{g}.onnx.data" for g in GRAPHS),
    }
)  # fmt: skip
"""Every file that a build or an export writes."""


def write_companions(stage: Stage, model: Model) -> None:
    """Stage what clients expect beside a model, and how an encoder's vectors become one."""
    companions(stage, model, model.weights)
    pooling = Pooling.read(model.folder) if model.folder is not None else None
    if pooling is not None:
        write_text(stage, POOLING, pooling.to_json())


def write_text(stage: Stage, name: str, text: str) -> None:
    with stage.open(name) as file:
        file.write(text.encode())


def foreign(folder: Path) -> str:
    """Why a build must not take the place of a folder: it holds what no build wrote. "" where it may."""
    others = sorted(p.name for p in folder.iterdir() if p.name not in NAMES or not p.is_file())
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return f"holds {others[0]}{more}, which no build wrote and which would be deleted"
    if (folder / CONTRACT).exists() or any(_ours(p) for p in folder.glob("*.onnx")):
        return ""
    return "holds files, but no model that was built here; they would be deleted"


def _ours(path: Path) -> bool:
    """Whether an ONNX file says that it was written here."""
    try:
        return read_graph(path).producer_name == PRODUCER
    except (DecodeError, OSError):
        return False
