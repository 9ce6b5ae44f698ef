"""Complex numbers of modules: rotary positions as Meta's llama writes them, other arithmetic, and what is refused."""

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

ROWS, LENGTH = Dim("rows", min=1, max=16), Dim("length", min=2, max=14)
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

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, start_pos: int = 2) -> torch.Tensor:
        b, s = input_ids.shape
        q, k, v = (t.view(b, s, HEADS, WIDTH) for t in self.qkv(self.embed(input_ids)).chunk(3, -1))
        if self.form in ("buffer", "attribute"):
            freqs = self.freqs_cis[start_pos : start_pos + s]
        elif self.form == "whole":  # A table made anew in each call, for all positions that there may be.
            freqs = frequencies("polar", torch.arange(LONGEST))[:s]
        elif self.form == "indexed":
            freqs = self.freqs_cis[position_ids]
        else:
            freqs = frequencies(self.form, torch.arange(start_pos, start_pos + s))
        q, k = self.rotated(q, freqs), self.rotated(k, freqs)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, -1)


@pytest.mark.parametrize("form", ["buffer", "attribute", "indexed", "polar", "complex", "exp", "whole"])
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
    numbers, rows = {k: v.numpy() for k, v in given.items()}, wanted.detach().numpy()
    with mg.build(model) as engine:
        assert "raised: 2 rope, 1 attention" in engine.report.raised
        np.testing.assert_allclose(engine.run(numbers)["output"], rows, atol=1e-5)
    report = mg.optimize(mg.export(model, tmp_path / "out") / "model.onnx", tmp_path / "fast")
    assert report.layers["rope"] == 2 and report.layers["attention"] == 1
    session = InferenceSession(tmp_path / "fast" / "model.onnx")
    asked = {i.name: numbers[i.name] for i in session.get_inputs()}
    np.testing.assert_allclose(session.run(None, asked)[0], rows, atol=1e-5)


@pytest.mark.parametrize("form", ["buffer", "indexed"])
def test_tables_of_complex_numbers_stay_wide_beside_narrow_weights(form: str, tmp_path: Any) -> None:
    """What is built is in f16 once the table, the only tensor in f32, is computed."""
    torch.manual_seed(0)
    module = Rotary(form).eval()
    table = module.freqs_cis
    module.half()
    module.freqs_cis = table
    given = {"input_ids": torch.randint(0, 20, (3, 9)), "position_ids": torch.arange(9).expand(3, 9)}
    model = mg.load(module, given, dynamic_shapes={k: {0: ROWS, 1: LENGTH} for k in given})
    wanted = module(**given)
    assert model.weights["freqs_cis"].type.dtype == mg.ir.types.f32 and wanted.dtype == torch.float16
    torch.testing.assert_close(mg.to_torch(model)(**given)["output"], wanted, atol=2e-3, rtol=2e-3)
    numbers, rows = {k: v.numpy() for k, v in given.items()}, wanted.detach().numpy()
    with mg.build(model) as engine:
        assert "2 rope" in engine.report.raised
        np.testing.assert_allclose(engine.run(numbers)["output"], rows, atol=2e-3)
    session = InferenceSession(mg.export(model, tmp_path) / "model.onnx")
    asked = {i.name: numbers[i.name] for i in session.get_inputs()}
    np.testing.assert_allclose(session.run(None, asked)[0], rows, atol=2e-3)


class Arithmetic(nn.Module):
    """Each of these is compared by value and gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
        self.register_buffer("held", torch.randn(3, 1, dtype=torch.complex64))
        self.a = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> dict[str, torch.Tensor]:
        z, put = torch.complex(x, self.a), torch.complex(x, x * 2)
        put[:, 1:3] = x[:, :2]
        y = self.w * z - self.held
        made = {
            "sums": y + 2 * z - x + (1 - 3j),
            "conjugate": y.conj() * z,
            "of a number": x * 1j + 2.0,
            "of real ones": z * x,
            "quotients": y / z + z / x + z / 2 + 1 / y,
            "exponential": torch.exp(z * 0.5) + torch.exp(1j * x),
            "polar": torch.polar(x.abs(), self.a),
            "moved": torch.cat([y.transpose(0, 1)[i], z.T[i]], 1).flip(0).unsqueeze(1).expand(-1, 2, -1),
            "mixed": torch.stack([y, z.real + 0 * z, x + 0j]),
            "chosen": torch.where(x > 0, z, y) + z.masked_fill(x > 0, 2.0),
            "apart": torch.stack([v * (k + 1) for k, v in enumerate(y.split(2, 1))]),
            "all": y.sum() + y.mean(0, keepdim=True) + torch.zeros_like(z).sum(1, keepdim=True) + torch.ones_like(z),
            "put": put.select_scatter(y.detach()[:, 0], 1, 3),
        }
        parts = {"real": y.real, "imag": y.conj().imag, "cast": y.to(torch.complex128).real}
        return {k.replace(" ", "_"): torch.view_as_real(v.resolve_conj()) for k, v in made.items()} | parts


def test_arithmetic_of_complex_numbers() -> None:
    torch.manual_seed(0)
    module = Arithmetic().eval()
    given = {"x": torch.randn(3, 4), "i": torch.tensor([2, 0, 1, 1, 3])}
    model = mg.load(module, given)
    ours, wanted = mg.to_torch(model), module(**given)
    found = ours(**given)
    assert list(found) == list(wanted)
    for name, y in wanted.items():
        torch.testing.assert_close(found[name], y, atol=1e-5, rtol=1e-5)
        module.zero_grad()
        ours.zero_grad()
        for v in (y, found[name]):
            if v.requires_grad:
                (v * torch.linspace(-1, 2, v.numel()).reshape(v.shape)).sum().backward(retain_graph=True)
        for path, p in module.named_parameters():
            grad = p.grad if p.grad is None or not p.is_complex() else torch.view_as_real(p.grad)
            own = ours.get_parameter(path).grad
            pair = [torch.zeros(()) if g is None else g for g in (own, grad)]
            torch.testing.assert_close(*torch.broadcast_tensors(*pair), atol=1e-4, rtol=1e-4)
    numbers = {k: v.numpy() for k, v in given.items()}
    with mg.build(model) as engine:
        for name, y in engine.run(numbers).items():
            np.testing.assert_allclose(y, wanted[name].detach().resolve_neg().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda z, x: z.abs(), "aten.abs.default at .*complex.py:[0-9]+: it is not known of complex numbers"),
        (lambda z, x: (z @ z.T).real, "aten.(mm|matmul).default at .*complex.py:[0-9]+: .*complex"),
        (lambda z, x: z * x, "output output of aten.mul.Tensor at .*complex.py:[0-9]+: it is complex"),
        (lambda z, x: nn.functional.pad(z, (1, 1)).real, "aten.pad.default at .*complex.py:[0-9]+: .*complex"),
        (lambda z, x: x.new_full((3,), 2j, dtype=torch.complex64).abs() + x, "aten.abs.default at .*complex.py"),
        (lambda z, x: torch.fft.fft(x).real, "aten._fft_r2c.default at .*complex.py:[0-9]+"),
        (lambda z, x: (x * 100).to(torch.int16) + 1, "aten._to_copy.default at .*complex.py:[0-9]+: .*torch.int16"),
    ],
)
def test_what_is_not_known_of_complex_numbers_is_refused_with_its_line(function: Any, said: str) -> None:
    class Module(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(torch.complex(x, x * 2), x)

    with pytest.raises(NotImportableError, match=said):
        mg.load(Module(), torch.randn(3, 3))


def test_tensors_without_a_type_in_the_ir_are_named_with_the_line_that_reads_them() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.arange(3, dtype=torch.int16))

        def forward(self, z: torch.Tensor, n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            y = torch.view_as_real(z * 2).sum(-1)
            y = y + n.float()
            return y + self.steps.float() + x

    given = {"z": torch.randn(3, dtype=torch.complex64), "n": torch.arange(3, dtype=torch.int16), "x": torch.ones(3)}
    with pytest.raises(NotImportableError, match="3 of its calls and tensors") as caught:
        mg.load(Module(), given)
    steps, n, z = sorted(caught.value.details)
    assert steps.startswith("buffer steps, read by aten._to_copy.default at") and "torch.int16" in steps
    assert n.startswith("input n, read by aten._to_copy.default at") and "torch.int16" in n
    assert z.startswith("input z, read by aten.mul.Tensor at") and "torch.view_as_complex" in z
    assert all("test_torch_export_complex.py:" in line for line in caught.value.details)


def test_deepseek_comes_in_with_its_rotations() -> None:
    torch.manual_seed(0)
    config = hf.DeepseekV2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=8,
        head_dim=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        topk_group=1,
        n_group=1,
        max_position_embeddings=64,
        use_cache=False,
    )
    module = hf.DeepseekV2ForCausalLM(config).eval()
    ids = torch.randint(0, 20, (2, 5))
    varies = {k: {0: Dim("rows", min=2, max=50), 1: LENGTH} for k in ("input_ids", "attention_mask")}
    model = mg.load(module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, dynamic_shapes=varies)
    given = {"input_ids": torch.randint(0, 20, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    given["attention_mask"][0, :3] = 0
    given["attention_mask"][1, -2:] = 0
    ours, wanted = mg.to_torch(model), module(**given).logits
    found = ours(**given)["logits"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    same_gradients(module, ours, wanted, found)
    with mg.build(model) as engine:
        assert "4 rope" in engine.report.raised and "2 attention" in engine.report.raised
        numbers = engine.run({k: v.numpy() for k, v in given.items()})["logits"]
        np.testing.assert_allclose(numbers, wanted.detach().numpy(), atol=1e-5)
