"""BLOOM against transformers: scores lowered by distance, whatever the mask hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from family_parity import Case, check
from monograph.frontends.dsl import Scope
from monograph.frontends.layers import alibi
from monograph.frontends.models.bloom import Bloom
from monograph.ir import Graph, building, interpret
from monograph.ir.types import f32, parse_type
from transformers import BloomConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

pytestmark = pytest.mark.slow

BLOOM = {"vocab_size": 61, "hidden_size": 24, "n_layer": 2, "n_head": 4}
CASES = {
    "bloom": Case("BloomForCausalLM", BLOOM),
    "bloom-three-heads": Case("BloomForCausalLM", {**BLOOM, "n_head": 3}),
    "bloom-post-norm": Case(
        "BloomForCausalLM",
        {**BLOOM, "n_head": 6, "apply_residual_connection_post_layernorm": True, "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12])
def test_alibi_equals_that_of_transformers(heads: int) -> None:
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]])
    graph = Graph("alibi")
    with building(graph):
        given = graph.input("mask", parse_type("i64[B,T]"))
        graph.output("bias", alibi(Scope(graph, "", f32, 0.02), given, heads))
    (got,) = interpret(graph, {"mask": mask}, {}).values()
    want = build_alibi_tensor(torch.from_numpy(mask), heads, torch.float32)
    np.testing.assert_allclose(got, want.numpy().reshape(3, heads, 1, 5), rtol=1e-6)


def test_the_other_name_of_a_setting_counts_as_in_the_reference() -> None:
    config = Bloom.from_dict({"vocab_size": 9, "n_embed": 16, "num_hidden_layers": 5})
    assert config == Bloom(vocab=9, dim=16, layers=5)
    theirs = BloomConfig(n_embed=16, hidden_size=24).hidden_size
    assert Bloom.from_dict({"vocab_size": 9, "n_embed": 16, "hidden_size": 24}).dim == theirs == 16
