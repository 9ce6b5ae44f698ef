"""Encoder-decoder graphs cut in two: the halves compute the whole, and cross-attention keys are computed once."""

from __future__ import annotations

import numpy as np
import pytest
from monograph.frontends.dsl import load_family
from monograph.ir import interpret, verify
from monograph.ir.errors import PassError
from monograph.passes import pipelines
from monograph.passes.differential import CASES, Case, difference, random_params, sample_inputs

SIZES = {"vocab": 40, "dim": 16, "heads": 4, "ffn": 24, "layers": 2, "decoder_layers": 2}


def test_halves_have_the_contract() -> None:
    encoder, decoder = map(verify, pipelines.seq2seq(load_family("transformer2017")(**SIZES).graph()))
    frontier = [f"encoder.{i}.{name}" for i in range(2) for name in ("key", "value")]
    assert set(encoder.inputs) == {"input_ids", "attention_mask", "position_ids"}
    assert [k for k in encoder.outputs if k.startswith("encoder.")] == frontier
    assert [k for k in decoder.inputs if k.startswith("encoder.")] == frontier
    assert str(decoder.inputs["encoder.0.key"].type) == "f32[B,4,S,4]"
    assert str(decoder.inputs["past_key_values.1.value"].type) == "f32[B,4,P,4]"
    assert str(decoder.inputs["decoder_attention_mask"].type) == "i64[B,P+U]"
    assert "input_ids" not in decoder.inputs
    assert not any("encoder.layers" in p for p in decoder.params)
    cross = [p for p in decoder.params if "multihead_attn.k_proj" in p]
    assert cross == [], "cross-attention keys belong to the encoder half"


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_halves_decode_like_the_whole(case: Case) -> None:
    plain = load_family("transformer2017")(**SIZES).graph()
    encoder, decoder = pipelines.seq2seq(plain)
    params, inputs = random_params(plain), sample_inputs(plain, case)
    full = interpret(plain, inputs, params)["logits"]
    memory = interpret(encoder, {k: inputs[k] for k in encoder.inputs}, params)
    pasts = {k: np.zeros((case.batch, 4, 0, 4), np.float32) for k in decoder.inputs if k.startswith("past")}
    for i in range(case.length):
        step = {k: inputs[k][:, i : i + 1] for k in ("decoder_input_ids", "decoder_position_ids")}
        step |= {"decoder_attention_mask": inputs["decoder_attention_mask"][:, : i + 1]}
        step |= {"attention_mask": inputs["attention_mask"]} | pasts | memory
        out = interpret(decoder, {k: step[k] for k in decoder.inputs}, params)
        valid = inputs["decoder_attention_mask"][:, i] == 1
        np.testing.assert_allclose(out["logits"][valid, 0], full[valid, i], atol=1e-5)
        pasts = {k.replace("present", "past_key_values"): v for k, v in out.items() if k.startswith("present")}


def test_every_pass_keeps_the_numbers_of_an_encoder_decoder() -> None:
    graph = load_family("transformer2017")(**SIZES).graph()
    pipelines.optimize(pipelines.decompose(graph), "encode", check=difference)


def test_a_decoder_only_graph_has_nothing_to_cut() -> None:
    with pytest.raises(PassError, match="makes no tokens"):
        pipelines.seq2seq(load_family("llama")(vocab=9, dim=8, ffn=8, layers=1, heads=2).graph())
