"""Tasks: names with one owner, what follows from what, tasks of one's own, and models that are no family."""

from __future__ import annotations

import monograph as mg
import numpy as np
import pytest
import torch
from monograph.frontends.dsl import Family, Model, Program, families_of, load_family
from monograph.frontends.huggingface import hf_config
from monograph.frontends.task import (
    CAUSAL_LM,
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    SEQ2SEQ_LM,
    SPEECH_TO_TEXT,
    TASKS,
    Role,
    Task,
    task_of,
)
from monograph.ir import Init, interpret
from monograph.ir.errors import ConfigError, MonographError
from monograph.ir.slots import TARGETS, TOKENS, Stream
from monograph.ir.types import DType, f32, parse_type
from monograph.ir.weights import Weights

IDS = np.array([[5, 6, 7, 8], [9, 1, 2, 3]])
MASK = np.array([[1, 1, 1, 1], [0, 1, 0, 1]])
OWN = Task(
    "caption",
    {
        "pixel_values": "f32[B,3,side,side]",
        "tokens": "i64[B,N]",
        "keep": "i64[B,N]",
        "places": "i64[B,N]",
        "segments": "i64[B,N]",
    },
    output="scores",
    stream=Stream("N", "tokens", "keep", "places"),
    zeros=("segments",),
    generates=True,
)


class Caption(mg.Config):
    vocab: int = mg.key("vocab_size", 11)
    side: int = mg.key("image_size", 4)
    dim: int = mg.key("hidden_size", 8)


def caption(m: mg.Scope, c: Caption, pixel_values: mg.Value, tokens: mg.Value, keep: mg.Value, places: mg.Value):
    image = m.linear("image", pixel_values.reshape(pixel_values.shape[0], 3 * c.side * c.side), c.dim)
    x = m.embed("table", tokens, c.vocab, c.dim) + image.reshape(image.shape[0], 1, c.dim)
    q = m.rope(x.split_heads(2), places, theta=100.0)
    y = mg.ops.attention(q, q, x.split_heads(2), mask=mg.key_mask(keep), causal=True).merge_heads()
    return {"scores": m.linear("head", y, c.vocab), "image": image}


@pytest.fixture
def own() -> Family:
    return mg.model(caption, task=OWN)


@pytest.mark.parametrize("name", TASKS)
def test_every_built_in_task_knows_its_inputs(name: str) -> None:
    task = task_of(name)
    assert (task.name, str(task), task) == (name, name, name)
    for given in task.inputs:
        assert task.type_of(given).rank >= 2
    assert {Role.ids} <= {task.role(k) for k in task.inputs} or task is IMAGE_CLASSIFICATION
    assert task.generates == (name in ("causal-lm", "seq2seq-lm", "speech-to-text"))


def test_what_is_left_out_follows_from_the_ids() -> None:
    found = CAUSAL_LM.fill({"input_ids": IDS}, ("input_ids", "attention_mask", "position_ids", "token_type_ids"))
    np.testing.assert_array_equal(found["attention_mask"], np.ones((2, 4)))
    np.testing.assert_array_equal(found["position_ids"], [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(found["token_type_ids"], np.zeros((2, 4)))


def test_positions_count_what_the_mask_keeps_or_columns() -> None:
    given = {"input_ids": IDS, "attention_mask": MASK}
    found = CAUSAL_LM.fill(given, ("position_ids",))["position_ids"]
    np.testing.assert_array_equal(found, [[0, 1, 2, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(FEATURE_EXTRACTION.fill(given, ("position_ids",))["position_ids"][1], range(4))


def test_behind_a_past_the_mask_runs_over_all_tokens_and_positions_over_the_new_ones() -> None:
    found = CAUSAL_LM.fill({"input_ids": IDS[:, 3:]}, ("attention_mask", "position_ids"), past=3)
    assert found["attention_mask"].shape == (2, 4)
    np.testing.assert_array_equal(found["position_ids"], [[3], [3]])
    found = CAUSAL_LM.fill({"input_ids": IDS[:, 2:], "attention_mask": MASK}, ("position_ids",), past=2)
    np.testing.assert_array_equal(found["position_ids"], [[2, 3], [0, 1]])


def test_both_streams_of_an_encoder_decoder_are_filled() -> None:
    found = SEQ2SEQ_LM.fill({"input_ids": IDS, "decoder_input_ids": IDS[:, :2]}, SEQ2SEQ_LM.inputs, past=1)
    assert (found["attention_mask"].shape, found["decoder_attention_mask"].shape) == ((2, 4), (2, 3))
    np.testing.assert_array_equal(found["decoder_position_ids"], [[1, 2]] * 2)
    assert (SEQ2SEQ_LM.source, SEQ2SEQ_LM.stream, SPEECH_TO_TEXT.source) == (TOKENS, TARGETS, None)
    assert [t.separated for t in (SEQ2SEQ_LM, SPEECH_TO_TEXT, CAUSAL_LM)] == [True, True, False]


def test_what_does_not_follow_must_be_given() -> None:
    with pytest.raises(MonographError, match=r"input pixel_values f32\[B,3,side,side\] is missing"):
        OWN.fill({"tokens": IDS}, OWN.inputs)
    with pytest.raises(MonographError, match="task 'caption' has no input 'token', did you mean 'tokens'"):
        OWN.type_of("token")
    with pytest.raises(MonographError, match="task 'x' generates, but none of its inputs is a stream"):
        Task("x", {"pixel_values": "f32[B,3,H,W]"}, generates=True)
    with pytest.raises(MonographError, match="no task is called 'causal', did you mean 'causal-lm'"):
        task_of("causal")


def test_a_task_equals_its_name_and_nothing_else_by_chance() -> None:
    assert OWN == "caption"
    assert OWN not in ("captions", Task("caption", {"tokens": "i64[B,N]"}))
    assert {str(OWN), OWN} == {"caption"}


def test_a_task_of_ones_own(own: Family) -> None:
    graph = own(side=6).graph()
    assert {k: str(v.type) for k, v in graph.inputs.items()} == {
        "pixel_values": "f32[B,3,6,6]",
        "tokens": "i64[B,N]",
        "keep": "i64[B,N]",
        "places": "i64[B,N]",
    }
    assert list(graph.outputs) == ["scores", "image"]
    assert graph.stream == OWN.stream
    assert own().graph(DType.f64).inputs["pixel_values"].type == parse_type("f64[B,3,4,4]")


def test_a_model_of_ones_own_task_runs_and_trains(own: Family) -> None:
    model = own()
    graph = model.graph()
    model.weights = Weights.initialize(graph, 1)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    given = model.task.fill({"pixel_values": pixels, "tokens": IDS, "keep": MASK}, graph.inputs)
    params = {k: model.weights.numpy(k) for k in graph.params}
    want = interpret(graph, given, params)
    module = mg.to_torch(model)
    got = module(**{k: torch.from_numpy(np.array(v)) for k, v in given.items()})
    assert list(got) == ["scores", "image"]
    for name, value in want.items():
        np.testing.assert_allclose(got[name].detach().numpy(), value, atol=1e-5)
    got["scores"].sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_model_of_ones_own_task_is_the_same_everywhere(own: Family) -> None:
    """Names, a picture beside the tokens, two outputs: exported, built, prompted, and decoded under every mask."""
    model = own()
    model.weights = Weights.initialize(model.graph(), 1, Init("normal", 0.5))
    parity = mg.verify(model)
    assert {r.backend for r in parity.rows} == {"torch", "onnx", "ort", "ort session", "ort chunks"}
    assert parity.passed


def test_the_main_output_of_the_task_must_be_there() -> None:
    def other(m: mg.Scope, c: Caption, tokens: mg.Value) -> dict[str, mg.Value]:
        return {"score": m.embed("table", tokens, c.vocab, c.dim)}

    with pytest.raises(MonographError, match="other gives score, but the output of its task is 'scores'"):
        mg.model(other, task=OWN)().graph()


def test_an_input_that_the_task_does_not_have_is_refused() -> None:
    def other(m: mg.Scope, c: Caption, pixels: mg.Value) -> mg.Value:
        return pixels

    with pytest.raises(MonographError, match=r"other: no input is called 'pixels'"):
        mg.model(other, task=OWN)


def test_a_model_need_not_be_one_of_a_family(own: Family) -> None:
    plain = own().graph()
    for make in (plain, lambda dtype: own().graph(dtype)):
        program = Model(Program("imported", OWN, make))
        assert (program.name, program.task, program.family, program.config) == ("imported", OWN, None, None)
        assert str(program.graph()) == str(plain)
        assert hf_config(program)["model_type"] == "imported"
        module = mg.to_torch(program)
        assert sorted(dict(module.named_parameters())) == sorted(plain.params)
    with pytest.raises(MonographError, match="imported is a graph in f32, which cannot be made in f16"):
        Model(Program("imported", OWN, plain)).graph(DType.f16)


def test_families_say_what_they_are_in_fields() -> None:
    heads = {str(f.task): f.checkpoint.architecture for f in families_of(load_family("bert"))}
    assert heads == {
        "feature-extraction": "BertModel",
        "masked-lm": "BertForMaskedLM",
        "sequence-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
    }
    gguf = load_family("llama").gguf
    assert gguf is not None and gguf.names["blk.{}.attn_q"] == "model.layers.{}.self_attn.q_proj"
    with pytest.raises(ConfigError, match="bert has no head for 'causal-lm'"):
        load_family("bert", CAUSAL_LM)


def test_the_spelling_of_before_goes_on_working() -> None:
    @mg.model(task="causal-lm")
    def small(m: mg.Scope, c: Caption, input_ids: mg.Value, attention_mask: mg.Value) -> mg.Value:
        return m.linear("head", m.embed("table", input_ids, c.vocab, c.dim), c.vocab)

    graph = small(vocab=5).graph(f32)
    assert (list(graph.inputs), list(graph.outputs)) == (["input_ids", "attention_mask"], ["logits"])
    assert graph.stream == TOKENS
