"""ViT against transformers: images and patches of several shapes, with and without a head."""

from __future__ import annotations

from pathlib import Path

import monograph as mg
import pytest
import transformers
from family_parity import Case, check
from monograph.ir.errors import ConfigError

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
VIT = {**SIZES, "image_size": 8, "patch_size": 4, "num_labels": 5}
OBLONG = {"image_size": [8, 12], "patch_size": [4, 3], "num_channels": 1, "num_labels": 2}
CASES = {
    "vit": Case("ViTForImageClassification", VIT),
    "vit-oblong": Case("ViTForImageClassification", {**SIZES, **OBLONG, "qkv_bias": False, "hidden_act": "relu"}),
    "vit-remainder": Case("ViTForImageClassification", {**VIT, "image_size": 11, "layer_norm_eps": 0.1}),
    "vit-model": Case("ViTModel", VIT),
    "vit-pooler": Case("ViTModel", {**VIT, "pooler_output_size": 7, "pooler_act": "gelu"}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_a_checkpoint_without_a_pooler_gives_states_only(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**VIT)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    assert list(mg.load(tmp_path).graph().outputs) == ["last_hidden_state"]


def test_an_image_without_patches_is_refused(tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"image_size": 8', '"image_size": 3'))
    with pytest.raises(ConfigError, match="image_size 3 holds no patch of patch_size 4"):
        mg.load(tmp_path)
