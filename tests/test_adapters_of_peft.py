"""Adapters that PEFT writes, of every form that is read: logits of the merged model against PEFT's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from monograph.frontends.huggingface import load_folder
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, WeightsError
from monograph.training.adapters import Adapter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

IDS = np.array([[5, 9, 13, 7, 3, 2]])


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            **changes,
        )
    )


def tied() -> Any:
    return llama(tie_word_embeddings=True)


def biased() -> Any:
    return llama(attention_bias=True)


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
        )
    )


def classifier() -> Any:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            num_labels=3,
        )
    )


QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "names that the model does not have": (llama, {"target_modules": ["q_proj", "query_key_value", "c_attn"]}),
    "a regular expression": (llama, {"target_modules": r".*layers\.1\.(self_attn\.(q|k)_proj|mlp\.up_proj)"}),
    "whole paths": (llama, {"target_modules": ["model.layers.1.mlp.gate_proj"]}),
    "all linear layers": (llama, {"target_modules": "all-linear"}),
    "rank by module": (llama, {**QV, "rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 5}}),
    "alpha by module": (llama, {**QV, "alpha_pattern": {"v_proj": 3}, "rank_pattern": {"v_proj": 2}}),
    "rank stabilised": (llama, {**QV, "use_rslora": True, "rank_pattern": {"v_proj": 2}}),
    "some layers": (llama, {**QV, "layers_to_transform": [1]}),
    "some layers of a pattern": (llama, {**QV, "layers_to_transform": 0, "layers_pattern": "layers"}),
    "without some": (llama, {**QV, "exclude_modules": ["v_proj"]}),
    "an output layer": (llama, {"target_modules": ["q_proj", "lm_head"]}),
    "an output layer that was tied": (tied, {"target_modules": ["q_proj", "lm_head"]}),
    "a whole output layer": (llama, {**QV, "modules_to_save": ["lm_head"]}),
    "a whole output layer that was tied": (tied, {**QV, "modules_to_save": ["lm_head"]}),
    "an embedding": (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
    "an embedding that was tied": (tied, {"target_modules": ["q_proj", "embed_tokens"]}),
    "a whole embedding": (llama, {**QV, "modules_to_save": ["embed_tokens"]}),
    "rows of an embedding": (llama, {**QV, "trainable_token_indices": [3, 5]}),
    "rows of a tied embedding": (tied, {**QV, "trainable_token_indices": {"embed_tokens": [3]}}),
    "whole norms": (llama, {**QV, "modules_to_save": ["norm", "input_layernorm"]}),
    "DoRA": (llama, {**QV, "use_dora": True}),
    "DoRA on an embedding": (llama, {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "DoRA of Conv1D": (gpt2, {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "biases of the adapted": (biased, {**QV, "bias": "lora_only"}),
    "all biases": (biased, {**QV, "bias": "all"}),
    "a bias of B": (biased, {**QV, "lora_bias": True}),
    "a classifier": (classifier, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "a fraction of alpha": (llama, {**QV, "lora_alpha": 2.5}),
}


def made(name: str, folder: Path) -> np.ndarray:
    """Write a base and an adapter of random numbers; the logits of PEFT."""
    make, options = CASES[name]
    torch.manual_seed(0)
    base = make().eval()
    base.save_pretrained(folder / "base")
    tuned = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 16, "init_lora_weights": False, **options}))
    for key, parameter in tuned.named_parameters():
        trained = any(part in key for part in ("lora_", "modules_to_save", "trainable_tokens"))
        if trained or (key.endswith(".bias") and parameter.requires_grad):
            parameter.data = 0.2 * torch.randn_like(parameter)
    tuned.eval().save_pretrained(folder / "adapter")
    with torch.no_grad():
        return tuned(input_ids=torch.from_numpy(IDS)).logits.numpy()


def logits(folder: Path) -> np.ndarray:
    model = Adapter.load(folder / "adapter").merged(load_folder(folder / "base"))
    assert model.weights is not None
    model.weights.check(model.graph())
    given = {
        "input_ids": IDS,
        "attention_mask": np.ones_like(IDS),
        "position_ids": np.arange(6)[None],
        "token_type_ids": 0 * IDS,
    }
    graph = model.graph()
    params = {k: model.weights.numpy(k) for k in graph.params}
    return interpret(graph, {k: given[k] for k in graph.inputs}, params)["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_merged_as_peft_computes(name: str, tmp_path: Path) -> None:
    want = made(name, tmp_path)
    np.testing.assert_allclose(logits(tmp_path), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "prefix", ["", "base_model.model.base_model.model.", "base_model.model.model."], ids=["none", "twice", "inner"]
)
def test_names_that_are_wrapped_otherwise(prefix: str, tmp_path: Path) -> None:
    want = made("a whole output layer", tmp_path)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    inner = prefix.endswith("model.model.model.")
    save_file(
        {
            (k if inner else prefix + k.removeprefix("base_model.model."))
            .replace("lora_A.weight", "lora_A.default.weight")
            .replace("lm_head.weight", "lm_head.modules_to_save.default.weight"): v
            for k, v in load_file(path).items()
        },
        path,
    )
    np.testing.assert_allclose(logits(tmp_path), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_head_that_only_the_adapter_has(tmp_path: Path) -> None:
    want = made("a classifier", tmp_path)
    bare = transformers.BertModel.from_pretrained(tmp_path / "base")
    bare.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    bare.save_pretrained(tmp_path / "base")
    np.testing.assert_allclose(logits(tmp_path), want, atol=1e-5)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "classifier.bias" not in k}, path)
    with pytest.raises(WeightsError, match=r"missing: classifier.bias: neither the model nor the adapter has it"):
        logits(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_numbers_of_16_bits(tmp_path: Path) -> None:
    want = made("whole norms", tmp_path)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(path).items()}, path)
    np.testing.assert_allclose(logits(tmp_path), want, atol=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_missing_or_more_is_told(tmp_path: Path) -> None:
    made("DoRA", tmp_path)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(path)
    save_file({k: v for k, v in whole.items() if "magnitude" not in k}, path)
    with pytest.raises(WeightsError, match=r"missing: model.layers.0.self_attn.q_proj.lora_magnitude_vector: use_dora"):
        Adapter.load(tmp_path / "adapter").merged(load_folder(tmp_path / "base"))
    save_file(whole, path)
    adapter = Adapter.load(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="is more than A and B of one rank and alpha"):
        adapter.beside(load_folder(tmp_path / "base"))
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {n.key for n in adapter.notes} < set(said)
