"""Mixtral against transformers, from checkpoints with a tensor for each expert and with stacked ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from family_parity import Case, Pair, check
from monograph.ir import interpret
from monograph.ir.errors import WeightsError
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "vocab_size": 47,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 3,
    "max_position_embeddings": 64,
}
CASES = {
    "plain": Case("MixtralForCausalLM", TINY),
    "window": Case("MixtralForCausalLM", {**TINY, "sliding_window": 4, "tie_word_embeddings": True}),
    "three-of-five": Case(
        "MixtralForCausalLM",
        {**TINY, "num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 6, "hidden_act": "gelu_pytorch_tanh"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_stacked_experts_are_read_as_well(tmp_path: Path) -> None:
    pair = Pair(CASES["plain"], tmp_path)
    stacked = tmp_path / "stacked"
    stacked.mkdir()
    (stacked / "config.json").write_bytes((tmp_path / "checkpoint" / "config.json").read_bytes())
    tensors = {k: v.contiguous() for k, v in pair.reference.state_dict().items()}
    assert tensors["model.layers.0.mlp.experts.gate_up_proj"].shape == (3, 48, 16)
    save_file(tensors, stacked / "model.safetensors")
    found, inputs = mg.load(stacked), pair.inputs("left")
    for name in pair.graph.params:
        np.testing.assert_array_equal(found.weights.numpy(name), pair.model.weights.numpy(name))
    got = interpret(found.graph(), inputs, found.weights.numpy)["logits"]
    np.testing.assert_allclose(
        got[pair.valid(inputs)], pair.want(inputs)["logits"][pair.valid(inputs)], rtol=0, atol=1e-4
    )


def test_more_experts_than_any_tensor_has_rows_are_refused_before_a_graph_is_made(tmp_path: Path) -> None:
    Pair(CASES["plain"], tmp_path)
    config = tmp_path / "checkpoint" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_local_experts": 10**9}))
    with pytest.raises(WeightsError, match="its config says 1000000000 experts"):
        mg.load(tmp_path / "checkpoint")
