"""A language model on GRU layers. (The layer is that of Cho et al. 2014)"""

from __future__ import annotations

from ..dsl import Scope, Value, model
from ..recurrent import RecurrentConfig, language_model


class GruLm(RecurrentConfig):
    pass


@model
def gru_lm(m: Scope, c: GruLm, input_ids: Value, attention_mask: Value) -> Value:
    return language_model(m, c, "gru", input_ids, attention_mask)
