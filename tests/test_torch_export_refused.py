"""Modules that do not come in: one typed error says everything that has no counterpart, and where it is."""

from __future__ import annotations

from typing import Any

import monograph as mg
import pytest
import torch
from monograph.frontends.torch_export import NotImportableError
from torch import nn
from torch._higher_order_ops.while_loop import while_loop


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
