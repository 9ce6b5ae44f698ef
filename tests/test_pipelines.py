"""Whole pipelines: full fusion from primitives, unchanged numbers, and failures that name pass, layer and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.frontends.dsl import Model, load_family
from monograph.ir import DType, Graph, building, interpret, ops, parse, tensor, verify
from monograph.ir.errors import MonographError, PassError
from monograph.ir.slots import Stream
from monograph.passes import pipelines
from monograph.passes.differential import CASES, difference, random_params, sample_inputs
from monograph.passes.manager import FunctionPass, Pipeline

LLAMA = {"vocab": 50, "dim": 32, "ffn": 48, "layers": 3, "heads": 4, "kv_heads": 2}


def llama(**changes: Any) -> Model:
    return load_family("llama")(**(LLAMA | changes))


def test_decomposed_graph_fuses_completely() -> None:
    graph = llama().graph()
    flat = pipelines.decompose(graph)
    assert not {"attention", "rms_norm", "linear", "silu", "rope", "embedding"} & flat.counts().keys()
    fused, report = pipelines.optimize(flat, "encode")
    counts = fused.counts()
    assert counts["attention"] == counts["gated_feed_forward"] == 3
    assert counts["add_rms_norm"] == 6
    assert counts["rms_norm"] == 1
    assert report.misses == []
    assert str(fused) == str(pipelines.encode(graph)), "raising must give back what the DSL wrote"


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"kv_heads": 4}, {"tied": True}, {"attention_bias": True, "mlp_bias": True}])
def test_every_pass_of_decode_keeps_the_numbers(change: dict[str, Any]) -> None:
    flat = pipelines.decompose(llama(layers=2, **change).graph())
    pipelines.optimize(flat, "decode", check=difference)


def test_cache_contract() -> None:
    graph = pipelines.decode(llama().graph())
    assert str(graph.inputs["attention_mask"].type) == "i64[B,P+S]"
    for layer in range(3):
        for name in ("key", "value"):
            assert str(graph.inputs[f"past_key_values.{layer}.{name}"].type) == "f32[B,2,P,8]"
            assert str(graph.outputs[f"present.{layer}.{name}"].type) == "f32[B,2,P+S,8]"


def test_decode_step_by_step_equals_full_forward() -> None:
    model = llama()
    plain, cached = model.graph(), pipelines.decode(model.graph())
    params = random_params(plain)
    inputs = sample_inputs(plain, CASES[0])
    full = interpret(plain, inputs, params)["logits"]
    pasts = {k: np.zeros((1, 2, 0, 8), np.float32) for k in cached.inputs if k.startswith("past")}
    for i in range(full.shape[1]):
        window = {
            "input_ids": inputs["input_ids"][:, i : i + 1],
            "position_ids": inputs["position_ids"][:, i : i + 1],
            "attention_mask": inputs["attention_mask"][:, : i + 1],
        }
        out = interpret(cached, window | pasts, params)
        np.testing.assert_allclose(out["logits"][:, 0], full[:, i], atol=1e-5)
        pasts = {k.replace("present", "past_key_values"): v for k, v in out.items() if k.startswith("present")}


def test_decode_goes_on_from_prefill() -> None:
    model = llama()
    plain, cached = model.graph(), pipelines.decode(model.graph())
    assert str(cached.outputs["present.2.value"].type) == "f32[B,2,P+S,8]"
    params, inputs = random_params(plain), sample_inputs(plain, CASES[3])
    full = interpret(plain, inputs, params)["logits"]
    nothing = {s.input: np.zeros((3, 2, 0, 8), np.float32) for s in cached.slots}
    out = interpret(cached, {k: v[:, :4] for k, v in inputs.items()} | nothing, params)
    pasts = {s.input: out[s.output] for s in cached.slots}
    window = {k: v if k == "attention_mask" else v[:, 4:] for k, v in inputs.items()}
    rest = interpret(cached, window | pasts, params)["logits"]
    valid = inputs["attention_mask"] == 1
    found = np.concatenate([out["logits"], rest], axis=1)
    np.testing.assert_allclose(found[valid], full[valid], atol=1e-5)


def test_near_miss_names_layer_line_and_reason() -> None:
    flat = pipelines.decompose(llama().graph())
    spoiled = [n for n in flat if n.op.name == "softmax"][1]
    spoiled.attributes["axis"] = -2
    fused, report = pipelines.optimize(flat, "encode")
    assert fused.counts()["attention"] == 2
    (miss,) = report.misses
    text = str(miss)
    assert text.startswith("fuse_attention at llama.py:")
    assert "model.layers.1" in text
    assert "has axis=-2, expected -1" in text


def _wrong_scale(graph: Graph) -> int:
    next(n for n in graph if n.op.name == "attention" and "layers.1" in n.location.scope).attributes["scale"] = 0.1
    return 1


def _dangling(graph: Graph) -> int:
    node = next(n for n in graph if n.op.name == "rms_norm")
    node.attributes["eps"] = None
    node.outputs[0].type = tensor(DType.f32, "B", "S", 31)
    return 1


def test_differential_check_names_pass_and_layer_and_saves_both_graphs(tmp_path: Path) -> None:
    graph = llama().graph()
    broken = Pipeline("test", [FunctionPass("wrong_scale", _wrong_scale)])
    with pytest.raises(PassError) as e:
        broken.run(graph, check=difference, dump=tmp_path)
    text = str(e.value)
    assert "pass wrong_scale changed what the graph computes" in text
    assert "case: all-ones mask, batch 1" in text
    assert "first differing value: add at llama.py" in text
    assert "model.layers.1" in text
    for label in ("before", "after"):
        verify(parse((tmp_path / f"failed-wrong_scale-{label}.txt").read_text()))


def test_structure_is_verified_after_each_pass() -> None:
    with pytest.raises(PassError, match="pass dangling left a graph that does not verify"):
        Pipeline("test", [FunctionPass("dangling", _dangling)]).run(llama().graph())


def test_dump_writes_one_parseable_file_per_pass(tmp_path: Path) -> None:
    _, report = pipelines.optimize(llama().graph(), "decode", dump=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [f.stem.split("-", 1)[1] for f in files] == [s.name for s in report.steps]
    for file in files:
        assert str(parse(file.read_text())) == file.read_text()


def test_unknown_pipeline() -> None:
    with pytest.raises(MonographError, match="no pipeline is called 'decod', did you mean 'decode'"):
        pipelines.optimize(llama().graph(), "decod")


def test_a_mask_over_queries_and_keys_is_refused_as_an_input() -> None:
    graph = Graph("masked")
    graph.input("input_ids", tensor(DType.i64, "B", "S"))
    graph.stream = Stream()
    q = graph.input("q", tensor(DType.f32, "B", "S", 2, 8))
    mask = graph.input("attention_mask", tensor(DType.bool_, "B", 1, "S", "S"))
    graph.output("y", ops.attention(q, q, q, mask=mask, causal=True))
    with pytest.raises(PassError, match=r"attention_mask is bool\[B,1,S,S\], expected one number a token"):
        pipelines.decode(graph)


OPS = ("add", "mul", "linear", "rms_norm", "gelu", "silu", "reshape", "transpose", "half", "attention", "ffn")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_random_graphs_keep_their_numbers(steps: list[tuple[str, int, int]]) -> None:
    graph = random_graph(steps)
    assert str(parse(str(graph))) == str(graph)
    assert difference(graph, pipelines.encode(graph)) is None
    flat = pipelines.decompose(graph)
    assert difference(graph, flat) is None
    assert difference(graph, pipelines.encode(flat)) is None


def random_graph(steps: list[tuple[str, int, int]]) -> Graph:
    """A graph over values [B,S,8] in which any value may be read again."""
    graph = Graph("random")
    values = [graph.input("x", tensor(DType.f32, "B", "S", 8))]
    with building(graph):
        for index, (kind, i, j) in enumerate(steps):
            values.append(_step(graph, kind, values[i % len(values)], values[j % len(values)], index))
    graph.output("y", values[-1])
    graph.output("z", values[len(values) // 2])
    return verify(graph)


def _step(graph: Graph, kind: str, x: Any, y: Any, index: int) -> Any:
    def weight(*shape: int) -> Any:
        return graph.param(f"w{index}.{len(graph.params)}", tensor(DType.f32, *shape))

    heads = x.split_heads(2)
    made = {
        "add": lambda: x + y,
        "mul": lambda: x * y * 0.25,
        "linear": lambda: ops.linear(x, weight(8, 8), weight(8)),
        "rms_norm": lambda: ops.rms_norm(x, weight(8), eps=1e-3),
        "gelu": lambda: ops.gelu(x),
        "silu": lambda: ops.silu(x),
        "reshape": lambda: heads.reshape(x.shape[0], x.shape[1], 8),
        "transpose": lambda: x.transpose(0, 2, 1).transpose(0, 2, 1),
        "half": lambda: (x * 1.0 + 0.0) * 0.5,
        "attention": lambda: ops.attention(heads, heads, y.split_heads(2), causal=index % 2 == 0).merge_heads(),
        "ffn": lambda: ops.linear(ops.silu(ops.linear(x, weight(6, 8))) * ops.linear(x, weight(6, 8)), weight(8, 6)),
    }
    return made[kind]()


@pytest.mark.parametrize("spelling", ["scale on q", "scale on scores", "divided scores", "scaled before transpose"])
def test_attention_written_by_hand_is_attention(spelling: str) -> None:
    graph = Graph("hand")
    with building(graph):
        x = graph.input("x", tensor(DType.f32, "B", "S", 16))
        q, k, v = (ops.linear(x, graph.param(n, tensor(DType.f32, 16, 16))).split_heads(2) for n in "qkv")
        if spelling == "scaled before transpose":
            q = q * 0.125
        q, k, v = (y.transpose(0, 2, 1, 3) for y in (q, k, v))
        if spelling == "scale on q":
            q = q * 0.125
        scores = q @ k.transpose(0, 1, 3, 2)
        scores = scores * 0.125 if spelling == "scale on scores" else scores
        scores = scores / 8.0 if spelling == "divided scores" else scores
        graph.output("y", (ops.softmax(scores) @ v).transpose(0, 2, 1, 3).merge_heads())
    fused = pipelines.encode(graph)
    (attention,) = [n for n in fused if n.op.name == "attention"]
    assert attention.attributes["scale"] == 0.125
    assert difference(graph, fused) is None


def test_attention_by_hand_with_a_mistake_is_explained() -> None:
    graph = Graph("hand")
    with building(graph):
        x = graph.input("x", tensor(DType.f32, "B", "S", 2, 8))
        q, k, v = (y.transpose(0, 2, 1, 3) for y in (x * 0.5, x, x))
        weights = ops.softmax(q @ k.transpose(0, 1, 3, 2), axis=-2)
        graph.output("y", (weights @ v).transpose(0, 2, 1, 3))
    (miss,) = pipelines.optimize(graph, "encode")[1].misses
    assert "softmax at test_pipelines.py" in str(miss)
    assert "has axis=-2, expected -1" in str(miss)
