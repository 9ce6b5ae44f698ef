"""Modules that do not come in: one typed error says everything that has no counterpart, and where it is."""

from __future__ import annotations

from typing import Any

import monograph as mg
import pytest
import torch
from monograph.frontends.torch_export import NotImportableError
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional


def test_all_that_has_no_counterpart_is_listed_with_its_line() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.special.bessel_j0(x)
            z = torch.linalg.inv(x)
            return y + z + torch.special.bessel_j0(y)

    with pytest.raises(NotImportableError) as caught:
        mg.load(Odd(), torch.randn(4, 4))
    lines = caught.value.details
    assert len(lines) == 3
    assert sum("special_bessel_j0" in line and "test_torch_export_refused.py" in line for line in lines) == 2
    assert any("linalg_inv" in line for line in lines)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x[x > 0], "cannot trace|depends"),
        (lambda x: torch.nonzero(x), "depends|counterpart|nonzero"),
        (lambda x: x * torch.rand(3), "rand"),
        (lambda x: torch.fft.fft(x).real, "fft|complex"),
        (lambda x: x + 1 if float(x.sum()) > 0 else x, "cannot trace"),
        (lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)), "counterpart"),
        (lambda x: (x, while_loop(lambda y: y.sum() < 9, lambda y: (y.abs() + 1,), (x,))), "counterpart"),
        (lambda x: x * x.long().max().item(), "depends on the numbers"),
        (lambda x: functional.max_pool1d(x[None], 2, return_indices=True), "its result 1 has no counterpart"),
        (lambda x: torch.func.grad(lambda y: (y**2).sum())(x), "cannot trace"),
        (lambda x: torch.erfinv(x), "aten.erfinv"),
        (lambda x: torch.view_as_complex(x[:, :2].contiguous()).abs(), "complex"),
    ],
)
def test_a_typed_error_says_what_cannot_come_in(function: Any, said: str) -> None:
    class Module(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    with pytest.raises(NotImportableError, match=said):
        mg.load(Module(), torch.randn(3, 3))


def test_statistics_that_a_call_changes_are_refused() -> None:
    with pytest.raises(NotImportableError, match="evaluation mode"):
        mg.load(nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)).train(), torch.randn(2, 3, 5))


def test_a_module_needs_example_inputs_and_nothing_else_takes_them() -> None:
    with pytest.raises(mg.MonographError, match="example_inputs"):
        mg.load(nn.Linear(2, 2))
    with pytest.raises(mg.MonographError, match="belong to a module"):
        mg.load("smollm2", torch.randn(2))
    with pytest.raises(NotImportableError, match="cannot trace"):
        mg.load(nn.Linear(2, 2), torch.randn(3, 3))


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


def hooked(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    if y.requires_grad:
        y.register_hook(torch.neg)
    return y


@pytest.mark.parametrize(
    ("function", "said"),
    [(Straight.apply, "the gradient of layer.weight is off"), (hooked, "layer.weight is off by")],
)
def test_gradients_of_its_own_are_not_lost_unseen(function: Any, said: str) -> None:
    """torch.export records the forward pass alone; of what does not train there is nothing to lose."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return {"y": [function(self.layer(x)) * 2]}

    x = torch.randn(4, 3)
    with pytest.raises(NotImportableError, match=said):
        mg.load(Module(), x)
    module = Module().requires_grad_(False)
    torch.testing.assert_close(mg.to_torch(mg.load(module, x))(x=x)["y.0"], module(x)["y"][0])


class Squared(torch.autograd.Function):
    """Gives by hand what its parts give."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * g


def test_a_backward_pass_by_hand_that_gives_the_same_comes_in() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return Squared.apply(functional.dropout(self.layer(x), 0.5, self.training))

    x, module = torch.randn(4, 3), Module().train()
    ours = mg.to_torch(mg.load(module, {"x": x})).eval()
    assert module.layer.weight.grad is None
    module.eval()(x).sum().backward()
    ours(x=x)["output"].sum().backward()
    torch.testing.assert_close(ours.get_parameter("layer.weight").grad, module.layer.weight.grad)


def test_checkpoints_of_pytorch_have_the_gradients_of_their_parts() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.utils.checkpoint.checkpoint(lambda y: self.layer(y).exp(), x, use_reentrant=False)

    x, module = torch.randn(4, 3), Module()
    ours = mg.to_torch(mg.load(module, {"x": x}))
    for m, y in ((module, module(x)), (ours, ours(x=x)["output"])):
        y.sum().backward()
        torch.testing.assert_close(m.get_parameter("layer.weight").grad, module.layer.weight.grad)
