"""One door for every kind of checkpoint: a folder, a GGUF file or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from ..ir.errors import ConfigError
from .dsl import Family, Model
from .gguf import load_gguf
from .gguf_file import first_part
from .huggingface import download, load_folder


def load(source: str | Path, *, tokenizer: bool = True, family: Family | None = None, task: str | None = None) -> Model:
    """The model in a Hugging Face folder, a .gguf file, or a hub repository such as "org/name".

    Only structure is read; tensors come when asked for. What lies on disk wins over a repository of the same name.
    family: a model of your own that was saved to the folder; others are found by the model_type they have.
    task: which head, where the family has several (None: the one the checkpoint has).
    Raises ConfigError or WeightsError naming the file.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        only = first_part(list(path.glob("*.gguf")))
        if only is not None and not (path / "config.json").exists() and not (path / "snapshots").is_dir():
            return load_gguf(only, tokenizer=tokenizer)
        return load_folder(path, tokenizer=tokenizer, family=family, task=task)
    if path.is_file():
        return _load_file(path, tokenizer)
    if (
        isinstance(source, str)
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
        and path.suffix not in (".gguf", ".onnx")
    ):
        return load_folder(download(source), tokenizer=tokenizer, family=family, task=task)
    raise ConfigError("does not exist, and is not a hub repository such as org/name", place=str(source))


def _load_file(path: Path, tokenizer: bool) -> Model:
    with path.open("rb") as f:
        magic = f.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return load_gguf(path, tokenizer=tokenizer)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise ConfigError("is one file of a checkpoint", place=str(path), hint=f"load its folder: {path.parent}")
    raise ConfigError("is neither a folder nor a GGUF file", place=str(path))
