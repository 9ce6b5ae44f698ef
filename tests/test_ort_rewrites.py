"""The rewrites to ONNX Runtime's ops: golden text, near misses, and numbers: reference twin and real runtime.

A golden file holds `pass: name`, the graph before, `----`, the graph after, and under another `----` the near misses.
MONOGRAPH_UPDATE_GOLDEN=1 writes the last two parts anew; read the diff.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
from monograph.backends.onnx import lower
from monograph.backends.onnxruntime import ops as target
from monograph.backends.onnxruntime.attention import GroupQuery, PackProjections
from monograph.backends.onnxruntime.choices import CHOICES
from monograph.backends.onnxruntime.logits import select_rows
from monograph.backends.onnxruntime.multi_head import MultiHead
from monograph.backends.onnxruntime.rewrites import layers, open_blocks
from monograph.backends.target import Target
from monograph.ir import Graph, building, interpret, ops, parse, verify
from monograph.ir.types import f32, i32, tensor
from monograph.ir.weights import Weights
from monograph.passes.differential import CASES, Case, random_params, sample_inputs
from monograph.passes.manager import FunctionPass, Pass, Pipeline
from monograph.passes.pattern import Report

Arrays = dict[str, np.ndarray[Any, Any]]

GOLDEN = sorted((Path(__file__).parent / "golden" / "ort").glob("*.txt"))
FUNCTIONS = [FunctionPass(f.__name__, f) for f in (open_blocks, select_rows)]
CPU = Target.of("cpu")
LAYERS = layers(CPU)
PASSES: dict[str, Pass] = {
    p.name: p for p in (GroupQuery(CPU, 64), MultiHead(CPU), PackProjections(CPU), LAYERS, *FUNCTIONS)
}
NOTHING = Pipeline("lowered", [])


def read(path: Path) -> list[str]:
    return [part.strip() for part in path.read_text().split("\n----\n")]


def ran(path: Path) -> tuple[Graph, Graph, Report]:
    """(before, after, report) of a golden case."""
    head, _, text = read(path)[0].partition("\n")
    graph = verify(parse(text))
    before = graph.copy()
    report = PASSES[head.removeprefix("pass: ")].run(graph)
    return before, verify(graph), report


def test_every_pass_has_a_golden_case_and_a_near_miss() -> None:
    used = {read(path)[0].splitlines()[0].removeprefix("pass: ") for path in GOLDEN}
    missed = {read(p)[0].splitlines()[0].removeprefix("pass: ") for p in GOLDEN if p.stem.startswith("near_miss")}
    assert used == set(PASSES)
    assert missed == set(PASSES) - {"open_blocks", "select_rows"}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    _, after, report = ran(path)
    misses = "\n".join(map(str, report.misses))
    found = [read(path)[0], str(after).strip(), *([misses] if misses else [])]
    if os.environ.get("MONOGRAPH_UPDATE_GOLDEN"):
        path.write_text("\n\n----\n\n".join(found) + "\n")
    assert found == read(path)


@pytest.mark.parametrize("path", [p for p in GOLDEN if p.stem.startswith("near_miss")], ids=lambda p: p.stem)
def test_a_near_miss_changes_nothing_it_names(path: Path) -> None:
    before, after, report = ran(path)
    name = read(path)[0].splitlines()[0].removeprefix("pass: ")
    if name == "ort_layers":
        assert report.counts["ort_tied_linear"] == 0
    else:
        assert str(after) == str(before) and report.counts[name] == 0


def test_reasons_name_the_place_and_the_obstacle() -> None:
    texts = {p.stem: "\n".join(map(str, ran(p)[2].misses)) for p in GOLDEN}
    assert "a bias over keys" in texts["near_miss_gqa_bias"] and "layers.0" in texts["near_miss_gqa_bias"]
    assert "heads are 4 wide, not a multiple of 8" in texts["near_miss_gqa_width"]
    assert "its mask is not the key padding mask" in texts["near_miss_gqa_mask"]
    assert "4 query heads share 2 key heads" in texts["near_miss_mha_groups"]
    assert "it has a softcap" in texts["near_miss_mha_softcap"]
    assert "is not one over keys" in texts["near_miss_mha_mask_by_query"]


# -- numbers --------------------------------------------------------------------------------------------------------


def runtime(graph: Graph, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> Arrays:
    """Outputs of the graph, as it is, in ONNX Runtime."""
    proto = onnx_ir.to_proto(lower(graph, Weights.of(dict(params)), pipeline=NOTHING))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=list(CHOICES["cpu"].disabled_optimizers),
    )  # fmt: skip
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: inputs[k] for k in graph.inputs if k in inputs}), strict=True))


def close(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], what: str) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * max(1.0, float(np.abs(wanted).max())), err_msg=what)


def lengths_inputs(inputs: Arrays, rows: int) -> Arrays:
    """What a graph with lengths reads for inputs whose masks are padded on the right."""
    mask = inputs["attention_mask"]
    lengths = mask.sum(axis=1).astype(np.int32)
    total = np.array(max(int(lengths.max()), rows), np.int32)
    return {**inputs, "lengths": lengths, "total_length": total}


FUSED_ATTENTION = [p for p in GOLDEN if p.stem.startswith("gqa")]


@pytest.mark.parametrize("case", CASES[:3], ids=str)
@pytest.mark.parametrize("path", FUSED_ATTENTION, ids=lambda p: p.stem)
def test_group_query_attention_on_prompts(path: Path, case: Case) -> None:
    """The original, the twin in the reference, and the kernel agree on every valid row of a prompt."""
    before, after, _ = ran(path)
    params = random_params(before)
    inputs = sample_inputs(before, case)
    mask = inputs["attention_mask"]
    inputs["position_ids"] = np.broadcast_to(np.arange(case.length), mask.shape).copy()
    past = {k: np.zeros((case.batch, v.shape[1], 0, v.shape[3]), np.float32)
            for k, v in before.inputs.items() if k.startswith("past")}  # fmt: skip
    wanted = interpret(before, inputs | past, params)
    given = lengths_inputs(inputs, case.length) | past
    for found, who in (
        (interpret(after, pick(after, given), params), "twin"),
        (runtime(after, given, params), "kernel"),
    ):
        close(found["y"] * mask[..., None], wanted["y"] * mask[..., None], who)
        for name in ("present.0.key", "present.0.value"):
            keep = mask[:, None, :, None]
            close(found[name] * keep, wanted[name] * keep, f"{who} {name}")


def pick(graph: Graph, given: Arrays) -> Arrays:
    return {k: given[k] for k in graph.inputs}


@pytest.mark.parametrize("path", FUSED_ATTENTION, ids=lambda p: p.stem)
def test_group_query_attention_after_a_past(path: Path) -> None:
    """Several tokens behind a past in one row, and one token a row in ragged rows, twin against kernel and original."""
    before, after, _ = ran(path)
    params = random_params(before)
    rng = np.random.default_rng(3)
    (_, groups, _, width) = before.inputs["past_key_values.0.key"].shape
    x = rng.standard_normal((1, 3, 32)).astype(np.float32)
    past = {f"past_key_values.0.{n}": rng.standard_normal((1, groups, 4, width)).astype(np.float32)
            for n in ("key", "value")}  # fmt: skip
    inputs = {"x": x, "attention_mask": np.ones((1, 7), np.int64), "position_ids": np.arange(4, 7)[None], **past}
    wanted = interpret(before, inputs, params)
    given = lengths_inputs(inputs, 3)
    for found in (interpret(after, pick(after, given), params), runtime(after, given, params)):
        for name, value in wanted.items():
            close(found[name], value, name)
    ragged(before, after, params, past)


def ragged(before: Graph, after: Graph, params: Arrays, past: Arrays) -> None:
    """Rows with 4, 2 and 0 cached tokens take one more each; each must equal the row alone."""
    rng = np.random.default_rng(4)
    cached, x = [4, 2, 0], rng.standard_normal((3, 1, 32)).astype(np.float32)
    stacked = {k: np.repeat(v, 3, axis=0) for k, v in past.items()}
    given = {"x": x, "lengths": np.array(cached, np.int32) + 1, "total_length": np.array(5, np.int32),
             "position_ids": np.array(cached)[:, None], **stacked}  # fmt: skip
    twin, kernel = interpret(after, pick(after, given), params), runtime(after, given, params)
    for row, n in enumerate(cached):
        alone = {k: v[:, :, :n] for k, v in past.items()}
        inputs = {"x": x[row : row + 1], "attention_mask": np.ones((1, n + 1), np.int64),
                  "position_ids": np.array([[n]]), **alone}  # fmt: skip
        wanted = interpret(before, inputs, params)
        for found in (twin, kernel):
            close(found["y"][row : row + 1], wanted["y"], f"row {row}")
            close(found["present.0.key"][row : row + 1, :, : n + 1], wanted["present.0.key"], f"keys of row {row}")


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_multi_head_attention(case: Case) -> None:
    before, after, _ = ran(next(p for p in GOLDEN if p.stem == "mha"))
    rng = np.random.default_rng(0)
    inputs = {
        k: rng.standard_normal((case.batch, n, 4, 8)).astype(np.float32) for k, n in (("q", 3), ("k", 7), ("v", 7))
    }
    inputs["attention_mask"] = sample_inputs(parse("graph g(%attention_mask: i64[B,S]) {\n  return\n}"), case)[
        "attention_mask"
    ]
    if case.batch > 1:
        inputs["attention_mask"][1] = 0  # A row without a single key gives zeros.
    wanted = interpret(before, inputs, {})["y"]
    assert case.batch == 1 or not wanted[1].any()
    close(interpret(after, inputs, {})["y"], wanted, "twin")
    close(runtime(after, inputs, {})["y"], wanted, "kernel")


@pytest.mark.parametrize("name", ["pack", "layers", "open_blocks"])
def test_rewrites_keep_the_numbers(name: str) -> None:
    before, after, _ = ran(next(p for p in GOLDEN if p.stem == name))
    params = random_params(before)
    inputs = sample_inputs(before, CASES[1])
    inputs |= {k: np.zeros((3, v.shape[1], 0, v.shape[3]), np.float32) for k, v in before.inputs.items() if "past" in k}
    wanted = interpret(before, inputs, params)
    for found in (interpret(after, inputs, params), runtime(after, inputs, params)):
        assert found.keys() == wanted.keys()
        for k in wanted:
            close(found[k], wanted[k], k)


def test_logits_of_chosen_rows() -> None:
    before, after, _ = ran(next(p for p in GOLDEN if p.stem == "select_rows"))
    params = random_params(before)
    inputs = sample_inputs(before, CASES[1])
    inputs |= {k: np.zeros((3, v.shape[1], 0, v.shape[3]), np.float32) for k, v in before.inputs.items() if "past" in k}
    wanted = interpret(before, inputs, params)["logits"].reshape(21, -1)[[20, 3, 3]]
    found = interpret(after, {**inputs, "logits_rows": np.array([20, 3, 3])}, params)["logits"]
    close(found, wanted, "logits")


def test_a_head_that_mixes_positions_is_left_alone() -> None:
    graph = parse(
        "graph g(%x: f32[B,S,4], %past_key_values.0.key: f32[B,1,P,4]) {\n"
        "  param @w: f32[5,4]\n"
        "  %0 = linear(%x, @w) : f32[B,S,5]\n"
        "  %1 = softmax(%0, axis=-2) : f32[B,S,5]\n"
        "  return logits=%1\n}\n"
    )
    text = str(graph)
    assert select_rows(graph) == 0 and str(graph) == text


def test_a_softcapped_head_is_computed_for_chosen_rows() -> None:
    graph = parse(
        "graph g(%x: f32[B,S,4], %past_key_values.0.key: f32[B,1,P,4]) {\n"
        "  param @w: f32[5,4]\n  param @b: f32[5]\n"
        "  slot past_key_values.0.key -> present.0.key: append(axis=2)\n"
        "  %0 = linear(%x, @w) : f32[B,S,5]\n"
        "  %1 = add(%0, @b) : f32[B,S,5]\n"
        "  %2 = tanh(%1) : f32[B,S,5]\n"
        "  return logits=%2\n}\n"
    )
    params = random_params(graph)
    x, past = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32), np.zeros((2, 1, 0, 4), np.float32)
    inputs = {"x": x, "past_key_values.0.key": past}
    wanted = interpret(graph, inputs, params)["logits"]
    assert select_rows(graph) == 1
    found = interpret(graph, {**inputs, "logits_rows": np.array([4, 0])}, params)["logits"]
    close(found, wanted.reshape(6, 5)[[4, 0]], "logits")


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("sine", [False, True])
def test_rotary_table(scale: float, sine: bool) -> None:
    graph = Graph("table")
    with building(graph):
        y = target.rotary_table(frequencies=(1.0, 0.25, 0.01), length=300, scale=scale, sine=sine)
    graph.output("y", y)
    wanted = (np.sin if sine else np.cos)(np.arange(300.0)[:, None] * np.array([1.0, 0.25, 0.01])) * scale
    for found in (interpret(graph, {})["y"], runtime(graph, {}, {})["y"]):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5)


def test_operands_are_checked() -> None:
    graph = Graph("bad")
    q, past = graph.input("q", tensor(f32, "B", "S", 60)), graph.input("past", tensor(f32, "B", 2, "P", 16))
    lengths, total = graph.input("lengths", tensor(i32, "B")), graph.input("total", tensor(i32))
    with pytest.raises(Exception, match=r"q is f32\[B,S,60\], expected \[B,S,128\]"):
        target.group_query_attention(q, past, past, lengths, total, heads=4, scale=1.0)
    with pytest.raises(Exception, match="k and v are given together"):
        target.group_query_attention(q, past, past, lengths, total, q, heads=4, scale=1.0)
    x = graph.input("x", tensor(f32, "B", 1, "S", 60))
    with pytest.raises(Exception, match="expected rank 2 or 3"):
        target.skip_rms_norm(x, x, graph.param("w", tensor(f32, 60)), eps=1e-6)


def test_a_norm_of_rank_4_keeps_the_plain_form() -> None:
    graph = Graph("norm")
    x, w = graph.input("x", tensor(f32, "B", "S", 2, 8)), graph.param("w", tensor(f32, 8))
    y, s = ops.add_rms_norm(x, x, w)
    graph.output("y", y)
    graph.output("s", s)
    text = str(graph)
    assert LAYERS.run(graph).counts["ort_skip_rms_norm"] == 0 and str(graph) == text
