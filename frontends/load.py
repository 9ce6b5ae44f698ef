"""One door for every kind of checkpoint: a folder, a GGUF or ONNX file, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from ..ir.errors import ConfigError
from .dsl import Family, Model, head_of
from .gguf import load_gguf
from .gguf_file import first_part
from .huggingface import download, load_folder
from .own import kept


def load(source: str | Path, *, tokenizer: bool = True, family: Family | None = None, task: str | None = None) -> Model:
    """The model in a Hugging Face folder, a .gguf or .onnx file, or a hub repository such as "org/name".

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
        if family is None and (own := kept_family(path)) is not None:
            family = own if task is None else head_of(own, task)
        return load_folder(path, tokenizer=tokenizer, family=family, task=task)
    if path.is_file():
        return _load_file(path, tokenizer)
    if (
        isinstance(source, str)
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
        and path.suffix not in (".gguf", ".onnx")
    ):
        return load_folder(download(source), tokenizer=tokenizer, family=family, task=task)
    raise ConfigError("there is no such file or folder, nor a hub repository such as org/name", place=str(source))


def kept_family(folder: Path) -> Family | None:
    """The family whose file lies in the folder of a run or a build, which is run for it; None if none does.

    Raises ConfigError for a file that is damaged or was changed, ModelFileError for what goes wrong in it.
    """
    found = kept(folder)
    if found is None:
        return None
    file, name, task = found
    for value in vars(file.module()).values():
        if isinstance(value, Family) and value.name == name and value.task == task:
            return value
    raise ConfigError(f"defines no {task} model called {name}", place=str(file.path))


def _load_file(path: Path, tokenizer: bool) -> Model:
    with path.open("rb") as f:
        magic = f.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return load_gguf(path, tokenizer=tokenizer)
    if path.suffix == ".onnx":
        from .onnx import load_onnx

        return load_onnx(path)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise ConfigError("is one file of a checkpoint", place=str(path), hint=f"load its folder: {path.parent}")
    raise ConfigError("is neither a folder nor a GGUF or ONNX file", place=str(path))
