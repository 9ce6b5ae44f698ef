"""Real text from real weights: a chat model answers, in batches as alone, and sentence vectors equal transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monograph.backends.onnxruntime import build
from monograph.frontends.load import load
from monograph.inference.engine import Engine
from real_weights import real_weights

pytestmark = [pytest.mark.weights, pytest.mark.slow]

QUESTIONS = (
    "What is the capital of France?",
    "What is 2 + 2? Answer with one number.",
    "Name a colour of the rainbow.",
)
SENTENCES = (
    "A man is eating food.",
    "Someone eats a meal, slowly and with great pleasure, while the others talk about the weather of next week.",
    "The sky is blue.",
    "word " * 400,
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("smollm2")
    build(load(real_weights("smollm2")), None, folder)
    return Engine.open(folder)


def test_a_chat_model_answers(chat: Engine) -> None:
    (first, second, _) = results = chat.generate(list(QUESTIONS), chat=True, max_new_tokens=24)
    assert "Paris" in first.text
    assert "4" in second.text
    assert first.reason == "eos"
    for question, result in zip(QUESTIONS, results, strict=True):
        alone = chat.generate(question, chat=True, max_new_tokens=24)
        assert (alone.text, alone.reason) == (result.text, result.reason)


def test_streamed_text_stops_where_asked(chat: Engine) -> None:
    whole = chat.generate(QUESTIONS[0], chat=True, max_new_tokens=24).text
    stop = "of France"
    assert stop in whole
    pieces = list(chat.stream(QUESTIONS[0], chat=True, max_new_tokens=24, stop=stop))
    assert len(pieces) > 1
    assert "".join(pieces) == whole[: whole.index(stop)]


def test_sentence_vectors_equal_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = real_weights("minilm")
    build(load(folder), None, tmp_path)
    engine = Engine.open(tmp_path)
    assert (engine.pooling.mode, engine.pooling.normalize, engine.pooling.max_length) == ("mean", True, 256)
    vectors = engine.embed(SENTENCES)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=2e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2, "like sentences have like vectors"
