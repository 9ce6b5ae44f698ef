"""Each key of a config.json is used, noted or refused, by what the reference implementation reads: a fact, as data."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from monograph.frontends.dsl import Config, Scope, Value, key, load_family, model
from monograph.frontends.reference import UNSAID, Reference, read_config, reference_of
from monograph.ir.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
TABLE: dict[str, Any] = json.loads((ROOT / "frontends" / "reference_keys.json").read_text())
FAMILIES = sorted(TABLE["families"])


def keys_of(name: str) -> Reference:
    found = reference_of(load_family(name))
    assert found is not None
    return found


@pytest.mark.slow
def test_the_data_is_what_the_installed_reference_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    if transformers.__version__ != TABLE["transformers"]:
        assert transformers.__version__.split(".")[0] == TABLE["transformers"].split(".")[0]
        return
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("reference_keys")
    assert script.written(script.reference_keys()) == (ROOT / "frontends" / "reference_keys.json").read_text()


OWN_DEFAULTS = {
    # Read from the tensors, or a key that the reference no longer has.
    ("bert", "add_pooling_layer"), ("vit", "add_pooling_layer"), ("bert", "position_embedding_type"),
    ("t5", "own_lm_head"),
    # Of rotary positions: the default stands in code, by family.
    *((name, k) for name in FAMILIES for k in ("rope_theta", "rotary_emb_base", "rope_local_base_freq")),
    # None stands for what the config works out from other fields.
    ("lfm2", "intermediate_size"), ("mamba2", "time_step_limit"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_out_is_what_the_reference_takes(name: str) -> None:
    reference = keys_of(name)
    for f in dataclasses.fields(load_family(name).config_class):  # type: ignore[arg-type]
        k = f.metadata["hf"]
        if f.default is not dataclasses.MISSING and (name, k) not in OWN_DEFAULTS:
            assert f.default == reference.default(k) or (f.default is None and reference.default(k) == UNSAID), k
        elif f.default is dataclasses.MISSING:
            assert reference.default(k) != UNSAID, k


@pytest.mark.parametrize(("name", "theta"), [("mixtral", 1e6), ("llama", 1e4), ("lfm2", 1e6), ("gemma2", 1e4)])
def test_rotary_bases_that_are_left_out(name: str, theta: float) -> None:
    theirs = transformers.AutoConfig.for_model(name).rope_parameters["rope_theta"]
    (ours,) = (f.default for f in dataclasses.fields(load_family(name).config_class) if f.name == "theta")  # type: ignore[arg-type]
    assert ours == theirs == theta


def test_a_config_that_says_nothing_is_that_of_the_reference() -> None:
    config: Any
    config, notes = read_config(load_family("llama"), {"model_type": "llama"})
    assert (config.dim, config.layers, config.vocab, config.ffn, notes) == (4096, 32, 32000, 11008, ())


SAID: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"is_llama_config": True}, "is_llama_config = True: it says where the checkpoint comes from"),
    ("llama", {"rope_interleaved": True}, "does not read it for llama"),
    ("llama", {"rms_norm_ep": 1e-3}, "does not read it for llama, did you mean 'rms_norm_eps'?"),
    ("llama", {"partial_rotary_factor": 0.5}, "turns whole heads of this family"),
    ("llama", {"sliding_window": None}, "what transformers takes where it is left out"),
    ("llama", {"is_causal": True}, "what transformers takes where it is left out"),
    ("llama", {"attention_dropout": 0.1}, "dropout of attention scores"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "finetuned": True}}, "rope_scaling.finetuned = True: "),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, "'linear' do not have it"),
    ("bert", {"directionality": "bidi"}, "does not read it for bert"),
    ("gpt2", {"n_ctx": 64}, "does not read it for gpt2"),
    ("gpt2", {"summary_type": "mean"}, "does not read it for gpt2"),
    ("gptj", {"rotary": False}, "does not read it for gptj"),
    ("mixtral", {"router_aux_loss_coef": 0.5}, "it is about the loss"),
    ("llama", {"quantization_config": None}, "it switches nothing on"),
]


@pytest.mark.parametrize(("name", "said", "why"), SAID)
def test_what_changes_nothing_is_noted_with_the_reason(name: str, said: dict[str, Any], why: str) -> None:
    plain, before = read_config(load_family(name), {"model_type": name})
    config, notes = read_config(load_family(name), {"model_type": name, **said}, "m/config.json")
    assert before == ()
    (note,) = notes
    assert why in str(note) and str(note).startswith("config.json: ")
    assert config == plain or "rope_scaling" in said


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"sliding_window": 16}, "key 'sliding_window' = 16: transformers .* reads it|only None"),
    ("llama", {"is_causal": False}, "only True is computed here"),
    ("llama", {"is_causal": None}, "only True is computed here"),
    ("llama", {"layer_types": ["sliding_attention"]}, "only None is computed here"),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantized in a form of their own"),
    ("llama", {"per_layer_config": {"0": {"hidden_size": 2}}}, "settings of their own for some layers"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "change with the length of the text"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5}, "whole heads"),
    ("gpt2", {"add_cross_attention": True}, "only False is computed here"),
    ("bert", {"is_decoder": True}, "is_decoder = True is not supported"),
    ("bert", {"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
    ("gemma2", {"use_bidirectional_attention": True}, "only None is computed here"),
    ("llama", {"hidden_sise": 3}, "'hidden_sise' = 3: .* did you mean 'hidden_size'., which is missing"),
    ("mistral", {"rms_norm_eps": "1e-5"}, "'rms_norm_eps' is '1e-5', expected float"),
]


@pytest.mark.parametrize(("name", "said", "message"), REFUSED)
def test_what_changes_numbers_is_refused_by_name_and_place(name: str, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        read_config(load_family(name), {"model_type": name, **said}, "m/config.json")
    assert e.value.place == "m/config.json"


def test_all_that_is_refused_is_in_one_error() -> None:
    said = {"is_causal": False, "sliding_window": 3, "vocab_size": "x", "is_llama_config": True}
    with pytest.raises(ConfigError) as e:
        read_config(load_family("llama"), said)
    assert len(e.value.details) == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_other_names_of_a_key_count_as_in_the_reference(name: str) -> None:
    reference = keys_of(name)
    fields = load_family(name).config_class.keys()
    for other, own in reference.renamed.items():
        if own not in fields or not isinstance(reference.default(own), int):
            continue
        theirs = transformers.AutoConfig.for_model(name, **{own: 48, other: 96})
        config, notes = read_config(load_family(name), {own: 48, other: 96})
        assert config.to_dict()[own] == getattr(theirs, own) == 96
        assert [n.key for n in notes] == [own]


class Small(Config):
    width: int = key("hidden_size")


@model
def own(m: Scope, c: Small, input_ids: Value) -> Value:
    return m.embed("embed", input_ids, 8, c.width)


def test_unknown_keys_of_a_family_of_ones_own_are_refused() -> None:
    config, notes = read_config(own, {"hidden_size": 4, "torch_dtype": "float32", "model_type": "own"})
    assert (config, [n.key for n in notes]) == (Small(4), ["torch_dtype"])
    with pytest.raises(ConfigError, match="unknown key 'hidden_sizes' = 4, did you mean 'hidden_size'") as e:
        read_config(own, {"hidden_sizes": 4})
    assert len(e.value.details) == 2
