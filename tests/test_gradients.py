"""Every op in PyTorch, in float64: values against the NumPy reference, gradients against its finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monograph.backends.torch import to_inputs, to_torch
from monograph.ir import Graph, interpret
from monograph.ir.types import f64
from op_cases import CASES, Array, Case

pytestmark = pytest.mark.slow

STEP = 1e-5
TOLERANCE = 1e-6


def weighted(graph: Graph, inputs: dict[str, Array], weights: dict[str, Array]) -> float:
    """One number that depends on every float output: the sum of weight * output."""
    outputs = interpret(graph, inputs)
    return float(sum((weights[k] * outputs[k]).sum() for k in weights))


def finite_difference(graph: Graph, inputs: dict[str, Array], name: str, weights: dict[str, Array]) -> Array:
    gradient = np.empty(inputs[name].shape)
    for at in np.ndindex(gradient.shape):
        sides = []
        for step in (STEP, -STEP):
            moved = inputs[name].copy()
            moved[at] += step
            sides.append(weighted(graph, {**inputs, name: moved}, weights))
        gradient[at] = (sides[0] - sides[1]) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case: Case, symbolic: bool) -> None:
    inputs = case.arrays(dtype=f64)
    expected = interpret(case.graph(f64), inputs)
    got = to_torch(case.graph(f64, symbolic)).eval()(**to_inputs(inputs))
    assert list(got) == list(expected)
    for name, want in expected.items():
        have = got[name].numpy()
        assert have.dtype == want.dtype
        np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-12)


def smooth(case: Case) -> bool:
    """Whether the case has floats in and floats out, and a gradient between them."""
    if case.op == "detach":
        return False
    return bool(case.differentiable) and any(v.dtype.is_float for v in case.graph().outputs.values())


@pytest.mark.parametrize("case", [c for c in CASES if smooth(c)], ids=str)
def test_gradient(case: Case) -> None:
    graph, inputs = case.graph(f64), case.arrays(dtype=f64)
    rng = np.random.default_rng(7)
    weights = {k: rng.uniform(0.5, 1.5, v.shape) for k, v in graph.outputs.items() if v.dtype.is_float}
    tensors = to_inputs(inputs)
    for name in case.differentiable:
        tensors[name].requires_grad_()
    outputs = to_torch(graph).eval()(**tensors)
    sum((torch.from_numpy(w) * outputs[k]).sum() for k, w in weights.items()).backward()
    for name in case.differentiable:
        want = finite_difference(graph, inputs, name, weights)
        have = tensors[name].grad
        have = np.zeros_like(want) if have is None else have.numpy()
        error = np.max(np.abs(have - want), initial=0) / max(np.max(np.abs(want), initial=0), 1e-3)
        assert error <= TOLERANCE, f"gradient for {name}: relative error {error:.2e}"
