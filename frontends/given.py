"""What callers give as a model: a Model, or a clear error that says what it is instead and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..ir.errors import MonographError
from ..ir.graph import Graph
from ..ir.weights import Weights
from .dsl import Config, Family, Model


class NotAModelError(MonographError, TypeError):
    """Something that is no model was given as one."""


def model_of(given: object, what: str) -> Model:
    """A model as it is. what: the function that it was given to. Raises NotAModelError for anything else."""
    if isinstance(given, Model):
        return given
    kind, hint = _described(given)
    raise NotAModelError(f"{what} got {kind}, expected a monograph Model", hint=hint)


def not_loadable(given: object) -> NotAModelError:
    """The error for something that names no model."""
    kind, hint = _described(given)
    return NotAModelError(f"load got {kind}, expected a path, a name or a model", hint=hint)


def init(model: Model | Family, seed: int = 0, **settings: Any) -> Model:
    """A model with random weights drawn by `seed`, to try an architecture before it is trained.

    model: a model, which keeps its own weights (a copy gets the random ones, and shares buffers and frozen parameters),
    or a family, with `settings` for the fields of its config.
    Raises NotAModelError for anything else, ConfigError for settings that do not fit.
    """
    made = model(**settings) if isinstance(model, Family) else model_of(model, "init")
    if settings and not isinstance(model, Family):
        raise MonographError(f"init got {', '.join(settings)} for a model that has its config already")
    if type(seed) is not int or seed < 0:
        raise MonographError(f"seed is {seed!r}, expected a whole number of at least 0")
    graph = made.graph()
    drawn = Weights.initialize(graph, seed)
    kept = [k for k in graph.params if k not in drawn] if made.weights is not None else []
    return Model(
        made.source,
        made.config,
        drawn if made.weights is None else drawn | {k: made.weights[k] for k in kept},
        made.folder,
        made.tokenizer,
        dict(made.generation),
        made.notes,
    )


def _described(given: object) -> tuple[str, str]:
    """(what something is, how a model is made of it, if that is certain)."""
    match given:
        case None:
            return "None", "did a function that makes the model forget to return it?"
        case str() | Path():
            return repr(str(given)), f"load it first: mg.load({str(given)!r})"
        case Family():
            return f"the family {given.name}", f"call it with its config: {given.name}(...)"
        case Config():
            return f"a config ({type(given).__name__})", "call its family with it"
        case Graph():
            return f"the graph {given.name}", "wrap it: mg.Model(mg.Program(name, task, graph), weights=weights)"
        case Mapping():
            return (
                f"a {cast('object', given).__class__.__name__}",
                "weights belong to a model: model.weights = mg.Weights.of({...})",
            )
        case bool() | int() | float():
            return repr(given), ""
        case _ if any(c.__module__.startswith("torch.nn") for c in type(given).__mro__):
            hint = "give inputs to trace it with: mg.load(module, example_inputs)"
            return f"a torch module ({type(given).__name__})", hint
        case _:
            return f"a {type(given).__module__}.{type(given).__qualname__}".replace("builtins.", ""), ""
