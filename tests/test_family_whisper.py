"""Whisper against transformers: encoder and decoder of different shapes, tied and not."""

from __future__ import annotations

from pathlib import Path

import monograph as mg
import pytest
import torch
import transformers
from family_parity import Case, Pair, check
from monograph.frontends.audio import LogMel
from monograph.frontends.huggingface import save_pretrained
from monograph.frontends.models.whisper import Whisper
from monograph.ir.errors import ConfigError

pytestmark = pytest.mark.slow

WHISPER = {
    "vocab_size": 61,
    "d_model": 24,
    "num_mel_bins": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_source_positions": 12,
    "max_target_positions": 40,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "decoder_start_token_id": 2,
}
UNEVEN = {"encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_ffn_dim": 28}
CASES = {
    "whisper": Case("WhisperForConditionalGeneration", WHISPER),
    "whisper-uneven": Case("WhisperForConditionalGeneration", {**WHISPER, **UNEVEN, "activation_function": "relu"}),
    "whisper-untied": Case("WhisperForConditionalGeneration", {**WHISPER, "tie_word_embeddings": False}),
    "whisper-short": Case(
        "WhisperForConditionalGeneration",
        {**WHISPER, "max_source_positions": 5, "num_mel_bins": 3, "scale_embedding": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_heads_that_do_not_divide_are_refused() -> None:
    numbers = {"layers": 1, "ffn": 8, "decoder_layers": 1, "decoder_ffn": 8}
    with pytest.raises(ConfigError, match="d_model 24 is not a multiple of decoder_attention_heads 5"):
        Whisper(vocab=9, dim=24, heads=3, decoder_heads=5, **numbers)


def test_what_other_clients_need_stands_beside_the_model(tmp_path: Path) -> None:
    """How speech is heard travels from the checkpoint to every folder that is made of it."""
    pair = Pair(CASES["whisper"], tmp_path)
    transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(tmp_path / "checkpoint")
    save_pretrained(pair.model, tmp_path / "saved")
    mg.export(pair.model, tmp_path / "exported")
    mg.build(pair.model, tmp_path / "built")
    for name in ("saved", "exported", "built"):
        assert LogMel.read(tmp_path / name).mels == 8
    again = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    for name, tensor in pair.reference.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
