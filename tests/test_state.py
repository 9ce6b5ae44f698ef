"""Recurrent models in the reference: states across calls, masks of any kind, the halves of an encoder-decoder, cost."""

from __future__ import annotations

import numpy as np
import pytest
from monograph.frontends.dsl import Model, load_family
from monograph.ir import Dim, DType, Graph, interpret, ops, tensor, verify
from monograph.ir.errors import ConfigError, PassError
from monograph.ir.interpret import Array
from monograph.ir.slots import Stream
from monograph.passes import pipelines
from monograph.passes.differential import CASES, Case, attention_mask, difference, random_params, sample_inputs
from monograph.passes.state import add_state

FAMILIES = ["rnn_lm", "lstm_lm", "gru_lm"]
STATES = {"rnn_lm": "h", "lstm_lm": "hc", "gru_lm": "h"}


def small(family: str, **settings: object) -> Model:
    return load_family(family)(**{"vocab": 20, "dim": 8, "layers": 2, "tied": True, **settings})


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_graph_has_the_contract(family: str) -> None:
    graph = verify(pipelines.decode(small(family).graph()))
    labels = [f"{i}.{s}" for i in range(2) for s in STATES[family]]
    assert [k for k in graph.inputs if k.startswith("past_")] == [f"past_state.{k}" for k in labels]
    assert [k for k in graph.outputs if k != "logits"] == [f"present_state.{k}" for k in labels]
    assert str(graph.inputs["past_state.1.h"].type) == "f32[B,8]"
    assert str(graph.inputs["attention_mask"].type) == "i64[B,P+S]"
    assert str(graph.outputs["logits"].type) == "f32[B,S,20]"


@pytest.mark.parametrize("family", [*FAMILIES, "lstm_seq2seq"])
def test_every_pass_keeps_the_numbers_also_step_by_step(family: str) -> None:
    graph = load_family(family)(vocab=20, dim=8).graph()
    pipelines.optimize(graph, "decode", check=difference)
    pipelines.optimize(pipelines.decompose(graph), "encode", check=difference)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_by_token_equals_the_full_forward_exactly(family: str) -> None:
    graph = small(family).graph(DType.f64)
    decode, params = pipelines.decode(graph), random_params(graph)
    ids = np.random.default_rng(3).integers(0, 20, (3, 6))
    ones = np.ones((3, 6), np.int64)
    full = interpret(graph, {"input_ids": ids, "attention_mask": ones}, params)["logits"]
    past = {k: np.zeros((3, 8)) for k in decode.inputs if k.startswith("past_")}
    for i in range(6):
        step = {"input_ids": ids[:, i : i + 1], "attention_mask": ones[:, : i + 1]} | past
        out = interpret(decode, step, params)
        np.testing.assert_allclose(out["logits"][:, 0], full[:, i], rtol=0, atol=1e-13)
        past = {k.replace("present", "past"): v for k, v in out.items() if k != "logits"}


@pytest.mark.parametrize("kind", ["right-padded", "left-padded", "holed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_tokens_are_not_read(family: str, kind: str) -> None:
    """Logits and last states are those of each row's own tokens alone, whatever stands at hidden positions."""
    decode = pipelines.decode(small(family).graph(DType.f64))
    params, rng = random_params(decode), np.random.default_rng(4)
    ids, mask = rng.integers(0, 20, (3, 7)), attention_mask(kind, 3, 7)
    assert mask.min() == 0
    states = {k: rng.standard_normal((3, 8)) for k in decode.inputs if k.startswith("past_")}
    together = interpret(decode, {"input_ids": ids, "attention_mask": mask} | states, params)
    for row in range(3):
        kept = mask[row] == 1
        own = {"input_ids": ids[row : row + 1, kept], "attention_mask": mask[row : row + 1, kept]}
        alone = interpret(decode, own | {k: v[row : row + 1] for k, v in states.items()}, params)
        np.testing.assert_allclose(together["logits"][row, kept], alone["logits"][0], rtol=0, atol=1e-13)
        for k in alone.keys() - {"logits"}:
            np.testing.assert_allclose(together[k][row], alone[k][0], rtol=0, atol=1e-13)


def test_a_row_without_tokens_keeps_its_state() -> None:
    decode = pipelines.decode(small("lstm_lm").graph())
    past = {k: np.full((2, 8), 0.3, np.float32) for k in decode.inputs if k.startswith("past_")}
    mask = np.array([[0, 0, 0], [1, 1, 1]])
    out = interpret(
        decode, {"input_ids": np.ones((2, 3), np.int64), "attention_mask": mask} | past, random_params(decode)
    )
    for k in out.keys() - {"logits"}:
        assert (out[k][0] == np.float32(0.3)).all() and (out[k][1] != np.float32(0.3)).all()


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_halves_of_the_encoder_decoder_decode_like_the_whole(case: Case) -> None:
    plain = load_family("lstm_seq2seq")(vocab=20, dim=8).graph()
    encoder, decoder = map(verify, pipelines.seq2seq(plain))
    params, inputs = random_params(plain), sample_inputs(plain, case)
    full = interpret(plain, inputs, params)["logits"]
    memory = interpret(encoder, {k: inputs[k] for k in encoder.inputs}, params)
    past = {k.replace("initial", "past"): v for k, v in memory.items() if k.startswith("initial_")}
    assert {k for k in decoder.inputs if k.startswith("past_")} == past.keys()
    kept: dict[str, Array] = {k: v for k, v in memory.items() if k.startswith("encoder.")}
    kept["attention_mask"] = inputs["attention_mask"]
    for i in range(case.length):
        step = {"decoder_input_ids": inputs["decoder_input_ids"][:, i : i + 1]} | past | kept
        step["decoder_attention_mask"] = inputs["decoder_attention_mask"][:, : i + 1]
        out = interpret(decoder, step, params)
        valid = inputs["decoder_attention_mask"][:, i] == 1
        np.testing.assert_allclose(out["logits"][valid, 0], full[valid, i], atol=1e-5)
        past = {k.replace("present", "past"): v for k, v in out.items() if k != "logits"}


def test_the_source_mask_reaches_the_attention_and_the_encoder() -> None:
    """Hidden source tokens change no logit; kept ones do."""
    graph = load_family("lstm_seq2seq")(vocab=20, dim=8).graph()
    params, inputs = random_params(graph), sample_inputs(graph, Case("holed", 3))
    first = interpret(graph, inputs, params)["logits"]
    for hidden in (True, False):
        at = (inputs["attention_mask"] == 0) == hidden
        other = np.where(at, (inputs["input_ids"] + 7) % 20, inputs["input_ids"])
        assert np.array_equal(interpret(graph, inputs | {"input_ids": other}, params)["logits"], first) == hidden


def test_graphs_without_recurrences_are_left_alone() -> None:
    graph = load_family("llama")(vocab=9, dim=8, ffn=8, layers=1, heads=2).graph()
    assert not any("state" in k for k in pipelines.decode(graph).inputs)


def test_a_fixed_length_is_refused() -> None:
    graph = Graph("fixed")
    graph.stream = Stream()
    graph.input("input_ids", tensor(DType.i64, "B", 4))
    with pytest.raises(PassError, match=r"input_ids is i64\[B,4\]: its length is not S"):
        add_state(graph)


def test_a_dimension_called_as_the_past_is_refused() -> None:
    graph = Graph("taken")
    graph.stream = Stream()
    graph.input("input_ids", tensor(DType.i64, "B", "S"))
    graph.input("other", tensor(DType.f32, "B", "P"))
    with pytest.raises(PassError, match=r"other is f32\[B,P\], but P counts the tokens before"):
        add_state(graph)


def test_tied_widths_must_agree() -> None:
    with pytest.raises(ConfigError, match="embedding_size is 4 but hidden_size is 8: tie_word_embeddings"):
        small("gru_lm", embedding=4)
    graph = small("gru_lm", embedding=4, tied=False).graph()
    assert graph.params["embedding.weight"].shape == (20, 4) and graph.params["rnn.weight_ih_l0"].shape == (24, 4)


@pytest.mark.parametrize(("kind", "gates", "rest"), [("rnn", 1, 4), ("lstm", 4, 21), ("gru", 3, 17)])
def test_cost_is_linear_in_the_length(kind: str, gates: int, rest: int) -> None:
    graph = Graph("cost")
    x = graph.input("x", tensor(DType.f32, "B", "S", 6))
    w, r = (graph.param(n, tensor(DType.f32, gates * 5, k)) for n, k in (("w", 6), ("r", 5)))
    node = getattr(ops, kind)(x, w, r)[0].producer
    tokens = Dim.symbol("B") * Dim.symbol("S")
    assert node.op.flops(*node.operands, **node.attributes) == (2 * gates * 5 * (6 + 5) + rest * 5) * tokens
