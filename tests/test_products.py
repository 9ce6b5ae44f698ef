"""Linear layers through oneDNN equal PyTorch's own, forward and backward, eager and compiled, in every layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monograph.backends.torch import products, to_torch
from monograph.ir.tensors import ArrayTensor
from monograph.ir.text import parse

pytestmark = pytest.mark.slow

SHAPES = [(3, 5, 7), (64, 48, 96), (1, 1, 1)]


@pytest.fixture(params=[True, False], ids=["onednn", "plain"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "ONEDNN", request.param)
    return request.param


def case(rows: int, inputs: int, outputs: int, transposed: bool, bias: bool) -> list[torch.Tensor | None]:
    torch.manual_seed(rows)
    shape = (inputs, outputs) if transposed else (outputs, inputs)
    x, w = torch.randn(2, rows, inputs), torch.randn(shape)
    return [t.requires_grad_() if t is not None else None for t in (x, w, torch.randn(outputs) if bias else None)]


def results(function, operands) -> list[torch.Tensor]:
    leaves = [t for t in operands if t is not None]
    y = function(*operands)
    weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def wide(operands, transposed: bool) -> list[torch.Tensor]:
    x, w, b = (None if t is None else t.detach().double().requires_grad_() for t in operands)
    return results(lambda *_: torch.nn.functional.linear(x, w.t() if transposed else w, b), [x, w, b])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients(shape: tuple[int, int, int], transposed: bool, bias: bool) -> None:
    operands = case(*shape, transposed, bias)
    found = results(lambda *given: products.linear(*given, transposed=transposed), operands)
    for ours, right in zip(found, wide(operands, transposed), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=1e-5)


def test_compiled_without_graph_breaks() -> None:
    operands = case(8, 16, 32, False, True)
    compiled = torch.compile(lambda *given: products.linear(*given, transposed=False), fullgraph=True)
    for ours, right in zip(results(compiled, operands), wide(operands, False), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_wanted() -> None:
    x, w, b = case(4, 6, 8, False, True)
    y = products.linear(x.detach(), w, b.detach(), transposed=False)
    y.sum().backward()
    torch.testing.assert_close(w.grad, x.detach().sum((0, 1)).expand(8, 6))
    assert x.grad is None and b.grad is None


def test_other_widths_and_autocast_keep_the_rules_of_pytorch() -> None:
    x, w, _ = (None if t is None else t.detach() for t in case(4, 6, 8, False, False))
    assert products.linear(x.double(), w.double(), None, transposed=False).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, w, None, transposed=False).dtype == torch.bfloat16


def test_only_graphs_of_few_shapes_use_it() -> None:
    graph = parse("""
        graph layer(%x: f32[N,4]) {
          param @w: f32[3,4]
          %0 = linear(%x, @w) : f32[N,3]
          return y=%0
        }
    """)
    weights = {"w": ArrayTensor(np.ones((3, 4), np.float32))}
    for static in (True, False):
        called = {node.target for node in to_torch(graph, weights, static=static).graph.nodes}
        assert (products.linear in called) == static
        assert (torch.nn.functional.linear in called) != static


def test_gradients_of_gradients() -> None:
    operands = case(4, 6, 8, False, True)

    def penalty(function, dtype: torch.dtype) -> list[torch.Tensor]:
        x, w, b = (t.detach().to(dtype).requires_grad_() for t in operands)
        of_x, of_w = torch.autograd.grad(function(x, w, b).tanh().sum(), [x, w], create_graph=True)
        return list(torch.autograd.grad(of_x.square().sum() + of_w.square().sum(), [x, w, b]))

    found = penalty(lambda *given: products.linear(*given, transposed=False), torch.float32)
    for ours, right in zip(found, penalty(torch.nn.functional.linear, torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-4)


def test_function_transforms() -> None:
    x, w, b = (t.detach() for t in case(4, 6, 8, False, True))

    def loss(w: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return products.linear(row, w, b, transposed=False).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x[0])
    for row, gradient in zip(x[0], found, strict=True):
        y = torch.nn.functional.linear(row, w, b)
        torch.testing.assert_close(gradient, 2 * y[:, None] * row, rtol=1e-5, atol=1e-5)


def test_product() -> None:
    x, w = torch.randn(5, 7), torch.randn(7, 3).t()
    torch.testing.assert_close(products.product(x, w), x @ w.t())
