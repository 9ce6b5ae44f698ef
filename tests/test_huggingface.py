"""Hugging Face folders: every layout that is read, everything that is refused, and what is written."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from huggingface_hub import constants
from monograph.frontends.dsl import load_family
from monograph.frontends.huggingface import download, save_pretrained
from monograph.frontends.load import load
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir import Init
from monograph.ir.errors import ConfigError, MonographError, WeightsError
from monograph.ir.types import DType
from monograph.ir.weights import Mapped, Weights
from real_weights import real_weights
from tokenizers import models

TINY = {
    "llama": {"vocab": 32, "dim": 16, "ffn": 24, "layers": 2, "heads": 4, "kv_heads": 2},
    "gpt2": {"vocab": 32, "dim": 16, "layers": 2, "heads": 2, "max_positions": 8},
    "bert": {"vocab": 32, "dim": 16, "layers": 2, "heads": 2, "ffn": 24, "max_positions": 8},
    "transformer2017": {"vocab": 32, "dim": 16, "layers": 1, "decoder_layers": 1, "heads": 2, "ffn": 24},
}
REVISION = "0123456789abcdef0123456789abcdef01234567"


def tiny(name, **more):
    model = load_family(name)(**{**TINY[name], **more})
    model.weights = Weights.initialize(model.graph(), 1, Init("normal", 0.1))
    core = tokenizers.Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "</s>": 2}, unk_token="<pad>"))
    model.tokenizer = Tokenizer(core, {"eos_token": "</s>", "pad_token": "<pad>"})
    model.generation = {"eos_token_id": 2}
    return model


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_tensors(folder, rename):
    w = Weights.open(folder)
    Weights.of({rename(k): w.numpy(k).copy() for k in w}).save(folder)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("limit", [10**9, 2000])
def test_what_is_saved_is_loaded_again(tmp_path, name, limit):
    model = tiny(name)
    written = save_pretrained(model, tmp_path, max_shard_bytes=limit)
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert (tmp_path / "model.safetensors").exists() == (limit > 2000)
    back = load(tmp_path)
    assert back.config == model.config
    assert back.family.name == name
    assert back.generation == {"eos_token_id": 2}
    assert back.tokenizer.encode("a") == [1]
    assert set(back.weights) == set(model.weights)
    for k in back.weights:
        np.testing.assert_array_equal(back.weights.numpy(k), model.weights.numpy(k))
    again = tmp_path / "again"
    save_pretrained(back, again, dtype=DType.bf16)
    half = load(again)
    assert half.config == model.config
    assert {t.dtype for t in half.weights.values()} == {DType.bf16}
    assert json.loads((again / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_config_keys_that_are_not_ours_survive(tmp_path):
    save_pretrained(tiny("llama"), tmp_path / "a")
    change_config(tmp_path / "a", initializer_range=0.5, use_cache=False, _name_or_path="me")
    save_pretrained(load(tmp_path / "a"), tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["initializer_range"], config["use_cache"], config["_name_or_path"]) == (0.5, False, "me")
    assert (config["model_type"], config["hidden_size"], config["eos_token_id"]) == ("llama", 16, 2)


def test_another_name_of_a_key_and_the_type_of_the_weights_are_written_once(tmp_path):
    model = tiny("gpt2")
    save_pretrained(model, tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    layers, dtype = config.pop("n_layer"), config.pop("torch_dtype")
    path.write_text(json.dumps({**config, "num_hidden_layers": layers, "dtype": dtype}))
    back = load(tmp_path / "a")
    assert back.config == model.config
    save_pretrained(back, tmp_path / "b", dtype=DType.bf16)
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (written["n_layer"], written["dtype"]) == (layers, "bfloat16")
    assert not {"num_hidden_layers", "torch_dtype"} & {*written}


def test_a_file_that_does_not_say_its_family_is_read_as_the_one_that_is_given(tmp_path):
    model = tiny("gpt2")
    save_pretrained(model, tmp_path)
    change_config(tmp_path, model_type=None)
    with pytest.raises(ConfigError, match="has model_type None"):
        load(tmp_path)
    assert load(tmp_path, family=model.family).config == model.config


def test_a_failed_save_leaves_the_old_checkpoint_untouched(tmp_path):
    save_pretrained(tiny("gpt2"), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(x):
        raise WeightsError("the disk of the source is gone")

    model = tiny("gpt2", layers=1)
    k = "transformer.ln_f.bias"
    model.weights = model.weights | {k: Mapped(model.weights[k], model.weights[k].type, fail)}
    with pytest.raises(WeightsError, match="the disk of the source is gone"):
        save_pretrained(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(WeightsError, match="missing: transformer"):
        save_pretrained(model, tmp_path, Weights.of({}))
    model.weights = None
    with pytest.raises(WeightsError, match="model gpt2 has no weights to save"):
        save_pretrained(model, tmp_path)


# -- names in checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("gpt2", lambda k: k.removeprefix("transformer.")),
        ("bert", lambda k: f"bert.{k}"),
        (
            "bert",
            lambda k: k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
        ),
    ],
)
def test_names_of_old_and_headed_checkpoints_are_understood(tmp_path, name, rename):
    model = tiny(name)
    save_pretrained(model, tmp_path)
    rename_tensors(tmp_path, rename)
    back = load(tmp_path)
    assert set(back.weights) == set(model.weights)
    for k in back.weights:
        np.testing.assert_array_equal(back.weights.numpy(k), model.weights.numpy(k))


def test_buffers_and_heads_are_left_out_and_a_missing_pooler_is_seen(tmp_path):
    model = tiny("bert", pooler=False)
    save_pretrained(model, tmp_path)
    extra = {
        "embeddings.position_ids": np.arange(8)[None],
        "cls.predictions.bias": np.zeros(32, np.float32),
    }
    old = Weights.open(tmp_path)
    Weights.of({k: old.numpy(k).copy() for k in old} | extra).save(tmp_path)
    back = load(tmp_path)
    assert not back.config.pooler
    assert set(back.weights) == set(model.weights)
    assert list(back.graph().outputs) == ["last_hidden_state"]


def test_a_stored_copy_of_a_tied_head_is_left_out_but_an_own_head_is_kept(tmp_path):
    model = tiny("llama", tied=True)
    save_pretrained(model, tmp_path)
    old = {k: Weights.open(tmp_path).numpy(k).copy() for k in Weights.open(tmp_path)}
    table = old["model.embed_tokens.weight"]
    Weights.of(old | {"lm_head.weight": table}).save(tmp_path)
    assert "lm_head.weight" not in load(tmp_path).weights
    Weights.of({k: v for k, v in old.items() if v is not table} | {"lm_head.weight": table}).save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).weights.numpy("model.embed_tokens.weight"), table)
    Weights.of(old | {"lm_head.weight": table + 1}).save(tmp_path)
    back = load(tmp_path)
    assert not back.config.tied
    np.testing.assert_array_equal(back.weights.numpy("lm_head.weight"), table + 1)


# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "model_type 'lama' is not supported, did you mean 'llama'"),
        ({"model_type": None}, r"config\.json: has model_type None"),
        ({"hidden_sise": 3, "hidden_size": None}, r"hidden_size' is None, expected int"),
        ({"quantization_config": {"bits": 4}}, "key 'quantization_config' = {'bits': 4}: weights that are"),
        ({"architectures": [["LlamaForCausalLM"]]}, r"has the architecture \['LlamaForCausalLM'\], which llama has no"),
        ({"hidden_size": "16"}, "'hidden_size' is '16', expected int"),
        ({"num_hidden_layers": 3}, r"missing: model\.layers\.2\.self_attn\.q_proj\.weight: f32\[16,16\]"),
        ({"num_hidden_layers": 1}, r"unexpected: model\.layers\.1\.self_attn\.q_proj\.weight: f32\[16,16\]"),
        ({"num_hidden_layers": 10**9}, "is 1000000000, and 4096 layers are the most"),
        ({"num_attention_heads": 0}, "has a config that says heads = 0"),
        (
            {"intermediate_size": 25},
            r"wrong: model\.layers\.0\.mlp\.gate_proj\.weight is f32\[24,16\], expected f32\[25,16\]",
        ),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_scaling of type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling of type 'linear' has factor = None"),
        ({"hidden_act": "mush"}, "activation 'mush' is not supported, did you mean 'mish'"),
    ],
)
def test_configs_that_do_not_fit_are_one_clear_error(tmp_path, change, message):
    save_pretrained(tiny("llama"), tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(MonographError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "bert",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type 'relative_key' is not supported",
        ),
        ("bert", {"is_decoder": True}, "is_decoder = True is not supported"),
        ("bert", {"hidden_act": "gelo"}, "activation 'gelo' is not supported, did you mean 'gelu'"),
        ("bert", {"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
        ("gpt2", {"n_head": 3}, "n_embd 16 is not a multiple of n_head 3"),
        ("transformer2017", {"num_heads": 3}, "d_model 16 must be even and a multiple of num_heads 3"),
    ],
)
def test_settings_a_family_does_not_have_are_refused(tmp_path, name, change, message):
    save_pretrained(tiny(name), tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: is missing"):
        load(tmp_path)
    save_pretrained(tiny("bert"), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle, which is never read"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="is neither a folder nor a GGUF or ONNX file"):
        load(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"is one file of a checkpoint\n  hint: load its folder"):
        load(tmp_path / "config.json")
    for nothing in ("no/such/folder", "./nothing", str(tmp_path / "x.gguf"), "a b"):
        with pytest.raises(ConfigError, match="there is no such file or folder, nor a hub repository"):
            load(nothing)


# -- the hub -------------------------------------------------------------------------------------------------------


def hub_cache(root, model, repository="org/tiny"):
    """What the hub library leaves on disk: blobs, and a snapshot of links to them."""
    home = root / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / REVISION
    save_pretrained(model, root / "plain")
    for i, path in enumerate(sorted((root / "plain").iterdir())):
        blob = home / "blobs" / f"{i:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    return home


def test_a_hub_cache_is_read_by_its_folder_and_by_its_name(tmp_path, monkeypatch):
    model = tiny("gpt2")
    home = hub_cache(tmp_path / "hub", model)
    back = load(home)
    np.testing.assert_array_equal(
        back.weights.numpy("transformer.wte.weight"), model.weights.numpy("transformer.wte.weight")
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert download("org/tiny", cache=tmp_path / "hub") == home / "snapshots" / REVISION
    assert load(home / "snapshots" / REVISION).config == model.config


@pytest.mark.parametrize("reference", ["../../../elsewhere", "f" * 40])
def test_a_hub_cache_that_points_elsewhere_is_refused(tmp_path, reference):
    home = hub_cache(tmp_path / "hub", tiny("gpt2"))
    (home / "refs" / "main").write_text(reference)
    with pytest.raises(ConfigError, match="refs/main names revision"):
        load(home)
    (home / "refs" / "main").unlink()
    with pytest.raises(ConfigError, match="is a hub cache without refs/main"):
        load(home)


def test_a_repository_that_cannot_be_fetched_or_has_only_pickles_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"org/other: cannot be fetched from the hub \(.*\)\n  hint: a local folder"):
        download("org/other", cache=tmp_path)
    with pytest.raises(ConfigError, match="cannot be fetched from the hub"):
        download("not a/valid/name", cache=tmp_path)
    home = hub_cache(tmp_path / "hub", tiny("gpt2"))
    (home / "snapshots" / REVISION / "model.safetensors").rename(home / "snapshots" / REVISION / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="hub repository org/tiny: has no safetensors; pickles are never read"):
        download("org/tiny", cache=tmp_path / "hub")


MEASURE = """
import sys
from monograph.frontends.huggingface import save_pretrained
from monograph.frontends.load import load
from monograph.machine import peak_memory
model = load(sys.argv[1])
save_pretrained(model, sys.argv[2])
print(peak_memory(), max(t.bytes for t in model.weights.values()), model.weights.bytes)
"""


@pytest.mark.weights
@pytest.mark.slow
def test_a_whole_checkpoint_is_converted_within_the_memory_of_one_tensor(tmp_path):
    """538 MB of float32 out of a 4-bit file: peak memory is bounded by the largest tensor, not by the model."""
    source = real_weights("smollm2")
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, source, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    peak, largest, total = map(int, result.stdout.split())
    assert total == 538_060_032
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > total
    assert peak < 300_000_000 + 3 * largest


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"is_causal": False}, "key 'is_causal' = False: .* reads it for llama, only True is"),
        (
            "llama",
            {"sliding_window": 4},
            "key 'sliding_window' = 4: .*, only None is computed here",
        ),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "key 'pruned_heads' = .*: layers with fewer heads"),
        ("gpt2", {"is_causal": None}, "key 'is_causal' = None: .* reads it for gpt2, only True is computed here"),
    ],
)
def test_a_key_that_changes_numbers_is_refused_by_name(tmp_path, name, change, message):
    save_pretrained(tiny(name), tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"partial_rotary_factor": 1.0, "rope_interleaved": False, "is_causal": True, "unsloth_version": "1"}),
        ("llama", {"is_llama_config": True, "transformers.js_config": {"a": 1}, "some_switch": None}),
        ("gpt2", {"pruned_heads": {}, "output_past": True, "use_bfloat16": False, "add_cross_attention": False}),
        ("bert", {"directionality": "bidi", "pooler_type": "first_token_transform", "is_causal": False}),
    ],
)
def test_keys_that_compute_nothing_are_left_alone(tmp_path, name, change):
    model = tiny(name)
    save_pretrained(model, tmp_path)
    change_config(tmp_path, **change)
    assert load(tmp_path).config == model.config
