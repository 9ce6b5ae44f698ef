"""Recurrent layers of PyTorch: any number of steps, layers and directions, with states, in both orders of axes."""

from __future__ import annotations

from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from monograph.frontends.torch_export import NotImportableError
from torch import nn
from torch.export import Dim

STEPS, ROWS = Dim("steps", min=1, max=20), Dim("rows", min=1, max=9)
LAYERS: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(4, 3),
    "two layers both ways": lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True),
    "gru without bias": lambda: nn.GRU(4, 3, bias=False, batch_first=True),
    "gru of three layers": lambda: nn.GRU(4, 3, num_layers=3, dropout=0.5),
    "rnn": lambda: nn.RNN(4, 3, bidirectional=True),
    "rnn of relu": lambda: nn.RNN(4, 3, num_layers=2, nonlinearity="relu", batch_first=True),
}


class Recurrent(nn.Module):
    """A layer, its last states as outputs too; stateful: it starts from what the input says."""

    def __init__(self, layer: Any, stateful: bool) -> None:
        super().__init__()
        self.layer, self.stateful = layer, stateful
        self.count = layer.num_layers * (2 if layer.bidirectional else 1)

    def forward(self, x: Any) -> Any:
        if not self.stateful:
            return self.layer(x)
        rows = x.shape[0 if self.layer.batch_first else 1]
        h = torch.linspace(-1, 1, 3 * self.count).reshape(self.count, 1, 3).expand(-1, rows, -1).contiguous()
        return self.layer(x, (h, h * 2) if isinstance(self.layer, nn.LSTM) else h)


def equal(module: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    """Outputs, and the gradients of all parameters."""
    wanted, found = torch.utils._pytree.tree_leaves(module(x)), list(ours(x=x).values())
    assert len(found) == len(wanted)
    for y, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(y, w, atol=2e-6, rtol=1e-5)
    for outputs, m in ((wanted, module), (found, ours)):
        m.zero_grad()
        sum((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum() for y in outputs).backward()
    own = dict(ours.named_parameters())
    for k, p in module.named_parameters():
        torch.testing.assert_close(own[k].grad, p.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_any_number_of_steps(name: str, stateful: bool) -> None:
    torch.manual_seed(0)
    module = Recurrent(LAYERS[name](), stateful).eval()
    first = module.layer.batch_first
    axes = {0: ROWS, 1: STEPS} if first else {0: STEPS, 1: ROWS}
    model = mg.load(module, {"x": torch.randn(4, 5, 4)}, dynamic_shapes={"x": axes})
    assert sum(n.op.name in ("lstm", "gru", "rnn") for n in model.graph()) == module.count
    ours = mg.to_torch(model)
    for sizes in ((4, 5), (3, 9), (1, 2), (6, 1)):
        equal(module, ours, torch.randn(*sizes, 4))
    x = torch.randn(3, 7, 4)
    with mg.build(model) as engine:
        served = engine.run({"x": x.numpy()})
    for y, w in zip(served.values(), torch.utils._pytree.tree_leaves(module(x)), strict=True):
        np.testing.assert_allclose(y, w.detach().numpy(), atol=2e-6)


def test_one_row_without_a_batch_and_a_program_that_was_traced_before() -> None:
    torch.manual_seed(0)
    module, x = Recurrent(nn.LSTM(4, 3, num_layers=2, bidirectional=True), False).eval(), torch.randn(6, 4)
    equal(module, mg.to_torch(mg.load(module, {"x": x})), torch.randn(6, 4))
    equal(module, mg.to_torch(mg.load(torch.export.export(module, (x,), strict=False))), torch.randn(6, 4))


def test_dropout_lies_between_layers_in_training_mode() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(4, 3, num_layers=3, dropout=0.5).train()
    ours = mg.to_torch(mg.load(module, {"input": torch.randn(5, 2, 4)})).train()
    x = torch.randn(5, 2, 4)
    a, b = (ours(input=x)["output.0"] for _ in range(2))
    assert (a != b).any()
    torch.testing.assert_close(ours.eval()(input=x)["output.0"], module.eval()(x)[0])


def test_what_has_no_counterpart() -> None:
    with pytest.raises(NotImportableError, match="proj_size"):
        mg.load(nn.LSTM(4, 3, proj_size=2), torch.randn(5, 2, 4))

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 3)

        def forward(self, x: Any, lengths: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0])[0]

    with pytest.raises(NotImportableError):
        mg.load(Packed(), (torch.randn(5, 2, 4), torch.tensor([5, 3])))
