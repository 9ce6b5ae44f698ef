"""The harness of the families itself: no parameter of its tiny models is silent, so that none can be wrong unseen."""

from __future__ import annotations

import pytest
import test_family_bloom
import test_family_gemma2
import test_family_gemma3_text
import test_family_gpt_neox
import test_family_gptj
import test_family_mistral
import test_family_t5
import test_family_vit
import test_family_whisper
import torch
from family_parity import Case, error, masks, reference_model

pytestmark = pytest.mark.slow

FILES = (
    test_family_bloom,
    test_family_gemma2,
    test_family_gemma3_text,
    test_family_gpt_neox,
    test_family_gptj,
    test_family_mistral,
    test_family_t5,
    test_family_vit,
    test_family_whisper,
)
SILENT = ("mistral, mistral-window-of-one",)
"""A token that sees itself alone has no use for scores."""
CASES = {f"{file.__name__.removeprefix('test_family_')}, {k}": case for file in FILES for k, case in file.CASES.items()}
WITHOUT_EFFECT = ("key.bias",)
"""A number that is added to all scores of a query changes no weight."""
LEAST = 1e-3


@pytest.mark.parametrize("name", [k for k in CASES if k not in SILENT])
def test_every_parameter_moves_the_outputs(name: str) -> None:
    case: Case = CASES[name]
    model = reference_model(case)
    given, rng = inputs(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = model(**given)
        for key, parameter in model.named_parameters():
            if key.endswith(WITHOUT_EFFECT) or ".k_proj.bias" in key:
                continue
            kept = parameter.clone()
            # Not all alike: a norm behind it would undo that.
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=rng))
            after = model(**given)
            parameter.copy_(kept)
            results = {k: v for k, v in before.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
            moved = [error(after[k].numpy(), v.numpy()) for k, v in results.items()]
            assert max(moved) > LEAST, f"{key} moves nothing by more than {max(moved):.1e}"


def inputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A batch of what the model takes."""
    c, rng = model.config, torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        height, width = (c.image_size, c.image_size) if isinstance(c.image_size, int) else c.image_size
        return {"pixel_values": torch.randn(3, c.num_channels, height, width, generator=rng)}
    ids = torch.randint(c.vocab_size, (3, 11), generator=rng)
    mask = torch.from_numpy(masks(11)["right"])
    if not c.is_encoder_decoder:
        return {"input_ids": ids, "attention_mask": mask}
    given = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    if model.main_input_name == "input_features":
        features = torch.randn(3, c.num_mel_bins, 2 * c.max_source_positions, generator=rng)
        return {**given, "input_features": features}
    return {**given, "input_ids": ids.flip(1), "attention_mask": mask}
