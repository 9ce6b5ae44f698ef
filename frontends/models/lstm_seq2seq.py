"""LSTM encoder-decoder with attention: the global model of Luong et al. 2015, score "general", no input feeding.

Input feeding would make each decoder step read the attention of the step before, so that training could not read a
whole target at once. The decoder starts from the encoder's last states (Sutskever et al. 2014).
"""

from __future__ import annotations

from ...ir import ops
from ..dsl import Config, Scope, Value, key, key_mask, model
from ..layers import drop
from ..recurrent import compacted, embed, recurrent, spread, wide

States = list[tuple[Value, ...]]


class LstmSeq2seq(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    layers: int = key("num_hidden_layers", 2)
    dropout: float = key("dropout", 0.0)
    tied: bool = key("tie_word_embeddings", True)


@model(task="seq2seq-lm")
def lstm_seq2seq(
    m: Scope,
    c: LstmSeq2seq,
    input_ids: Value,
    attention_mask: Value,
    decoder_input_ids: Value,
    decoder_attention_mask: Value,
) -> Value:
    def read(m: Scope, ids: Value, mask: Value, initial: States | None) -> tuple[Value, States]:
        order, place, lengths = compacted(mask)
        x = drop(embed(top, ops.take_along_axis(ids, order, axis=1), c.vocab, c.dim), c.dropout)
        y, states = recurrent(m, "lstm", x, c.dim, c.layers, lengths, initial, dropout=c.dropout)
        return spread(y, place), states

    top = m = wide(m, c.dim)
    memory, states = read(m / "encoder", input_ids, attention_mask, None)
    h, _ = read(m / "decoder", decoder_input_ids, decoder_attention_mask, states)
    keys = m.linear("attention", memory, c.dim).split_heads(1)
    context = ops.attention(
        h.split_heads(1), keys, memory.split_heads(1), mask=key_mask(attention_mask), scale=1.0
    ).merge_heads()
    both = ops.concat(context, h, axis=-1)
    y = drop(ops.tanh(m.linear("combine", both, c.dim)), c.dropout)
    return m.linear("lm_head", y, c.vocab, tie="embedding" if c.tied else None)
