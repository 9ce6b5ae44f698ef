"""Tiny random models of transformers, with inputs to trace them by, sizes that vary, and other inputs to compare on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree
from torch_modules import Listener, Reader, Writer

ROWS, LENGTH, TARGETS = Dim("rows", min=2, max=64), Dim("length", min=2, max=60), Dim("targets", min=2, max=60)
SIZES = {"rows": 2, "length": 9, "targets": 6}
"""Of the inputs that are compared; those that are traced have others."""

_SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 70,
}
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHARED = {**_SMALL, **_IDS, "num_key_value_heads": 2}
_WIDE = {**_SHARED, "head_dim": 8}
_GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 64, **_IDS}
_T5 = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
_TWO_SIDES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 50,
    "decoder_start_token_id": 2,
    **_IDS,
}
_IMAGE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}

_TEXT = {"input_ids": (ROWS, LENGTH), "attention_mask": (ROWS, LENGTH)}
_PAIR = {**_TEXT, "decoder_input_ids": (ROWS, TARGETS)}
_PIXELS = {"pixel_values": (ROWS, 3, 8, 8)}
_SPEECH = {"input_features": (ROWS, 8, 20)}

_MAKE: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[Any, ...]]]] = {
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SHARED)), _TEXT),
    "mistral": (lambda: hf.MistralForCausalLM(hf.MistralConfig(**_SHARED, sliding_window=4)), _TEXT),
    "qwen2": (lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_SHARED, tie_word_embeddings=True)), _TEXT),
    "qwen3": (lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_WIDE)), _TEXT),
    "gemma2": (
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**{**_WIDE, "num_hidden_layers": 2}, sliding_window=4)),
        _TEXT,
    ),
    "olmo": (lambda: hf.OlmoForCausalLM(hf.OlmoConfig(**_SHARED)), _TEXT),
    "phi": (lambda: hf.PhiForCausalLM(hf.PhiConfig(**_SMALL, **_IDS)), _TEXT),
    "phi3": (lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_SHARED)), _TEXT),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT)), _TEXT),
    "gptj": (lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**_GPT, rotary_dim=4)), _TEXT),
    "gpt_neox": (lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_SMALL, **_IDS)), _TEXT),
    "opt": (
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(
                **_IDS,
                vocab_size=50,
                hidden_size=16,
                ffn_dim=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=64,
                word_embed_proj_dim=16,
            )
        ),
        _TEXT,
    ),
    "bloom": (
        lambda: hf.BloomForCausalLM(hf.BloomConfig(**_IDS, vocab_size=50, hidden_size=16, n_layer=1, n_head=4)),
        _TEXT,
    ),
    "falcon": (
        lambda: hf.FalconForCausalLM(
            hf.FalconConfig(**_IDS, vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=4)
        ),
        _TEXT,
    ),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**_SMALL)), _TEXT),
    "roberta": (lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**_SMALL, **_IDS)), _TEXT),
    "distilbert": (
        lambda: hf.DistilBertModel(hf.DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=1, n_heads=4)),
        _TEXT,
    ),
    "albert": (lambda: hf.AlbertModel(hf.AlbertConfig(**_SMALL, embedding_size=8)), _TEXT),
    "mpnet": (lambda: hf.MPNetModel(hf.MPNetConfig(**_SMALL, **_IDS)), _TEXT),
    "deberta_v2": (
        lambda: hf.DebertaV2Model(
            hf.DebertaV2Config(**_SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4)
        ),
        _TEXT,
    ),
    "clip_text": (lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**_SMALL, **_IDS)), _TEXT),
    "t5_encoder": (lambda: hf.T5EncoderModel(hf.T5Config(**_T5)), _TEXT),
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5, decoder_start_token_id=0)), _PAIR),
    "bart": (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_TWO_SIDES, max_position_embeddings=64)), _PAIR),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**_IMAGE, num_labels=3)), _PIXELS),
    "dinov2": (
        lambda: hf.Dinov2Model(hf.Dinov2Config(**{k: v for k, v in _IMAGE.items() if k != "intermediate_size"})),
        _PIXELS,
    ),
    "whisper_encoder": (
        lambda: hf.WhisperModel(
            hf.WhisperConfig(**_TWO_SIDES, num_mel_bins=8, max_source_positions=10, max_target_positions=20)
        ).get_encoder(),
        _SPEECH,
    ),
}

_BY_HAND: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[Any, ...]]]] = {
    "writer": (Writer, _TEXT),
    "reader": (Reader, {"asked_ids": (ROWS, TARGETS), "told": (ROWS, LENGTH, 6), "heard_mask": (ROWS, LENGTH)}),
    "listener": (Listener, {"sound": (ROWS, 8, LENGTH)}),
}

NAMES = tuple(_MAKE)
BY_HAND = tuple(_BY_HAND)


@dataclass(frozen=True)
class Subject:
    """A module in evaluation mode. traced: example inputs. varies: their dynamic shapes, as torch.export takes them."""

    module: nn.Module
    traced: dict[str, torch.Tensor]
    varies: dict[str, dict[int, Any]]
    compared: dict[str, torch.Tensor]


def subject(name: str) -> Subject:
    """The model of that name, the same at every call."""
    make, inputs = {**_MAKE, **_BY_HAND}[name]
    torch.manual_seed(0)
    module = make().eval()
    for part in module.modules():
        if hasattr(part, "config"):
            part.config.use_cache = False
    varies = {k: {i: d for i, d in enumerate(dims) if not isinstance(d, int)} for k, dims in inputs.items()}
    traced = inputs_at(name, {"rows": 3, "length": 7, "targets": 5})
    compared = inputs_at(name, SIZES)
    if "attention_mask" in compared:
        compared["attention_mask"][0, -3:] = 0
    return Subject(module, traced, varies, compared)


def inputs_at(name: str, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    """Random inputs of the model of that name; masks are all ones."""
    return {k: _values(k, dims, sizes) for k, dims in {**_MAKE, **_BY_HAND}[name][1].items()}


def _values(name: str, dims: tuple[Any, ...], sizes: dict[str, int]) -> torch.Tensor:
    shape = [d if isinstance(d, int) else sizes[d.__name__] for d in dims]
    if "mask" in name:
        return torch.ones(shape, dtype=torch.long)
    return torch.randint(0, 50, shape) if name.endswith("ids") else torch.randn(shape)


def outputs_of(module: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a module gives, named as `mg.load` names it: by keys and places."""
    found: dict[str, torch.Tensor] = {}
    for path, leaf in pytree.tree_flatten_with_path(dict(module(**given)))[0]:
        if isinstance(leaf, torch.Tensor):
            found[".".join(str(getattr(k, "key", getattr(k, "idx", ""))) for k in path)] = leaf
    return found


def same_gradients(module: nn.Module, ours: nn.Module, wanted: torch.Tensor, found: torch.Tensor) -> None:
    """Parameters have the same names, and the same gradients of a sum to which each element adds another share."""
    for y in (wanted, found):
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    own = dict(ours.named_parameters())
    assert own.keys() == {k for k, _ in module.named_parameters()}
    for path, p in module.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(own[path].grad, p.grad, atol=1e-5, rtol=1e-3)
