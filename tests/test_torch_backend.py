"""The PyTorch module: names, dynamic shapes, compilation, autocast, dropout, checkpoints, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monograph.backends.torch import load_state, save_state, state_of, to_inputs, to_torch
from monograph.backends.torch.attention import SDPA, AttentionToSDPA
from monograph.backends.torch.lower import prepare
from monograph.ir import OPS, Graph, Init, building, interpret, ops, parse, print_graph, tensor, verify
from monograph.ir.errors import LoweringError, RuntimeInputError, WeightsError
from monograph.ir.types import Dim, DType, bf16, f32, f64, i64
from monograph.ir.weights import Weights
from monograph.passes.pattern import apply_rewrites
from op_cases import CASES, Case

pytestmark = pytest.mark.slow

WIDTH, HEADS, VOCAB = 16, 2, 11


def block(graph: Graph, x: Any, mask: Any, path: str, dtype: DType, p: float) -> Any:
    """Pre-norm decoder block with fused residual norm, grouped-query attention, dropout and a gated MLP."""

    def weight(name: str, *shape: int) -> Any:
        return graph.param(f"{path}.{name}.weight", tensor(dtype, *shape), Init("normal", 0.2))

    normed = ops.rms_norm(x, graph.param(f"{path}.norm1.weight", tensor(dtype, WIDTH), Init("ones")))
    q = ops.linear(normed, weight("q_proj", WIDTH, WIDTH)).split_heads(HEADS)
    k = ops.linear(normed, weight("k_proj", WIDTH // 2, WIDTH)).split_heads(1)
    v = ops.linear(normed, weight("v_proj", WIDTH // 2, WIDTH)).split_heads(1)
    y = ops.linear(ops.attention(q, k, v, mask=mask, causal=True).merge_heads(), weight("o_proj", WIDTH, WIDTH))
    norm2 = graph.param(f"{path}.norm2.weight", tensor(dtype, WIDTH), Init("ones"))
    normed, x = ops.add_rms_norm(ops.dropout(y, p=p), x, norm2)
    up, down = weight("up_proj", 24, WIDTH), weight("down_proj", WIDTH, 24)
    return x + ops.gated_feed_forward(normed, weight("gate_proj", 24, WIDTH), up, down, activation="silu")


def small(dtype: DType = f32, masked: bool = True, p: float = 0.0, loss: bool = False) -> Graph:
    """Two blocks, tied embedding, constant position scales, optionally a loss."""
    graph = Graph("small")
    with building(graph):
        ids = graph.input("input_ids", tensor(i64, "B", "S"))
        mask = None
        if masked:
            given = graph.input("attention_mask", tensor(i64, "B", "S"))
            mask = given.cast(DType.bool_).reshape(*given.shape[:1], 1, 1, given.shape[1])
        table = graph.param("model.embed.weight", tensor(dtype, VOCAB, WIDTH), Init("normal", 0.5))
        scales = ops.constant(value=tuple(1.0 + i / 16 for i in range(WIDTH)), dtype=dtype)
        x = ops.embedding(ids, table) * scales
        for i in range(2):
            x = block(graph, x, mask, f"model.layers.{i}", dtype, p)
        logits = ops.linear(x, table)
        graph.output("logits", logits)
        if loss:
            graph.output("loss", ops.cross_entropy(logits, graph.input("labels", tensor(i64, "B", "S"))))
    return graph


def batch(rows: int, length: int, padding: str = "left") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    mask = torch.ones(rows, length, dtype=torch.long)
    if padding == "left":
        mask[0, :2] = 0
    elif padding == "right":
        mask[0, -2:] = 0
    return {"input_ids": torch.randint(0, VOCAB, (rows, length), generator=generator), "attention_mask": mask}


def reference(graph: Graph, inputs: dict[str, torch.Tensor], seed: int = 0) -> dict[str, Any]:
    weights = Weights.initialize(graph, seed)
    return interpret(graph, {k: v.numpy() for k, v in inputs.items()}, weights.numpy)


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
    other = copy.deepcopy(module)
    assert torch.equal(other(**inputs)["logits"], module(**inputs)["logits"])
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


# -- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, bf16, f64], ids=str)
def test_state_goes_to_safetensors_and_back(tmp_path: Path, dtype: DType) -> None:
    first, inputs = to_torch(small(dtype), seed=3), batch(2, 5)
    files = save_state(first, tmp_path)
    assert [f.name for f in files] == ["model.safetensors"]
    from safetensors.torch import load_file  # What other libraries would read.

    loaded = load_file(files[0])
    assert loaded.keys() == first.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in first.state_dict().items())
    second = to_torch(small(dtype), seed=4)
    load_state(second, tmp_path)
    assert torch.equal(first(**inputs)["logits"], second(**inputs)["logits"])
    third = to_torch(small(dtype), Weights.open(tmp_path))
    assert torch.equal(first(**inputs)["logits"], third(**inputs)["logits"])


def test_the_state_of_a_compiled_module_has_the_same_names() -> None:
    module = to_torch(small())
    compiled = torch.compile(module, backend="aot_eager")
    assert list(state_of(compiled)) == list(state_of(module)) == list(module.state_dict())
    load_state(compiled, state_of(to_torch(small(), seed=9)))
    assert torch.equal(module.get_parameter("model.embed.weight"), to_torch(small(), seed=9).model.embed.weight)


def test_a_state_is_loaded_into_another_width_and_does_not_alias(tmp_path: Path) -> None:
    source = to_torch(small(f64))
    target = to_torch(small(f32), state_of(source))
    assert target.get_parameter("model.embed.weight").dtype == torch.float32
    with torch.no_grad():
        source.get_parameter("model.embed.weight").zero_()
    assert target.get_parameter("model.embed.weight").abs().max() > 0


def test_parameters_that_nothing_reads_stay_in_the_checkpoint() -> None:
    graph = small()
    graph.param("pooler.weight", tensor(f32, 3), Init("ones"))
    module = to_torch(graph)
    assert torch.equal(copy.deepcopy(module).state_dict()["pooler.weight"], torch.ones(3))


def test_integer_parameters_are_buffers() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(i64, "N"))
    graph.output("y", x + graph.param("offset", tensor(i64, 1)))
    module = to_torch(graph, Weights.of({"offset": np.array([5])}))
    assert list(module.parameters()) == []
    assert module(x=torch.tensor([1, 2]))["y"].tolist() == [6, 7]


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
    with pytest.raises(LoweringError, match=r"dimension S is not a dimension of any input \(x: f32\[B\]\)"):
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


# -- errors ------------------------------------------------------------------------------------------------------


def test_missing_and_misshapen_weights_are_all_listed() -> None:
    graph = small()
    arrays = {k: t.numpy() for k, t in Weights.initialize(graph).items()}
    arrays["model.embed.weights"] = arrays.pop("model.embed.weight")
    arrays["model.layers.0.norm1.weight"] = np.ones(3, np.float32)
    arrays["model.layers.1.norm1.weight"] = np.ones(WIDTH, np.int64)
    with pytest.raises(WeightsError) as caught:
        to_torch(graph, Weights.of(arrays))
    text = str(caught.value)
    assert "3 differences" in text
    assert "missing: model.embed.weight: f32[11,16], did you mean 'model.embed.weights'?" in text
    assert "wrong: model.layers.0.norm1.weight is f32[3], expected f32[16]" in text
    assert "wrong: model.layers.1.norm1.weight is i64[16], expected f32[16]" in text


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    module = to_torch(small())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    arrays = {k: np.zeros(v.shape, np.float32) for k, v in before.items()}
    arrays["model.layers.1.down_proj.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(WeightsError, match=r"down_proj.weight is f32\[2,2\], expected f32\[16,24\]"):
        load_state(module, Weights.of(arrays))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": None}, r"input attention_mask: i64\[B,S\] is missing"),
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, r"axis 0 of attention_mask is 1, expected B = 2"),
        ({"attention_mask": torch.ones(2, 5)}, r"input attention_mask is f32, expected i64\[B,S\]"),
        ({"input_ids": torch.ones(5, dtype=torch.long)}, r"input_ids has shape \[5\], expected i64\[B,S\]"),
        ({"labels": torch.ones(2, 5, dtype=torch.long)}, r"there is no input called 'labels'"),
    ],
)
def test_inputs_that_break_the_contract(change: dict[str, torch.Tensor | None], message: str) -> None:
    inputs = {k: v for k, v in {**batch(2, 5), **change}.items() if v is not None}
    with pytest.raises(RuntimeInputError, match=message):
        to_torch(small())(**inputs)


def test_inputs_by_position_are_refused() -> None:
    with pytest.raises(RuntimeInputError, match="the inputs are input_ids, attention_mask"):
        to_torch(small())(*batch(2, 5).values())


def test_parameter_paths_that_collide() -> None:
    graph = Graph("g")
    a, b = graph.param("a", tensor(f32, 2), Init("ones")), graph.param("a.b", tensor(f32, 2), Init("ones"))
    graph.output("y", a + b)
    with pytest.raises(LoweringError, match=r"a.b cannot be the name of a parameter"):
        to_torch(graph)


def test_four_bit_tensors_are_refused() -> None:
    graph = Graph("g")
    graph.output("y", graph.input("x", tensor(f32, 2)).cast(DType.i4))
    with pytest.raises(LoweringError, match="PyTorch has no tensors of i4"):
        to_torch(graph)
