"""The textual form: parse(print(g)) == g for random graphs, odd names survive, and bad text is refused by line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.ir import Graph, Init, Location, interpret, ops, parse, print_graph, tensor, verify
from monograph.ir.builder import building, enter_scope
from monograph.ir.errors import MonographError, ParseError
from monograph.ir.slots import Growth, Slot, Stream
from monograph.ir.text import format_attribute, parse_attribute
from monograph.ir.types import Dim, DType, f32
from random_graphs import graphs, inputs_for

SAMPLE = """\
graph sample(%tokens: i64[B,S]) {
  param @model.embed.weight: f32[7,4] = normal(0.02)
  param @model.norm.weight: f32[4] = ones
  %0 = embedding(%tokens, @model.embed.weight) : f32[B,S,4]    # model.py:6
  %1 = rms_norm(%0, @model.norm.weight, eps=1e-05) : f32[B,S,4]    # model.py:7 layers.0
  %2, %3 = add_rms_norm(%0, %1, @model.norm.weight) : f32[B,S,4], f32[B,S,4]
  %4 = split(%2)
"""


def same(a: Graph, b: Graph) -> bool:
    return print_graph(a) == print_graph(b)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_printing_and_parsing_keeps_the_graph(graph: Graph) -> None:
    verify(graph)
    again = verify(parse(print_graph(graph)))
    assert same(again, graph)
    for node, other in zip(graph, again, strict=True):
        assert (node.op, node.attributes, node.location.scope) == (other.op, other.attributes, other.location.scope)
        assert [v.type for v in node.outputs] == [v.type for v in other.outputs]
    assert same(graph.copy(), graph)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 3))
def test_a_parsed_graph_computes_the_same(graph: Graph, seed: int) -> None:
    inputs = inputs_for(graph, seed)
    want, have = interpret(graph, inputs), interpret(parse(print_graph(graph)), inputs)
    assert want.keys() == have.keys()
    for name in want:
        np.testing.assert_array_equal(have[name], want[name])


names = st.text(min_size=1, max_size=12)


@given(names, names, names, names, names)
def test_any_name_survives(graph_name: str, input_name: str, path: str, output: str, scope: str) -> None:
    graph = Graph(graph_name)
    x = graph.input(input_name, tensor(f32, "B", 2))
    w = graph.param(path, tensor(f32, 2), Init("normal", 0.5))
    with building(graph):
        enter_scope(graph, scope if scope.strip() == scope and scope.isprintable() else "layers.0")
        graph.output(output, x + w)
    again = parse(print_graph(graph))
    assert same(again, graph)
    assert (again.name, *again.inputs, *again.params, *again.outputs) == (graph_name, input_name, path, output)
    assert again.params[path].init == Init("normal", 0.5)


def test_inputs_called_like_numbered_values_do_not_clash() -> None:
    graph = Graph("g")
    x, y = graph.input("1", tensor(f32, 2)), graph.input("0", tensor(f32, 2))
    graph.output("z", (x + y) * (x + y) - y)
    again = verify(parse(print_graph(graph)))
    assert same(again, graph)
    one, two = np.array([1, 2], np.float32), np.array([3, 5], np.float32)
    assert interpret(again, {"1": one, "0": two})["z"].tolist() == [13, 44]


S, P, E = (Dim.symbol(n) for n in ("S", "P", "e"))
attributes = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(list(DType))
    | st.sampled_from([S, P + S, 2 * S - 1, 5 - E]),
    lambda a: st.lists(a, max_size=3).map(tuple),
    max_leaves=6,
)


@given(attributes)
def test_any_attribute_survives(value: object) -> None:
    again = parse_attribute(format_attribute(value))
    assert again == value
    assert type(again) is type(value)


def test_nan_and_infinities() -> None:
    assert np.isnan(parse_attribute(format_attribute(float("nan"))))
    assert parse_attribute("-inf") == float("-inf")
    with pytest.raises(MonographError, match="an attribute of type set cannot be written as text"):
        format_attribute({1})


PLACES = [
    Location("my model.py", 12, "layers.0"), Location("a:b.py", 3), Location("", 0, "layers.1"), Location("", 0),
    Location("<stdin>", 1), Location("model.onnx", 0, "/layers.0/Add:1"), Location("model.onnx", 0),
]  # fmt: skip


@pytest.mark.parametrize("location", PLACES, ids=str)
def test_places_survive(location: Location) -> None:
    graph = Graph("g")
    with graph.at(None, location):
        graph.output("y", ops.exp(graph.input("x", tensor(f32, 2))))
    (node,) = parse(print_graph(graph))
    assert node.location == location


def edited(old: str, new: str) -> str:
    text = SAMPLE.replace("  %4 = split(%2)\n", "  return y=%2, s=%3\n}\n")
    assert old in text
    return text.replace(old, new)


def test_the_sample_itself_is_a_graph() -> None:
    text = edited("graph", "graph")
    graph = verify(parse(text))
    assert print_graph(graph) == text
    assert [n.location.scope for n in graph] == ["", "layers.0", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("hello", "line 1: 'hello' is not `graph name"),
        (SAMPLE, "line 7: '%4 = split.*' is not `%name = op"),
        (edited("}\n", ""), "line 7: the graph is not closed by `}`"),
        (edited("rms_norm(%0", "rmsnorm(%0"), "line 5: no op is called 'rmsnorm', did you mean 'rms_norm'?"),
        (edited("rms_norm(%0,", "rms_norm(%9,"), "line 5: %9 is used before it is defined"),
        (edited("@model.norm.weight, eps", "@model.norm.wait, eps"), "did you mean '@model.norm.weight'"),
        (edited("eps=", "epsilon="), "line 5: has no attribute 'epsilon', did you mean 'eps'"),
        (edited("1e-05", "1e-05x"), "line 5: '1e-05x' is not"),
        (edited("i64[B,S]", "i65[B,S]"), r"line 1: 'i65\[B,S\]' is not a tensor type"),
        (edited("f32[7,4]", "f32[7,4"), "line 2: 'f32.7,4' is not a tensor type"),
        (edited("normal(0.02)", "normal(x)"), "line 2: could not convert string to float"),
        (edited("normal(0.02)", "cauchy(0.02)"), "line 2: 'param .*' is not `param @path: type`"),
        (edited("%2, %3 =", "%2 ="), "line 6: 1 results but 2 types"),
        (edited("y=%2", "%2"), "line 7: '%2' is not `name=%value`"),
        (edited("y=%2", "y=%7"), "line 7: %7 is used before it is defined"),
        (
            edited("%tokens: i64[B,S]", "%tokens: i64[B,S], %tokens: i64[B]"),
            "line 1: .*already has an input named tokens",
        ),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text)


def test_stream_and_slots_are_part_of_the_text():
    graph = Graph("g")
    past = graph.input("past_key_values.0.key", tensor(f32, "B", 2, "P4", 8))
    graph.stream = Stream("S", "ids", "mask", "positions")
    graph.slots = (Slot("past_key_values.0.key", "present.0.key", Growth.window, past.type, axis=2, window=4),)
    graph.output("present.0.key", past)
    again = parse(str(graph))
    assert (again.stream, again.slots) == (graph.stream, graph.slots)
    assert str(again) == str(graph)
    assert graph.copy().slots == graph.slots


@pytest.mark.parametrize("line", ["slot a -> b: append(axis=2)", "slot x -> b: grow(axis=2)", "stream S ids"])
def test_a_malformed_slot_or_stream_is_refused(line):
    with pytest.raises(ParseError):
        parse(f"graph g(%x: f32[B]) {{\n  {line}\n  return y=%x\n}}")
