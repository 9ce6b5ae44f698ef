"""The loss of a model of one's own: a function from its outputs by name, and from inputs, to a number."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..ir import DType, Graph, TensorType, Value, building, ops
from ..ir.errors import did_you_mean
from ..ir.types import f32
from .mistakes import ModelFileError, in_function, line_of
from .own import beside
from .task import LABELS, Task

if TYPE_CHECKING:
    from .config import Config
    from .dsl import Family, Model, Program


def loss_names(loss: Callable[..., Any]) -> list[str]:
    """The inputs that a loss takes behind the outputs."""
    return list(inspect.signature(loss).parameters)[1:]


def check_loss(loss: Callable[..., Any], task: Task) -> None:
    """Raises ModelFileError if a loss takes something that is no input of the task."""
    known = [*task.inputs, LABELS]
    place, line = line_of(loss)
    for name in loss_names(loss):
        if name not in known:
            what = f"{loss.__name__}: no input is called {name!r}{did_you_mean(name, known)}"
            hint = f"after the outputs a loss takes inputs of its task: {', '.join(known)}"
            raise ModelFileError(what, place=place, details=line, hint=hint)


def with_own_loss(model: Model) -> Family | Program | None:
    """The source of a model, if it has a loss of its own."""
    source: Any = model.source
    return source if getattr(source, "loss", None) is not None else None


def loss_inputs(family: Family | Program, graph: Graph, config: Config | None) -> dict[str, TensorType]:
    """The types of what the loss of a family or program takes beside the outputs of its plain graph."""
    main = graph.outputs[family.task.output]
    own = {LABELS: TensorType(DType.i64, main.shape[:-1])}
    names = [] if family.loss is None else loss_names(family.loss)
    return {k: family.input_type(k, config, main.dtype) if k in family.task.inputs else own[k] for k in names}


def loss_of(family: Family | Program, graph: Graph, config: Config | None) -> Value:
    """The loss of a family or program, a number in f32 or wider, added to `graph`, a copy of its plain one.

    Of several numbers, such as one a row, it is the mean. Raises ModelFileError if it is no number.
    """
    assert family.loss is not None
    types = loss_inputs(family, graph, config)
    with building(graph), beside(family.loss), in_function(family.loss):
        given = [graph.input_of(k, t) for k, t in types.items()]
        found: object = family.loss(dict(graph.outputs), *given)
        if isinstance(found, Value) and found.dtype.is_float:
            wide = found if found.dtype.bits >= 32 else ops.cast(found, dtype=f32)
            return wide if wide.rank == 0 else ops.mean(wide.reshape(-1), axis=-1, keepdims=False)
    place, line = line_of(family.loss)
    kind = "nothing" if found is None else str(found.type) if isinstance(found, Value) else f"a {type(found).__name__}"
    what = f"the loss of {family.name} is {kind}, expected a number, or several, of which the mean is taken"
    raise ModelFileError(what, place=place, details=line)
