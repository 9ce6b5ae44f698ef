"""A model that came as a graph of its own, under one of our tasks: a decoder exported without a cache is given one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..ir.errors import MonographError
from ..ir.graph import Graph
from ..passes.imported import make_cacheable
from .dsl import Model, Program
from .task import Task, task_of
from .tokenizer import Tokenizer
from .tokenizer_files import has_tokenizer


def generates(task: str | Task) -> bool:
    """Whether models of a task go on with the tokens that they are given. Raises MonographError for an unknown one."""
    return task_of(task).generates


def with_tokenizer(model: Model, folder: Path) -> Model:
    """A model that goes on with tokens, with the tokenizer that stands beside its file, if one does.

    Raises MonographError for one that gives ids which the model has no row for.
    """
    if not has_tokenizer(folder):
        return model
    found, last = Tokenizer.open(folder), model.graph(model.dtype).outputs[model.task.output].shape[-1]
    notes = found.fitted(last if isinstance(last, int) else None, folder)
    return dataclasses.replace(model, tokenizer=found, notes=(*model.notes, *notes))


def as_task(model: Model, task: str | Task | None) -> Model:
    """An imported model under a task that generates: prefill and steps are made of its one graph, as of our own.

    None, and a task that does not generate: as it is. What a module detaches from its gradients is not kept.

    Raises MonographError for an encoder-decoder, and PassError with the node and the reason for a graph that cannot be
    given a cache.
    """
    if task is None:
        return model
    known = task_of(task)
    if not known.generates:
        return model
    if known.stream is None or known.separated:
        hint = "give its encoder and its decoder as models of their own"
        raise MonographError(f"an imported graph cannot be a {known}: it is no decoder alone", hint=hint)
    graph: Graph = model.graph(model.dtype)
    make_cacheable(
        graph, known.stream, known.output, known.zeros, None if model.weights is None else model.weights.numpy
    )
    return dataclasses.replace(model, source=Program(model.name, known, graph))
