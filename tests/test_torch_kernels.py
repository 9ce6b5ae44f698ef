"""Steps with gradients of our own: activation with linear layer, RMS norm, tied embedding; against PyTorch's parts."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from monograph.backends.torch import to_torch
from monograph.backends.torch.feed_forward import activated_linear
from monograph.backends.torch.norm import rms_norm
from monograph.backends.torch.products import linear
from monograph.backends.torch.tied import tied_embedding
from monograph.ir.ops.feed_forward import ACTIVATIONS
from monograph.ir.tensors import ArrayTensor
from monograph.ir.text import parse
from recompute_models import batch, sizes_of, training_graph
from torch.autograd import forward_ad
from torch.nn import functional

pytestmark = pytest.mark.slow

PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": torch.relu,
}


def operands(up: bool, b: bool, transposed: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor | None]:
    """x [3,5,8], w, up or None, b or None, all with gradients."""
    torch.manual_seed(1)
    shapes = [(3, 5, 8), (8, 6) if transposed else (6, 8), (3, 5, 8) if up else None, (6,) if b else None]
    return [None if s is None else (2 * torch.randn(s, dtype=dtype)).requires_grad_() for s in shapes]


def gradients(y: torch.Tensor, leaves: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad((y * weights).sum(), [t for t in leaves if t is not None]))


def by_parts(
    x: torch.Tensor, w: torch.Tensor, up: torch.Tensor | None, b: torch.Tensor | None, activation: str, transposed: bool
) -> torch.Tensor:
    y = PLAIN[activation](x)
    return functional.linear(y if up is None else y * up, w.t() if transposed else w, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("up", "b", "transposed", "static"), list(itertools.product([False, True], repeat=4)))
def test_activated_linear(activation: str, up: bool, b: bool, transposed: bool, static: bool) -> None:
    given = operands(up, b, transposed)
    found = activated_linear(*given, activation=activation, transposed=transposed, static=static)
    expected = by_parts(*given, activation, transposed)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, right in zip(gradients(found, given), gradients(expected, given), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("up", [False, True])
def test_gradients_of_gradients(activation: str, up: bool) -> None:
    given = operands(up, True, False)
    present = [t for t in given if t is not None]

    def function(*leaves: torch.Tensor) -> torch.Tensor:
        x, w, *rest = leaves
        return activated_linear(x, w, rest[0] if up else None, rest[-1], activation=activation)

    assert torch.autograd.gradgradcheck(function, present)


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu"])
def test_operands_made_from_each_other(activation: str) -> None:
    """First and second derivatives where `up` is made from x, and where it is x itself."""
    x, w, *_ = operands(False, False, False)
    for make in (torch.tanh, lambda t: t):
        found = activated_linear(x, w, make(x), activation=activation)
        expected = by_parts(x, w, make(x), None, activation, False)
        pairs = []
        for y in (found, expected):
            first = torch.autograd.grad(y.square().sum(), [x, w], create_graph=True)
            pairs.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, w])])
        for ours, right in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, right, rtol=0, atol=1e-11 * right.abs().max().item())


def test_batched_and_forward_derivatives() -> None:
    x, w, up, _ = operands(True, False, False)
    y, expected = activated_linear(x, w, up, activation="silu"), by_parts(x, w, up, None, "silu", False)
    several = torch.randn(4, *y.shape, dtype=y.dtype)
    ours = torch.autograd.grad(y, [x, w, up], several, is_grads_batched=True)
    for mine, right in zip(
        ours, torch.autograd.grad(expected, [x, w, up], several, is_grads_batched=True), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=1e-11, atol=1e-11)
    normed = torch.autograd.grad(rms_norm(x, w[0], eps=1e-3), [x], several[..., :1] * x, is_grads_batched=True)
    assert normed[0].shape == (4, *x.shape)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangents = [
            forward_ad.unpack_dual(f(dual)).tangent
            for f in (
                lambda t: activated_linear(t, w.detach(), activation="silu"),
                lambda t: by_parts(t, w.detach(), None, None, "silu", False),
            )
        ]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("up", ["8", "3,1", "1"])
def test_a_factor_of_another_shape_is_left_to_mul(up: str) -> None:
    """Scales of channels or rows (Liu et al. 2022, (IA)3) are no second projection."""
    graph = parse(f"""
        graph scaled(%x: f32[B,3,8], %s: f32[{up}]) {{
          param @w: f32[6,8]
          %0 = silu(%x) : f32[B,3,8]
          %1 = mul(%0, %s) : f32[B,3,8]
          %2 = linear(%1, @w) : f32[B,3,6]
          return y=%2
        }}
    """)
    module = to_torch(graph, {"w": ArrayTensor(np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8))})
    x, s = torch.randn(2, 3, 8), torch.randn([int(n) for n in up.split(",")])
    expected = functional.linear(functional.silu(x) * s, module.w)
    torch.testing.assert_close(module(x=x, s=s)["y"], expected)


def test_a_copy_through_pickle_computes_the_same() -> None:
    graph = training_graph("llama", tied=True)
    module, inputs = to_torch(graph, static=True), batch(graph)
    again = pickle.loads(pickle.dumps(module))
    assert "activated_linear" in again.code and "rms_norm" in again.code
    assert torch.equal(again(**inputs)["loss"], module(**inputs)["loss"])


def test_chunks_of_any_size_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last chunk that is not full, and an input that does not lie together."""
    x, w, up, _ = operands(True, False, False)
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    expected = by_parts(x, w, up, None, "gelu_tanh", False)
    right = gradients(expected, [x, w, up])
    monkeypatch.setattr("monograph.backends.torch.feed_forward.CHUNK_ELEMENTS", 7)
    for given in ([x, w, up], [turned, w, up]):
        found = activated_linear(*given, activation="gelu_tanh")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(gradients(found, given), right, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_only_the_gradients_that_are_wanted() -> None:
    x, w, up, b = operands(True, True, False)
    right = gradients(by_parts(x, w, up, b, "silu", False), [x, w, up, b])
    for wanted in itertools.product([False, True], repeat=4):
        if not any(wanted):
            continue
        given = [t.detach().requires_grad_(wants) for t, wants in zip((x, w, up, b), wanted, strict=True)]
        found = gradients(activated_linear(*given, activation="silu"), [t for t in given if t.requires_grad])
        for ours, expected in zip(found, itertools.compress(right, wanted), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_far_from_zero() -> None:
    x = torch.tensor([-1e4, -30.0, -9.0, 0.0, 9.0, 30.0, 1e4], requires_grad=True)
    y = activated_linear(x[None], torch.eye(7), activation="gelu_tanh")
    y.sum().backward()
    torch.testing.assert_close(y[0], functional.gelu(x.detach(), approximate="tanh"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0, 0, 0.5, 1, 1, 1]), rtol=1e-5, atol=1e-5)


def test_keeps_only_what_goes_in() -> None:
    x, w, up, _ = operands(True, False, False)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        activated_linear(x, w, up, activation="silu")
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), w.data_ptr(), up.data_ptr()}


def test_autocast_computes_in_its_dtype() -> None:
    given = operands(False, True, False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = activated_linear(*given, activation="silu"), by_parts(*given, "silu", False)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for leaf, ours in zip([t for t in given if t is not None], gradients(found, given), strict=True):
        assert ours.dtype == leaf.dtype == torch.float32


def test_a_backward_pass_inside_autocast_has_the_widths_of_its_forward_pass() -> None:
    x, w, up, b = operands(True, True, False, torch.float32)
    steps = [
        activated_linear(x, w, up, b, activation="gelu_tanh"),
        rms_norm(x, w[0], eps=1e-3),
        linear(x, w, b, transposed=False),
    ]
    expected = [
        by_parts(x, w, up, b, "gelu_tanh", False),
        functional.rms_norm(x, (8,), w[0], 1e-3),
        functional.linear(x, w, b),
    ]
    for found, right, leaves in zip(steps, expected, ([x, w, up, b], [x, w], [x, w, b]), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            ours = gradients(found, leaves)
        for mine, theirs in zip(ours, gradients(right, leaves), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
def test_compiled(activation: str) -> None:
    given = operands(activation == "silu", True, False, torch.float32)
    compiled = torch.compile(lambda *t: activated_linear(*t, activation=activation, static=True), fullgraph=True)
    found, expected = compiled(*given), by_parts(*given, activation, False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, right in zip(gradients(found, given), gradients(expected, given), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learning", [False, True])
def test_an_exported_module_keeps_its_gelu(learning: bool) -> None:
    graph = training_graph("gpt2", dropout=0.0, embedding_dropout=0.0)
    with torch.set_grad_enabled(learning):
        exported = torch.export.export(to_torch(graph), (), kwargs=batch(graph))
    assert [str(n.target) for n in exported.graph.nodes].count("aten.gelu.default") == 3


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_rms_norm(wanted: tuple[bool, bool]) -> None:
    torch.manual_seed(2)
    x, w = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    leaves = [t.requires_grad_(wants) for t, wants in zip((x, w), wanted, strict=True)]
    learning = [t for t in leaves if t.requires_grad]
    found, expected = rms_norm(x, w, eps=1e-3), functional.rms_norm(x, (8,), w, 1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    for ours, right in zip(gradients(found, learning), gradients(expected, learning), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda *_: rms_norm(x, w, eps=1e-3), learning)


@pytest.mark.parametrize("learning", [(True, True), (True, False), (False, True), (False, False)])
def test_tied_embedding(learning: tuple[bool, bool]) -> None:
    """The gradient is the sum of both uses, whichever of them the loss reads, and accumulates."""
    table, ids = torch.randn(7, 4, dtype=torch.float64).requires_grad_(), torch.tensor([[1, 3, 3], [0, 6, 1]])
    weights = torch.linspace(-1, 1, 42, dtype=torch.float64).reshape(2, 3, 7)

    def loss(x: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        logits = torch.tanh(x if learning[0] else x.detach()) @ (head if learning[1] else head.detach()).t()
        return (logits * weights).sum() + 0 * table.sum()

    found = loss(*tied_embedding(ids, table))
    expected = loss(functional.embedding(ids, table), table)
    torch.testing.assert_close(found, expected)
    (right,) = torch.autograd.grad(expected, table)
    found.backward()
    loss(*tied_embedding(ids, table)).backward()
    torch.testing.assert_close(table.grad, 2 * right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "transformer2017"])
def test_a_tied_table_has_the_same_bits(family: str) -> None:
    """Where it is tied in place, and where a plan of what is computed again forbids that."""
    changes = {"llama": {"tied": True}, "gpt2": {"dropout": 0.0, "embedding_dropout": 0.0}}
    graph = training_graph(family, **changes.get(family, {}))
    inputs, sizes = batch(graph), sizes_of(graph)
    alone, planned = to_torch(graph, static=True), to_torch(graph, static=True, memory=10**12, sizes=sizes)
    assert "tied_embedding" in alone.code and "tied_embedding" not in planned.code
    for module in (alone, planned):
        module.eval()(**inputs)["loss"].backward()
    for ours, right in zip(alone.parameters(), planned.parameters(), strict=True):
        assert (ours.grad is None and right.grad is None) or torch.equal(ours.grad, right.grad)


def test_the_module_ties_only_where_the_loss_is_all_there_is() -> None:
    graph = training_graph("llama", tied=True)
    inputs, alone = batch(graph), to_torch(graph, static=True)
    plain = to_torch(graph)
    assert "tied_embedding" in alone.code and "tied_embedding" not in plain.code
    for module in (alone, plain):
        for _ in range(2):
            module(**inputs)["loss"].backward()
    for (name, ours), right in zip(alone.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, right.grad, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    graph.output("hidden", next(n for n in graph if n.op.name == "embedding").output)
    assert "tied_embedding" not in to_torch(graph, static=True).code
