"""Families whose layers remember more than keys and values: in f64, pieces of any length give what the whole gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import test_family_deepseek_v3
import test_family_lfm2
import test_family_mamba2
import test_family_mixtral
from family_parity import Array, Case, Pair, masks
from monograph.ir import Graph, interpret
from monograph.ir.slots import Growth
from monograph.ir.types import f64
from monograph.passes.state import add_state

pytestmark = pytest.mark.slow

LENGTH, ROWS = 12, 3
PIECES = (4, 1, 1, 5, 1)
FILES = (test_family_mixtral, test_family_deepseek_v3, test_family_lfm2, test_family_mamba2)
CASES = {f"{file.__name__.removeprefix('test_family_')}-{k}": case for file in FILES for k, case in file.CASES.items()}


def first_state(graph: Graph) -> dict[str, Array]:
    """Nothing remembered: no columns, and zeros."""
    sizes = {s.input: dict.fromkeys(s.type.symbols, 0) | {"B": ROWS} for s in graph.slots}
    return {s.input: np.zeros(s.type.substitute(sizes[s.input]).shape) for s in graph.slots}


def next_state(graph: Graph, outputs: dict[str, Array]) -> dict[str, Array]:
    """What is remembered: of a window the tokens that still count."""
    found: dict[str, Array] = {}
    for s in graph.slots:
        x = outputs[s.output]
        if s.growth is Growth.window and s.axis is not None:
            kept = range(max(0, x.shape[s.axis] - (s.window - 1)), x.shape[s.axis])
            x = np.take(x, kept, axis=s.axis)
        found[s.input] = x
    return found


@pytest.mark.parametrize("name", CASES)
def test_pieces_give_what_the_whole_gives(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name]
    pair = Pair(case, tmp_path)
    whole, graph = pair.model.graph(f64), pair.model.graph(f64)
    assert add_state(graph) == len(graph.slots) > 0
    ids = np.random.default_rng(0).integers(0, pair.vocabulary, (ROWS, LENGTH))
    for kind, mask in masks(LENGTH).items():
        every = pair.task.fill({"input_ids": ids, "attention_mask": mask}, whole.inputs)
        wanted = interpret(whole, every, lambda k: pair.model.weights.numpy(k, f64))["logits"]
        state, made, at = first_state(graph), [], 0
        for n in PIECES:
            given = {k: v[:, at : at + n] for k, v in every.items()} | {"attention_mask": mask[:, : at + n]}
            found = interpret(graph, given | state, lambda k: pair.model.weights.numpy(k, f64))
            state, at = next_state(graph, found), at + n
            made.append(found["logits"])
        counts = mask.astype(bool)
        got = np.concatenate(made, 1)
        np.testing.assert_allclose(got[counts], wanted[counts], rtol=0, atol=1e-10, err_msg=kind)
