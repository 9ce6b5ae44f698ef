"""A language model on LSTM layers. (Sundermeyer et al. 2012; dropout between layers as in Zaremba et al. 2014)"""

from __future__ import annotations

from ..dsl import Scope, Value, model
from ..recurrent import RecurrentConfig, language_model


class LstmLm(RecurrentConfig):
    pass


@model
def lstm_lm(m: Scope, c: LstmLm, input_ids: Value, attention_mask: Value) -> Value:
    return language_model(m, c, "lstm", input_ids, attention_mask)
