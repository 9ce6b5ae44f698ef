"""Objects show themselves: a short table as text, and one that a notebook displays, light or dark."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from monograph.backends.torch.limits import peak_bandwidth
from monograph.data.batch import tokens_of
from monograph.frontends.dsl import load_family
from monograph.inference.generate import Generation, Timing
from monograph.ir import Graph, tensor
from monograph.ir.display import Table, size, wrapped
from monograph.ir.types import f32
from monograph.machine import Ceilings, measure
from monograph.parity import Parity, Row
from monograph.passes.pipelines import decode
from monograph.performance import Benchmark, Speed
from monograph.training.speed import Arithmetic

SIZES = {"vocab": 64, "dim": 32, "ffn": 48, "layers": 3, "heads": 4}


class Pair(mg.Config):
    width: int = 8
    names: tuple[str, ...] = ("<b>", "a")


@mg.model
def pair(m: mg.Scope, c: Pair, input_ids: mg.Value) -> mg.Value:
    return m.linear("head", m.embed("embed", input_ids, 16, c.width), 16)


def llama() -> mg.Model:
    return mg.init(load_family("llama")(**SIZES))


TIMING = Timing(prompt_tokens=5, new_tokens=3, prefill_seconds=0.01, decode_seconds=0.02, decode_tokens=2)
OBJECTS: dict[str, Any] = {
    "graph": lambda: llama().graph(),
    "graph with slots": lambda: decode(llama().graph()),
    "empty graph": lambda: Graph("empty"),
    "model": llama,
    "model without weights": lambda: pair(width=16),
    "program": lambda: mg.Model(mg.Program("mine", pair.task, pair().graph())),
    "family": lambda: pair,
    "family of the package": lambda: load_family("whisper"),
    "config": lambda: Pair(),
    "long config": lambda: llama().config,
    "task": lambda: pair.task,
    "weights": lambda: llama().weights,
    "no weights": lambda: mg.Weights.of({}),
    "parity": lambda: Parity(
        [Row("case", "ort", 1e-6, 1.0, 1.0, True), Row("holed", "torch", 0.5, 2.0, 0.9, False)], 2e-4
    ),
    "benchmark": lambda: Benchmark(
        [Speed("fused", 12, 900.0, 0.5, 80.0, 0.25)], Ceilings(2e10, 1e11, 2), 128, 32, 5, 1, 1
    ),
    "calls": lambda: Benchmark(
        [Speed("fused", 12, 9.0, 0.5, 0.0, 0.0)], Ceilings(2e10, 1e11, 2), 1, 0, 5, 1, 0, "calls"
    ),
    "generation": lambda: Generation([1, 2], [3, 4, 5], "a <text>\nof two lines", "eos", TIMING),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_table_and_not_a_dump(name: str) -> None:
    shown = OBJECTS[name]()
    lines = repr(shown).splitlines()
    assert len(lines) <= 40 and all(len(line) <= 100 for line in lines)
    page = shown._repr_html_()
    tree = ElementTree.fromstring(page.replace("&nbsp;", " ").replace("<br>", "<br/>"))
    assert tree.find("table") is not None and len(tree.findall(".//tr")) >= 1
    assert "<script" not in page and "http" not in page and "#" not in page.split("<table")[1].split("<tbody")[0]
    assert "background:transparent" in page and "color:inherit" in page


def test_a_graph_counts() -> None:
    graph = llama().graph()
    text = repr(graph)
    assert text.startswith(f"graph llama: {len(graph)} nodes")
    numbers = sum(int(np.prod(v.shape)) for v in graph.params.values())  # type: ignore[arg-type]
    assert f"{numbers:,} in {size(4 * numbers)} ({len(graph.params)} tensors: f32 {len(graph.params)})" in text
    assert (
        f"linear {graph.counts()['linear']}" in text and "input_ids: i64[B,S]" in text and "logits: f32[B,S,64]" in text
    )
    assert "embedding(%input_ids, @model.embed_tokens.weight)" in text and text.count(" = ") == 6
    assert str(graph).count(" = ") >= len(graph)
    assert "slots" in repr(decode(graph))


def test_a_model_shows_its_config_and_bytes_without_reading(tmp_path: Path) -> None:
    model = llama()
    text = repr(model)
    assert model.weights is not None
    numbers = sum(int(np.prod(t.shape)) for t in model.weights.values())
    assert "vocab=64" in text and f"{numbers:,} in {size(4 * numbers)}" in text and "causal-lm" in text

    class Unread(mg.Weights):
        def numpy(self, name: str, dtype: Any = None) -> Any:
            raise AssertionError("read")

    assert repr(mg.Model(model.source, model.config, Unread(dict(model.weights)))) == text
    assert "none yet" in repr(pair()) and "256 in 1.0 kB (2 tensors: f32 2)" in repr(pair())


def test_configs_are_written_as_python_reads_them() -> None:
    config = llama().config
    assert repr(Pair()) == "Pair(width=8, names=('<b>', 'a'))"
    assert eval(repr(config), {"Llama": type(config)}) == config
    assert eval(repr(Pair(width=3)), {"Pair": Pair}) == Pair(width=3)
    assert "&lt;b&gt;" in Pair()._repr_html_()


def test_parity_names_what_failed() -> None:
    text = repr(OBJECTS["parity"]())
    assert "1 of 2 rows FAILED" in text and "torch, holed" in text and "90.0%" in text
    assert "FAILED" not in repr(Parity([Row("case", "ort", 1e-6, 1.0, 1.0, True)], 2e-4))


def test_a_generation_shows_its_text_and_speed() -> None:
    text = repr(OBJECTS["generation"]())
    assert "a <text>" in text and "of two lines" in text and "the model ended" in text and "100.0 tokens/s" in text
    assert "a &lt;text&gt;<br>of two lines" in OBJECTS["generation"]()._repr_html_()


@pytest.mark.slow
def test_an_engine_shows_what_it_serves(tmp_path: Path) -> None:
    engine = mg.build(llama(), tmp_path / "built")
    text = repr(engine)
    assert "llama, causal-lm" in text and "opened when it is first used" in text and str(tmp_path) in text
    assert "<table" in engine._repr_html_()
    engine.session  # noqa: B018
    assert "  open" in repr(engine)
    engine.close()
    assert "closed" in repr(engine)


def test_tables_align_and_cut() -> None:
    table = Table("title", [("a", "b\nc"), ("long name", "x" * 200)], note="a note")
    lines = table.text().splitlines()
    assert lines[:3] == ["title", "  a          b", "             c"]
    assert len(lines[3]) == 96 and lines[3].endswith("...") and lines[4] == "  a note"
    assert wrapped(["one", "two", "three"], width=10) == "one, two,\nthree"
    assert [size(n) for n in (0, 999, 1500, 999_960, 2_340_000, 5e9, 7e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "1.0 MB",
        "2.3 MB",
        "5.0 GB",
        "7.0 TB",
    ]


# -- shares of the peak ------------------------------------------------------------------------------------------------


def test_no_share_of_the_peak_is_above_one() -> None:
    """A step that is faster than what was measured is a better measurement."""
    graph = Graph("g")
    x, w = graph.input("x", tensor(f32, "B", 64)), graph.param("w", tensor(f32, 32, 64))
    graph.output("y", mg.ops.linear(x, w))
    arithmetic, batch = Arithmetic(graph), {"x": np.zeros((8, 64), np.float32)}
    arithmetic.raise_peak(batch, 1e-6)
    assert arithmetic.peak is None and arithmetic.share(batch, 1.0) is None
    arithmetic.peak = 1.0
    for seconds in (0.5, 1e-3, 0.1):
        arithmetic.raise_peak(batch, seconds)
        share = arithmetic.share(batch, seconds)
        assert share is not None and 0 < share <= 1
    assert arithmetic.peak == arithmetic.of(batch) / 1e-3


def test_weights_that_do_not_learn_cost_no_gradient() -> None:
    """Forward 1, gradient of the input 1, of the weight 1; before the first weight that learns, none of either."""
    graph = Graph("g")
    v = graph.input("x", tensor(f32, 4, 8))
    for name in ("first", "second", "third"):
        v = mg.ops.linear(v, graph.param(name, tensor(f32, 8, 8)))
    graph.output("y", v)
    one = 2 * 4 * 8 * 8
    counts = {
        ("first", "second", "third"): 3 + 1 + 2 + 2,
        ("second",): 3 + 1 + 1,
        ("third",): 3 + 1,
        (): 3,
    }
    for names, count in counts.items():
        assert Arithmetic(graph, trains=lambda name, names=names: name in names).cost == count * one  # type: ignore[misc]


@pytest.mark.slow
def test_the_peak_is_at_least_what_plain_reads_reach() -> None:
    found = measure(1, megabytes=8, size=64, rounds=2, working_set=100_000)
    assert found.threads == 1 and found.flops > 0
    for amount in (1, 1000, 3_000_000):
        assert peak_bandwidth(amount, rounds=1) > 0
    x, seconds = torch.ones(2_000_000), []
    for _ in range(3):
        start = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - start)
    assert found.bandwidth > 8e6 / max(seconds) / 10


@pytest.mark.slow
def test_bench_never_tells_more_than_the_peak() -> None:
    found = mg.bench(llama(), prompt=80, new_tokens=4, rounds=1, threads=1)  # More tokens than the vocabulary has.
    assert all(0 < r.prefill_share <= 1 and 0 < r.decode_share <= 1 for r in found.rows)
    assert "of peak" in repr(found) and "prompt" not in found.rows[0].variant
    with pytest.raises(mg.MonographError, match="a prompt of 3000 and 32 new tokens are more than the 2048 positions"):
        mg.bench(llama(), prompt=3000)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ({"input_ids": np.ones((2, 5), int)}, 10),
        ({"input_ids": np.ones((2, 5), int), "attention_mask": np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])}, 7),
        ({"input_ids": np.ones((2, 5), int), "decoder_input_ids": np.ones((2, 3), int)}, 16),
        (
            {
                "input_ids": np.ones((1, 4), int),
                "attention_mask": np.array([[1, 1, 1, 0]]),
                "decoder_input_ids": np.ones((1, 3), int),
                "labels": np.ones((1, 3), int),
            },
            6,
        ),
        ({"input_features": np.ones((2, 80, 30)), "decoder_input_ids": np.ones((2, 3), int)}, 6),
        ({"pixel_values": np.ones((4, 3, 8, 8))}, 4),
    ],
    ids=["plain", "padded", "pairs", "padded source", "speech", "pictures"],
)
def test_all_tokens_are_counted_and_no_padding(batch: dict[str, Any], count: int) -> None:
    assert tokens_of(batch) == count
