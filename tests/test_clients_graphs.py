"""Folders for other clients: merged decoders, weights in blocks, what is refused, and what replaces what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import pytest
import torch
import transformers
from monograph.ir import interpret
from monograph.ir.errors import LoweringError, MonographError
from monograph.ir.weights import Weights
from small_models import FAMILIES, small
from test_clients import Array, model, run, session
from test_gguf_blocks import write_llama

# -- encoder-decoders -------------------------------------------------------------------------------------------------

T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip
WHISPER = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 5,
           "max_source_positions": 6, "max_target_positions": 20, "decoder_start_token_id": 1, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": [], "begin_suppress_tokens": []}  # fmt: skip


@pytest.mark.parametrize("dummy", [0, 1], ids=["Optimum 2 begins with nothing", "Optimum 1 with a column of zeros"])
@pytest.mark.parametrize("family", ["t5", "whisper"])
def test_a_merged_decoder_against_transformers(tmp_path: Path, family: str, dummy: int) -> None:
    torch.manual_seed(0)
    if family == "t5":
        theirs: Any = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
        ids = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
        source = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}
    else:
        theirs = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER))
        source = {"input_features": np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)}
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    theirs.eval().save_pretrained(tmp_path / "checkpoint")
    place = mg.export(mg.load(tmp_path / "checkpoint"), tmp_path / "out", layout="optimum")
    targets = np.array([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24]])
    with torch.no_grad():
        given = {k: torch.tensor(v) for k, v in source.items()}
        expected = theirs(**given, decoder_input_ids=torch.tensor(targets)).logits.numpy()

    encoder, decoder = session(place / "encoder_model.onnx"), session(place / "decoder_model_merged.onnx")
    assert {i.name for i in encoder.get_inputs()} == set(source)
    hidden = run(encoder, source)["last_hidden_state"]
    pasts = [i for i in decoder.get_inputs() if i.name.startswith("past_key_values.")]
    parts = [f"{i}.{side}.{part}" for i in range(2) for side in ("decoder", "encoder") for part in ("key", "value")]
    assert [p.name for p in pasts] == [f"past_key_values.{p}" for p in parts], "clients flatten a past in this order"
    assert [o.name for o in decoder.get_outputs()] == ["logits", *(f"present.{p}" for p in parts)]
    state = {p.name: np.zeros([2, p.shape[1], dummy, p.shape[3]], np.float32) for p in pasts}
    common: dict[str, Array] = {"encoder_hidden_states": hidden}
    if family == "t5":
        common["encoder_attention_mask"] = source["attention_mask"]
    assert {i.name for i in decoder.get_inputs()} - {p.name for p in pasts} == {
        *common, "input_ids", "use_cache_branch"
    }  # fmt: skip
    start, logits = 0, []
    for stop in (2, 3, 5):
        calls = {"input_ids": targets[:, start:stop], "use_cache_branch": np.array([start > 0])}
        found = run(decoder, {**common, **calls, **state})
        logits.append(found["logits"])
        state = {k: found[k.replace("past_key_values", "present")] for k in state}
        start = stop
    np.testing.assert_allclose(np.concatenate(logits, 1), expected, atol=2e-4)


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("layout", ["optimum", "web"])
def test_blocks_are_multiplied_in_float_without_an_option(tmp_path: Path, layout: str, kind: str) -> None:
    """Of DequantizeLinear and MatMul the runtime makes products that round activations to 8 bits; ours say not to.

    kind: of the layers, and where it is of 4 bits without minimums of the table, too.
    """
    given = mg.load(write_llama(tmp_path / "model.gguf", kind, table=kind if kind == "Q4_0" else "Q8_0"))
    plain = mg.export(given, tmp_path / "plain") / "model.onnx"
    path = mg.export(given, tmp_path / layout, layout=layout) / ("onnx/model.onnx" if layout == "web" else "model.onnx")
    nodes = onnx.load(path, load_external_data=False).graph.node
    products = [n for n in nodes if n.op_type == "MatMulNBits"]
    assert len(products) == 15 and not any(a.name == "accuracy_level" for n in products for a in n.attribute)
    assert path.with_name("model.onnx_data").stat().st_size < 1.1 * plain.with_name("model.onnx.data").stat().st_size
    ids = np.array([[5, 6, 7, 8]])
    calls: dict[str, Array] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(4)[None],
    }
    pasts = {k.name: np.zeros((1, 2, 0, 16), np.float32) for k in session(path).get_inputs() if "past" in k.name}
    expected = interpret(given.graph(), calls, {k: given.weights.numpy(k) for k in given.graph().params})["logits"]
    largest = np.abs(expected).max()
    exact = np.abs(run(session(path), {**calls, **pasts})["logits"] - expected).max() / largest
    assert exact < 1e-5


# -- what there is no class for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layout", "reason"),
    [
        (
            "transformer2017",
            "optimum",
            "Optimum has no class for model_type 'transformer2017' with the",
        ),
        ("transformer2017", "web", "transformers.js has no class for model_type 'transformer2017'"),
        ("lstm_seq2seq", "optimum", "Optimum has no class for model_type 'lstm_seq2seq'"),
        ("t5", "genai", "onnxruntime-genai has no class for the task 'seq2seq-lm'"),
        ("whisper", "genai", "onnxruntime-genai has no class for the task 'speech-to-text'"),
        ("bert", "genai", "onnxruntime-genai has no class for the task 'feature-extraction'"),
        ("vit", "genai", "onnxruntime-genai has no class for the task 'image-classification'"),
        ("mamba2", "genai", r"onnxruntime-genai has no place for past_state.0.conv f32\[B,3,52\]"),
        ("gru_lm", "genai", "onnxruntime-genai has no place for past_state.0.h"),
        ("gru_lm", "optimum", "Optimum has no class for model_type 'gru_lm'"),
        ("deepseek_v3", "optimum", "Optimum wants keys and values of each layer, but deepseek_v3 remembers"),
        ("mixtral", "web", "transformers.js has no class for model_type 'mixtral'"),
        ("gemma2", "optimum", "Optimum has no class for model_type 'gemma2'"),
    ],
)
def test_what_a_client_has_no_class_for(tmp_path: Path, family: str, layout: str, reason: str) -> None:
    with pytest.raises(LoweringError, match=reason):
        mg.export(model(family), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_optimum_derives_the_shape_of_a_past_from_the_config(tmp_path: Path) -> None:
    given = small("llama")
    wide = given.family(**{k: v for k, v in vars(given.config).items() if k != "head_dim"} | {"head_dim": 8})
    wide.weights = Weights.initialize(wide.graph(), seed=0)
    with pytest.raises(LoweringError, match=r"Optimum takes 2 key heads of 4 from the config of a llama, but"):
        mg.export(wide, tmp_path / "out", layout="optimum")
    mg.export(wide, tmp_path / "out", layout="web")


def test_layouts_have_names(tmp_path: Path) -> None:
    with pytest.raises(MonographError, match="no layout is called 'optimun', did you mean 'optimum'"):
        mg.export(model("gpt2"), tmp_path / "out", layout="optimun")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["optimum", "genai", "web"])
def test_every_family_is_exported_or_refused_by_name(tmp_path: Path, family: str, layout: str) -> None:
    try:
        mg.export(model(family), tmp_path / "out", layout=layout)
    except MonographError as e:
        assert family in str(e) and not (tmp_path / "out").exists()


# -- replacing --------------------------------------------------------------------------------------------------------


def test_an_export_takes_the_place_of_another_layout_whole(tmp_path: Path) -> None:
    out, given = tmp_path / "out", model("llama")
    mg.export(given, out, layout="web")
    assert (out / "onnx" / "model.onnx_data").exists()
    mg.export(given, out, layout="genai")
    assert not (out / "onnx").exists() and (out / "genai_config.json").exists()
    mg.build(given, out).close()
    assert not (out / "genai_config.json").exists() and (out / "monograph.json").exists()
    mg.export(given, out, layout="web")
    assert not (out / "monograph.json").exists() and not (out / "model.onnx").exists()


@pytest.mark.parametrize("place", ["notes.txt", "onnx/notes.txt", "onnx/more/model.onnx", "other/model.onnx"])
def test_what_no_build_wrote_is_not_deleted(tmp_path: Path, place: str) -> None:
    out, given = tmp_path / "out", model("gpt2")
    mg.export(given, out, layout="web")
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).write_text("mine")
    with pytest.raises(MonographError, match="which no build wrote"):
        mg.export(given, out, layout="optimum")
    assert (out / place).read_text() == "mine" and (out / "onnx" / "model.onnx").exists()
