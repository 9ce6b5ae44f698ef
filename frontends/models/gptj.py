"""GPT-J: attention and feed-forward side by side behind one norm, interleaved rotary positions. (Wang 2021)"""

from __future__ import annotations

from typing import Any

from ..buffers import CAUSAL
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..harmless import DROPOUT, keys
from ..layers import attention, drop, feed_forward, rotary


class GPTJ(Config):
    vocab: int = key("vocab_size")
    dim: int = key("n_embd", 4096, also=("hidden_size",))
    layers: int = key("n_layer", 28, also=("num_hidden_layers",))
    heads: int = key("n_head", 16, also=("num_attention_heads",))
    inner: int | None = key("n_inner", None)
    max_positions: int = key("n_positions", 2048, also=("max_position_embeddings",))
    rotary_dim: int = key("rotary_dim", 64)
    eps: float = key("layer_norm_epsilon", 1e-5)
    embedding_dropout: float = key("embd_pdrop", 0.0)
    dropout: float = key("resid_pdrop", 0.0)
    tied: bool = key("tie_word_embeddings", False)
    activation: str = key("activation_function", "gelu_new")

    noted = keys(DROPOUT, "attn_pdrop")


@model(
    checkpoint=Checkpoint(
        "GPTJForCausalLM",
        prefix="transformer",
        tied={"lm_head.weight": "transformer.wte.weight"},
        unused=CAUSAL,
    )
)
def gptj(m: Scope, c: GPTJ, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    width = c.dim // c.heads
    rotate = rotary(m, position_ids, width, theta=10000.0, turned=c.rotary_dim, interleaved=True)
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    settings: dict[str, Any] = {"heads": c.heads, "names": names, "mask": key_mask(attention_mask)}
    t = m / "transformer"
    x = drop(t.embed("wte", input_ids, c.vocab, c.dim), c.embedding_dropout)
    for b in t.layers("h", c.layers):
        y = b.layer_norm("ln_1", x, c.eps)
        attended = drop(attention(b / "attn", y, **settings, causal=True, rotate=rotate), c.dropout)
        names = ("fc_in", "fc_out")
        fed = feed_forward(b / "mlp", y, c.inner or 4 * c.dim, c.activation, names=names, bias=True)
        x = x + attended + drop(fed, c.dropout)
    x = t.layer_norm("ln_f", x, c.eps)
    return m.linear("lm_head", x, c.vocab, bias=True, tie="transformer.wte" if c.tied else None)
