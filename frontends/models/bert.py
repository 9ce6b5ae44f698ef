"""BERT: post-norm encoder with learned positions and token types. (Devlin et al. 2019)"""

from __future__ import annotations

from ...ir.errors import ConfigError
from ...ir.ops import attention, dropout, reshape, slice_, tanh
from ...ir.ops.feed_forward import activate
from ..activations import activation
from ..dsl import Config, Scope, Value, key, key_mask, model


class Bert(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size", 768)
    layers: int = key("num_hidden_layers", 12)
    heads: int = key("num_attention_heads", 12)
    ffn: int = key("intermediate_size", 3072)
    activation: str = key("hidden_act", "gelu")
    dropout: float = key("hidden_dropout_prob", 0.1)
    max_positions: int = key("max_position_embeddings", 512)
    token_types: int = key("type_vocab_size", 2)
    eps: float = key("layer_norm_eps", 1e-12)
    positions: str = key("position_embedding_type", "absolute")
    pooler: bool = key("add_pooling_layer", True)
    causal: bool = key("is_decoder", False)

    ignored = frozenset({"attention_probs_dropout_prob", "classifier_dropout", "tie_word_embeddings"})

    def __post_init__(self) -> None:
        if self.positions != "absolute":
            raise ConfigError(f"position_embedding_type {self.positions!r} is not supported; known: 'absolute'")
        if self.causal:
            raise ConfigError("is_decoder = True is not supported: this family is an encoder, which sees both ways")
        if self.dim % self.heads:
            raise ConfigError(f"hidden_size {self.dim} is not a multiple of num_attention_heads {self.heads}")


@model(task="feature-extraction")
def bert(
    m: Scope, c: Bert, input_ids: Value, attention_mask: Value, position_ids: Value, token_type_ids: Value
) -> dict[str, Value]:
    mask = key_mask(attention_mask)

    def drop(x: Value) -> Value:
        return dropout(x, p=c.dropout) if c.dropout else x

    def add_norm(m: Scope, x: Value, y: Value) -> Value:
        return m.layer_norm("LayerNorm", drop(y) + x, c.eps)

    def attn(m: Scope, x: Value) -> Value:
        q, k, v = (m.linear(n, x, c.dim, bias=True).split_heads(c.heads) for n in ("query", "key", "value"))
        return attention(q, k, v, mask=mask).merge_heads()

    e = m / "embeddings"
    x = e.embed("word_embeddings", input_ids, c.vocab, c.dim)
    x = x + e.embed("token_type_embeddings", token_type_ids, c.token_types, c.dim)
    x = x + e.embed("position_embeddings", position_ids, c.max_positions, c.dim)
    x = drop(e.layer_norm("LayerNorm", x, c.eps))
    for b in m.layers("encoder.layer", c.layers):
        a, up, down = b / "attention", b / "intermediate", b / "output"
        y = attn(a / "self", x)
        x = add_norm(a / "output", x, (a / "output").linear("dense", y, c.dim, bias=True))
        y = activate(up.linear("dense", x, c.ffn, bias=True), activation(c.activation))
        x = add_norm(down, x, down.linear("dense", y, c.dim, bias=True))
    outputs = {"last_hidden_state": x}
    if c.pooler:
        first = reshape(slice_(x, axis=1, start=0, length=1), shape=(x.shape[0], c.dim))
        outputs["pooler_output"] = tanh((m / "pooler").linear("dense", first, c.dim, bias=True))
    return outputs


ARCHITECTURE = "BertModel"
PREFIX = "bert"
"""What checkpoints with a head write before the names of the encoder."""
UNUSED = ("cls.*", "classifier.*", "qa_outputs.*")
"""Heads: this family gives the hidden states."""
FROM_WEIGHTS = {"add_pooling_layer": "*pooler.dense.weight"}
"""config.json does not say whether the checkpoint has a pooler."""
