"""The PyTorch module: names, dynamic shapes, compilation, autocast, dropout, checkpoints, errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monograph.backends.torch import to_inputs, to_torch
from monograph.backends.torch.attention import SDPA, AttentionToSDPA
from monograph.backends.torch.lower import prepare
from monograph.ir import OPS, Graph, Init, building, interpret, ops, parse, print_graph, tensor, verify
from monograph.ir.errors import LoweringError, RuntimeInputError
from monograph.ir.types import Dim, bf16, f32, f64
from monograph.passes.pattern import apply_rewrites
from op_cases import CASES, Case
from torch_graphs import WIDTH, batch, reference, small

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("rows", [1, 3])
def test_matches_reference_for_every_length_and_padding(rows: int, padding: str) -> None:
    graph = small(f64)
    module = to_torch(graph)
    for length in (4, 7):
        inputs = batch(rows, length, padding)
        want = reference(graph, inputs)["logits"]
        np.testing.assert_allclose(module(**inputs)["logits"].detach().numpy(), want, rtol=1e-12, atol=1e-12)


def test_parameters_have_checkpoint_names_and_tied_weights_are_one() -> None:
    graph = small()
    module = to_torch(graph)
    assert sorted(k for k, _ in module.named_parameters()) == sorted(graph.params)
    assert sorted(module.state_dict()) == sorted(graph.params)
    assert module.get_parameter("model.layers.1.q_proj.weight").shape == (WIDTH, WIDTH)
    inputs = batch(2, 5)
    before = module(**inputs)["logits"]
    with torch.no_grad():
        module.get_parameter("model.embed.weight").mul_(2.0)
    assert not torch.allclose(module(**inputs)["logits"], 2 * before)  # Doubled on both ends, so not just twice.


def test_seed_decides_the_initial_weights() -> None:
    first, again, other = (to_torch(small(), seed=s).state_dict()["model.embed.weight"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std() == pytest.approx(0.5, rel=0.2)


def test_attention_is_causal_without_a_mask_and_one_shared_mask_otherwise() -> None:
    plain = [n for n in prepare(small(masked=False)) if n.op is SDPA]
    assert [n.attributes["causal"] for n in plain] == [True, True]
    assert all(n.operands[3] is None for n in plain)
    masked = prepare(small())
    calls = [n for n in masked if n.op is SDPA]
    assert len(calls) == 2
    assert calls[0].operands[3] is calls[1].operands[3] is not None
    assert masked.counts()["iota"] == 1
    verify(masked)


ATTENTION = [c for c in CASES if c.op == "attention"]


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_rewrite_keeps_the_values(case: Case) -> None:
    graph, inputs = case.graph(f64), case.arrays(dtype=f64)
    want = interpret(graph, inputs)["output0"]
    report = apply_rewrites(graph, [AttentionToSDPA()])
    expected = not case.attributes.get("softcap") and case.inputs["sinks"] is None
    assert report.counts["AttentionToSDPA"] == expected
    verify(graph)
    assert print_graph(parse(print_graph(graph), {**OPS, SDPA.name: SDPA})) == print_graph(graph)
    np.testing.assert_allclose(interpret(graph, inputs)["output0"], want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["mask", "bias"])
def test_rows_without_keys_are_zero_with_finite_gradients(kind: str) -> None:
    case = next(c for c in ATTENTION if c.note == {"mask": "mask, empty row", "bias": "bias, empty row"}[kind])
    inputs = to_inputs(case.arrays())
    for name in case.differentiable:
        inputs[name].requires_grad_()
    y = to_torch(case.graph())(**inputs)["output0"]
    assert torch.equal(y[0, 0], torch.zeros_like(y[0, 0]))
    y.square().sum().backward()
    for name in case.differentiable:
        assert torch.isfinite(inputs[name].grad).all(), name
    assert torch.equal(inputs["q"].grad[0, 0], torch.zeros_like(y[0, 0, :, :1]).expand(2, 4))


def test_compiles_without_graph_breaks_for_two_lengths() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # Of what other tests compiled in this process.
    module = to_torch(small(loss=True))
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, length in ((2, 5), (3, 9), (4, 6)):
        inputs = batch(rows, length)
        inputs["labels"] = inputs["input_ids"].roll(-1, 1)
        want, have = module(**inputs), compiled(**inputs)
        torch.testing.assert_close(have, want)
        for p in module.parameters():
            p.grad = None
        have["loss"].backward()
        compiled_gradient = module.get_parameter("model.layers.0.q_proj.weight").grad.clone()
        for p in module.parameters():
            p.grad = None
        want["loss"].backward()
        torch.testing.assert_close(compiled_gradient, module.get_parameter("model.layers.0.q_proj.weight").grad)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_autocast_computes_in_bfloat16_and_keeps_f32_gradients() -> None:
    module, inputs = to_torch(small()), batch(2, 6)
    want = module(**inputs)["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        have = module(**inputs)["logits"]
    assert have.dtype == torch.bfloat16
    assert 0 < (have.float() - want).abs().max() / want.abs().max() < 0.05
    have.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("case", [c for c in CASES if c.differentiable], ids=str)
def test_every_op_goes_forward_and_back_under_autocast(case: Case) -> None:
    """Autocast mixes widths inside one graph; no op may mind."""
    module, inputs = to_torch(case.graph(symbolic=True)).eval(), to_inputs(case.arrays())
    want = module(**inputs)
    for name in case.differentiable:
        inputs[name].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        have = module(**inputs)
    for name, y in have.items():
        scale = want[name].detach().float().abs().max().item() if y.numel() else 1.0
        torch.testing.assert_close(y.float(), want[name].float(), rtol=0.05, atol=0.05 * scale)
        if y.requires_grad:
            y.float().sum().backward(retain_graph=True)
    assert all(inputs[k].grad is None or torch.isfinite(inputs[k].grad).all() for k in case.differentiable)


def test_a_bf16_graph_has_bf16_parameters_and_is_near_f32() -> None:
    inputs = batch(2, 6)
    half, full = to_torch(small(bf16))(**inputs)["logits"], to_torch(small())(**inputs)["logits"]
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() / full.abs().max() < 0.05


def test_dropout_follows_training_mode() -> None:
    module, inputs = to_torch(small(p=0.5)), batch(2, 6)
    torch.manual_seed(0)
    first, second = module(**inputs)["logits"], module(**inputs)["logits"]
    assert not torch.equal(first, second)
    module.eval()
    np.testing.assert_allclose(
        module(**inputs)["logits"].detach().numpy(), reference(small(), inputs)["logits"], rtol=1e-4, atol=1e-5
    )


def test_dropout_keeps_the_expected_value() -> None:
    graph = Graph("g")
    graph.output("y", ops.dropout(graph.input("x", tensor(f32, "N")), p=0.25))
    torch.manual_seed(0)
    y = to_torch(graph)(x=torch.ones(20000))["y"]
    assert (y == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert y.mean() == pytest.approx(1.0, abs=0.02)


def test_constants_follow_the_device_but_not_the_dtype() -> None:
    module = to_torch(small())
    assert {b.device.type for b in module.to("meta").buffers()} == {"meta"}
    module = to_torch(small()).to(torch.bfloat16)
    assert module.get_parameter("model.embed.weight").dtype == torch.bfloat16
    (scales,) = module.buffers()
    assert scales.dtype == torch.float32
    assert torch.equal(scales, 1.0 + torch.arange(WIDTH) / 16)


@pytest.mark.parametrize("case", [c for c in CASES if c.inputs], ids=str)
def test_every_op_stays_on_the_device_of_its_inputs(case: Case) -> None:
    """On the meta device, where a constant left on the CPU or a wait for a number is an error."""
    module = to_torch(case.graph(symbolic=True)).to("meta").eval()
    inputs = {k: v.to("meta") for k, v in to_inputs(case.arrays()).items()}
    for name, y in module(**inputs).items():
        assert y.device.type == "meta"
        assert tuple(y.shape) == case.graph().outputs[name].shape


def test_a_deep_copy_computes_the_same_on_its_own_parameters() -> None:
    module, inputs = to_torch(small()), batch(2, 5)
    other = copy.deepcopy(copy.deepcopy(module.eval()))
    assert torch.equal(other(**inputs)["logits"], module(**inputs)["logits"])
    assert (other.training, other.plan) == (False, None)
    with pytest.raises(RuntimeInputError, match="is missing"):
        other(**{k: inputs[k] for k in list(inputs)[1:]})
    assert list(other.state_dict()) == list(module.state_dict())
    with torch.no_grad():
        module.get_parameter("model.embed.weight").zero_()
    assert other(**inputs)["logits"].abs().max() > 0


def test_a_step_of_training_lowers_the_loss() -> None:
    module, inputs = to_torch(small(loss=True)), batch(4, 8)
    inputs["labels"] = inputs["input_ids"]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = module(**inputs)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# -- symbols and names -------------------------------------------------------------------------------------------


def test_dotted_inputs_and_sums_of_symbols() -> None:
    graph = Graph("decode")
    with building(graph):
        past = graph.input("past_key_values.0.key", tensor(f32, "B", 2, "P", 4))
        new = graph.input("lambda", tensor(f32, "B", "S", 2, 4))
        keys = ops.cache_append(past, new)
        graph.output("present.0.key", keys)
        graph.output("positions", ops.iota(start=past.shape[2], length=keys.shape[2] * 2))
    inputs = {"past_key_values.0.key": torch.randn(2, 2, 3, 4), "lambda": torch.randn(2, 5, 2, 4)}
    out = to_torch(graph)(**inputs)
    assert torch.equal(
        out["present.0.key"], torch.cat([inputs["past_key_values.0.key"], inputs["lambda"].mT.mT.transpose(1, 2)], 2)
    )
    assert out["positions"].tolist() == list(range(3, 3 + 16))


def test_a_symbol_that_no_input_shows_is_an_error() -> None:
    graph = Graph("g")
    with building(graph):
        x = graph.input("x", tensor(f32, "B"))
        graph.output("y", ops.iota(start=0, length=Dim.symbol("S")))
        graph.output("z", x + 1.0)
    with pytest.raises(LoweringError, match=r"dimension S does not follow from any input \(x: f32\[B\]\)"):
        to_torch(graph)


def test_outputs_may_be_constants_inputs_and_parameters() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(f32, 2))
    w = graph.param("w", tensor(f32, 2), Init("ones"))
    graph.output("same", x)
    graph.output("weight", w)
    graph.output("number", graph.constant(2.5, f32))
    out = to_torch(graph)(x=torch.zeros(2))
    assert out["same"].tolist() == [0, 0]
    assert out["weight"].tolist() == [1, 1]
    assert out["number"].item() == 2.5


def test_constants_keep_the_rounding_of_their_dtype() -> None:
    graph = Graph("g")
    graph.output("y", graph.input("x", tensor(bf16, 1)).cast(f32) * graph.constant(0.1, bf16).cast(f32))
    y = to_torch(graph)(x=torch.ones(1, dtype=torch.bfloat16))["y"]
    assert y.item() == torch.tensor(0.1).bfloat16().item() != pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("path", ["class.weight", "layers.0.in.weight", "None"])
def test_a_keyword_of_python_is_no_name_of_a_parameter(path: str) -> None:
    graph = Graph("g")
    graph.output("y", graph.param(path, tensor(f32, 2), Init("ones")) + 1)
    with pytest.raises(LoweringError, match=f"{path} cannot be the name of a parameter .* keyword of Python"):
        to_torch(graph)
