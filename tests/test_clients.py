"""Folders for other clients: files, names in the graphs, and numbers, called as each client calls them."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tokenizers
import transformers
from command_line import call
from monograph.frontends.dsl import Model
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir.errors import LoweringError, MonographError
from monograph.ir.weights import Weights
from small_models import small

EXAMPLE = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "plain_onnxruntime.py"))
CAUSAL = ("bloom", "gemma3_text", "gpt2", "gpt_neox", "gptj", "llama", "mistral")
VOCAB = 50
Array = np.ndarray[Any, Any]
Make = Callable[..., Path]


def tokenizer(**settings: Any) -> Tokenizer:
    """Fifty letters as tokens."""
    vocab = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", *map(chr, range(0x61, 0x61 + VOCAB - 3))])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    core.add_special_tokens(["<pad>", "<s>", "</s>"])
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(core, {**named, **settings})


def model(family: str) -> Model:
    found = small(family)
    found.weights = Weights.initialize(found.graph(), seed=3)
    found.tokenizer = tokenizer()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The exported folder of a small model, made once for a family and a layout."""
    made: dict[tuple[str, str | None], Path] = {}

    def make(family: str, layout: str | None = None) -> Path:
        if (family, layout) not in made:
            place = tmp_path_factory.mktemp("clients") / "out"
            made[family, layout] = mg.export(model(family), place, layout=layout)
        return made[family, layout]

    return make


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(opened: ort.InferenceSession, given: dict[str, Array]) -> dict[str, Array]:
    outputs = [o.name for o in opened.get_outputs()]
    return dict(zip(outputs, opened.run(outputs, given), strict=True))


def listed(place: Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}


def read(place: Path, name: str) -> dict[str, Any]:
    return json.loads((place / name).read_text())


# -- files ------------------------------------------------------------------------------------------------------------

BESIDE = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        (None, {"model.onnx", "model.onnx.data"}),
        ("optimum", {"model.onnx", "model.onnx_data"}),
        ("genai", {"model.onnx", "model.onnx_data", "genai_config.json"}),
        ("web", {"onnx/model.onnx", "onnx/model.onnx_data"}),
    ],
)
def test_files_of_each_layout(folder: Make, layout: str | None, files: set[str]) -> None:
    found = listed(folder("llama", layout))
    assert found >= files | BESIDE
    assert {f for f in found if "onnx" in f} == {f for f in files if "onnx" in f}


@pytest.mark.parametrize("family", ["t5", "whisper"])
def test_files_of_an_encoder_decoder(folder: Make, family: str) -> None:
    graphs = {f"{g}.onnx{end}" for g in ("encoder_model", "decoder_model_merged") for end in ("", "_data")}
    assert graphs <= listed(folder(family, "optimum"))
    assert {f"onnx/{g}" for g in graphs} <= listed(folder(family, "web"))


def test_a_web_folder_says_which_files_it_has(folder: Make) -> None:
    said = read(folder("t5", "web"), "config.json")["transformers.js_config"]
    assert said["dtype"] == "fp32"
    assert said["use_external_data_format"] == {"encoder_model.onnx": 1, "decoder_model_merged.onnx": 1}
    assert "transformers.js_config" not in read(folder("t5", "optimum"), "config.json")
    opset = onnx.load(folder("llama", "web") / "onnx" / "model.onnx", load_external_data=False).opset_import
    assert {o.domain: o.version for o in opset}[""] == 21


@pytest.mark.parametrize(
    ("family", "layout", "names", "side"),
    [
        ("llama", "optimum", ["input_ids", "attention_mask"], "left"),
        ("llama", "genai", ["input_ids", "attention_mask"], "right"),
        ("llama", "web", ["input_ids", "attention_mask"], "left"),
        ("gru_lm", None, ["input_ids", "attention_mask"], "left"),
        ("bert", "web", ["input_ids", "token_type_ids", "attention_mask"], None),
        ("bert", None, ["input_ids", "token_type_ids", "attention_mask"], None),
        ("t5", "optimum", ["input_ids", "attention_mask"], None),
    ],
)
def test_a_tokenizer_makes_what_the_model_takes(
    folder: Make, family: str, layout: str | None, names: list[str], side: str | None
) -> None:
    said = read(folder(family, layout), "tokenizer_config.json")
    assert said["model_input_names"] == names and said.get("padding_side") == side
    loaded = transformers.AutoTokenizer.from_pretrained(folder(family, layout))
    assert set(loaded("abc", return_tensors="np")) == set(names)


def test_a_built_folder_has_them_too(tmp_path: Path) -> None:
    with mg.build(model("llama"), tmp_path / "out"):
        pass
    assert read(tmp_path / "out", "tokenizer_config.json")["model_input_names"] == ["input_ids", "attention_mask"]
    assert read(tmp_path / "out", "generation_config.json") == {
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0
    }  # fmt: skip


def test_a_tokenizer_of_transformers_5_is_called_as_all_versions_call_it(tmp_path: Path) -> None:
    given = model("llama")
    given.tokenizer = tokenizer(tokenizer_class="TokenizersBackend")
    mg.export(given, tmp_path / "out", layout="optimum")
    assert read(tmp_path / "out", "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_what_a_checkpoint_says_of_generation_stays(tmp_path: Path) -> None:
    given = model("llama")
    given.generation = {"eos_token_id": [2, 7], "temperature": 0.6, "do_sample": True, "top_p": 0.9}
    mg.export(given, tmp_path / "out", layout="genai")
    said = read(tmp_path / "out", "generation_config.json")
    assert said == {"bos_token_id": 1, "pad_token_id": 0, **given.generation}
    search = read(tmp_path / "out", "genai_config.json")["search"]
    assert (search["do_sample"], search["temperature"], search["top_p"]) == (True, 0.6, 0.9)


# -- metadata ---------------------------------------------------------------------------------------------------------


def test_a_lone_file_says_its_task_its_stream_and_its_slots(folder: Make, tmp_path: Path) -> None:
    mg.build(model("llama"), tmp_path / "built").close()
    files = [folder("llama", "optimum") / "model.onnx", folder("llama", "web") / "onnx" / "model.onnx"]
    for path in (*files, folder("llama") / "model.onnx", tmp_path / "built" / "model.onnx"):
        said = session(path).get_modelmeta().custom_metadata_map
        task, slots = json.loads(said["monograph.task"]), json.loads(said["monograph.slots"])
        assert task["name"] == "causal-lm" and task["output"] == "logits" and task["generates"]
        assert json.loads(said["monograph.stream"])["mask"] == "attention_mask"
        assert [(s["input"], s["output"]) for s in slots][:2] == [
            ("past_key_values.0.key", "present.0.key"), ("past_key_values.0.value", "present.0.value")
        ]  # fmt: skip
    encoder = json.loads(session(folder("bert") / "model.onnx").get_modelmeta().custom_metadata_map["monograph.task"])
    assert encoder["name"] == "feature-extraction" and encoder["zeros"] == ["token_type_ids"]


# -- causal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["optimum", "genai", "web"])
@pytest.mark.parametrize("family", CAUSAL)
def test_names_of_a_decoder(folder: Make, family: str, layout: str) -> None:
    place = folder(family, layout)
    opened = session(place / ("onnx/model.onnx" if layout == "web" else "model.onnx"))
    inputs, outputs = ([v.name for v in side] for side in (opened.get_inputs(), opened.get_outputs()))
    state = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert [k for k in inputs if "." in k] == [f"past_key_values.{s}" for s in state]
    assert outputs == ["logits", *(f"present.{s}" for s in state)]
    assert {"input_ids", "attention_mask"} <= {k for k in inputs if "." not in k} <= {
        "input_ids", "attention_mask", "position_ids"
    }  # fmt: skip
    assert all(v.shape[0] == "batch_size" for v in opened.get_inputs()), "transformers.js reads this name"


def greedy(path: Path, rows: list[list[int]], new: int, side: str, *, from_mask: bool) -> list[list[int]]:
    """The likeliest ids of a padded batch. from_mask: positions count what the mask keeps; else columns, as
    onnxruntime-genai does it, which pads on the right and goes on from each row's last token."""
    opened = session(path)
    wanted = {i.name: i for i in opened.get_inputs()}
    longest = max(map(len, rows))
    fill = [longest - len(r) for r in rows]
    left = side == "left"
    ids = np.array([[0] * n + r if left else r + [0] * n for n, r in zip(fill, rows, strict=True)])
    mask = np.array(
        [[0] * n + [1] * len(r) if left else [1] * len(r) + [0] * n for n, r in zip(fill, rows, strict=True)]
    )
    state = {k: np.zeros([len(rows), i.shape[1], 0, i.shape[3]], np.float32) for k, i in wanted.items() if "past" in k}
    last = np.array([longest - 1 if left else len(r) - 1 for r in rows])
    made: list[Array] = []
    for _ in range(new):
        every = np.maximum(mask.cumsum(1) - 1, 0) if from_mask or left else mask.cumsum(1) - 1
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": every[:, -ids.shape[1] :], **state}
        found = run(opened, {k: v for k, v in given.items() if k in wanted})
        state = {k: found[k.replace("past_key_values", "present")] for k in state}
        chosen = found["logits"][np.arange(len(rows)), last].argmax(-1)
        made.append(chosen)
        ids, last = chosen[:, None], np.zeros(len(rows), np.int64)
        mask = np.concatenate([mask, np.ones((len(rows), 1), np.int64)], 1)
    return np.stack(made, 1).tolist()


ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24]]


@pytest.mark.parametrize(("layout", "side"), [("optimum", "left"), ("web", "left"), ("genai", "right")])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "gptj"])
def test_a_padded_batch_gives_what_its_rows_give(folder: Make, family: str, layout: str, side: str) -> None:
    path = folder(family, layout) / ("onnx/model.onnx" if layout == "web" else "model.onnx")
    with mg.build(model(family)) as engine:
        expected = [g.ids for g in engine.generate(ROWS, max_new_tokens=6, eos=[])]
    assert greedy(path, ROWS, 6, side, from_mask=True) == expected
    assert [greedy(path, [r], 6, side, from_mask=True)[0] for r in ROWS] == expected


@pytest.mark.parametrize("family", [*CAUSAL, "gemma2", "mixtral", "mamba2", "lfm2", "deepseek_v3", "gru_lm", "rnn_lm"])
def test_ten_lines_of_plain_onnxruntime(folder: Make, family: str) -> None:
    with mg.build(model(family)) as engine:
        expected = engine.generate(ROWS[0], max_new_tokens=6, eos=[]).ids
    assert EXAMPLE["greedy"](folder(family), ROWS[0], 6) == expected


def test_a_window_slot_may_hold_more_than_counts(folder: Make) -> None:
    """No client forgets what left a window: pasts grow like any others, and the graph looks at the newest."""
    given = model("gemma3_text")
    rows = [[*range(5, 25)], [*range(9, 21)]]
    with mg.build(given) as engine:
        expected = [g.ids for g in engine.generate(rows, max_new_tokens=8, eos=[])]
    assert greedy(folder("gemma3_text", "optimum") / "model.onnx", rows, 8, "left", from_mask=True) == expected


# -- genai ------------------------------------------------------------------------------------------------------------

MODEL = {
    "type", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "vocab_size",
    "context_length", "decoder", "tokenizer_dir",
}  # fmt: skip
DECODER = {
    "filename", "session_options", "run_options", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "num_hidden_layers", "head_size", "sliding_window", "inputs", "outputs", "layer_types", "conv_cache_size",
}  # fmt: skip
INPUTS = {"input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names", "past_names"}
OUTPUTS = {"logits", "present_key_names", "present_value_names", "present_names"}
SEARCH = {
    "do_sample", "min_length", "max_length", "num_beams", "num_return_sequences", "top_k", "top_p", "temperature",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "diversity_penalty", "early_stopping",
    "past_present_share_buffer",
}  # fmt: skip
TYPES = {"gemma3_text": "gemma3_text", "llama": "llama", "mistral": "mistral"}
"""What the reader of onnxruntime-genai 0.18 knows: any other key is an error there."""


@pytest.mark.parametrize("family", [*CAUSAL, "mixtral"])
def test_genai_config(folder: Make, family: str) -> None:
    place = folder(family, "genai")
    said = read(place, "genai_config.json")
    found, decoder = said["model"], said["model"]["decoder"]
    assert set(said) == {"model", "search"} and set(found) <= MODEL and set(decoder) <= DECODER
    assert set(decoder["inputs"]) <= INPUTS and set(decoder["outputs"]) <= OUTPUTS and set(said["search"]) <= SEARCH
    opened = session(place / decoder["filename"])
    inputs = {i.name: i.shape for i in opened.get_inputs()}
    outputs = {o.name: o.shape for o in opened.get_outputs()}
    for i in range(decoder["num_hidden_layers"]):
        for part in ("key", "value"):
            shape = inputs.pop(decoder["inputs"][f"past_{part}_names"].replace("%d", str(i)))
            assert shape[1::2] == [decoder["num_key_value_heads"], decoder["head_size"]]
            outputs.pop(decoder["outputs"][f"present_{part}_names"].replace("%d", str(i)))
    assert set(inputs) == {v for k, v in decoder["inputs"].items() if not k.startswith("past")}
    assert outputs.pop(decoder["outputs"]["logits"])[-1] == found["vocab_size"] == VOCAB and not outputs
    assert found["type"] == TYPES.get(family, "decoder")
    assert (found["eos_token_id"], found["pad_token_id"], found["bos_token_id"]) == (2, 0, 1)
    assert said["search"]["past_present_share_buffer"] is False, "pasts grow by concatenation"
    assert said["search"]["max_length"] == found["context_length"]


def test_genai_needs_an_end_of_text(tmp_path: Path) -> None:
    given = model("llama")
    given.tokenizer = None
    with pytest.raises(LoweringError, match="does not say which token ends a text"):
        mg.export(given, tmp_path / "out", layout="genai")
    given.generation = {"eos_token_id": [4, 3]}
    said = read(mg.export(given, tmp_path / "out", layout="genai"), "genai_config.json")["model"]
    assert said["eos_token_id"] == [4, 3] and said["pad_token_id"] == 4 and "bos_token_id" not in said


# -- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [None, "optimum", "web"])
def test_an_encoder_counts_its_positions_itself(folder: Make, layout: str | None) -> None:
    opened = session(folder("bert", layout) / ("onnx/model.onnx" if layout == "web" else "model.onnx"))
    ids = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
    given = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    assert {i.name for i in opened.get_inputs()} == set(given)
    with mg.build(model("bert")) as engine:
        expected = engine.run({k: given[k] for k in ("input_ids", "attention_mask")})["last_hidden_state"]
    got = run(opened, given)["last_hidden_state"]
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(got[1, :2], expected[1, :2], atol=1e-5)


# -- the command ------------------------------------------------------------------------------------------------------


def test_build_for_a_client(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    mg.frontends.huggingface.save_pretrained(model("llama"), checkpoint)
    assert "wrote" in call("build", checkpoint, tmp_path / "web", "--for", "web").output
    assert (tmp_path / "web" / "onnx" / "model.onnx").exists()
    assert "no layout is called 'wbe'" in call("build", checkpoint, tmp_path / "x", "--for", "wbe", code=1).output
    for layout in ("optimum", "genai", "web"):
        assert "0 fail" in call("build", checkpoint, tmp_path / layout, "--for", layout, "--check").output
    said = call("build", checkpoint, tmp_path / "x", "--for", "web", "--target", "cuda", code=1).output
    assert "is a portable export" in said and not (tmp_path / "x").exists()


@pytest.mark.parametrize("layout", [None, "optimum", "web"])
def test_encoders_are_verified_with_padding_on_any_side(folder: Make, layout: str | None) -> None:
    parity = mg.verify(model("bert"), folder("bert", layout), torch=False)
    assert parity.passed and {"left-padded", "holed"} <= {row.case.split()[0] for row in parity.rows}


def test_a_merged_decoder_is_not_verified(folder: Make, tmp_path: Path) -> None:
    with pytest.raises(MonographError, match=r"holds decoder_model_merged\.onnx, which takes no masks"):
        mg.verify(model("t5"), folder("t5", "web"), torch=False)
    checkpoint = tmp_path / "checkpoint"
    mg.frontends.huggingface.save_pretrained(model("t5"), checkpoint)
    said = call("build", checkpoint, tmp_path / "out", "--for", "optimum", "--check", code=1).output
    assert "--check gives masks to a decoder" in said and not (tmp_path / "out").exists()
