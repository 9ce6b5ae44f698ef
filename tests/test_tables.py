"""Constants that print by what made them: the call reads back to the same graph, and stands for its own numbers."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from monograph.frontends.dsl import load_family
from monograph.ir import Graph, building, ops, parse
from monograph.ir.dtypes import DType
from monograph.ir.errors import ParseError
from monograph.ir.ops.position import rope_frequencies, rope_table
from monograph.ir.ops.tables import alibi_slopes, relative_buckets, sinusoidal_rates
from monograph.ir.tables import TABLES, Table
from monograph.ir.text import format_attribute, parse_attribute
from monograph.ir.types import f32, f64, tensor
from monograph.passes.pipelines import decompose, optimize
from small_models import FAMILIES, small

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 2048, "truncate": False}
MADE = [
    rope_table(64, 100000.0),
    rope_table(64, 10000),
    rope_table(5, 10000.0),
    rope_table(64, 10000.0, None, f64),
    rope_table(128, 500000.0, LLAMA3),
    rope_table(128, 500000.0, YARN),
    rope_table(16, 1e6, {"type": "linear", "factor": 2.5, "rope_theta": [1, 2]}),
    rope_table(16, 1e6, {"rope_type": "default", "partial_rotary_factor": 1.0}),
    rope_table(16, 1e6, {"rope_type": "proportional", "partial_rotary_factor": 0.5}),
    alibi_slopes(12),
    sinusoidal_rates(512),
    relative_buckets(32, 128, -128, 128),
    relative_buckets(buckets=32, farthest=128, low=-128, high=0),
]


@pytest.mark.parametrize("table", MADE, ids=lambda t: format_attribute(t)[:60])
def test_a_table_prints_as_its_call_and_reads_back(table: Table) -> None:
    text = format_attribute(table)
    assert text.startswith(f"{table.maker}(") and len(text) < 200
    found = parse_attribute(text)
    assert found == table and format_attribute(found) == text
    assert found == tuple(table) and hash(found) == hash(tuple(table))
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert format_attribute(other) == text


def test_the_words() -> None:
    assert format_attribute(rope_table(64, 100000.0)) == "rope_frequencies(dim=64, theta=100000.0)"
    scaled = 'rope_frequencies(dim=16, theta=1000000.0, scaling=[["rope_type","linear"],["factor",2.5]])'
    assert format_attribute(MADE[6]) == scaled
    assert format_attribute(MADE[3]) == "rope_frequencies(dim=64, theta=10000.0, dtype=f64)"


@pytest.mark.parametrize("scaling", [None, LLAMA3, YARN])
def test_rope_table_holds_the_frequencies_in_its_dtype(scaling: dict[str, object] | None) -> None:
    want = np.array(rope_frequencies(64, 10000.0, scaling)[0])
    np.testing.assert_array_equal(np.array(rope_table(64, 10000.0, scaling)), want.astype(np.float32))
    np.testing.assert_array_equal(np.array(rope_table(64, 10000.0, scaling, f64)), want)


def test_numbers_that_the_call_does_not_make_are_printed() -> None:
    assert format_attribute(Table((1.0, 2.0), "alibi_slopes", {"heads": 2})) == "[1.0,2.0]"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_back(family: str) -> None:
    graph = small(family).graph()
    for g in (graph, decompose(graph), optimize(graph, "decode")[0], small(family).graph(DType.f64)):
        assert str(parse(str(g))) == str(g)
        pairs = list(zip(g, parse(str(g)), strict=True))
        assert all(a.attributes == b.attributes for a, b in pairs if a.op.constant)


def test_long_constants_of_families_are_calls() -> None:
    """Of real size: no constant of T5, Bloom, Llama or the first Transformer takes more than a line to read."""
    families = {
        "t5": {"vocab": 9, "layers": 1},
        "bloom": {"vocab": 9, "dim": 1024, "layers": 1, "heads": 16},
        "llama": {"vocab": 9, "dim": 256, "ffn": 9, "layers": 1, "heads": 2, "kv_heads": 2},
        "transformer2017": {"vocab": 9, "layers": 1, "decoder_layers": 1},
    }
    for name, fields in families.items():
        graph = load_family(name)(**fields).graph()
        for g in (graph, decompose(graph)):
            long = [n for n in g if n.op.constant and len(format_attribute(n.attributes["value"])) > 90]
            assert not long, f"{name}: {long[0]}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("rope_frequencie(dim=64, theta=1e4)", "no table is called 'rope_frequencie', did you mean 'rope_frequencies'"),
        ("rope_frequencies(dim=64)", "missing a required argument: 'theta'"),
        ("rope_frequencies(dim=64, theta=1e4, base=2)", "unexpected keyword argument 'base'"),
        ("rope_frequencies(dim=0, theta=1e4)", "a table has 0 rows"),
        ("rope_frequencies(dim=1000000000000, theta=1e4)", "a table has 1000000000000 rows, expected 1 to 1,048,576"),
        ("rope_frequencies(dim=8, theta=0.5)", "rope theta 0.5 a number above 1"),
        ('rope_frequencies(dim=8, theta=1e4, scaling=[["rope_type","x"]])', "rope_scaling of type 'x'"),
        ("rope_frequencies(dim=8, theta=1e4, scaling=3)", "table rope_frequencies"),
        ("rope_frequencies(dim=8, theta=1e4, dtype=3)", "is 3, expected a floating-point type"),
        ("alibi_slopes(heads=2.5)", "a table has 2.5 rows"),
        ("relative_buckets(buckets=32, farthest=128, low=0, high=99999999)", "a table has 100000000 rows"),
        ('relative_buckets(buckets="a", farthest=128, low=0, high=9)', "table relative_buckets"),
        ("sinusoidal_rates()", "missing a required argument"),
    ],
)
def test_a_call_that_makes_no_table_is_refused_with_its_line(call: str, message: str) -> None:
    text = f"graph g() {{\n  %0 = constant(value={call}, dtype=f32) : f32[4]\n  return y=%0\n}}\n"
    with pytest.raises(ParseError) as e:
        parse(text)
    assert message in str(e.value) and "line 2" in str(e.value)


def test_a_table_in_a_graph_by_hand() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(f32, "B", 4, 1, 1))
    with building(graph):
        graph.output("y", x * ops.constant(value=alibi_slopes(4), dtype=f32))
    assert "constant(value=alibi_slopes(heads=4), dtype=f32) : f32[4,1,1]" in str(graph)
    assert str(parse(str(graph))) == str(graph)


def test_tables_are_named_once() -> None:
    assert set(TABLES) == {"rope_frequencies", "alibi_slopes", "relative_buckets", "sinusoidal_rates"}
