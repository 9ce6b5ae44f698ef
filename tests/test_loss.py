"""The loss over a vocabulary in chunks: values and gradients of the plain one, compiled, masked and under autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monograph.backends.torch import loss as chunked
from monograph.backends.torch import to_torch
from monograph.backends.torch.loss import linear_cross_entropy
from monograph.ir import DType, Graph, Init, interpret, ops, tensor
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 64 * 50)


def problem(dtype: torch.dtype = torch.float64, ignored: int = 37) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x, w, b = torch.randn(3, 60, 8, dtype=dtype), torch.randn(50, 8, dtype=dtype), torch.randn(50, dtype=dtype)
    labels = torch.randint(0, 50, (3, 60))
    labels.view(-1)[torch.randperm(180)[:ignored]] = -100
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [0, 37, 180])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradient_equal_the_plain_loss(smoothing: float, ignored: int, bias: bool) -> None:
    x, w, b, labels = problem(ignored=ignored)
    given = [x, w, *([b] if bias else [])]
    logits = (x @ w.t() + (b if bias else 0)).reshape(-1, 50)
    total = cross_entropy(logits, labels.reshape(-1), label_smoothing=smoothing, reduction="sum")
    expected = total / max(180 - ignored, 1)
    found = linear_cross_entropy(x, w, labels, b if bias else None, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for e, f in zip(torch.autograd.grad(3 * expected, given), torch.autograd.grad(3 * found, given), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-12)


def test_an_infinite_loss_that_does_not_count_is_not_counted() -> None:
    graph = Graph("loss")
    rows, given = graph.input("x", tensor(DType.f32, "N", 4)), graph.input("labels", tensor(DType.i64, "N"))
    graph.output("loss", ops.cross_entropy(rows, given))
    logits = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    logits[:, 0] = -np.inf
    labels = np.array([1, -100, 2])
    expected = cross_entropy(torch.tensor(logits), torch.tensor(labels))
    found = interpret(graph, {"x": logits, "labels": labels})["loss"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_without_gradient_only_the_loss_is_made() -> None:
    x, w, _, labels = problem()
    with torch.no_grad():
        value = linear_cross_entropy(x, w, labels)
    torch.testing.assert_close(value, linear_cross_entropy(x, w, labels).detach())


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_gets_no_gradient_and_costs_none(bias: bool) -> None:
    x, w, b, labels = problem()
    (expected,) = torch.autograd.grad(linear_cross_entropy(x, w, labels, b if bias else None), x)
    w, b = w.detach(), b.detach()
    kept: list[tuple[int, ...]] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = linear_cross_entropy(x, w, labels, b if bias else None)
    (found,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(found, expected)
    assert tuple(w.shape) not in kept
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    (again,) = torch.autograd.grad(compiled(x, w, labels, b if bias else None), x)
    torch.testing.assert_close(again, expected)


def test_the_backend_takes_it_when_only_the_loss_reads_the_logits() -> None:
    graph = Graph("head")
    x = graph.input("x", tensor(DType.f64, "B", "S", 8))
    labels = graph.input("labels", tensor(DType.i64, "B", "S"))
    logits = ops.linear(x, graph.param("w", tensor(DType.f64, 50, 8), Init("normal", 0.02)))
    graph.output("loss", ops.cross_entropy(logits, labels, label_smoothing=0.1))
    kept = graph.copy()
    kept.output("logits", next(n for n in kept if n.op.name == "linear").output)
    given_x, w, _, given_labels = problem()
    inputs = {"x": given_x.detach().numpy(), "labels": given_labels.numpy()}
    expected = interpret(graph, inputs, {"w": w.detach().numpy()})["loss"]
    for g, fused in ((graph, True), (kept, False)):
        module = to_torch(g)
        assert (linear_cross_entropy in {n.target for n in module.graph.nodes}) == fused
        with torch.no_grad():
            module.w.copy_(w)
        found = module(x=given_x, labels=given_labels)["loss"]
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    x, w, _, labels = problem()
    loss = linear_cross_entropy(x, w, labels)
    (expected,) = torch.autograd.grad(linear_cross_entropy(x, w, labels), w)
    (2 * loss).backward(retain_graph=True)
    torch.testing.assert_close(w.grad, 2 * expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compiles_without_a_graph_break() -> None:
    x, w, _, labels = problem(torch.float32)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, labels), linear_cross_entropy(x, w, labels))
    compiled(x, w, labels).backward()
    assert w.grad is not None
    assert x.grad is not None


def test_under_autocast_products_are_narrow_and_the_weight_gradient_wide() -> None:
    x, w, _, labels = problem(torch.float32)
    expected = linear_cross_entropy(x, w, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(x, w, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    found.backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32
