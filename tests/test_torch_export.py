"""Modules through torch.export: each call, names, ties, buffers, sizes, gradients, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from monograph.frontends.torch_export import NotImportableError
from monograph.frontends.torch_export.dims import Dims
from monograph.frontends.torch_export.errors import UnknownFormError
from monograph.ir import interpret
from monograph.ir.types import parse_dim
from torch import nn
from torch.export import Dim
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch_calls import CALLS

ROWS, LENGTH, OTHER = Dim("rows", min=2, max=50), Dim("length", min=6, max=31), Dim("other", min=2, max=50)
VARIES = {"x": {0: ROWS, 1: LENGTH}, "ids": {0: ROWS, 1: LENGTH}}


class Calls(nn.Module):
    """One function behind a parameter, so that gradients are seen."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> Any:
        return self.function(x * self.w, ids)


def inputs(rows: int, length: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, length, 6, generator=draw)
    return {"x": x, "ids": torch.randint(0, 10, (rows, length), generator=draw)}


def weighted(outputs: list[torch.Tensor]) -> torch.Tensor:
    return sum((x * torch.linspace(-1, 1, x.numel()).reshape(x.shape)).sum() for x in outputs if x.requires_grad)


def same(module: nn.Module, model: mg.Model, given: dict[str, torch.Tensor], *, served: bool = False) -> nn.Module:
    """Outputs and gradients of a module are those of the model in PyTorch, in NumPy, and if asked in ONNX Runtime."""
    ours = mg.to_torch(model)
    want, found = pytree.tree_leaves(module(**given)), list(ours(**given).values())
    assert len(want) == len(found)
    for a, b in zip(want, found, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5, equal_nan=True)
    arrays = {k: v.numpy() for k, v in given.items()}
    reference = interpret(model.graph(), arrays, {k: t.numpy() for k, t in model.weights.items()})
    for name, a in zip(reference, want, strict=True):
        np.testing.assert_allclose(reference[name], a.detach().numpy(), atol=1e-5, rtol=1e-4)
    if served:
        with mg.build(model) as engine:
            results = engine.run(arrays)
        for name, a in zip(reference, want, strict=True):
            np.testing.assert_allclose(results[name], a.detach().numpy(), atol=2e-5, rtol=1e-4)
    if any(a.requires_grad for a in want):
        weighted(want).backward()
        weighted(found).backward()
    own = dict(ours.named_parameters())
    for path, p in module.named_parameters():
        assert (p.grad is None) == (own[path].grad is None), path
        if p.grad is not None:
            torch.testing.assert_close(own[path].grad, p.grad, atol=1e-4, rtol=1e-4)
    return ours


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_the_same_at_other_sizes(name: str) -> None:
    module = Calls(CALLS[name]).eval()
    try:
        model, given = mg.load(module, inputs(3, 8), dynamic_shapes=VARIES), inputs(4, 9)
    except NotImportableError as e:
        # PyTorch itself ties the function to one size; ours may not.
        assert "torch.export cannot trace it" in str(e)
        model, given = mg.load(module, inputs(3, 8)), inputs(3, 8)
    same(module, model, given)


# -- modules of people's own -----------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """A Transformer encoder of PyTorch over padded rows, its head tied to the embedding, results nested."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu", dropout=0.0)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> dict[str, Any]:
        padded = tokens == 0
        x = self.encoder(self.embed(tokens), src_key_padding_mask=padded)
        kept = x.masked_fill(padded[..., None], 0)
        return {"scores": self.head(x), "pooled": (kept.sum(1) / (~padded).sum(1, keepdim=True), [x.amax(1)])}


class Pictures(nn.Module):
    """Convolutions, norms that keep statistics, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.groups = nn.Conv2d(8, 8, 3, padding="same", groups=2), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.first(image))), 2)
        x = functional.avg_pool2d(functional.silu(self.groups(self.second(x))) + x, 2)
        return functional.log_softmax(self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1)), -1)


class Writer(nn.Module):
    """A small GPT as people write it: one packed projection, a mask in a buffer, attention in parts, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(30, 16), nn.Embedding(32, 16)
        self.qkv, self.proj, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.wte.weight
        self.register_buffer("mask", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b, t = idx.size()
        x = self.wte(idx) + self.wpe(torch.arange(t, device=idx.device))
        q, k, v = (z.view(b, t, 4, 4).transpose(1, 2) for z in self.qkv(self.norm(x)).split(16, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(4))
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = (functional.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, 16)
        x = x + self.proj(y)
        x = x + self.mlp(x)
        return self.head(x), x[:, -1]


class Reader(nn.Module):
    """Attention of PyTorch over another sequence: shared keys, a causal mask over two lengths, bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        u = y.shape[1]
        q, k, v = self.q(x), self.k(y), self.v(y)
        q, k, v = (z.view(b, -1, z.shape[-1] // 4, 4).transpose(1, 2) for z in (q, k, v))
        attend = functional.scaled_dot_product_attention
        seen = attend(q, k, v, is_causal=True, enable_gqa=True, scale=0.3)
        bias = -torch.arange(u).float().expand(b, 4, t, u)
        k, v = (z.repeat_interleave(2, 1) for z in (k, v))
        return (seen + attend(q, k, v, attn_mask=bias)).transpose(1, 2).flatten(2)


def tokens(rows: int, length: int) -> torch.Tensor:
    found = torch.randint(1, 20, (rows, length), generator=torch.Generator().manual_seed(rows))
    found[0, -2:] = 0
    return found


OWN: dict[str, tuple[type[nn.Module], Any, Any, Any]] = {
    "tagger": (Tagger, {"tokens": tokens(3, 7)}, {"tokens": {0: ROWS, 1: LENGTH}}, {"tokens": tokens(2, 9)}),
    "pictures": (
        Pictures,
        {"image": torch.randn(2, 3, 16, 16)},
        {"image": {0: ROWS}},
        {"image": torch.randn(3, 3, 16, 16)},
    ),
    "writer": (Writer, {"idx": tokens(2, 7)}, {"idx": {0: ROWS, 1: LENGTH}}, {"idx": tokens(3, 9)}),
    "reader": (
        Reader,
        {"x": torch.randn(2, 8, 16), "y": torch.randn(2, 7, 16)},
        {"x": {0: ROWS, 1: LENGTH}, "y": {0: ROWS, 1: OTHER}},
        {"x": torch.randn(3, 9, 16), "y": torch.randn(3, 4, 16)},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_module_of_ones_own_is_trained_and_served(name: str) -> None:
    make, traced, varies, given = OWN[name]
    torch.manual_seed(0)
    module = make().eval()
    model = mg.load(module, traced, dynamic_shapes=varies)
    ours = same(module, model, given, served=True)
    assert dict(ours.named_parameters()).keys() == dict(module.named_parameters()).keys()
    assert dict(ours.named_buffers()).keys() >= dict(module.named_buffers()).keys()
    for one in (module, ours):
        torch.optim.SGD(one.parameters(), 1e-4).step()
    own = dict(ours.named_parameters())
    for path, p in module.named_parameters():
        torch.testing.assert_close(own[path], p, atol=1e-5, rtol=1e-5)


def test_inputs_outputs_and_sizes_keep_their_names() -> None:
    make, traced, varies, _ = OWN["tagger"]
    model = mg.load(make().eval(), traced, dynamic_shapes=varies)
    assert dict(model.task.inputs) == {"tokens": "i64[rows,length]"}
    assert list(model.graph().outputs) == ["scores", "pooled.0", "pooled.1.0"]
    assert model.name == "Tagger"
    one = mg.load(nn.Linear(3, 2), torch.randn(4, 3))
    assert (dict(one.task.inputs), list(one.graph().outputs)) == ({"input": "f32[4,3]"}, ["output"])


def test_attention_is_one_op_with_its_heads_shared() -> None:
    make, traced, varies, _ = OWN["reader"]
    graph = mg.load(make().eval(), traced, dynamic_shapes=varies).graph()
    first, second = (n for n in graph if n.op.name == "attention")
    assert first.value("k").shape[2] == 2
    assert first.value("mask").shape == tuple(map(parse_dim, ("length", "other")))
    assert not first.attributes["causal"]
    assert second["mask"] is None
    assert second["bias"] is not None


def test_a_causal_call_of_one_length_is_causal() -> None:
    class Causal(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = torch.randn(2, 3, 8, 4)
    model = mg.load(Causal(), {"x": x}, dynamic_shapes={"x": {2: LENGTH}})
    (node,) = (n for n in model.graph() if n.op.name == "attention")
    assert node.attributes["causal"]
    assert node["mask"] is None
    same(Causal(), model, {"x": torch.randn(2, 3, 9, 4)}, served=True)
    for shape in ((5, 4), (3, 6, 4), (2, 3, 2, 6, 4)):
        y = torch.randn(shape)
        same(Causal(), mg.load(Causal(), {"x": y}), {"x": y})


# -- parameters, buffers, constants ----------------------------------------------------------------------------------


def test_tensors_of_the_module_are_shared_and_ties_are_one() -> None:
    make, traced, varies, _ = OWN["writer"]
    module = make().eval()
    model = mg.load(module, traced, dynamic_shapes=varies)
    assert "head.weight" not in model.weights
    assert np.shares_memory(model.weights.numpy("wte.weight"), module.wte.weight.detach().numpy())
    with torch.no_grad():
        module.wte.weight[0, 0] = 7.0
    assert model.weights.numpy("wte.weight")[0, 0] == 7.0


def test_buffers_do_not_train_and_frozen_parameters_stay_parameters() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.still = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4), requires_grad=False)
            self.unread = nn.Parameter(torch.ones(2))
            self.register_buffer("kept", torch.full((4,), 2.0))
            self.register_buffer("hidden", torch.full((4,), 3.0), persistent=False)
            self.plain = torch.full((4,), 5.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w * self.still * self.kept + self.hidden + self.plain + torch.tensor([1.0, 2, 3, 4])

    module = Scaled()
    ours = same(module, mg.load(module, torch.randn(3, 4)), {"x": torch.randn(3, 4)}, served=True)
    assert {k: p.requires_grad for k, p in ours.named_parameters()} == {"w": True, "still": False, "unread": True}
    assert ours.state_dict().keys() == module.state_dict().keys()


def test_no_gradient_flows_where_none_does() -> None:
    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.table = nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(5, 4, padding_idx=2)

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                scale = self.a(x).exp() * self.b(x)
            return self.b(x) * scale + self.a(x).detach() + self.table(ids)

    module = Stopped()
    given = {"x": torch.randn(3, 4), "ids": torch.tensor([2, 1, 2])}
    ours = same(module, mg.load(module, given), given, served=True)
    assert ours.a.weight.grad is None
    assert not ours.table.weight.grad[2].any()
    assert mg.load(module, given).graph().counts()["detach"] == 3


def test_dropout_stays_in_a_module_in_training_mode() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2)).train()
    model = mg.load(module, torch.randn(2, 6))
    assert model.graph().counts()["dropout"] == 1
    ours, x = mg.to_torch(model), torch.ones(2, 6)
    assert float((ours.train()(input=x)["output"] - ours(input=x)["output"]).abs().max()) > 0
    torch.testing.assert_close(ours.eval()(input=x)["output"], module.eval()(x))
    assert "dropout" not in mg.load(module.eval(), torch.randn(2, 6)).graph().counts()


def test_half_precision_keeps_its_types() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).bfloat16()
    model = mg.load(module, torch.randn(2, 4, dtype=torch.bfloat16))
    assert str(model.graph(mg.DType.bf16).params["0.weight"].type) == "bf16[4,4]"
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    ours = mg.to_torch(model, mg.DType.bf16)
    torch.testing.assert_close(ours(input=x)["output"], module(x), atol=2e-2, rtol=2e-2)


def test_an_exported_program_comes_in_as_well() -> None:
    make, traced, varies, given = OWN["writer"]
    module = make().eval()
    program = torch.export.export(module, (), traced, dynamic_shapes=varies, strict=False)
    model = mg.load(program)
    same(module, model, given)
    with pytest.raises(mg.MonographError, match="has its example inputs"):
        mg.load(program, traced)


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_with_floors_and_bounds() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 3, 3, stride=2, padding=1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.conv(x), x[:, :, : x.shape[2] // 2]

    half = Dim("half", min=2, max=40)
    model = mg.load(Strided(), {"x": torch.randn(2, 3, 8)}, dynamic_shapes={"x": {2: 2 * half}})
    assert [str(v.type) for v in model.graph().outputs.values()] == ["f32[2,3,half]", "f32[2,3,half]"]
    module = Strided()
    model = mg.load(module, {"x": torch.randn(2, 3, 8)}, dynamic_shapes={"x": {2: 2 * half}})
    same(module, model, {"x": torch.randn(2, 3, 14)}, served=True)
    with pytest.raises(NotImportableError, match=r"may leave any rest|may not divide") as caught:
        mg.load(module, {"x": torch.randn(2, 3, 8)}, dynamic_shapes={"x": {2: Dim.DYNAMIC}})
    assert "test_torch_export.py" in caught.value.details[0]


def test_floor_rest_largest_and_smallest_of_sizes() -> None:
    dims = Dims({}, {"s0": 2, "s1": 2})
    s, t = parse_dim("s0"), parse_dim("s1")
    assert dims.floor(4 * s + 7, 2) == 2 * s + 3
    assert dims.rest(4 * s + 7, 2) == 1
    assert dims.largest(1, s) == s
    assert dims.largest(2, s + t) == s + t
    assert dims.smallest(s, s + t, s + 3) == s
    assert dims.power(s, 2) == s * s
    for wrong in (
        lambda: dims.floor(s, 2),
        lambda: dims.rest(s + 1, 2),
        lambda: dims.largest(s, t),
        lambda: dims.power(s, -1),
    ):
        with pytest.raises(UnknownFormError):
            wrong()
