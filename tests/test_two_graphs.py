"""Prompts through a graph of their own over the same weights: exact where steps round activations to 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import pytest
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.choices import CHOICES
from monograph.backends.onnxruntime.rows import rows_of
from monograph.backends.target import Target
from monograph.frontends.dsl import Model
from monograph.frontends.models.llama import llama
from monograph.ir import interpret
from monograph.ir.types import f32
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from monograph.quantizing import quantized

Array = np.ndarray[Any, Any]
FAST = replace(CHOICES["cpu"], int4_level=4, int4_head=4, prompts="same")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    made = llama(vocab=64, dim=64, layers=2, heads=4, kv_heads=2, ffn=96, max_positions=64, tied=True)
    made = replace(made, weights=Weights.of(random_params(made.graph())))
    place = tmp_path_factory.mktemp("q") / "m"
    with quantized(made, mg.Quantization("int4", block=32), Target.of("cpu"), place) as (found, _):
        yield found


def expected(model: Model, ids: Array) -> Array:
    graph = model.graph()
    assert model.weights is not None
    params = {k: model.weights[k].cast(f32).numpy() for k in graph.params}
    given = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.tile(np.arange(ids.shape[1]), (len(ids), 1)),
    }
    return interpret(graph, {k: v for k, v in given.items() if k in graph.inputs}, params)["logits"]


def test_prompts_are_exact_and_steps_are_fast(model: Model, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 64, (1, 24))
    wanted = expected(model, ids)
    one = build(model, None, tmp_path / "one", choices=FAST)
    two = build(model, None, tmp_path / "two", choices=replace(FAST, prompts="float"))
    rows = build(model, None, tmp_path / "rows", choices=replace(FAST, prompts="int8"))
    assert one.contract.prompts == "" and two.contract.prompts == "model.prompts.onnx"
    assert two.bytes - one.bytes == 2 * 64 * 8 * 4  # Tables of angles; both graphs read the same weights.
    assert rows.contract.prompts == "model.prompts.onnx" and rows.through_float == {}
    # Each weight of a layer once more, a byte a number; scales of rows are small, and inside the graph.
    layer = [(128, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    assert rows.bytes - two.bytes == 2 * sum(n * k for n, k in layer)
    off = []
    for report in (one, two, rows):
        session = open_session(report.folder, threads=1)
        prompt = session.prefill(ids[:, :20], np.array([20])).copy()
        step = session.step(ids[:, 20]).copy()
        chunk = session.append(ids[:, 21:24]).copy()
        found = ((prompt, 19), (step, 20), (chunk, 23))
        off.append([float(np.abs(x - wanted[:, i]).max() / np.abs(wanted).max()) for x, i in found])
    # The head is exact in both: what is left is what layers round.
    assert off[0][0] > 1e-3 > 2e-4 > off[1][0] and 1e-4 < off[1][1] < 0.05
    assert off[1][2] < 0.05 and all(1e-4 < x < 0.05 for x in off[2])
    exact = open_session(two.folder, threads=1, exact=True)
    np.testing.assert_allclose(
        exact.prefill(ids[:, :20], np.array([20])), wanted[:, 19], atol=1e-4 * np.abs(wanted).max()
    )


def fine_heads(folder: Path, file: str) -> int:
    """Products of the head in a built file that take their activations in two parts."""
    nodes = onnx.load(folder / file, load_external_data=False).graph.node
    heads = [n for n in nodes if n.op_type == "MatMulNBits" and any(a.name == "N" and a.i == 64 for a in n.attribute)]
    return sum(any(p.key == "monograph.fine" for p in n.metadata_props) for n in heads)


def test_the_head_is_fine_only_where_no_layer_rounds(model: Model, tmp_path: Path) -> None:
    """In prompts, whose layers compute in float, and in steps whose layers do; never where it is told not to be."""
    two = replace(FAST, prompts="float")
    folder = build(model, None, tmp_path / "two", choices=two).folder
    assert (fine_heads(folder, "model.onnx"), fine_heads(folder, "model.prompts.onnx")) == (0, 1)
    coarse = build(model, None, tmp_path / "coarse", choices=replace(two, fine_head=False)).folder
    assert fine_heads(coarse, "model.prompts.onnx") == 0
    float_steps = build(model, None, tmp_path / "float", choices=replace(FAST, int4_level=0)).folder
    assert fine_heads(float_steps, "model.onnx") == 1


def test_rows_and_stateless_runs_use_both_graphs(model: Model, tmp_path: Path) -> None:
    folder = build(model, None, tmp_path / "two", choices=replace(FAST, prompts="float")).folder
    session = open_session(folder, threads=1)
    ids = np.random.default_rng(1).integers(0, 64, (3, 19))
    wanted = expected(model, ids)
    near = 0.05 * np.abs(wanted).max()
    np.testing.assert_allclose(session.run({"input_ids": ids})["logits"], wanted, atol=2e-4 * np.abs(wanted).max())
    rows = rows_of(session, 3)
    joined = [rows.join() for _ in range(3)]
    for row, prompt in zip(joined, ids, strict=True):
        np.testing.assert_allclose(
            rows.read(row, prompt[:18]), wanted[row - joined[0], 17], atol=2e-4 * np.abs(wanted).max()
        )
    np.testing.assert_allclose(rows.step(joined, ids[:, 18]), wanted[:, 18], atol=near)


@pytest.mark.parametrize("change", [{"int4_level": 0}, {"shared_cache": False}])
def test_where_both_are_the_same_there_is_one(model: Model, tmp_path: Path, change: dict[str, Any]) -> None:
    report = build(model, None, tmp_path / "m", choices=replace(FAST, prompts="float", **change))
    assert report.contract.prompts == "" and "model.prompts.onnx" not in report.nodes
    assert not (report.folder / "model.prompts.onnx").exists()


def test_float_weights_need_no_second_graph(tmp_path: Path) -> None:
    made = llama(vocab=64, dim=64, layers=1, heads=4, kv_heads=2, ffn=96, max_positions=64)
    made = replace(made, weights=Weights.of(random_params(made.graph())))
    assert build(made, None, tmp_path / "m", choices=replace(FAST, prompts="float")).contract.prompts == ""
