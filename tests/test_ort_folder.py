"""Built folders: what is in them, what builds that fail leave, and folders that are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.ir import MonographError, interpret
from monograph.ir.errors import ConfigError, LoweringError, RuntimeInputError, WeightsError
from monograph.ir.manifest import seal
from monograph.ir.weights import Tensor, Weights
from monograph.passes.differential import random_params
from ort_models import (
    MODELS,
    POSITIONS,
    VOCAB,
    Array,
    Built,
    builder,
    close,
    ids_of,
    small,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    return builder(tmp_path_factory.mktemp("built"))


# -- building ---------------------------------------------------------------------------------------------------------


def test_what_a_build_reports(built: Callable[[str], Built]) -> None:
    b = built("llama")
    r = b.report
    assert r.attentions == {"total": 2, "ort_group_query_attention": 2} and r.fused == 2 and r.misses == []
    assert r.nodes["model.onnx"]["GroupQueryAttention"] == 2 and "Attention" not in r.nodes["model.onnx"]
    assert r.nodes["model.onnx"]["SkipSimplifiedLayerNormalization"] == 4 and r.nodes["model.onnx"]["QuickGelu"] == 2
    assert r.nodes["model.masked.onnx"]["Attention"] == 2
    assert "Transpose" not in r.nodes["model.onnx"], "weights are stored as the kernels want them"
    params = sum(v.nbytes for v in b.params.values())
    assert params <= r.bytes < 1.1 * params + 4096 * 10, "both graphs read one copy of every weight"
    assert r.bound == 300_000_000 + 3 * 4 * 128 * 64, "the largest tensor is the packed projection"
    assert {s.name for s in r.steps} >= {"add_state", "pack_projections", "ort_group_query_attention", "cse"}
    assert r.summary().startswith("2 of 2 attentions fused, ")


def test_the_folder_is_complete(built: Callable[[str], Built]) -> None:
    b = built("llama")
    names = {p.name for p in b.folder.iterdir()}
    assert names == {
        "model.onnx",
        "model.masked.onnx",
        "model.onnx.data",
        "monograph.json",
        "config.json",
        "checksums.json",
    }
    assert b.open().config["num_key_value_heads"] == 2
    contract = json.loads((b.folder / "monograph.json").read_text())
    slots = [(s["input"], s["output"], s["growth"], s["type"], s["axis"]) for s in contract["slots"]]
    assert slots[3] == ("past_key_values.1.value", "present.1.value", "append", "f32[B,2,P,16]", 2) and len(slots) == 4
    assert contract["inputs"]["model.onnx"]["input_ids"] == "i64[B,S]" and contract["positions"] == POSITIONS
    assert contract["alone"] == "", "the mask of every attention hides padding"
    assert contract["stream"]["ids"] == "input_ids" and contract["bounds"] == {"input_ids": VOCAB}


def test_strict_names_the_layer_and_the_reason(tmp_path: Path) -> None:
    made = small(kind="bias")
    weights = Weights.of(random_params(made.graph()))
    with pytest.raises(LoweringError) as e:
        build(made, weights, tmp_path / "out", strict=True)
    assert "0 of 2 attentions were fused" in str(e.value)
    assert "layers.0: it has a bias over keys" in str(e.value) and "layers.1" in str(e.value)
    assert not (tmp_path / "out").exists()
    assert build(made, weights, tmp_path / "out").attentions["onnx_cached_attention"] == 2


@pytest.mark.parametrize("positions", [0, -5, 2.5])
def test_positions_are_a_whole_number(tmp_path: Path, positions: Any) -> None:
    with pytest.raises(LoweringError, match=f"max_positions is {positions}, expected a whole number of at least 1"):
        build(MODELS["llama"](), None, tmp_path / "out", max_positions=positions)
    assert not (tmp_path / "out").exists()


def test_a_plain_graph_builds_too(tmp_path: Path) -> None:
    made = MODELS["llama"]()
    graph = made.graph()
    params = random_params(graph)
    build(graph, Weights.of(params), tmp_path / "out", max_positions=16)
    session = open_session(tmp_path / "out", threads=1)
    assert session.config == {} and session.capacity == 16
    ids = ids_of(1, 5)
    inputs = {"input_ids": ids, "attention_mask": np.ones((1, 5), np.int64), "position_ids": np.arange(5)[None]}
    close(session.prefill(ids, [5])[0], interpret(graph, inputs, params)["logits"][0, -1])


class Broken(Tensor):
    """A tensor whose file turns out to be damaged when it is read."""

    def __init__(self, of: Tensor) -> None:
        self.type = of.type

    def numpy(self) -> Array:
        raise WeightsError("tensor cannot be read: the file was changed after it was opened")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    made = MODELS["llama"]()
    weights = Weights.of(random_params(made.graph()))
    broken = weights | {"model.layers.1.mlp.down_proj.weight": Broken(weights["model.layers.1.mlp.down_proj.weight"])}
    with pytest.raises(WeightsError, match="changed after it was opened"):
        build(made, broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    build(made, weights, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(WeightsError):
        build(made, broken, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_build_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="model llama has no weights"):
        build(MODELS["llama"](), None, tmp_path)
    with pytest.raises(WeightsError, match=r"(?s)20 weights of llama are missing.*model.norm.weight: f32\[64\]"):
        build(MODELS["llama"](), Weights.of({}), tmp_path)


# -- damaged folders --------------------------------------------------------------------------------------------------


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "monograph.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    seal(folder)


def slot(folder: Path, **changes: Any) -> None:
    slots = json.loads((folder / "monograph.json").read_text())["slots"]
    edit(folder, slots=[slots[0] | changes, *slots[1:]])


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[MonographError], str]] = {
    "no contract": (lambda f: (f / "monograph.json").unlink(), ConfigError, "it is not a folder that `build` wrote"),
    "not json": (lambda f: (f / "monograph.json").write_text("{"), ConfigError, "is not JSON"),
    "not an object": (lambda f: (f / "monograph.json").write_text("[]"), ConfigError, "is of version list, expected 5"),
    "config": (lambda f: (f / "config.json").write_text("{"), WeightsError, r"config\.json: is 1 bytes long, but"),
    "version": (lambda f: edit(f, version=1), ConfigError, "is of version 1, expected 5"),
    "unknown key": (lambda f: edit(f, colour="red"), ConfigError, "unknown key 'colour'"),
    "type": (lambda f: edit(f, positions="many"), ConfigError, "'positions' is 'many', expected int"),
    "slot": (lambda f: edit(f, slots=[{"input": "x"}]), ConfigError, "slot 0: key 'growth' is missing"),
    "growth": (lambda f: slot(f, growth="shrink"), ConfigError, "slot 0: growth is 'shrink', expected one of append, "),
    "axis": (lambda f: slot(f, axis=None), ConfigError, "slot 0: past_key_values.0.key: axis is None, expected one of"),
    "window": (lambda f: slot(f, window=3), ConfigError, "growth append with window 3"),
    "slot type": (lambda f: slot(f, type="f32[B"), ConfigError, r"slot 0: 'f32\[B' is not a type"),
    "stream": (lambda f: edit(f, stream={"ids": 3}), ConfigError, "stream: 'ids' is 3, expected str"),
    "bounds": (lambda f: edit(f, bounds={"input_ids": 0}), ConfigError, "'bounds' says 0 of 'input_ids'"),
    "input type": (lambda f: edit(f, inputs={"model.onnx": {"input_ids": 1}}), ConfigError, "input_ids: 1 is not a"),
    "no inputs": (lambda f: edit(f, inputs={}), ConfigError, "does not say what inputs 'model.masked.onnx' has"),
    "no graph": (lambda f: edit(f, masked=""), ConfigError, "names '', which is not a file beside it"),
    "rows": (lambda f: edit(f, rows=False), RuntimeInputError, "logits_rows: the contract says rows False"),
    "outside": (lambda f: edit(f, masked="../model.onnx"), ConfigError, "names '../model.onnx'"),
    "no file": (lambda f: (f / "model.masked.onnx").unlink(), ConfigError, "names 'model.masked.onnx'"),
    "heads": (
        lambda f: slot(f, type="f32[B,4,P,16]"), RuntimeInputError,
        r"past_key_values.0.key: a session feeds f32\[B,4,P,16\], the graph has f32\[B,2,P,16\]",
    ),
    "slot name": (
        lambda f: slot(f, input="past_key_values.7.key"), RuntimeInputError,
        "past_key_values.7.key: the contract has a slot, the graph has no input",
    ),
    "slot output": (
        lambda f: slot(f, output="presents"), RuntimeInputError,
        "presents: the contract has an output, the graph has none",
    ),
    "input": (
        lambda f: edit(f, inputs={"model.onnx": {"input_ids": "i32[B,S]"}, "model.masked.onnx": {}}), RuntimeInputError,
        r"input_ids: the contract has int32\[batch_size, sequence_length\], the graph has int64\[batch_size, seq",
    ),
    "stream name": (
        lambda f: edit(f, stream={"length": "S", "ids": "ids", "mask": "m", "positions": "p"}), RuntimeInputError,
        "ids: a decoder reads tokens, and the graph reads none",
    ),
    "provider": (lambda f: edit(f, provider="cuda"), RuntimeInputError, "no session opens on cuda: |built for cuda, which this"),
    "graph cut": (
        lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:900]), WeightsError, "is 900 bytes",
    ),
    "data cut": (
        lambda f: (f / "model.onnx.data").write_bytes((f / "model.onnx.data").read_bytes()[:1000]), WeightsError,
        "is 1000 bytes long",
    ),
    "data longer": (
        lambda f: (f / "model.onnx.data").write_bytes((f / "model.onnx.data").read_bytes() + b"x"), WeightsError,
        r"model\.onnx\.data: is \d+ bytes long, but \d+ were written: build the model again",
    ),
    "data of another": (
        lambda f: (f / "model.onnx.data").write_bytes(bytes((f / "model.onnx.data").stat().st_size)), WeightsError,
        r"model\.onnx\.data: is not the file that was written: build the model again",
    ),
    "no data": (lambda f: (f / "model.onnx.data").unlink(), WeightsError, r"model\.onnx\.data: is not there, but was"),
    "no manifest": (lambda f: (f / "checksums.json").unlink(), WeightsError, r"checksums\.json: is not there, and"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folders_are_refused(built: Callable[[str], Built], tmp_path: Path, case: str) -> None:
    damage, error, message = DAMAGE[case]
    folder = tmp_path / "copy"
    shutil.copytree(built("llama").folder, folder)
    damage(folder)
    with pytest.raises(error, match=message):
        open_session(folder, threads=1)


@pytest.mark.parametrize("place", ["x", "x/y", "../model/x"])
def test_no_folder_is_built_inside_a_built_one(built: Callable[[str], Built], tmp_path: Path, place: str) -> None:
    b, folder = built("llama"), tmp_path / "model"
    shutil.copytree(b.folder, folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(MonographError, match=rf"lies in the built folder {folder}"):
        build(MODELS["llama"](), None, folder / place)
    assert sorted(folder.rglob("*")) == before
