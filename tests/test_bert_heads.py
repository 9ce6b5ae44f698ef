"""Heads of BERT that give something for each token, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import pytest
import transformers
from family_parity import Case, check
from monograph.frontends.dsl import load_family
from monograph.ir.errors import ConfigError

pytestmark = pytest.mark.slow

BERT: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 32,
}  # fmt: skip
CASES = {
    "tokens": Case("BertForTokenClassification", {**BERT, "num_labels": 5}),
    "answers": Case("BertForQuestionAnswering", BERT),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_a_number_of_labels_without_names_counts(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT, num_labels=4)
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    start, end = text.index('"id2label"'), text.index('"initializer_range"')
    path.write_text(text[:start] + '"num_labels": 4, ' + text[end:])
    model: Any = mg.load(tmp_path)
    assert model.config.classes == 4
    assert model.config.number == 4


def test_answers_have_two_scores_a_token() -> None:
    with pytest.raises(ConfigError, match="2 scores a token, but num_labels is 3"):
        load_family("bert", "question-answering")(vocab=9, dim=8, heads=2, number=3).graph()
