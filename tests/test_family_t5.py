"""T5 against transformers: both generations of it, buckets for every distance, and a head of its own."""

from __future__ import annotations

import itertools
from pathlib import Path

import monograph as mg
import numpy as np
import pytest
import torch
import transformers
from family_parity import Case, check, reference_model
from monograph.frontends.huggingface import save_pretrained
from monograph.frontends.models.t5 import T5
from monograph.ir.errors import ConfigError
from monograph.ir.ops.tables import relative_buckets
from safetensors.torch import load_file, save_file
from transformers.models.t5.modeling_t5 import T5Attention

pytestmark = pytest.mark.slow

FIRST = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "decoder_start_token_id": 0,
}
SECOND = {**FIRST, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3}
CASES = {
    "t5": Case("T5ForConditionalGeneration", FIRST),
    "t5-gated": Case("T5ForConditionalGeneration", SECOND),
    "t5-gated-silu": Case(
        "T5ForConditionalGeneration",
        {**FIRST, "feed_forward_proj": "gated-silu", "d_kv": 5, "num_heads": 2, "layer_norm_epsilon": 0.1},
    ),
    "t5-many-buckets": Case(
        "T5ForConditionalGeneration",
        {**FIRST, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "num_layers": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


@pytest.mark.parametrize(("buckets", "farthest"), list(itertools.product((4, 8, 32, 64), (33, 100, 128, 400))))
@pytest.mark.parametrize("both_ways", [True, False])
def test_every_distance_has_the_bucket_it_has_in_transformers(buckets: int, farthest: int, both_ways: bool) -> None:
    away = torch.arange(-farthest - 9, farthest + 10 if both_ways else 1)
    want = T5Attention._relative_position_bucket(away, both_ways, buckets, farthest).numpy()
    low, high = -farthest, farthest if both_ways else 0
    table = relative_buckets(buckets=buckets, farthest=farthest, low=low, high=high)
    got = np.array(table)[np.clip(away.numpy(), low, high) - low]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_in_the_checkpoint_is_its_own(same: bool, tmp_path: Path) -> None:
    """As in T5 1.1, whose config says so; and in old checkpoints, where it is a copy."""
    reference_model(CASES["t5-gated"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    table = weights["shared.weight"]
    weights |= {"lm_head.weight": table.clone() if same else table.flip(0).contiguous() * 0.7}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    ours = mg.to_torch(mg.load(tmp_path)).eval()
    ids, ones = torch.arange(14).reshape(2, 7), torch.ones(2, 7, dtype=torch.int64)
    given = {"input_ids": ids, "attention_mask": ones, "decoder_input_ids": ids + 3, "decoder_attention_mask": ones}
    with torch.no_grad():
        torch.testing.assert_close(ours(**given)["logits"], theirs(**given).logits, rtol=1e-4, atol=1e-4)


def test_buckets_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="6 relative_attention_num_buckets do not divide distances up to 128"):
        T5(vocab=5, buckets=6)


@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_transformers_reads_what_is_saved(name: str, tmp_path: Path) -> None:
    theirs = reference_model(CASES[name])
    theirs.save_pretrained(tmp_path / "theirs")
    save_pretrained(mg.load(tmp_path / "theirs"), tmp_path / "ours")
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    ids = torch.arange(14).reshape(2, 7)
    with torch.no_grad():
        want, got = (m(input_ids=ids, decoder_input_ids=ids + 3).logits for m in (theirs, again))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
