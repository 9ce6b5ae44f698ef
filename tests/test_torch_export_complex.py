"""Complex numbers of modules: rotary positions as Meta's llama writes them, other arithmetic, and what is refused."""

from __future__ import annotations

from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
import transformers as hf
from monograph.frontends.torch_export import NotImportableError
from torch import nn
from torch.export import Dim
from torch.nn import functional

ROWS, LENGTH = Dim("rows", min=1, max=16), Dim("length", min=2, max=16)
WIDTH, HEADS, LONGEST = 8, 2, 16


def frequencies(form: str, positions: torch.Tensor) -> torch.Tensor:
    """Unit numbers [.., WIDTH / 2] whose angles grow with positions [..]."""
    rates = 1.0 / (10000.0 ** (torch.arange(0, WIDTH, 2).float() / WIDTH))
    angles = positions[..., None].float() * rates
    if form == "complex":
        return torch.complex(angles.cos(), angles.sin())
    return torch.exp(1j * angles) if form == "exp" else torch.polar(torch.ones_like(angles), angles)


class Rotary(nn.Module):
    """A decoder's attention; form: where its unit numbers come from."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.embed = nn.Embedding(20, HEADS * WIDTH)
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH, bias=False)
        table = frequencies("polar", torch.arange(LONGEST))
        if form == "attribute":
            self.freqs_cis = table
        else:
            self.register_buffer("freqs_cis", table)

    def rotated(self, x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        freqs = freqs.view(-1, x.shape[1], 1, WIDTH // 2)
        return torch.view_as_real(pairs * freqs).flatten(3).type_as(x)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        b, s = input_ids.shape
        q, k, v = (t.view(b, s, HEADS, WIDTH) for t in self.qkv(self.embed(input_ids)).chunk(3, -1))
        if self.form in ("buffer", "attribute"):
            freqs = self.freqs_cis[:s]
        elif self.form == "indexed":
            freqs = self.freqs_cis[position_ids]
        else:
            freqs = frequencies(self.form, torch.arange(s))
        q, k = self.rotated(q, freqs), self.rotated(k, freqs)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, -1)


@pytest.mark.parametrize("form", ["buffer", "attribute", "indexed", "polar", "complex", "exp"])
def test_rotary_positions_of_complex_numbers_are_the_op(form: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = Rotary(form).eval()
    places = torch.arange(5).expand(2, 5)
    traced = {"input_ids": torch.randint(0, 20, (2, 5)), "position_ids": places}
    varies = {k: {0: ROWS, 1: LENGTH} for k in traced}
    model = mg.load(module, traced, dynamic_shapes=varies)
    given = {"input_ids": torch.randint(0, 20, (3, 9)), "position_ids": torch.arange(9).expand(3, 9) + 2}
    ours, wanted = mg.to_torch(model), module(**given)
    found = ours(**given)["output"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for y in (wanted, found):
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    own = dict(ours.named_parameters())
    assert list(own) == [k for k, _ in module.named_parameters()]
    for path, p in module.named_parameters():
        torch.testing.assert_close(own[path].grad, p.grad, atol=1e-5, rtol=1e-4)
    if form in ("buffer", "indexed"):
        kept = model.weights["freqs_cis"].numpy()
        np.testing.assert_array_equal(kept, torch.view_as_real(module.freqs_cis).numpy())
    numbers = {k: v.numpy() for k, v in given.items()}
    with mg.build(model) as engine:
        kinds = [r.op for r in engine.report.raised]
        assert kinds.count("rope") == 2
        np.testing.assert_allclose(engine.run(numbers)["output"], wanted.detach().numpy(), atol=1e-5)
