"""What a run trains on: the interface of every source of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import ClassVar, Protocol

from ..data.batch import Batch
from ..frontends.dsl import Model
from ..frontends.losses import loss_inputs, with_own_loss
from ..frontends.task import LOGITS
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import ConfigError
from ..ir.graph import Graph
from ..ir.ops.linear import Embedding
from ..ir.slots import TOKENS
from ..passes.document_mask import separate_documents
from ..passes.padding_mask import drop_padding_mask
from .arrays import Arrays, wanted_labels


class Source(Protocol):
    """Batches for one task: text, shards, pairs, rows with labels, instructions."""

    task: ClassVar[str]
    """The task of the models it trains: causal-lm, masked-lm, seq2seq-lm, sequence-classification; arrays for any."""

    static: ClassVar[bool]
    """Whether every training batch has the same shape."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def vocab(self) -> int: ...

    @property
    def held_out(self) -> Sized: ...

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless training batches from step `start` on, decided by the seed and the number of the step only."""
        ...

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        """Every held-out label once."""
        ...


def fitted(model: Model, source: Source) -> Source:
    """The source, of which arrays are held against the inputs of the model. Raises ConfigError if they do not fit."""
    if not isinstance(source, Arrays):
        return source
    graph, own = model.graph(), with_own_loss(model)
    types = {name: value.type for name, value in graph.inputs.items()}
    if own is not None:
        return source.of_model(model, types | loss_inputs(own, graph, model.config))
    if LOGITS not in graph.outputs:
        where = "@mg.model(..., loss=function)" if model.family is not None else "mg.load(..., loss=function)"
        hint = f"say how its outputs are held against the data: {where}"
        raise ConfigError(f"{model.name} has no output `{LOGITS}` and no loss of its own", hint=hint)
    return source.of_model(model, types | wanted_labels(graph.outputs[LOGITS].shape))


def check_fit(model: Model, source: Source, length: int = 0) -> None:
    """Raises ConfigError if the batches of `source`, with rows of `length` tokens, cannot train `model`."""
    if not isinstance(getattr(source, "task", None), str):
        hint = "make one of text with Corpus.of(text), Corpus.read(paths), Pairs.read(...) or the like"
        raise ConfigError(f"a {type(source).__name__} is not a source of batches", hint=hint)
    if isinstance(source, Arrays):
        return  # Each input was held against its type.
    if model.task != source.task:
        hint = "" if model.family is not None else f"load it with task={source.task!r}, or give arrays: mg.Arrays.of"
        raise ConfigError(f"{model.name} is a {model.task} model; this data trains {source.task} models", hint=hint)
    graph = model.graph()
    logits, positions = graph.outputs[LOGITS].shape[-1], _positions(graph)
    if positions is not None and length > positions:
        raise ConfigError(f"length is {length}, but the model has {positions} positions")
    labels = len(getattr(source, "labels", ()))
    if labels and logits != labels:
        raise ConfigError(f"the model tells {logits} labels apart but the data has {labels}")
    vocab = getattr(model.config, "vocab", None) if source.task == "sequence-classification" else logits
    if isinstance(vocab, int) and vocab < source.vocab:
        raise ConfigError(f"the model has {vocab} tokens but the tokenizer of the data has {source.vocab}")


def plain_graph(model: Model, source: Source) -> Graph:
    """A model's graph for this data: documents apart, and no mask where nothing can see what it hides."""
    graph = model.graph()
    if source.task == "causal-lm":
        # Rows are padded on the right only: no token that counts sees the padding.
        drop_padding_mask(graph)
    if getattr(source, "documents", False):
        separate_documents(graph)
    return graph


def _positions(graph: Graph) -> int | None:
    """Rows of the table that positions are looked up in, if there is one."""
    given = graph.inputs.get(TOKENS.positions)
    uses = () if given is None else given.uses
    found = [node.value("table").shape[0] for node, i in uses if isinstance(node.op, Embedding) and i == 0]
    return next((rows for rows in found if isinstance(rows, int)), None)
