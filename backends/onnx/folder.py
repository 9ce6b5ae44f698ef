"""The folder of an exported or a built model: what stands beside the graphs, and what such a folder may replace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from ...frontends.dsl import Model
from ...frontends.huggingface import GENERATION, PREPROCESSOR
from ...frontends.huggingface import write_companions as companions
from ...frontends.own import FILE as SOURCE
from ...frontends.pooling import FILE as POOLING
from ...frontends.pooling import TENSORS as POOLING_TENSORS
from ...frontends.pooling import Pooling
from ...frontends.task import TOKEN_TYPES
from ...frontends.tokenizer import read_json
from ...ir.errors import MonographError
from ...ir.files import Stage
from ...ir.manifest import MANIFEST, VERIFIED
from ...ir.slots import TOKENS
from ...passes.quantize.report import FILE as QUANTIZATION
from ...passes.quantize.report import QUALITY
from .clients import DECODER, ENCODER, LAYOUTS, MERGED, Layout
from .genai import FILE as GENAI
from .lower import PRODUCER
from .untyped import read_graph

CONTRACT, CONFIG, TOKENIZER = "monograph.json", "config.json", "tokenizer_config.json"
TUNING = "tuning.json"
"""What was measured to choose, in a folder whose build was told to."""
GRAPHS = ("model", "model.masked", "model.prompts", "encoder", ENCODER, DECODER, MERGED)
NAMES = frozenset(
    {
        CONTRACT, TUNING, MANIFEST, VERIFIED, POOLING, POOLING_TENSORS, SOURCE, CONFIG, GENERATION, PREPROCESSOR, GENAI,
        QUANTIZATION, QUALITY, "tokenizer.json", TOKENIZER,
        *(f"{g}.onnx{end}" for g in GRAPHS for end in ("", ".data", "_data")),
    }
)  # fmt: skip
"""Every file that a build or an export writes."""
FOLDERS = frozenset(layout.folder for layout in LAYOUTS.values() if layout.folder)
"""Every folder inside, in which graphs are written."""

_NEW_CLASS, _CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
"""What transformers 5 writes for a tokenizer.json, and the name by which all versions know the same class."""


def write_companions(stage: Stage, model: Model, inputs: Iterable[str], layout: Layout | None = None) -> None:
    """Stage what clients expect beside a model, and how an encoder's vectors become one.

    inputs: names that the graphs take in. layout: of the client that the folder is for.
    """
    companions(stage, model, model.weights)
    pooling = Pooling.read(model.folder) if model.folder is not None else None
    if pooling is not None:
        pooling.write(stage)
    if model.tokenizer is not None:
        side = "left" if layout is None else layout.padding
        said = _staged(stage, TOKENIZER)
        write_json(stage, TOKENIZER, {**said, **tokenizer_settings(model, inputs, said, side)})
        if model.task.generates:
            write_json(stage, GENERATION, {**ends_of(model), **_staged(stage, GENERATION)})
    if layout is not None and layout.folder:
        # What transformers.js takes where its caller says nothing: else it looks for files of 8 bits in a browser.
        files = {"dtype": "fp32", "use_external_data_format": dict.fromkeys(_with_data(stage, layout), 1)}
        write_json(stage, CONFIG, {**_staged(stage, CONFIG), "transformers.js_config": files})


def tokenizer_settings(model: Model, inputs: Iterable[str], said: Mapping[str, Any], side: str) -> dict[str, Any]:
    """What a tokenizer must know of a model: the inputs that it makes, and on which side a client pads prompts."""
    taken = set(inputs)
    found: dict[str, Any] = {"model_input_names": [k for k in (TOKENS.ids, TOKEN_TYPES, TOKENS.mask) if k in taken]}
    if said.get("tokenizer_class") == _NEW_CLASS:
        found["tokenizer_class"] = _CLASS
    if model.task.separated:
        found["model_input_names"] = [TOKENS.ids, TOKENS.mask]
    elif model.task.generates:
        found["padding_side"] = side
    return found


def ends_of(model: Model) -> dict[str, Any]:
    """Special ids that generation needs, as far as the tokenizer has them."""
    tokens = model.tokenizer
    assert tokens is not None
    ends = list(tokens.eos_ids)
    start = tokens.start_id if model.task.separated else None
    found = {
        "bos_token_id": tokens.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokens.pad_id,
        "decoder_start_token_id": start,
    }
    return {k: v for k, v in found.items() if v is not None}


def _with_data(stage: Stage, layout: Layout) -> list[str]:
    """Graphs of a layout that have a data file, by file name."""
    return [f"{g}.onnx" for g in GRAPHS if (stage.work / f"{layout.path(g)}{layout.data}").exists()]


def _staged(stage: Stage, name: str) -> dict[str, Any]:
    """What a staged JSON file says; nothing if there is none."""
    return read_json(stage.work / name)


def write_json(stage: Stage, name: str, content: Mapping[str, Any]) -> None:
    write_text(stage, name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(stage: Stage, name: str, text: str) -> None:
    with stage.open(name) as file:
        file.write(text.encode())


def foreign(folder: Path) -> str:
    """Why a build must not take the place of a folder: it holds what no build wrote. "" where it may."""
    others = sorted(str(p.relative_to(folder)) for p in _strange(folder))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return f"holds {others[0]}{more}, which no build wrote and which would be deleted"
    if (folder / CONTRACT).exists() or any(_ours(p) for p in folder.rglob("*.onnx")):
        return ""
    return "holds files, but no model that was built here; they would be deleted"


def check_outside(folder: Path) -> None:
    """Raises MonographError for a folder inside a built one, whose next build would find it there."""
    above = next((p for p in folder.resolve().parents if (p / CONTRACT).is_file()), None)
    if above is not None:
        raise MonographError(f"lies in the built folder {above}", place=str(folder), hint="give a folder beside it")


def _strange(folder: Path) -> list[Path]:
    """What lies in a folder under no name that a build writes."""
    inside = [p for p in folder.iterdir() if p.name in FOLDERS and p.is_dir() and not p.is_symlink()]
    files = [p for p in folder.iterdir() if p not in inside] + [p for f in inside for p in f.iterdir()]
    return [p for p in files if p.name not in NAMES or not p.is_file()]


def _ours(path: Path) -> bool:
    """Whether an ONNX file says that it was written here."""
    try:
        return read_graph(path).producer_name == PRODUCER
    except (DecodeError, OSError):
        return False
