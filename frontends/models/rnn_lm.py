"""A recurrent language model. (Mikolov et al. 2010; the layer is that of Elman 1990)"""

from __future__ import annotations

from ..dsl import Scope, Value, key, model
from ..recurrent import RecurrentConfig, language_model


class RnnLm(RecurrentConfig):
    activation: str = key("hidden_act", "tanh")


@model
def rnn_lm(m: Scope, c: RnnLm, input_ids: Value, attention_mask: Value) -> Value:
    return language_model(m, c, "rnn", input_ids, attention_mask, activation=c.activation)
