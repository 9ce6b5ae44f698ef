"""The engine on ONNX Runtime: what it says is what the NumPy reference says; vectors equal pooling by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import build
from monograph.data.byte_level import train_tokenizer
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.pooling import Pooling
from monograph.frontends.tokenizer import Tokenizer
from monograph.inference.embed import tokens_of
from monograph.inference.engine import Engine
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, RuntimeInputError
from monograph.ir.files import staged
from monograph.ir.weights import Weights
from slot_nets import Made

TEXT = "the cat sat on the mat. the dog sat on the log. where is the end of it? naïve café ☕ " * 4
PROMPTS = ("the cat", "where is the end of", "a")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, 300)


def with_weights(model: Model, tokenizer: Tokenizer, scale: float = 8.0) -> Model:
    graph = model.graph()
    weights = Weights.initialize(graph, 1)
    model.weights = Weights.of({k: (scale * weights.numpy(k)).astype(np.float32) for k in graph.params})
    model.tokenizer = tokenizer
    return model


def made(model: Model, folder: Path, **settings: Any) -> Engine:
    build(model, None, folder, **settings)
    return Engine.open(folder, threads=1)


@pytest.fixture(scope="module")
def llama(tokenizer: Tokenizer) -> Model:
    settings = {"vocab": tokenizer.size, "dim": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2}
    return with_weights(load_family("llama")(**settings, max_positions=64), tokenizer)


@pytest.fixture(scope="module")
def engine(llama: Model, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return made(llama, tmp_path_factory.mktemp("llama"))


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    """Full forwards of the NumPy reference, one row, no padding, no cache."""
    assert model.weights is not None
    graph, row = model.graph(), list(prompt)
    params = {k: model.weights.numpy(k) for k in graph.params}
    for _ in range(count):
        ids = np.array([row])
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(len(row))[None]}
        row.append(int(interpret(graph, inputs, params)["logits"][0, -1].argmax()))
    return row[len(prompt) :]


# -- generation ------------------------------------------------------------------------------------------------


def test_batch_says_what_the_reference_says(engine: Engine, llama: Model, tokenizer: Tokenizer) -> None:
    results = engine.generate(list(PROMPTS), max_new_tokens=12, eos=())
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.prompt == tokenizer.encode(prompt)
        assert result.ids == greedy(llama, result.prompt, 12)
        assert result.text == tokenizer.decode(result.ids)
    assert engine.session.lengths.tolist() == [len(r.prompt) + 11 for r in results]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_shifts_nothing(engine: Engine, llama: Model, tokenizer: Tokenizer, side: str) -> None:
    rows = [tokenizer.encode(p) for p in PROMPTS]
    width = max(map(len, rows)) + 1
    ids, mask = np.full((3, width), 5), np.zeros((3, width), np.int64)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    results = engine.generate(ids, attention_mask=mask, max_new_tokens=6, eos=())
    assert [r.ids for r in results] == [greedy(llama, r, 6) for r in rows]


def test_sampled_batch_equals_rows_alone(engine: Engine) -> None:
    settings = {"max_new_tokens": 10, "temperature": 1.2, "top_k": 60, "top_p": 0.95, "repetition_penalty": 1.1}
    together = engine.generate(list(PROMPTS), seed=[5, 6, 7], **settings)
    for prompt, seed, result in zip(PROMPTS, (5, 6, 7), together, strict=True):
        assert engine.generate(prompt, seed=seed, **settings).ids == result.ids


def test_stream_joins_to_generate(engine: Engine) -> None:
    settings = {"max_new_tokens": 15, "temperature": 1.0, "seed": 3}
    assert "".join(engine.stream("the dog", **settings)) == engine.generate("the dog", **settings).text


def test_one_prompt_gives_one_result(engine: Engine) -> None:
    one = engine.generate("the cat", max_new_tokens=2)
    assert engine.generate(["the cat"], max_new_tokens=2)[0].ids == one.ids
    assert engine.generate(one.prompt, max_new_tokens=2).ids == one.ids


def test_context_is_that_of_the_model(engine: Engine, tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode("the cat"))
    assert len(engine.generate("the cat", max_new_tokens=64 - count, eos=()).ids) == 64 - count
    with pytest.raises(RuntimeInputError, match="that is 65, but the model has 64 positions"):
        engine.generate("the cat", max_new_tokens=65 - count)


def test_ends_come_from_tokenizer_and_config(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    free = engine.generate("the cat", max_new_tokens=10, eos=())
    monkeypatch.setitem(engine.session.config, "eos_token_id", [free.ids[4], 299])
    cut = engine.generate("the cat", max_new_tokens=10)
    assert (cut.ids, cut.reason) == (free.ids[: free.ids.index(free.ids[4])], "eos")


def test_encoder_decoder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    family = load_family("transformer2017")
    config = family.config_class(vocab=300, dim=32, heads=4, ffn=48, layers=2, decoder_layers=2)  # type: ignore[call-arg]
    model = with_weights(family(config), tokenizer)
    engine = made(model, tmp_path)
    engine.session.config["decoder_start_token_id"] = 7
    graph = model.graph()
    assert model.weights is not None
    params = {k: model.weights.numpy(k) for k in graph.params}
    results = engine.generate(list(PROMPTS), max_new_tokens=5, eos=())
    for prompt, result in zip(PROMPTS, results, strict=True):
        source, row = np.array([tokenizer.encode(prompt)]), [7]
        for _ in range(5):
            ids = {"": source, "decoder_": np.array([row])}
            inputs = {f"{k}input_ids": v for k, v in ids.items()}
            inputs |= {f"{k}attention_mask": np.ones_like(v) for k, v in ids.items()}
            inputs |= {f"{k}position_ids": np.arange(v.shape[1])[None] for k, v in ids.items()}
            inputs = {k: v for k, v in inputs.items() if k in graph.inputs}
            row.append(int(interpret(graph, inputs, params)["logits"][0, -1].argmax()))
        assert result.ids == row[1:], prompt


def test_sources_that_are_not_texts(tmp_path: Path) -> None:
    """Floats for the encoder, with and without what the decoder begins with; and floats for the whole batch."""
    made = Made("once append window fixed", tmp_path / "frames", lengths=True)
    engine, rng = Engine(made.open()), np.random.default_rng(2)
    engine.session.config["decoder_start_token_id"] = 7
    with pytest.raises(RuntimeInputError, match=r"input style f32\[B,16\] is missing"):
        engine.generate(inputs={"frames": np.ones((1, 2, 4), np.float32)}, max_new_tokens=2)
    both = {"frames": rng.standard_normal((1, 2, 4), np.float32), "style": rng.standard_normal((1, 16), np.float32)}
    (result,) = engine.generate(inputs=both, max_new_tokens=1, eos=())
    assert result.ids == [int(made.full(np.array([7]), **both)[0, -1].argmax())]
    made = Made("once append window", tmp_path / "plain", lengths=True)
    engine = Engine(made.open())
    engine.session.config["decoder_start_token_id"] = 7
    frames = rng.standard_normal((3, 6, 4), np.float32)
    for starts in (None, [[7], [7, 3], [7, 3, 5]]):
        results = engine.generate(starts, inputs={"frames": frames}, max_new_tokens=6, eos=())
        for i, result in enumerate(results):
            row = list(starts[i] if starts else [7])
            for _ in range(6):
                row.append(int(made.full(np.array(row), frames=frames[i : i + 1])[0, -1].argmax()))
            assert result.prompt + result.ids == row
    with pytest.raises(RuntimeInputError, match="there are no prompts"):
        engine.generate()
    made = Made("append fixed nomask", tmp_path / "style", lengths=False)
    engine, style = Engine(made.open()), rng.standard_normal((2, 16), np.float32)
    for i, result in enumerate(engine.generate([[1, 2], [3]], inputs={"style": style}, max_new_tokens=5, eos=())):
        row = [[1, 2], [3]][i]
        for _ in range(5):
            row.append(int(made.full(np.array(row), style=style[i : i + 1])[0, -1].argmax()))
        assert result.prompt + result.ids == row


# -- embeddings ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Model]:
    settings = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    family = load_family("bert")
    config = family.config_class.from_dict(settings | {"intermediate_size": 64, "max_position_embeddings": 40})
    model = with_weights(family(config), tokenizer, 2.0)
    return made(model, tmp_path_factory.mktemp("bert")), model


def hidden(model: Model, ids: list[int]) -> Any:
    assert model.weights is not None
    graph, x = model.graph(), np.array([ids])
    inputs = {"input_ids": x, "attention_mask": np.ones_like(x), "position_ids": np.arange(len(ids))[None]}
    inputs["token_type_ids"] = np.zeros_like(x)
    return interpret(graph, inputs, {k: model.weights.numpy(k) for k in graph.params})["last_hidden_state"][0]


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_pooled_hidden_states(bert: tuple[Engine, Model], mode: str, normalize: bool) -> None:
    engine, model = bert
    assert engine.tokenizer is not None
    engine.pooling = Pooling(mode, normalize, 6)
    texts = ["the cat sat on the mat and where is the end", "a", "the dog", "log"]
    vectors = engine.embed(texts, batch=2)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        h = hidden(model, engine.tokenizer.encode(text)[:6])
        expected = {"mean": h.mean(0), "cls": h[0], "max": h.max(0)}[mode]
        expected = expected / np.linalg.norm(expected) if normalize else expected
        np.testing.assert_allclose(vector, expected, atol=1e-5)
        np.testing.assert_allclose(engine.embed(text), vector, atol=1e-5)


def test_truncation_keeps_the_special_token_at_the_end() -> None:
    from tokenizers import Tokenizer as Core
    from tokenizers import models, pre_tokenizers, processors

    core = Core(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3, "c": 4}, unk_token="c"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    tokenizer = Tokenizer(core)
    assert tokens_of(tokenizer, "a b c a", 4) == [0, 2, 3, 1]
    assert tokens_of(tokenizer, "a b c a", None) == [0, 2, 3, 4, 2, 1]
    assert tokenizer.encode("a b c a") == [0, 2, 3, 4, 2, 1], "the tokenizer is as before"


def sentence_folder(folder: Path, modes: dict[str, Any], kinds: tuple[str, ...]) -> Path:
    (folder / "1_Pooling").mkdir()
    modules = [{"type": f"sentence_transformers.models.{k}", "path": f"{i}_{k}"} for i, k in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    return folder


def test_pooling_of_sentence_transformers(tmp_path: Path) -> None:
    assert Pooling.read(tmp_path) is None
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    sentence_folder(tmp_path, modes, ("Transformer", "Pooling"))
    assert Pooling.read(tmp_path) == Pooling("cls", False, 128)
    with staged(tmp_path) as stage:
        Pooling("max", True, 9).write(stage)
    assert Pooling.read(tmp_path) == Pooling("max", True, 9), "pooling.json wins"


def test_pooling_goes_with_the_build(bert: tuple[Engine, Model], tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    _, model = bert
    model = replace(model, folder=sentence_folder(tmp_path / "checkpoint", modes, ("Transformer", "Pooling")))
    assert made(model, tmp_path / "built").pooling == Pooling("cls", False, 128)


@pytest.mark.parametrize(
    ("modes", "kinds", "message"),
    [
        (
            {"pooling_mode": "median"},
            ("Transformer", "Pooling"),
            "key 'pooling_mode' = 'median': expected one or more of",
        ),
        ({"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "CNN"), "has a module 'CNN'"),
    ],
)
def test_pooling_that_is_not_understood(
    tmp_path: Path, modes: dict[str, Any], kinds: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Pooling.read(sentence_folder(tmp_path, modes, kinds))


def test_what_a_model_cannot_do(engine: Engine, bert: tuple[Engine, Model]) -> None:
    with pytest.raises(RuntimeInputError, match="the model gives logits"):
        engine.embed("the cat")
    with pytest.raises(RuntimeInputError, match="bert is a feature-extraction model: it does not generate"):
        bert[0].generate("the cat")
    with pytest.raises(RuntimeInputError, match="there are no texts"):
        bert[0].embed([])
    with pytest.raises(RuntimeInputError, match="batch is 0, expected at least 1 text"):
        bert[0].embed(["a"], batch=0)
    bert[0].pooling = Pooling()
    with pytest.raises(RuntimeInputError, match=r"text 1 has \d+ tokens, but the model has 40 positions"):
        bert[0].embed(["a", "cat " * 50])
    silent = Engine(engine.session)
    with pytest.raises(RuntimeInputError, match="there is no tokenizer"):
        silent.stream("a")
    assert silent.generate([5, 6], max_new_tokens=2).ids == engine.generate([5, 6], max_new_tokens=2).ids
