"""Adapters in the graph: the same numbers before, beside and merged; what can and cannot have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monograph.frontends.dsl import Model, load_family
from monograph.ir import Graph, Init, interpret, parse, tensor, verify
from monograph.ir.errors import PassError, WeightsError
from monograph.ir.tensors import Random
from monograph.ir.types import DType, bf16, f32, parse_type
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.differential import CASES, difference, random_params, sample_inputs
from monograph.passes.freeze import encode_frozen, quantize_frozen
from monograph.passes.lora import add_lora, lora_params, merge_lora, modules

LLAMA = {"vocab": 50, "dim": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2, "tied": True}
GPT2 = {"vocab": 50, "dim": 32, "layers": 2, "heads": 4, "max_positions": 32, "dropout": 0.0, "embedding_dropout": 0.0}
MODELS = {
    "llama": (load_family("llama")(**LLAMA), ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (load_family("gpt2")(**GPT2), ["c_attn", "mlp.c_proj"]),
}
LAYER = "model.layers.1.self_attn.q_proj"


def adapted(model: Model, targets: str | list[str], dropout: float = 0.0) -> Graph:
    graph = model.graph()
    add_lora(graph, 4, 6.0, targets, dropout)
    return verify(graph)


def test_parameters_start_as_peft_starts_them() -> None:
    graph = adapted(MODELS["llama"][0], ["q_proj", "k_proj"])
    assert str(graph.params[f"{LAYER}.lora_A.weight"].type) == "f32[4,32]"
    assert str(graph.params[f"{LAYER}.lora_B.weight"].type) == "f32[32,4]"
    assert len(lora_params(graph)) == 8
    start = Weights.initialize(graph, seed=3)
    down = start.numpy(f"{LAYER}.lora_A.weight")
    assert np.abs(down).max() <= 32**-0.5 + 1e-7
    assert np.abs(down).max() > 0.9 * 32**-0.5
    assert not start.numpy(f"{LAYER}.lora_B.weight").any()


def test_uniform_has_the_deviation_it_says() -> None:
    x = Random("x", tensor(f32, 400, 500), Init("uniform", 0.3), 0).numpy()
    assert x.std() == pytest.approx(0.3, rel=0.01)
    assert x.mean() == pytest.approx(0, abs=0.003)
    assert np.histogram(x, 4)[0].tolist() == pytest.approx([50_000] * 4, rel=0.03)
    graph = Graph("g")
    graph.output("y", graph.param("x", tensor(f32, 2), Init("uniform", 0.25)))
    assert parse(str(graph)).params["x"].init == Init("uniform", 0.25)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(name: str) -> None:
    model, targets = MODELS[name]
    plain, graph = model.graph(), adapted(model, targets, dropout=0.1)
    params = random_params(graph)
    inputs = sample_inputs(plain, CASES[2])
    want = interpret(plain, inputs, params)["logits"]
    found = interpret(graph, inputs, params)["logits"]
    assert np.abs(found - want).max() > 0.01
    fresh = {k: np.zeros_like(v) if k.endswith("lora_B.weight") else v for k, v in params.items()}
    np.testing.assert_array_equal(interpret(graph, inputs, fresh)["logits"], want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_merged_equals_beside_by_the_reference(name: str, dropout: float) -> None:
    model, targets = MODELS[name]
    graph = adapted(model, targets, dropout)
    layers = len(lora_params(graph)) // 2
    assert layers == 2 * len(targets)
    merged = graph.copy()
    assert merge_lora(merged) == layers
    verify(merged)
    assert merged.counts()["linear"] == model.graph().counts()["linear"]
    assert difference(graph, merged, tolerance=1e-5) is None
    for pipeline in (pipelines.encode, pipelines.decode):
        assert difference(graph, pipeline(merged), tolerance=1e-5) is None


def test_targets_are_names_or_a_pattern_or_all() -> None:
    model = MODELS["llama"][0]

    def found(targets: str | list[str]) -> set[str]:
        return {k.rpartition(".lora_")[0] for k in lora_params(adapted(model, targets))}

    every = set(modules(model.graph()))
    assert found("all-linear") == every
    assert len(every) == 14
    assert found([LAYER]) == {LAYER}
    assert found(r"model\.layers\.0\..*_proj") == {m for m in every if ".0." in m}
    assert found(["self_attn.o_proj"]) == {f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)}


def test_an_output_layer_of_its_own_can_be_named_but_is_not_in_all() -> None:
    model = load_family("llama")(**{**LLAMA, "tied": False})
    assert len(lora_params(adapted(model, "all-linear"))) == 28
    assert lora_params(adapted(model, ["lm_head"])) == ["lm_head.lora_A.weight", "lm_head.lora_B.weight"]


@pytest.mark.parametrize(
    ("rank", "dropout", "targets", "message"),
    [
        (0, 0.0, ["q_proj"], "rank is 0"),
        (4, 1.0, ["q_proj"], "dropout 1.0"),
        (4, 0.0, ["q_prj"], "target 'q_prj' names no linear layer with a weight of its own, did you mean 'q_proj'"),
        (4, 0.0, ["proj"], "target 'proj' names no linear layer"),
        (4, 0.0, [], "target '' names no linear layer"),
        (4, 0.0, ["lm_head"], "target 'lm_head' names no"),
        (4, 0.0, ["embed_tokens"], "target 'embed_tokens' names no linear layer"),
        (4, 0.0, "(", "target '\\(' is not a regular expression"),
    ],
)
def test_refusals_leave_the_graph_alone(rank: int, dropout: float, targets: str | list[str], message: str) -> None:
    graph = MODELS["llama"][0].graph()
    before = str(graph)
    with pytest.raises(PassError, match=message):
        add_lora(graph, rank, 4.0, targets, dropout)
    assert str(graph) == before


def test_two_adapters_on_one_layer_are_refused() -> None:
    graph = adapted(MODELS["llama"][0], ["q_proj"])
    with pytest.raises(PassError, match=r"layers.0.self_attn.q_proj already has an adapter"):
        add_lora(graph, 4, 4.0, ["q_proj", "v_proj"])
    assert len(lora_params(graph)) == 4


def test_what_cannot_be_merged_is_named() -> None:
    graph = parse("""graph g(%x: f32[B,8]) {
      param @a.weight: f32[8,8]
      param @b.lora_A.weight: f32[2,8]
      param @b.lora_B.weight: f32[8,2]
      %0 = linear(%x, @a.weight) : f32[B,8]
      %1 = linear(%x, @b.lora_A.weight) : f32[B,2]
      %2 = linear(%1, @b.lora_B.weight) : f32[B,8]
      %3 = constant(value=2.0, dtype=f32) : f32[]
      %4 = mul(%2, %3) : f32[B,8]
      %5 = add(%0, %4) : f32[B,8]
      return y=%5
    }""")
    with pytest.raises(PassError, match="2 adapter layers are not in the form") as e:
        merge_lora(graph)
    assert "@b.lora_A.weight: f32[2,8] is not the adapter of @a.weight" in str(e.value)


# -- a frozen base in 8 bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [f32, bf16])
def test_codes_stand_for_the_weights_within_half_a_scale(name: str, dtype: DType) -> None:
    model, targets = MODELS[name]
    graph = model.graph(dtype)
    add_lora(graph, 4, 6.0, targets)
    params = random_params(graph)
    params[next(k for k in graph.params if k.endswith("proj.weight"))][0] = 0
    frozen = graph.copy()
    types = quantize_frozen(frozen)
    verify(frozen)
    assert str(parse(str(frozen))) == str(frozen)
    assert len(types) == len(modules(model.graph()))
    assert set(lora_params(frozen)) == set(lora_params(graph))
    coded = encode_frozen(types, Weights.of(params))
    rounded = dict(params)
    for path, t in types.items():
        w, e, stored = params[path].astype(np.float32), t.encoding, coded[path].stored()
        assert e is not None
        codes, scales = e.codes(stored)[:, 0], e.scales(stored)[:, 0]
        assert (codes.dtype, scales.dtype, scales.shape[1]) == (np.int8, dtype.numpy, 1)
        rounded[path] = coded[path].numpy()
        lines = np.moveaxis(w, e.axis, -1)
        np.testing.assert_array_equal(rounded[path], np.moveaxis(codes.astype(scales.dtype) * scales, -1, e.axis))
        slack = 0.501 if dtype == f32 else 1.1  # The product is rounded to 8 bits of mantissa.
        off = np.abs(np.moveaxis(rounded[path].astype(np.float32), e.axis, -1) - lines)
        assert (off <= slack * scales.astype(np.float32)).all()
        assert (np.abs(codes).max(1) >= 126)[np.abs(lines).max(1) > 0].all()
    inputs = sample_inputs(graph, CASES[3])
    want = interpret(graph, inputs, rounded)["logits"]
    found = interpret(frozen, inputs, params | {k: t.stored() for k, t in coded.items()})["logits"]
    np.testing.assert_array_equal(found, want)


def test_weights_that_are_not_finite_have_no_codes() -> None:
    coded = encode_frozen({"a": parse_type("f32[1,2]<int8>")}, Weights.of({"a": np.array([[1, np.inf]], np.float32)}))
    with pytest.raises(WeightsError, match="not finite"):
        coded["a"].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_codes_on_torch_give_the_same_gradients_and_keep_no_float_weight(name: str) -> None:
    import torch
    from monograph.backends.torch import state_of, to_inputs, to_torch

    model, targets = MODELS[name]
    graph = adapted(model, targets)
    params = random_params(graph)
    frozen = graph.copy()
    types = quantize_frozen(frozen)
    coded = encode_frozen(types, Weights.of(params))
    rounded = {k: t.numpy() for k, t in coded.items()}
    inputs = to_inputs(sample_inputs(graph, CASES[2]))
    found: list[dict[str, torch.Tensor]] = []
    saved: list[set[tuple[tuple[int, ...], torch.dtype]]] = []
    for g, weights in ((graph, Weights.of(params | rounded)), (frozen, Weights.of(params) | coded)):
        module = to_torch(pipelines.train(g), weights)
        for k, p in module.named_parameters():
            p.requires_grad_("lora_" in k)
        kept = set()

        def keep(x: torch.Tensor, kept: set[tuple[tuple[int, ...], torch.dtype]] = kept) -> torch.Tensor:
            kept.add((tuple(x.shape), x.dtype))
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            logits = module(**inputs)["logits"]
        logits.square().mean().backward()
        grads = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
        found.append({"logits": logits.detach(), **grads})
        saved.append(kept)
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 1 + len(lora_params(graph))
    for k, want in found[0].items():
        torch.testing.assert_close(found[1][k], want, atol=1e-5, rtol=1e-4, msg=k)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs)["logits"], logits)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = module(**inputs)["logits"]
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), logits.float(), atol=0.03 * float(logits.detach().abs().max()), rtol=0)
    shapes = {coded[k].shape for k in types}
    held = {coded[k].stored().shape for k in types}
    floats = {s for s, dtype in saved[1] if dtype == torch.float32}
    assert not shapes & (floats | {s[::-1] for s in floats if len(s) == 2})
    assert held & {s for s, dtype in saved[1] if dtype == torch.uint8}
    assert all(np.array_equal(state_of(module)[k].stored(), coded[k].stored()) for k in types)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_beside_and_merged_on_torch_and_onnx_runtime(name: str, tmp_path: Path) -> None:
    import onnxruntime
    import torch
    from monograph.backends.onnx import lower, save
    from monograph.backends.torch import to_inputs, to_torch

    model, targets = MODELS[name]
    graph = adapted(model, targets)
    weights = Weights.of(random_params(graph))
    inputs = sample_inputs(graph, CASES[3])
    keep = inputs["attention_mask"].astype(bool)
    want = interpret(graph, inputs, {k: weights.numpy(k) for k in graph.params})["logits"][keep]
    merged = graph.copy()
    merge_lora(merged)
    for variant in (pipelines.train(graph), pipelines.train(merged)):
        with torch.no_grad():
            found = to_torch(variant, weights).eval()(**to_inputs(inputs))["logits"].numpy()
        np.testing.assert_allclose(found[keep], want, atol=1e-5, rtol=0)
    exported = lower(pipelines.encode(merged), weights)
    names = {v.name for v in exported.graph.initializers.values()}
    assert not any("lora" in str(k) for k in names), "the adapter is inside the weights"
    assert exported.graph.num_nodes() == lower(pipelines.encode(model.graph()), weights).graph.num_nodes()
    save(exported, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], inputs)
    np.testing.assert_allclose(found[keep], want, atol=1e-5, rtol=0)
