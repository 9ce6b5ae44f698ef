"""What a model, a family and a task show of themselves, without reading weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..ir.display import Table, wrapped
from ..ir.errors import MonographError
from ..ir.summary import parameters

if TYPE_CHECKING:
    from .config import Config
    from .dsl import Family, Model
    from .task import Task


def model_table(model: Model) -> Table:
    """Config, parameters, tokenizer and where a model comes from."""
    rows = [
        ("task", model.task.name),
        *([("config", wrapped(config_fields(model.config)))] if model.config is not None else []),
        ("parameters", _parameters(model)),
        ("weights", "none yet" if model.weights is None else model.weights.place or "in memory"),
        ("tokenizer", _tokenizer(model.tokenizer)),
        *([("folder", str(model.folder))] if model.folder is not None else []),
        *([("notes", "\n".join(map(str, model.notes)))] if model.notes else []),
    ]
    return Table(f"model {model.name}", rows)


def _parameters(model: Model) -> str:
    if model.weights is not None:
        return parameters(t.type for t in model.weights.values())
    try:
        return parameters(v.type for v in model.graph().params.values())
    except MonographError as e:
        return f"not known: {e.what}"


def _tokenizer(tokenizer: Any) -> str:
    core = getattr(tokenizer, "core", None)
    if core is None:
        return "none"
    return f"{type(core.model).__name__}, {core.get_vocab_size():,} tokens"


def family_table(family: Family) -> Table:
    """Task, inputs, fields of the config with their defaults, and where the function stands."""
    code = family.function.__code__
    inputs = code.co_varnames[2 : code.co_argcount]
    rows = [
        ("task", family.task.name),
        ("inputs", wrapped([f"{name}: {family.task.inputs[name]}" for name in inputs if name in family.task.inputs])),
        ("config", f"{family.config_class.__name__}({_signature(family.config_class)})"),
        *([("reads", family.checkpoint.architecture)] if family.checkpoint.architecture else []),
        *([("GGUF", "yes")] if family.gguf is not None else []),
        ("written in", f"{code.co_filename}:{code.co_firstlineno}"),
    ]
    return Table(f"family {family.name}", rows, note=f"{family.name}(field=value, ...) makes a model")


def _signature(config: type[Config]) -> str:
    return wrapped([_default(f) for f in dataclasses.fields(config)])  # type: ignore[arg-type]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"{field.name}={field.default!r}"
    return field.name if field.default_factory is dataclasses.MISSING else f"{field.name}={field.default_factory()!r}"


def config_fields(config: Config) -> list[str]:
    """`field=value` of every field."""
    return [f"{f.name}={getattr(config, f.name)!r}" for f in dataclasses.fields(config)]  # type: ignore[arg-type]


def config_table(config: Config) -> Table:
    rows = [(f.name, repr(getattr(config, f.name))) for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    return Table(type(config).__name__, rows)


def task_table(task: Task) -> Table:
    """Inputs with their types and what they are for, and what comes out."""
    rows = [("input", "type", "role")]
    rows += [(name, type, task.role(name).value) for name, type in task.inputs.items()]
    does = "continues its stream of tokens" if task.generates else "one call"
    return Table(f"task {task.name}", rows, headed=True, note=f"gives {task.output}; {does}")
