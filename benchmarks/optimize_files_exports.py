"""Run in an environment with transformers' exporter: SOURCE OUT KIND writes one model as one exporter writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, WhisperForConditionalGeneration
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

IDS = torch.arange(18).reshape(2, 9) + 5
MASK = torch.ones_like(IDS)


class Call(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, model: nn.Module, function: Any) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *given: Any) -> Any:
        return self.function(self.model, *given)


def sizes(*names: str) -> list[Dim]:
    return [Dim(name, min=2, max=4096) for name in names]


def onnx(
    module: nn.Module, example: Any, out: Path, names: list[str], made: list[str], shapes: Any, **more: Any
) -> None:
    """torch.onnx, which traces with torch.export."""
    out.mkdir(parents=True)
    given = {"input_names": names, "output_names": made, "dynamic_shapes": {"given": tuple(shapes)}, **more}
    torch.onnx.export(module.eval(), tuple(example), str(out / "model.onnx"), dynamo=True, **given)


def causal(source: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


def hf(source: str, out: Path, *, fused: bool) -> None:
    """Prefill and decode as transformers' exporter writes them for generation: without a mask."""
    config = OnnxConfig(dynamic=True, ort_fusions="cpu" if fused else None)
    given: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK}
    OnnxExporter().export_for_generation(causal(source), given, config=config).save_pretrained(out)


def hf_masked(source: str, out: Path, *, fused: bool) -> None:
    """The prompt alone, with a mask and positions."""
    config = OnnxConfig(dynamic=True, ort_fusions="cpu" if fused else None)
    places = torch.arange(9).expand(2, 9).contiguous()
    given: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK, "position_ids": places}
    OnnxExporter().export(causal(source), given, config=config).save_pretrained(out)


def uncached(source: str, out: Path) -> None:
    def run(model: Any, ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    rows, tokens = sizes("batch", "tokens")
    shapes = [{0: rows, 1: tokens}] * 2
    onnx(Call(causal(source), run), (IDS, MASK), out, ["input_ids", "attention_mask"], ["logits"], shapes)


def cached(source: str, out: Path) -> None:
    """With past keys and values, as optimum names them."""
    model = causal(source)
    config = model.config
    layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.head_dim

    def run(model: Any, ids: Any, mask: Any, positions: Any, *past: Any) -> Any:
        cache = DynamicCache()
        for i in range(layers):
            cache.update(past[2 * i], past[2 * i + 1], i)
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        found = model(input_ids=ids, use_cache=True, **given)
        return found.logits, *(x for layer in found.past_key_values.layers for x in (layer.keys, layer.values))

    past = [torch.randn(2, heads, 4, width) for _ in range(2 * layers)]
    places = torch.arange(4, 13).expand(2, 9).contiguous()
    example = (IDS, torch.ones(2, 13, dtype=torch.long), places, *past)
    rows, tokens, before = sizes("batch", "tokens", "past")
    own = [{0: rows, 1: tokens}, {0: rows, 1: Dim.DYNAMIC}, {0: rows, 1: tokens}]
    shapes = [*own, *[{0: rows, 2: before}] * len(past)]
    names = [f"past_key_values.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    given = ["input_ids", "attention_mask", "position_ids", *names]
    made = ["logits", *(n.replace("past_key_values", "present") for n in names)]
    onnx(Call(model, run), example, out, given, made, shapes)


def encoder(source: str, out: Path) -> None:
    def run(model: Any, ids: Any, mask: Any, types: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    rows, tokens = sizes("batch", "tokens")
    names, shapes = ["input_ids", "attention_mask", "token_type_ids"], [{0: rows, 1: tokens}] * 3
    example = (IDS, MASK, torch.zeros_like(IDS))
    onnx(Call(model, run), example, out, names, ["last_hidden_state"], shapes)


def whisper_encoder(source: str, out: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    sound = torch.randn(2, model.config.num_mel_bins, 3000)
    (rows,) = sizes("batch")
    module = Call(model.model.encoder, lambda inner, x: inner(x).last_hidden_state)
    onnx(module, (sound,), out, ["input_features"], ["last_hidden_state"], [{0: rows}])


def whisper_decoder(source: str, out: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    heard = torch.randn(2, 1500, model.config.d_model)

    def run(inner: Any, ids: Any, heard: Any) -> Any:
        return inner.proj_out(inner.model.decoder(ids, encoder_hidden_states=heard, use_cache=False).last_hidden_state)

    rows, tokens = sizes("batch", "tokens")
    names, shapes = ["input_ids", "encoder_hidden_states"], [{0: rows, 1: tokens}, {0: rows}]
    onnx(Call(model, run), (IDS, heard), out, names, ["logits"], shapes)


def eager(source: str, out: Path) -> None:
    """Logits of the last token of prompts of several lengths, each alone, by PyTorch without an exporter."""
    import numpy as np

    model = causal(source)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, model.config.vocab_size, n) for n in (5, 9, 12)]
    with torch.no_grad():
        last = [model(input_ids=torch.from_numpy(p)[None]).logits[0, -1].numpy() for p in prompts]
    out.mkdir(parents=True)
    named: dict[str, Any] = {f"prompt{i}": p for i, p in enumerate(prompts)}
    np.savez(out / "eager.npz", last=np.stack(last), **named)


KINDS = {
    "hf": lambda s, o: hf(s, o, fused=False),
    "hf-fused": lambda s, o: hf(s, o, fused=True),
    "hf-masked": lambda s, o: hf_masked(s, o, fused=False),
    "hf-masked-fused": lambda s, o: hf_masked(s, o, fused=True),
    "uncached": uncached,
    "cached": cached,
    "encoder": encoder,
    "whisper-encoder": whisper_encoder,
    "whisper-decoder": whisper_decoder,
    "eager": eager,
}

if __name__ == "__main__":
    KINDS[sys.argv[3]](sys.argv[1], Path(sys.argv[2]))
