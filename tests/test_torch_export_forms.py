"""Modules through torch.export: regions without gradients, masks of nn.Transformer, experts, element types, errors."""

from __future__ import annotations

from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
import transformers as hf
from monograph.frontends.torch_export import NotImportableError
from onnxruntime import InferenceSession
from torch import nn
from torch.export import Dim
from torch.nn import functional
from torch_zoo import same_gradients

ROWS, LENGTH, OTHER = Dim("rows", min=2, max=50), Dim("length", min=2, max=50), Dim("other", min=2, max=50)


class Stopped(nn.Module):
    """Two layers, of which one is under a region that gradients do not leave; mode: which one."""

    def __init__(self, mode: Any, alone: bool) -> None:
        super().__init__()
        self.first, self.second, self.mode, self.alone = nn.Linear(4, 4), nn.Linear(4, 4), mode, alone

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self.mode():
            held = self.first(x).exp()
        return (held,) if self.alone else (held, self.second(x) + held, x @ self.second.weight)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("alone", [True, False])
def test_what_a_region_without_gradients_gives_is_an_output_too(mode: Any, alone: bool) -> None:
    module, x = Stopped(mode, alone), torch.randn(3, 4)
    ours = mg.to_torch(mg.load(module, {"x": x}))
    wanted, found = module(x), list(ours(x=x).values())
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(b, a)
        assert b.requires_grad == a.requires_grad
    if not alone:
        for outputs in (wanted, found):
            sum(y.sum() for y in outputs if y.requires_grad).backward()
        assert ours.first.weight.grad is None
        torch.testing.assert_close(ours.second.weight.grad, module.second.weight.grad)


def test_a_mask_of_a_transformer_is_applied_without_a_look_at_its_numbers() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

        def forward(self, x: torch.Tensor, y: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
            ahead = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
            return self.both(x, y, tgt_mask=ahead, src_key_padding_mask=padded, memory_key_padding_mask=padded)

    module = Translator().eval()
    padded = torch.zeros(3, 5, dtype=torch.bool)
    traced = {"x": torch.randn(3, 5, 8), "y": torch.randn(3, 4, 8), "padded": padded}
    varies = {"x": {0: ROWS, 1: LENGTH}, "y": {0: ROWS, 1: OTHER}, "padded": {0: ROWS, 1: LENGTH}}
    guess = torch.nn.modules.transformer._detect_is_causal_mask
    model = mg.load(module, traced, dynamic_shapes=varies)
    assert torch.nn.modules.transformer._detect_is_causal_mask is guess
    assert model.graph().counts()["attention"] == 3
    padded = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    given = {"x": torch.randn(2, 7, 8), "y": torch.randn(2, 6, 8), "padded": padded}
    torch.testing.assert_close(mg.to_torch(model)(**given)["output"], module(**given), atol=1e-5, rtol=1e-5)


def test_activations_have_the_gradients_of_pytorch_at_their_bounds() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0, 0.5, -4.0, 7.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.w * x
            kinds = (functional.relu6, functional.hardtanh, functional.hardsigmoid, functional.hardswish)
            spread = (y[..., None] * 0).std(-1, unbiased=False) * 5  # Of one element alone.
            return torch.stack([f(y) * (i + 1) for i, f in enumerate(kinds)]) + spread

    module, x = Bounded(), torch.ones(())
    ours = mg.to_torch(mg.load(module, {"x": x}))
    wanted, found = module(x), ours(x=x)["output"]
    torch.testing.assert_close(found, wanted)
    for y in (wanted, found):
        (y * torch.arange(1.0, 10)).sum().backward()
    torch.testing.assert_close(ours.w.grad, module.w.grad)


def test_experts_of_transformers_come_in(tmp_path: Any) -> None:
    config = hf.MixtralConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=5,
        num_experts_per_tok=2,
        use_cache=False,
    )
    module = hf.MixtralForCausalLM(config).eval()
    varies = {"input_ids": {0: ROWS, 1: LENGTH}}
    model = mg.load(module, {"input_ids": torch.randint(0, 20, (2, 5))}, dynamic_shapes=varies)
    ids = torch.randint(0, 20, (3, 9))
    wanted, ours = module(input_ids=ids).logits, mg.to_torch(model)
    found = ours(input_ids=ids)["logits"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    same_gradients(module, ours, wanted, found)
    mg.export(model, tmp_path / "out")
    (served,) = InferenceSession(tmp_path / "out" / "model.onnx").run(["logits"], {"input_ids": ids.numpy()})
    np.testing.assert_allclose(served, wanted.detach().numpy(), atol=1e-5)


def test_a_module_keeps_the_types_it_has(tmp_path: Any) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.norm = nn.Linear(8, 8).half(), nn.LayerNorm(8)
            self.wide = nn.Parameter(torch.rand(8).double())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.narrow(x.half()).float()) * self.wide

    module, x = Mixed(), torch.randn(3, 8)
    model = mg.load(module, {"x": x})
    ours = mg.to_torch(model)
    assert {k: p.dtype for k, p in ours.named_parameters()} == {k: p.dtype for k, p in module.named_parameters()}
    torch.testing.assert_close(ours(x=x)["output"], module(x), atol=2e-3, rtol=2e-3)
    for dtype, name in ((torch.float64, "f64"), (torch.float16, "f16")):
        one = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.SiLU()).to(dtype).eval()
        model, y = mg.load(one, {"input": x.to(dtype)}), x.to(dtype)
        assert str(model.dtype) == name
        torch.testing.assert_close(mg.to_torch(model)(input=y)["output"], one(y), atol=2e-3, rtol=2e-3)
        session = InferenceSession(mg.export(model, tmp_path / name) / "model.onnx")
        with mg.build(model) as engine:
            for found in (session.run(None, {"input": y.numpy()})[0], engine.run({"input": y.numpy()})["output"]):
                assert found.dtype == y.numpy().dtype
                np.testing.assert_allclose(found, one(y).detach().numpy(), atol=2e-3)


def test_a_product_of_what_was_transposed_is_built_in_f16() -> None:
    """ONNX Runtime 1.31 ends the process on it, unless it is told to leave a step of its optimizer out."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 48).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.transpose(0, 1))

    module, x = Turned(), torch.randn(3, 7, 16).half()
    model = mg.load(module, {"x": x}, dynamic_shapes={"x": {0: ROWS, 1: LENGTH}})
    with mg.build(model) as engine:
        found = engine.run({"x": x[:2].numpy()})["output"]
    np.testing.assert_allclose(found, module(x[:2]).detach().numpy(), atol=5e-3)


def test_what_a_module_raises_itself_is_one_error_with_the_line() -> None:
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return {"a": x}["b"]

    with pytest.raises(NotImportableError, match="KeyError: 'b'") as caught:
        mg.load(Wrong(), torch.randn(2))
    assert "test_torch_export_forms.py" in caught.value.details[0]


def test_numbers_that_only_checks_read_are_no_obstacle() -> None:
    class Checked(nn.Module):
        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            torch._check(lengths.max().item() <= x.shape[1])
            return x * 2

    given = {"x": torch.randn(2, 3), "lengths": torch.tensor([1, 3])}
    torch.testing.assert_close(mg.to_torch(mg.load(Checked(), given))(**given)["output"], given["x"] * 2)
