"""GPT-2: pre-norm decoder with learned positions. (Radford et al. 2019)

Its checkpoints store the weights of linear layers as [in, out].
"""

from __future__ import annotations

from ...ir.errors import ConfigError
from ..buffers import CAUSAL
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..harmless import DROPOUT, SPEED, keys
from ..layers import Packed, attention, drop, feed_forward


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

    noted = {**keys(DROPOUT, "attn_pdrop"), **keys(SPEED, "reorder_and_upcast_attn")}

    def __post_init__(self) -> None:
        if self.heads < 1 or self.dim % self.heads:
            raise ConfigError(f"n_embd {self.dim} is not a multiple of n_head {self.heads}")

    @property
    def ffn(self) -> int:
        return self.inner or 4 * self.dim


@model(
    checkpoint=Checkpoint(
        architecture="GPT2LMHeadModel",
        also=("GPT2Model",),  # The original checkpoint was saved from the model without its head, which is tied.
        prefix="transformer",
        tied={"lm_head.weight": "transformer.wte.weight"},
        unused=CAUSAL,
    )
)
def gpt2(m: Scope, c: GPT2, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    mask = key_mask(attention_mask)

    t = m / "transformer"
    x = t.embed("wte", input_ids, c.vocab, c.dim) + t.embed("wpe", position_ids, c.max_positions, c.dim)
    x = drop(x, c.embedding_dropout)
    for i, b in enumerate(t.layers("h", c.layers)):
        y = b.layer_norm("ln_1", x, c.eps)
        y = attention(
            b / "attn",
            y,
            heads=c.heads,
            mask=mask,
            causal=True,
            scale=((c.dim // c.heads) ** -0.5 if c.scaled else 1.0) / (i + 1 if c.scaled_by_layer else 1),
            packed=Packed("c_attn"),
            names=("", "", "", "c_proj"),
            biases=True,
            transposed=True,
        )
        x = x + drop(y, c.dropout)
        y = b.layer_norm("ln_2", x, c.eps)
        y = feed_forward(b / "mlp", y, c.ffn, c.activation, names=("c_fc", "c_proj"), bias=True, transposed=True)
        x = x + drop(y, c.dropout)
    x = t.layer_norm("ln_f", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="transformer.wte" if c.tied else None)
