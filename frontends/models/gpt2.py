"""GPT-2: pre-norm decoder with learned positions. (Radford et al. 2019)

Its checkpoints store the weights of linear layers as [in, out].
"""

from __future__ import annotations

from ...ir.errors import ConfigError
from ...ir.ops import attention, dropout, slice_
from ...ir.ops.feed_forward import activate
from ..activations import activation
from ..dsl import Config, Scope, Value, key, key_mask, model

SUMMARY = tuple(f"summary_{k}" for k in ("type", "use_proj", "activation", "first_dropout", "proj_to_labels"))
"""Settings of a classification head that the language model does not have."""


class GPT2(Config):
    vocab: int = key("vocab_size")
    dim: int = key("n_embd", 768)
    layers: int = key("n_layer", 12)
    heads: int = key("n_head", 12)
    inner: int | None = key("n_inner", None)
    max_positions: int = key("n_positions", 1024)
    eps: float = key("layer_norm_epsilon", 1e-5)
    activation: str = key("activation_function", "gelu_new")
    embedding_dropout: float = key("embd_pdrop", 0.1)
    dropout: float = key("resid_pdrop", 0.1)
    scaled: bool = key("scale_attn_weights", True)
    scaled_by_layer: bool = key("scale_attn_by_inverse_layer_idx", False)
    tied: bool = key("tie_word_embeddings", True)

    ignored = frozenset({"attn_pdrop", "n_ctx", "reorder_and_upcast_attn", *SUMMARY})

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ConfigError(f"n_embd {self.dim} is not a multiple of n_head {self.heads}")

    @property
    def ffn(self) -> int:
        return self.inner or 4 * self.dim


@model
def gpt2(m: Scope, c: GPT2, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    mask = key_mask(attention_mask)

    def drop(x: Value, p: float = c.dropout) -> Value:
        return dropout(x, p=p) if p else x

    def attn(m: Scope, x: Value, layer: int) -> Value:
        qkv = m.linear("c_attn", x, 3 * c.dim, bias=True, transposed=True)
        q, k, v = (slice_(qkv, axis=-1, start=i * c.dim, length=c.dim).split_heads(c.heads) for i in range(3))
        scale = ((c.dim // c.heads) ** -0.5 if c.scaled else 1.0) / (layer + 1 if c.scaled_by_layer else 1)
        y = attention(q, k, v, mask=mask, causal=True, scale=scale)
        return drop(m.linear("c_proj", y.merge_heads(), c.dim, bias=True, transposed=True))

    def mlp(m: Scope, x: Value) -> Value:
        y = activate(m.linear("c_fc", x, c.ffn, bias=True, transposed=True), activation(c.activation))
        return drop(m.linear("c_proj", y, c.dim, bias=True, transposed=True))

    t = m / "transformer"
    x = t.embed("wte", input_ids, c.vocab, c.dim) + t.embed("wpe", position_ids, c.max_positions, c.dim)
    x = drop(x, c.embedding_dropout)
    for i, b in enumerate(t.layers("h", c.layers)):
        x = x + attn(b / "attn", b.layer_norm("ln_1", x, c.eps), i)
        x = x + mlp(b / "mlp", b.layer_norm("ln_2", x, c.eps))
    x = t.layer_norm("ln_f", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="transformer.wte" if c.tied else None)


ARCHITECTURE = "GPT2LMHeadModel"
PREFIX = "transformer"
"""The original checkpoint was saved from the model without its head."""
UNUSED = ("*.attn.bias", "*.attn.masked_bias")
"""The causal mask, which old checkpoints store as a buffer."""
