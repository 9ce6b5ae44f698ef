"""What checks in f64 see that 32 bits hide: an epsilon off by 1 %, a small scale, a window longer than usual rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from monograph.exact import FEW, MOST, Stage, Unchecked, exact_difference
from monograph.frontends.dsl import load_family
from monograph.hard_inputs import Trial
from monograph.ir import Graph, Value, interpret, ops
from monograph.ir.graph import Node
from monograph.ir.ops.norm import LayerNorm, RMSNorm
from monograph.ir.tensors import ArrayTensor
from monograph.ir.types import Dim, TensorType, f32
from monograph.passes import pipelines
from monograph.passes.differential import EXACT, cases_of, difference, random_params
from monograph.passes.raising.check import Check

B, S = Dim.symbol("B"), Dim.symbol("S")
SIZES: dict[str, Any] = {"vocab": 40, "dim": 16, "ffn": 24, "layers": 2, "heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "bert": {"eps": 1e-12},
    "mistral": {"kv_heads": 2, "window": 40},
}


def changed(graph: Graph, node: Node, **attributes: Any) -> Graph:
    """A graph in which one node has other attributes."""
    new = graph.copy()
    old = list(new)[list(graph).index(node)]
    with new.at(old):
        made = new.add(old.op, list(old.operands), {**old.attributes, **attributes})
    for before, after in zip(old.outputs, made, strict=True):
        new.replace(before, after)
    new.erase(old)
    return new


def graph_of(family: str) -> Graph:
    found = load_family(family)
    names = found.config_class.__dataclass_fields__  # type: ignore[attr-defined]
    return found(**{k: v for k, v in {**SIZES, **FAMILIES[family]}.items() if k in names}).graph()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_epsilon_and_every_window_is_seen(family: str) -> None:
    graph = graph_of(family)
    assert difference(graph, pipelines.encode(graph)) is None
    norms = [n for n in graph if isinstance(n.op, (RMSNorm, LayerNorm))]
    assert len(norms) >= 5
    for node in norms:
        assert difference(graph, changed(graph, node, eps=node.attributes["eps"] * 1.01)) is not None
    for node in (n for n in graph if n.attributes.get("window")):
        assert difference(graph, changed(graph, node, window=41)) is not None
        assert difference(graph, changed(graph, node, window=39)) is not None


def test_cases_follow_from_the_graph() -> None:
    cases = cases_of(graph_of("mistral"))
    assert {c.length for c in cases} == {7, 42}
    assert {c.scale for c in cases} == {1.0, 1e-3}
    assert {c.scale for c in cases_of(graph_of("bert"))} == {1.0, 1e-6}


def test_exact_results_are_those_of_64_bits() -> None:
    graph = Graph("sum")
    x = graph.input("x", TensorType(f32, (S,)))
    graph.output("y", (x + 1e-8) - x)
    given = {"x": np.ones(3, np.float32)}
    assert interpret(graph, given)["y"].tolist() == [0.0] * 3
    found = interpret(graph, given, exact=True)["y"]
    assert found.dtype == np.float64
    assert np.abs(found - 1e-8).max() < 1e-15


# -- before a rewrite -------------------------------------------------------------------------------------------------


def compared(make: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """What `Check` says of two attentions over the same operands."""
    graph = Graph("attention")
    q, k, v = (graph.input(n, TensorType(f32, (B, S, 2, 8))) for n in "qkv")
    made = [ops.attention(q, k, v, **{"causal": True, **a}) for a in (make, other)]
    nodes = {y.producer for y in made if y.producer is not None}
    return Check(graph).difference(made[0], made[1], {q, k, v}, nodes)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ({"scale": 0.35}, {"scale": 0.3535}),
        ({"scale": 2e-3}, {"scale": 2.02e-3}),
        ({"window": 8}, {"window": 9}),
        ({"window": 100}, {"window": 99}),
        ({"softcap": 20.0}, {"softcap": 20.2}),
        ({"causal": True}, {"causal": False}),
    ],
)
def test_an_attribute_of_attention_that_is_off_is_seen(right: dict[str, Any], wrong: dict[str, Any]) -> None:
    assert compared(right, right) is None
    assert compared(right, wrong) is not None


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("layer", [False, True])
def test_an_epsilon_that_is_off_by_one_percent_is_seen(eps: float, layer: bool) -> None:
    graph = Graph("norm")
    x, w = graph.input("x", TensorType(f32, (B, S, 16))), graph.param("w", TensorType(f32, (16,)))
    centred = x - ops.mean(x, axis=-1) if layer else x
    old = centred * ops.rsqrt(ops.mean(centred * centred, axis=-1) + eps) * w

    def norm(e: float) -> Value:
        return ops.layer_norm(x, w, eps=e) if layer else ops.rms_norm(x, w, eps=e)

    for factor, seen in ((1.0, False), (1.01, True), (0.99, True)):
        new = norm(eps * factor)
        assert new.producer is not None
        assert (Check(graph).difference(old, new, {x}, {new.producer}) is not None) == seen


# -- after all passes -------------------------------------------------------------------------------------------------


def stages(before: Graph, after: Graph) -> list[Stage]:
    trials = (Trial("holed", 3, 7, joined=True),)
    return [Stage("plain", before, 0.0, trials), Stage("passes", after, EXACT, trials)]


def test_a_graph_over_its_own_weights() -> None:
    graph = graph_of("bert")
    weights = {k: ArrayTensor(x) for k, x in random_params(graph).items()}
    after = pipelines.encode(graph)
    assert exact_difference(stages(graph, after), weights, ()) == ""
    node = next(n for n in after if n.attributes.get("eps"))
    wrong = exact_difference(stages(graph, changed(after, node, eps=1.01e-12)), weights, ())
    assert wrong.startswith("in f64, holed mask, batch 3, length 7, weights times 1e-06: passes: output ")


def test_a_graph_that_is_too_large_says_so() -> None:
    graph = Graph("large")
    x, w = graph.input("x", TensorType(f32, (B, 1 << 13))), graph.param("w", TensorType(f32, (1 << 13, 1 << 13)))
    graph.output("y", ops.matmul(x, w))
    with pytest.raises(Unchecked, match=f"{1 << 26} weights are more than {MOST}"):
        exact_difference(stages(graph, graph), {}, ())
    assert FEW < MOST
