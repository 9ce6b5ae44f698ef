"""Rows that follow one source: the folded graph against the plain one, sessions against others with a source each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.feeds import folded_inputs
from monograph.backends.onnxruntime.reorder import sources_of
from monograph.frontends.dsl import Model, load_family
from monograph.ir import interpret, ops, verify
from monograph.ir.graph import Graph
from monograph.ir.slots import Growth
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.differential import random_params
from monograph.passes.fold_rows import FoldRows

SIZES = {"vocab": 40, "dim": 32, "heads": 4, "ffn": 24, "layers": 2, "decoder_layers": 2}
RNG = np.random.default_rng(3)


def translator() -> Model:
    return load_family("transformer2017")(**SIZES)


def halves() -> tuple[Graph, Graph]:
    return pipelines.seq2seq(translator().graph())


@pytest.mark.parametrize(("sources", "fold"), [(1, 1), (1, 4), (3, 1), (2, 3)])
def test_a_folded_graph_computes_what_the_plain_one_does(sources: int, fold: int) -> None:
    encoder, plain = halves()
    folded = plain.copy()
    assert FoldRows(encoder.inputs.keys()).run(folded).counts == {"fold_rows": 2}
    verify(folded)
    assert str(folded.inputs["encoder.0.key"].type) == "f32[G,4,S,8]"
    assert {str(s.type.shape[0]) for s in folded.slots} == {"F*G", "G"}
    params = random_params(plain)
    rows, new, past, length = sources * fold, 2, 3, 5
    sizes = {"G": sources, "F": fold, "B": rows, "S": length, "P": past, "U": new}
    inputs = {k: np.asarray(RNG.standard_normal([int(str(d.substitute(sizes))) if hasattr(d, "substitute") else d
              for d in v.shape]), v.dtype.numpy) for k, v in folded.inputs.items()}  # fmt: skip
    inputs["decoder_input_ids"] = RNG.integers(0, 40, (rows, new))
    inputs["decoder_position_ids"] = np.tile(past + np.arange(new), (rows, 1))
    inputs["decoder_attention_mask"] = np.ones((rows, past + new), np.int64)
    inputs["attention_mask"] = (np.arange(length) < RNG.integers(1, length + 1, (sources, 1))).astype(np.int64)
    found = interpret(folded, inputs, params)
    each = {s.input for s in plain.slots if s.growth is Growth.once} | {"attention_mask"}
    wanted = interpret(plain, {k: v.repeat(fold, 0) if k in each else v for k, v in inputs.items()}, params)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def test_what_else_reads_a_source_keeps_rows_as_they_are() -> None:
    encoder, plain = halves()
    keys = plain.inputs["encoder.0.key"]
    flat = ops.sum(ops.sum(ops.sum(keys, axis=3), axis=2), axis=1)
    total = ops.reshape(flat, shape=(keys.shape[0], 1, 1))
    plain.output("more", plain.outputs["logits"] + total)
    before, report = str(plain), FoldRows(encoder.inputs.keys()).run(plain)
    assert str(plain) == before and not report.counts["fold_rows"]
    assert [m.reason for m in report.misses] == ["add reads what a source left behind, and is no attention"]


def test_a_mask_that_tells_queries_apart_keeps_rows_as_they_are() -> None:
    encoder, plain = halves()
    encoder_inputs = {k for k in encoder.inputs if k != "attention_mask"}
    report = FoldRows(encoder_inputs).run(plain)
    assert {m.reason for m in report.misses} == {"mask bool[B,1,1,S] is not one for all queries of a source"}


@pytest.mark.parametrize(
    ("origins", "wanted"),
    [([0], [0]), ([0, 0, 0], [0]), ([0, 0, 1, 1], [0, 1]), ([0, 0, 1], [0, 0, 1]), ([1, 1, 0, 0, 0, 0], [1, 0, 0]),
     ([0, 1, 0], [0, 1, 0]), ([2, 2, 2, 0, 0, 0], [2, 0])],
)  # fmt: skip
def test_sources_of_rows(origins: list[int], wanted: list[int]) -> None:
    assert sources_of(np.array(origins)).tolist() == wanted


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder: Path = tmp_path_factory.mktemp("translator")
    model = translator()
    build(model, Weights.of(random_params(model.graph())), folder)
    return open_session(folder, threads=1, capacity=8)


def begun(session: Session, source: dict[str, Any], tokens: Any, lengths: list[int]) -> Any:
    session.encode(source)
    return session.prefill(tokens, lengths)


@pytest.mark.parametrize(
    "moves",
    [[[0, 0, 1, 1, 2, 2]], [[0, 0, 0, 1, 1, 1, 2, 2, 2], [2, 0, 1, 3, 3, 3, 6, 8, 7], [3, 4, 5]], [[0, 0, 2]],
     [[1, 1, 1, 1], [0, 2]], [[2, 1, 0], [0, 0, 1, 1]], [[0, 0, 1, 1, 2, 2], [5, 0, 1, 2, 4, 3]]],
)  # fmt: skip
def test_rows_of_sources_go_on_as_if_each_had_read_its_own(session: Session, moves: list[list[int]]) -> None:
    assert folded_inputs(session.contract) >= {"encoder.0.key", "attention_mask"}
    mask = (np.arange(6) < np.array([[6], [2], [4]])).astype(np.int64)
    source = {"input_ids": RNG.integers(1, 40, (3, 6)), "attention_mask": mask}
    rows = [RNG.integers(1, 40, n).tolist() for n in (3, 1, 2)]
    tokens = np.array([r + [0] * (3 - len(r)) for r in rows])
    begun(session, source, tokens, [3, 1, 2])
    origins = np.arange(3)
    for parents in moves:
        session.reorder(parents)
        origins = origins[parents]
        new = RNG.integers(1, 40, len(parents))
        found = session.step(new)
        rows = [[*rows[p], int(t)] for p, t in zip(parents, new, strict=True)]
        more = RNG.integers(1, 40, (len(rows), 2))
        counts = np.array([1 + i % 2 for i in range(len(rows))])
        later = session.append(more, counts)
        lengths = session.lengths
        other, width = session.another(), max(map(len, rows))
        whole = np.array([r + [0] * (width - len(r)) for r in rows])
        own = {k: v[origins] for k, v in source.items()}
        np.testing.assert_allclose(found, begun(other, own, whole, [len(r) for r in rows]), rtol=1e-4, atol=1e-5)
        rows = [[*r, *m[:n].tolist()] for r, m, n in zip(rows, more, counts, strict=True)]
        width = max(map(len, rows))
        whole = np.array([r + [0] * (width - len(r)) for r in rows])
        np.testing.assert_allclose(later, begun(other, own, whole, [len(r) for r in rows]), rtol=1e-4, atol=1e-5)
        assert lengths.tolist() == [len(r) for r in rows]
