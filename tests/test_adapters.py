"""Adapter files: what PEFT writes we read and the other way, with the same logits; everything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.huggingface import load_folder, save_pretrained
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, WeightsError
from monograph.ir.types import bf16
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from monograph.training.adapters import Adapter, Lora

LLAMA = {"vocab": 60, "dim": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2, "tied": True}
GPT2 = {"vocab": 60, "dim": 32, "layers": 2, "heads": 4, "max_positions": 32}
TARGETS = {"llama": ("q_proj", "v_proj", "up_proj"), "gpt2": ("c_attn", "c_fc")}


def base(name: str = "llama") -> Model:
    model = load_family(name)(**(LLAMA if name == "llama" else GPT2))
    model.weights = Weights.of(random_params(model.graph(), 1))
    return model


def adapter(model: Model, **changes: Any) -> Adapter:
    lora = Lora(**{"rank": 4, "alpha": 6.0, "targets": TARGETS[model.name], **changes})
    graph = model.graph()
    lora.insert(graph)
    drawn = random_params(graph, 2)
    return Adapter(lora, Weights.of({k: v for k, v in drawn.items() if "lora_" in k}))


def inputs() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 60, (2, 9))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.tile(np.arange(9), (2, 1)),
    }


def logits(model: Model, beside: Adapter | None = None) -> np.ndarray:
    graph, weights = (model.graph(), model.weights) if beside is None else beside.beside(model)
    assert weights is not None
    return interpret(graph, inputs(), {k: weights.numpy(k) for k in graph.params})["logits"]


def same(found: np.ndarray, want: np.ndarray) -> None:
    """To 1e-5 of the largest logit (at least 1)."""
    np.testing.assert_allclose(found, want, atol=1e-5 * max(1.0, float(np.abs(want).max())), rtol=0)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_saved_loaded_and_merged(name: str, rank_stabilized: bool, tmp_path: Path) -> None:
    model = base(name)
    made = adapter(model, rank_stabilized=rank_stabilized, dropout=0.1)
    made.save(tmp_path, model)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = Adapter.load(tmp_path)
    assert loaded.lora == made.lora
    want = logits(model, made)
    np.testing.assert_array_equal(logits(model, loaded), want)
    same(logits(loaded.merged(model)), want)
    assert np.abs(want - logits(model)).max() > 0.05
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "CAUSAL_LM", 4)
    assert config["fan_in_fan_out"] is (name == "gpt2")
    keys = list(Weights.open(tmp_path / "adapter_model.safetensors"))
    assert all(k.startswith("base_model.model.") for k in keys)


def test_a_merged_model_is_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    model = base()
    assert model.weights is not None
    made = adapter(model)
    save_pretrained(made.merged(model), tmp_path)
    loaded = load_folder(tmp_path)
    assert loaded.weights is not None
    same(logits(loaded), logits(model, made))
    changed = {k for k in loaded.weights if (loaded.weights.numpy(k) != model.weights.numpy(k)).any()}
    assert changed == {f"{k.rpartition('.lora_')[0]}.weight" for k in made.weights}


def test_merging_keeps_the_type_of_the_weights() -> None:
    model = base()
    assert model.weights is not None
    model.weights = model.weights.cast(bf16)
    merged = adapter(model).merged(model)
    assert merged.weights is not None
    assert {t.dtype for t in merged.weights.values()} == {bf16}


def test_scale() -> None:
    assert Lora(rank=4, alpha=6.0).scale == 1.5
    assert Lora(rank=4, alpha=6.0, rank_stabilized=True).scale == 3.0


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_parameters": ["x"]}, r"key 'target_parameters' = \['x'\]: it is not supported"),
        ({"layer_replication": [[0, 1]]}, "key 'layer_replication' = "),
        ({"alora_invocation_tokens": [1]}, "key 'alora_invocation_tokens' = "),
        ({"tomorrow": 1}, "key 'tomorrow' = 1: it is not supported"),
        ({"bias": "some"}, "key 'bias' = 'some': expected none, all or lora_only"),
        ({"init_lora_weights": "pissa"}, "key 'init_lora_weights' = 'pissa': it changes the base weights"),
        ({"peft_type": "IA3"}, "key 'peft_type' = 'IA3': expected 'LORA'"),
        ({"r": 0}, "key 'r' = 0: expected an integer from 1"),
        ({"r": True}, "key 'r' = True"),
        ({"lora_alpha": "8"}, "key 'lora_alpha' = '8': expected a number"),
        ({"lora_dropout": 1.5}, "key 'lora_dropout' = 1.5"),
        ({"target_modules": None}, "key 'target_modules' = None"),
        ({"target_modules": [1]}, r"key 'target_modules' = \[1\]"),
        ({"rank_pattern": {"(": 2}}, "key 'rank_pattern' = "),
        ({"alpha_pattern": {"q_proj": "x"}}, "key 'alpha_pattern' = "),
        ({"trainable_token_indices": ["x"]}, "key 'trainable_token_indices' = "),
    ],
)
def test_options_that_are_not_understood_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = base()
    adapter(model).save(tmp_path, model)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message) as e:
        Adapter.load(tmp_path)
    assert str(e.value).startswith(f"{path}: is not an adapter that is understood")


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no adapter_config.json"):
        Adapter.load(tmp_path)
    model = base()
    adapter(model).save(tmp_path, model)
    tensors = tmp_path / "adapter_model.safetensors"
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-10])
    with pytest.raises(WeightsError, match=str(tensors)):
        Adapter.load(tmp_path)
    tensors.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"adapter_model.bin is a pickle, which is never read"):
        Adapter.load(tmp_path)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    model = base()
    made = adapter(model)
    Weights({"base_model.model.x.ia3_l": next(iter(made.weights.values()))}).save(tmp_path / "w")
    made.save(tmp_path, model)
    (tmp_path / "w" / "model.safetensors").replace(tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors are not of a LoRA\n  x\.ia3_l"):
        Adapter.load(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    weights = Weights(
        {k.replace("layers.1", "layers.7"): t for k, t in made.weights.items() if "q_proj.lora_B" not in k}
    )
    wide = Adapter(Lora(8, 6.0, TARGETS["llama"]), weights)
    for read in (wide.beside, wide.merged):
        with pytest.raises(WeightsError) as e:
            read(model)
        assert f"missing: {name}.lora_B.weight: beside {name}.lora_A.weight" in str(e.value)
        assert "unexpected: model.layers.7.mlp.up_proj.lora_A.weight: f32[4,32], did you mean" in str(e.value)
        assert f"wrong: {name}.lora_A.weight is f32[4,32], expected [8, 32]" in str(e.value)
    with pytest.raises(WeightsError, match=r"unexpected: model.layers.0.self_attn.q_proj.lora_A.weight"):
        made.merged(base("gpt2"))
    with pytest.raises(WeightsError, match="has no weights to fine-tune"):
        made.merged(load_family("llama")(**LLAMA))


# -- PEFT itself -----------------------------------------------------------------------------------------------------


def their_logits(module: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return module.eval()(**{k: torch.from_numpy(v) for k, v in inputs().items()}).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": "all-linear"}], ids=str)
def test_an_adapter_made_by_peft_is_read(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    save_pretrained(base(name), tmp_path / "base")
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = {"r": 3, "lora_alpha": 5, "target_modules": list(TARGETS[name]), "fan_in_fan_out": name == "gpt2"}
    wrapped = get_peft_model(theirs, LoraConfig(**{**settings, "init_lora_weights": False, **options}))
    wrapped.save_pretrained(tmp_path / "adapter")
    want = their_logits(wrapped)
    model, loaded = load_folder(tmp_path / "base"), Adapter.load(tmp_path / "adapter")
    assert np.abs(want - logits(model)).max() > 0.05
    same(logits(model, loaded), want)
    same(logits(loaded.merged(model)), their_logits(wrapped.merge_and_unload()))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("changes", [{}, {"rank_stabilized": True}, {"targets": "all-linear"}], ids=str)
def test_peft_reads_an_adapter_of_ours(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = base(name)
    save_pretrained(model, tmp_path / "base")
    made = adapter(model, **changes)
    made.save(tmp_path / "adapter", model)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    found = their_logits(PeftModel.from_pretrained(theirs, tmp_path / "adapter"))
    same(found, logits(model, made))
