"""Properties on random graphs: every pipeline and the PyTorch backend keep the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.ir import Graph, interpret, verify
from monograph.ir.types import f64
from monograph.passes import pipelines
from monograph.passes.fuse import BLOCKS, LAYERS, RESIDUALS
from random_graphs import Array, graphs, inputs_for

seeds = st.integers(0, 5)


def close(have: dict[str, Array], want: dict[str, Array]) -> None:
    assert have.keys() == want.keys()
    for name in want:
        assert have[name].dtype == want[name].dtype
        np.testing.assert_allclose(have[name], want[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pipeline", ["clean", "train", "encode", "decompose"])
@settings(max_examples=60, deadline=None)
@given(graph=graphs(f64), seed=seeds)
def test_pipelines_keep_the_numbers(pipeline: str, graph: Graph, seed: int) -> None:
    inputs = inputs_for(graph, seed)
    changed = pipelines.decompose(graph) if pipeline == "decompose" else pipelines.optimize(graph, pipeline)[0]
    close(interpret(verify(changed), inputs), interpret(graph, inputs))


@settings(max_examples=60, deadline=None)
@given(graph=graphs(f64), seed=seeds)
def test_taking_apart_and_fusing_again_keeps_the_numbers(graph: Graph, seed: int) -> None:
    inputs = inputs_for(graph, seed)
    raised = pipelines.decompose(graph)
    for fuse in (LAYERS, BLOCKS, RESIDUALS):
        fuse.run(raised)
    close(interpret(verify(raised), inputs), interpret(graph, inputs))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(graph=graphs(f64), seed=seeds)
def test_pytorch_gives_the_numbers_of_the_reference(graph: Graph, seed: int) -> None:
    from monograph.backends.torch import to_inputs, to_torch

    inputs = inputs_for(graph, seed)
    outputs = to_torch(graph)(**to_inputs(inputs))
    close({k: v.numpy() for k, v in outputs.items()}, interpret(graph, inputs))
