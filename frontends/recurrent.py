"""What the recurrent language models share: their config, stacked layers, and a mask that hides any position."""

from __future__ import annotations

from typing import Any

from ..ir import Init, ops
from ..ir.errors import ConfigError
from ..ir.types import bool_
from .dsl import Config, Scope, Value, key
from .layers import drop

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


class RecurrentConfig(Config):
    """Fields of a recurrent language model. tied: the output layer uses the embedding, so both widths are equal."""

    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    layers: int = key("num_hidden_layers", 1)
    embedding: int | None = key("embedding_size", None)
    dropout: float = key("dropout", 0.0)
    bias: bool = key("bias", True)
    tied: bool = key("tie_word_embeddings", False)

    def __post_init__(self) -> None:
        if self.tied and self.width != self.dim:
            what = f"embedding_size is {self.width} but hidden_size is {self.dim}"
            raise ConfigError(f"{what}: tie_word_embeddings needs them equal")

    @property
    def width(self) -> int:
        """Channels of the embedding."""
        return self.embedding or self.dim


def spread_of(dim: int) -> float:
    """Standard deviation of PyTorch's first weights behind `dim` channels: uniform, -dim**-0.5 to dim**-0.5."""
    return (3 * dim) ** -0.5


def wide(m: Scope, dim: int) -> Scope:
    """The same place, where weights over `dim` channels start as PyTorch's do."""
    return Scope(m.graph, m.path, m.dtype, spread_of(dim))


def recurrent(
    m: Scope,
    kind: str,
    x: Value,
    dim: int,
    layers: int,
    lengths: Value,
    initial: list[tuple[Value, ...]] | None = None,
    *,
    dropout: float = 0.0,
    bias: bool = True,
    **attributes: Any,
) -> tuple[Value, list[tuple[Value, ...]]]:
    """`layers` layers of `kind` (rnn, lstm, gru) over x [B,S,C]: y [B,S,dim], and the last states of each layer.

    Parameters are named as in torch.nn.LSTM, `weight_ih_l0` and so on. dropout: between layers. initial: first states
    per layer (None: zeros).
    """
    states: list[tuple[Value, ...]] = []
    rows = GATES[kind] * dim
    std = spread_of(dim)
    for i in range(layers):
        weights = [
            m.param(f"weight_ih_l{i}", rows, x.shape[2], init=Init("normal", std)),
            m.param(f"weight_hh_l{i}", rows, dim, init=Init("normal", std)),
        ]
        biases = [m.param(f"bias_{s}_l{i}", rows, init=Init("zeros")) if bias else None for s in ("ih", "hh")]
        first = initial[i] if initial is not None else (None,) * (2 if kind == "lstm" else 1)
        x, *last = getattr(ops, kind)(drop(x, dropout if i else 0.0), *weights, *biases, *first, lengths, **attributes)
        states.append(tuple(last))
    return x, states


def compacted(mask: Value) -> tuple[Value, Value, Value]:
    """`ops.compact` of a 0/1 mask [B,S]: (order, place, lengths)."""
    order, place, lengths = ops.compact(mask.cast(bool_))
    return order, place, lengths


def spread(x: Value, place: Value) -> Value:
    """x [B,S,C], kept positions at the front, put back; a hidden position gets that of the last kept one before it."""
    index = ops.expand(place.reshape(*place.shape, 1), shape=x.shape)
    return ops.take_along_axis(x, index, axis=1)


def embed(m: Scope, ids: Value, vocab: int, width: int) -> Value:
    """Rows of `embedding.weight`, which start wide enough for gates to tell them apart from the first step on."""
    return ops.embedding(ids, (m / "embedding").param("weight", vocab, width, init=Init("normal", 0.3)))


def language_model(
    m: Scope, c: RecurrentConfig, kind: str, input_ids: Value, attention_mask: Value, **attributes: Any
) -> Value:
    """Logits [B,S,V] after reading each token; tokens that the mask hides, wherever they are, are not read."""
    order, place, lengths = compacted(attention_mask)
    ids = ops.take_along_axis(input_ids, order, axis=1)
    x = drop(embed(m, ids, c.vocab, c.width), c.dropout)
    settings: dict[str, Any] = {"dropout": c.dropout, "bias": c.bias, **attributes}
    y, _ = recurrent(m / "rnn", kind, x, c.dim, c.layers, lengths, **settings)
    y = drop(spread(y, place), c.dropout)
    return wide(m, c.dim).linear("lm_head", y, c.vocab, bias=not c.tied, tie="embedding" if c.tied else None)
