"""What a run trains on: the interface of every source of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Protocol

import numpy as np

from ..frontends.dsl import Model
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import ConfigError
from ..ir.graph import Graph
from ..ir.tensors import Array
from .loss import IGNORED

Batch = dict[str, Array]
"""Inputs of the graph by name and `labels`, i64, first axis the rows; IGNORED labels do not count.

`document_ids` [B,S], if there, number the documents within a row, which do not see each other.
"""


class Source(Protocol):
    """Batches for one task: text, shards, pairs, rows with labels, instructions."""

    @property
    def task(self) -> str:
        """The task of the models it trains: causal-lm, masked-lm, seq2seq-lm, sequence-classification."""
        ...

    @property
    def static(self) -> bool:
        """Whether every training batch has the same shape."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

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


def check_fit(model: Model, source: Source, length: int = 0) -> None:
    """Raises ConfigError if the batches of `source`, with rows of `length` tokens, cannot train `model`."""
    if model.task != source.task:
        raise ConfigError(f"{model.name} is a {model.task} model; this data trains {source.task} models")
    graph = model.graph()
    logits, positions = graph.outputs["logits"].shape[-1], _positions(graph)
    if positions is not None and length > positions:
        raise ConfigError(f"length is {length}, but the model has {positions} positions")
    labels = len(getattr(source, "labels", ()))
    if labels and logits != labels:
        raise ConfigError(f"the model tells {logits} labels apart but the data has {labels}")
    vocab = getattr(model.config, "vocab", None) if source.task == "sequence-classification" else logits
    if isinstance(vocab, int) and vocab < source.vocab:
        raise ConfigError(f"the model has {vocab} tokens but the tokenizer of the data has {source.vocab}")


def check_tokenizer(model: Tokenizer | None, data: Tokenizer, place: str = "", whose: str = "the model's") -> None:
    """Raises ConfigError if the ids of the data mean other texts to the model. None: it came without a tokenizer."""
    difference = "" if model is None else model.difference(data)
    if difference:
        raise ConfigError(f"the data has another tokenizer than {whose}: {difference}", place=place)


def _positions(graph: Graph) -> int | None:
    """Rows of the table that positions are looked up in, if there is one."""
    given = graph.inputs.get("position_ids")
    uses = () if given is None else given.uses
    found = [node.arguments[1].shape[0] for node, i in uses if node.op.name == "embedding" and i == 0]
    return next((rows for rows in found if isinstance(rows, int)), None)


def labels_of(batch: Batch) -> int:
    """How many labels count."""
    return int((batch["labels"] != IGNORED).sum())


def tokens_of(batch: Batch) -> int:
    """How many tokens are read: those of source and target, without padding."""
    masks = [v for k, v in batch.items() if k in ("attention_mask", "decoder_attention_mask")]
    return int(sum(m.sum() for m in masks)) if masks else int(batch["input_ids"].size)


def split_rows(batch: Batch, parts: int) -> Sequence[Batch]:
    """The rows of a batch in at most `parts` nearly equal parts, in order."""
    if parts == 1:
        return [batch]
    places = np.array_split(np.arange(len(batch["labels"])), parts)
    return [{k: v[p[0] : p[-1] + 1] for k, v in batch.items()} for p in places if len(p)]
