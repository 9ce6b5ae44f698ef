"""Tiny models of transformers as the TorchScript exporter writes them, by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24},
    "llama": {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
              "num_key_value_heads": 2, "head_dim": 4},
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 32},
    "t5": {"num_layers": 2, "d_model": 16, "d_kv": 4, "num_heads": 4, "d_ff": 24},
}  # fmt: skip
NAMES = ["input_ids", "attention_mask"]


class First(torch.nn.Module):
    """The first output of a model, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        off = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **off)[0]


def exported(kind: str, folder: Path, attention: str = "sdpa") -> Path:
    """A file of one of SIZES with random weights."""
    return written(made(kind, attention), folder)


def made(kind: str, attention: str = "sdpa") -> First:
    """One of SIZES with random weights, in evaluation mode."""
    import transformers

    names = {
        "vocab_size": 40,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        **SIZES[kind],
    }
    config = transformers.AutoConfig.for_model(kind, **names, attn_implementation=attention)
    torch.manual_seed(0)
    autos = {"t5": transformers.T5EncoderModel, "bert": transformers.BertModel}
    module = First(autos[kind](config) if kind in autos else transformers.AutoModelForCausalLM.from_config(config))
    return module.eval()


def written(module: First, folder: Path) -> Path:
    """The file that the TorchScript exporter makes of a model."""
    ids, mask = torch.randint(1, 40, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    path, axes = folder / "model.onnx", {name: {0: "batch", 1: "tokens"} for name in NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (ids, mask), str(path), dynamo=False, opset_version=17, input_names=NAMES, dynamic_axes=axes
        )
    return path


def distinct(module: First) -> First:
    """The model with other numbers in each parameter: the exporter makes those that are equal one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module
