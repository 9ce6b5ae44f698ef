"""The portable ONNX backend: rewrites, symbolic shapes, stored weights, and whole decoders in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir
import pytest
from monograph.backends.onnx import PORTABLE, Builder, lower
from monograph.backends.onnx.lower import folded_values
from monograph.backends.onnx.rewrites import AS_IT_IS
from monograph.backends.onnxruntime.rewrites import mask_variant
from monograph.backends.target import Target
from monograph.ir import Graph, Op, Value, building, interpret
from monograph.ir.builder import enter_scope
from monograph.ir.errors import LoweringError, WeightsError
from monograph.ir.init import Init
from monograph.ir.ops import (
    attention,
    cache_append,
    cache_read,
    cast,
    concat,
    constant,
    embedding,
    equal,
    iota,
    linear,
    logical_not,
    reshape,
    rms_norm,
    rope,
    rope_frequencies,
    silu,
)
from monograph.ir.types import Dim, TensorType, bf16, f16, f32, f64, i8, i64, parse_type, substitute, tensor
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from op_cases import CASES, Case
from test_onnx_ops import assert_same, run

HEADS, KV_HEADS, WIDTH, VOCAB, HIDDEN, LAYERS = 4, 2, 8, 32, 24, 2
CHANNELS = HEADS * WIDTH


def decoder(dtype: Any = f32, tied: bool = True, window: int | None = None) -> Graph:
    """Two llama layers, written with the ops themselves."""
    g = Graph("decoder")
    ids, seen, positions = (g.input(k, tensor(i64, "B", "S")) for k in ("input_ids", "attention_mask", "position_ids"))

    def p(name: str, *shape: int) -> Value:
        return g.param(name, tensor(dtype, *shape), Init("normal", 0.3) if len(shape) > 1 else Init("ones"))

    with building(g):
        table = p("embed.weight", VOCAB, CHANNELS)
        x = embedding(ids, table)
        frequencies = constant(value=tuple(rope_frequencies(WIDTH, 100.0)[0]), dtype=f32)
        mask = reshape(logical_not(equal(seen, constant(value=0, dtype=i64))), shape=(ids.shape[0], 1, 1, ids.shape[1]))
        for i in range(LAYERS):
            n = f"layers.{i}"
            enter_scope(g, n)
            h = rms_norm(x, p(f"{n}.norm1.weight", CHANNELS))
            q = linear(h, p(f"{n}.q.weight", CHANNELS, CHANNELS)).split_heads(HEADS)
            k = linear(h, p(f"{n}.k.weight", KV_HEADS * WIDTH, CHANNELS)).split_heads(KV_HEADS)
            v = linear(h, p(f"{n}.v.weight", KV_HEADS * WIDTH, CHANNELS)).split_heads(KV_HEADS)
            q, k = rope(q, positions, frequencies), rope(k, positions, frequencies)
            y = attention(q, k, v, mask=mask, causal=True, window=window)
            x = x + linear(y.merge_heads(), p(f"{n}.o.weight", CHANNELS, CHANNELS))
            h = rms_norm(x, p(f"{n}.norm2.weight", CHANNELS))
            up = linear(h, p(f"{n}.up.weight", HIDDEN, CHANNELS))
            h = silu(linear(h, p(f"{n}.gate.weight", HIDDEN, CHANNELS))) * up
            x = x + linear(h, p(f"{n}.down.weight", CHANNELS, HIDDEN))
        enter_scope(g, "")
        g.output("logits", linear(x, table if tied else p("lm_head.weight", VOCAB, CHANNELS)))
    return g


def arrays(weights: Weights) -> dict[str, np.ndarray]:
    return {k: weights.numpy(k) for k in weights}


def positions_of(seen: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(seen, axis=1) - 1, 0)


MASKS = {
    "all ones": np.ones((3, 6), np.int64),
    "right padded": np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 1 + [0] * 5]),
    "left padded": np.array([[1] * 6, [0] * 2 + [1] * 4, [0] * 5 + [1]]),
    "holed": np.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 1]]),
    "one row empty": np.array([[1] * 6, [0] * 6, [1] * 6]),
}


def prompt(seen: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, VOCAB, seen.shape)
    return {"input_ids": ids, "attention_mask": seen, "position_ids": positions_of(seen)}


def past(batch: int, length: int, values: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Cache inputs: empty ones, or the presents of a run."""
    if values is not None:
        return {k.replace("present", "past_key_values"): v for k, v in values.items() if k.startswith("present")}
    empty = np.zeros((batch, KV_HEADS, length, WIDTH), np.float32)
    return {f"past_key_values.{i}.{k}": empty for i in range(LAYERS) for k in ("key", "value")}


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mask", MASKS)
def test_decoder_with_growing_cache(mask: str, batch: int, window: int | None) -> None:
    graph = decoder(window=window)
    weights = Weights.initialize(graph, seed=1)
    params = arrays(weights)
    seen = MASKS[mask][:batch]
    full = prompt(seen)
    wanted = interpret(graph, full, params)["logits"]
    decode = pipelines.decode(graph)
    model = lower(decode, weights)
    assert_same(run(lower(pipelines.encode(graph), weights), full), {"logits": wanted})

    first = {k: v[:, :4] for k, v in full.items()} | past(batch, 0)
    got = run(model, first)
    assert_same(got, interpret(decode, first, params))
    logits = [got["logits"]]
    for t in (4, 5):
        step = {k: v[:, t : t + 1] for k, v in full.items()} | past(batch, t, got)
        step["attention_mask"] = seen[:, : t + 1]
        got = run(model, step)
        assert_same(got, interpret(decode, step, params))
        logits.append(got["logits"])
    assert_same({"logits": np.concatenate(logits, axis=1)}, {"logits": wanted})
    assert np.isfinite(wanted).all()


def counts(model: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_a_decoder_layer_has_no_reshapes_and_shares_its_mask() -> None:
    graph = decoder()
    model = lower(pipelines.decode(graph), Weights.initialize(graph))
    found = counts(model)
    assert found["Attention"] == LAYERS and found["RotaryEmbedding"] == 2 * LAYERS
    assert found["RMSNormalization"] == 2 * LAYERS and found["Where"] == LAYERS
    assert found["Reshape"] == 0 and found["Transpose"] == 1, "only the tied embedding is transposed"
    assert found["Cos"] == found["Sin"] == found["LessOrEqual"] == found["And"] == found["ReduceMax"] == 1
    assert {node.domain for node in model.graph} == {""} and model.opset_imports == {"": 23}


def test_nodes_carry_layer_and_source_line() -> None:
    graph = decoder()
    model = lower(pipelines.decode(graph), Weights.initialize(graph))
    (attention_node, *_) = (n for n in model.graph if n.op_type == "Attention")
    assert attention_node.name == "layers.0/Attention"
    assert attention_node.metadata_props["scope"] == "layers.0"
    source = attention_node.metadata_props["source"]
    assert source.startswith("test_onnx_backend.py:") and source.rpartition(":")[2].isdigit()
    products = {n.name for n in model.graph if n.op_type == "MatMul"}
    assert {"layers.1.q/MatMul", "layers.1.down/MatMul"} <= products
    names = [n.name for n in model.graph]
    assert len(set(names)) == len(names)


def test_symbols_get_the_names_of_the_ecosystem() -> None:
    graph = decoder()
    model = lower(pipelines.decode(graph), Weights.initialize(graph))
    shapes = {v.name: [str(d) for d in v.shape or ()] for v in (*model.graph.inputs, *model.graph.outputs)}
    both = "past_sequence_length + sequence_length"
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", both]
    assert shapes["past_key_values.0.key"] == ["batch_size", "2", "past_sequence_length", "8"]
    assert shapes["present.1.value"] == ["batch_size", "2", both, "8"]


def test_distinct_symbols_stay_distinct() -> None:
    g = Graph("names")
    x = g.input("x", tensor(f32, "B", "batch_size", "Q"))
    g.output("y", x + x)
    model = lower(g, {})
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["B", "batch_size", "Q"]


# -- rewrites -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbolic", [False, True], ids=["numbers", "symbols"])
@pytest.mark.parametrize("case", [c for c in CASES if c.op in ("attention", "rope")], ids=str)
def test_target_ops_mean_the_same_to_the_reference(case: Case, symbolic: bool) -> None:
    graph = case.graph(symbolic=symbolic)
    rewritten = graph.copy()
    PORTABLE.run(rewritten)
    inputs = case.arrays()
    assert_same(interpret(rewritten, inputs), interpret(graph, inputs))
    kept = case.attributes.get("softcap")
    assert bool(kept) == any(n.op.name in ("attention", "rope") for n in rewritten)


def test_what_attention_23_cannot_say_is_reported() -> None:
    graph = next(c for c in CASES if str(c) == "attention-softcap").graph()
    report = PORTABLE.run(graph)
    assert [m.reason for m in report.misses] == ["runtimes disagree on whether softcap comes before the mask"]


@pytest.mark.parametrize("symbolic", [False, True], ids=["numbers", "symbols"])
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.op == "attention" and (c.attributes.get("softcap") or c.inputs.get("sinks"))],
    ids=str,
)
def test_caps_and_sinks_are_one_op_of_the_runtime(case: Case, symbolic: bool) -> None:
    """ONNX Runtime puts caps before the mask; a sink is one more key."""
    graph = case.graph(symbolic=symbolic)
    rewritten = graph.copy()
    mask_variant(Target.of("cpu")).run(rewritten)
    assert "attention" not in {n.op.name for n in rewritten}
    inputs = case.arrays()
    expected = interpret(graph, inputs)
    assert_same(interpret(rewritten, inputs), expected)
    assert_same(run(lower(rewritten, {}, pipeline=AS_IT_IS), inputs), expected)


def cached(case: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """One attention over a cache, with the keys used in a way that decides how they reach the op."""
    g = Graph("cached")
    q = g.input("q", tensor(f32, "B", "S", 4, 8))
    k, v = (g.input(n, tensor(f32, "B", "S", 2, w)) for n, w in (("k", 8), ("v", 6)))
    pk, pv = (g.input(n, tensor(f32, "B", 2, "P", w)) for n, w in (("pk", 8), ("pv", 6)))
    with building(g):
        if case == "cross":
            y = attention(q, cache_read(pk), cache_read(pv))
        elif case == "keys are values":
            both = cache_read(cache_append(pk, k))
            y = attention(q, both, both, causal=True)
        else:
            ak, av = cache_append(pk, k), cache_append(pv, v)
            g.output("ak", ak)
            y = attention(q, cache_read(ak), cache_read(av), causal=True)
            if case == "shared":
                y = y + attention(q * 0.5, cache_read(ak), cache_read(av), causal=True)
    g.output("y", y)
    sizes = {"B": 2, "S": 3, "P": 4}
    rng = np.random.default_rng(0)
    shapes = {n: tuple(sizes.get(str(d), d) for d in x.shape) for n, x in g.inputs.items()}
    return g, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


@pytest.mark.parametrize(("case", "transposes"), [("own", 0), ("shared", 6), ("cross", 2), ("keys are values", 3)])
def test_cache_layouts(case: str, transposes: int) -> None:
    """Own: the op appends. Shared by two attentions, or read only: keys stay [B,K,T,D], queries are transposed."""
    graph, inputs = cached(case)
    model = lower(graph, {})
    assert_same(run(model, inputs), interpret(graph, inputs))
    assert counts(model)["Transpose"] == transposes
    assert counts(model)["Concat"] == {"shared": 2, "keys are values": 1}.get(case, 0)


REMEMBERED: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "window": {"causal": True, "window": 3},
    "softcap and bias": {"causal": True, "softcap": 0.7, "bias": "f32[B,4,S,P+S]"},
    "bias of all heads": {"bias": "f32[S,P+S]"},
    "rows without keys": {"mask": "bool[B,1,S,P+S]"},
    "lengths": {"lengths": "i32[B]"},
    "negative scale": {"causal": True, "scale": -0.4},
}


@pytest.mark.parametrize("sinks", [True, False], ids=["sinks", "plain"])
@pytest.mark.parametrize(("past", "rows"), [(0, 3), (5, 3), (5, 1)], ids=["prompt", "more", "one token"])
@pytest.mark.parametrize("form", REMEMBERED)
def test_attention_behind_a_cache_is_one_op_of_the_runtime(form: str, past: int, rows: int, sinks: bool) -> None:
    """The op appends. It has no input for sinks: its scores say how much is left for the values. Heads that share the
    keys of one token are rows, and nothing is transposed."""
    new = "1" if rows == 1 else "S"
    g = Graph("remembered")
    q, k, v = (g.input(n, parse_type(f"f32[B,{new},{h},8]")) for n, h in (("q", 4), ("k", 2), ("v", 2)))
    pk, pv = (g.input(n, tensor(f32, "B", 2, "P", 8)) for n in ("pk", "pv"))
    types = {n: t.replace("S", new) for n, t in REMEMBERED[form].items() if isinstance(t, str)}
    more = {n: g.input(n, parse_type(t)) for n, t in types.items()}
    settings = {n: t for n, t in REMEMBERED[form].items() if n not in types}
    with building(g):
        ak, av = cache_append(pk, k), cache_append(pv, v)
        if sinks:
            more["sinks"] = constant(value=(0.5, -1.0, 8.0, -30.0), dtype=f32)
        g.output("y", attention(q, cache_read(ak), cache_read(av), **more, **settings))
        g.output("ak", ak)
        g.output("av", av)
    rng = np.random.default_rng(1)
    shapes = {n: substitute(x.shape, {"B": 2, "S": 3, "P": past}) for n, x in g.inputs.items()}
    inputs: dict[str, Any] = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    if "mask" in more:
        inputs["mask"] = rng.random(shapes["mask"]) > 0.4
        inputs["mask"][0, 0, -1] = False
    if "lengths" in more:
        inputs["lengths"] = np.array([0, past + rows - 1], np.int32)
    expected, portable = interpret(g, inputs), g.copy()
    mask_variant(Target.of("cpu")).run(g)
    names = Counter(n.op.name for n in g)
    assert names["onnx_cached_attention"] == 1 and not names["attention"] + names["cache_append"]
    assert_same(interpret(g, inputs), expected)
    model = lower(g, {}, pipeline=AS_IT_IS)
    assert_same(run(model, inputs), expected)
    assert rows > 1 or form == "rows without keys" or not counts(model)["Transpose"]
    if sinks:
        assert PORTABLE.run(portable).misses[0].reason.startswith("Attention-23 has no input for sinks")


def test_empty_rows_are_guarded_only_where_they_can_be() -> None:
    def guards(**changes: Any) -> int:
        case = next(c for c in CASES if str(c) == "attention-causal")
        graph = case.graph(symbolic=True)
        node = next(iter(graph))
        node.attributes.update(changes)
        return counts(lower(graph, {}))["Where"]

    assert guards() == 0
    masked = next(c for c in CASES if str(c) == "attention-mask").graph(symbolic=True)
    assert counts(lower(masked, {}))["Where"] == 1


def test_f64_rotary_is_written_in_parts() -> None:
    case = next(c for c in CASES if str(c) == "rope-interleaved")
    graph = case.graph(f64, symbolic=True)
    model = lower(graph, {})
    assert counts(model)["RotaryEmbedding"] == 0
    inputs = case.arrays(dtype=f64)
    assert_same(run(model, inputs), interpret(graph, inputs), 1e-12)


# -- opsets and element types ----------------------------------------------------------------------------------


def test_an_older_opset_gets_the_parts() -> None:
    graph = decoder()
    weights = Weights.initialize(graph, seed=2)
    inputs = prompt(MASKS["left padded"])
    model = lower(pipelines.encode(graph), weights, opset=20)
    assert model.opset_imports == {"": 20} and model.ir_version == 10
    assert not {"Attention", "RotaryEmbedding", "RMSNormalization"} & set(counts(model))
    assert_same(run(model, inputs), interpret(graph, inputs, arrays(weights)))


@pytest.mark.parametrize("opset", [17, 99])
def test_an_unknown_opset_is_refused(opset: int) -> None:
    with pytest.raises(LoweringError, match=f"opset {opset} is outside"):
        lower(decoder(), {}, opset)


def test_half_precision_decoder() -> None:
    weights = Weights.initialize(decoder(f32), seed=3)
    inputs = prompt(MASKS["holed"])
    wanted = interpret(decoder(f32), inputs, arrays(weights))["logits"]
    model = lower(pipelines.encode(decoder(f16)), weights)
    got = run(model, inputs)["logits"]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(np.float32), wanted, atol=2e-2 * float(np.abs(wanted).max()))


def test_bf16_weights_and_values_keep_their_type() -> None:
    graph = decoder(bf16)
    model = lower(pipelines.encode(graph), Weights.initialize(decoder(f32)))
    stored = model.graph.initializers["layers.0.norm1.weight"].const_value
    assert stored is not None and stored.dtype == onnx_ir.DataType.BFLOAT16
    assert stored.numpy().dtype == bf16.numpy and model.graph.outputs[0].dtype == onnx_ir.DataType.BFLOAT16


# -- weights ---------------------------------------------------------------------------------------------------


def stored(model: onnx_ir.Model) -> dict[str, np.ndarray]:
    """Weights of a model by name, without the constants."""
    tensors = {k: v.const_value for k, v in model.graph.initializers.items() if not k.startswith("constant")}
    return {k: t.numpy() for k, t in tensors.items() if t is not None}


def test_linear_weights_are_stored_transposed_and_tied_ones_once() -> None:
    for tied in (True, False):
        graph = decoder(tied=tied)
        weights = Weights.initialize(graph, seed=1)
        found = stored(lower(pipelines.encode(graph), weights))
        np.testing.assert_array_equal(found["layers.0.q.weight.transposed"], weights.numpy("layers.0.q.weight").T)
        assert "layers.0.q.weight" not in found
        names = {k for k in found if k.startswith(("embed", "lm_head"))}
        assert names == ({"embed.weight"} if tied else {"embed.weight", "lm_head.weight.transposed"})
        assert sum(a.size for a in found.values()) == sum(int(np.prod(v.shape)) for v in graph.params.values())


def test_one_weight_in_many_layers_is_stored_once() -> None:
    g = Graph("shared")
    x = g.input("x", tensor(f32, "B", 8))
    w = g.param("w", tensor(f32, 8, 8))
    g.output("y", linear(linear(x, w), w))
    weights = Weights.of({"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)})
    model = lower(g, weights)
    assert list(stored(model)) == ["w.transposed"] and counts(model) == {"MatMul": 2}
    inputs = {"x": np.ones((2, 8), np.float32)}
    assert_same(run(model, inputs), interpret(g, inputs, arrays(weights)))


def packed(size: int, tied: bool) -> Graph:
    """A linear over two weights packed into one; `tied`: one of them is read as it is, too."""
    g = Graph("packed")
    x = g.input("x", tensor(f32, "B", size))
    a, b = (g.param(n, tensor(f32, size, size)) for n in ("a", "b"))
    g.output("y", linear(x, concat(a, b, axis=0)))
    if tied:
        g.output("z", linear(x, a, transposed=True))
    return g


def test_weight_expressions_are_stored_evaluated() -> None:
    g = packed(8, tied=False)
    rng = np.random.default_rng(0)
    weights = Weights.of({n: rng.standard_normal((8, 8)).astype(np.float32) for n in "ab"})
    model = lower(g, weights)
    assert counts(model) == {"MatMul": 1} and list(stored(model)) == ["a.concat.transposed"]
    inputs = {"x": rng.standard_normal((2, 8)).astype(np.float32)}
    assert_same(run(model, inputs), interpret(g, inputs, arrays(weights)))


@pytest.mark.parametrize(("size", "kept"), [(8, False), (200, True)])
def test_weights_that_an_expression_makes_larger_are_stored_narrow_where_asked(size: int, kept: bool) -> None:
    """Integers times a scale; a few numbers are stored as they are read."""
    g = Graph("narrow")
    x = g.input("x", tensor(f32, "B", size))
    codes, scale = g.param("codes", tensor(i8, size, size)), g.param("scale", tensor(f32, 1, size))
    with building(g):
        g.output("y", linear(x, cast(codes, dtype=f32) * scale, transposed=False))
    rng = np.random.default_rng(0)
    given = {"codes": rng.integers(-127, 128, (size, size)).astype(np.int8), "scale": rng.random((1, size), np.float32)}
    weights, inputs = Weights.of(given), {"x": rng.standard_normal((2, size)).astype(np.float32)}
    plain, narrow = lower(g, weights), lower(g, weights, narrow=True)
    assert counts(plain) == {"MatMul": 1} and set(stored(narrow)) == ({*given} if kept else {*stored(plain)})
    for model in (plain, narrow):
        assert_same(run(model, inputs), interpret(g, inputs, given), 1e-5)


@pytest.mark.parametrize(("size", "folded"), [(8, 1), (600, 0)])
def test_a_large_expression_over_a_stored_weight_stays_a_node(size: int, folded: int) -> None:
    g = packed(size, tied=True)
    assert len(folded_values(g)) == folded
    model = lower(g, Weights.of({n: np.zeros((size, size), np.float32) for n in "ab"}))
    assert counts(model)["Concat"] == 1 - folded


def test_missing_and_misshapen_weights() -> None:
    g = Graph("one")
    g.output("y", g.input("x", tensor(f32, 4)) + g.param("w", tensor(f32, 4)))
    with pytest.raises(WeightsError, match="no tensor is called 'w'"):
        lower(g, Weights.of({}))
    with pytest.raises(WeightsError, match=r"w is f32\[5\], but graph one expects f32\[4\]"):
        lower(g, Weights.of({"w": np.zeros(5, np.float32)}))
    with pytest.raises(WeightsError, match="one holds floats"):
        model = lower(g, Weights.of({"w": np.zeros(4, np.int64)}))
        stored(model)


# -- shapes ----------------------------------------------------------------------------------------------------


def shaped(build: Any, types: dict[str, TensorType], arrays: dict[str, np.ndarray]) -> onnx_ir.Model:
    """Check one expression over inputs of given shapes against the reference; gives the model."""
    g = Graph("shaped")
    with building(g):
        g.output("y", build(*(g.input(k, t) for k, t in types.items())))
    model = lower(g, {})
    assert_same(run(model, arrays), interpret(g, arrays))
    return model


B, P, S = (Dim.symbol(s) for s in "BPS")


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize(
    ("shape", "shape_nodes"),
    [
        ((B, P, 2, 4), 0),
        ((B, 1, P, 1, 8), 0),
        ((B, P * 8), 2),
        ((B * P, 8), 0),
        ((P, B, 8), 2),
        ((P * 2, B * 4), 2),
        ((B * P * 8,), 0),
    ],
)
def test_reshape_of_a_tensor_that_may_be_empty(shape: tuple[Any, ...], shape_nodes: int, length: int) -> None:
    array = np.arange(2 * length * 8, dtype=np.float32).reshape(2, length, 8)
    model = shaped(lambda x: reshape(x, shape=shape), {"x": tensor(f32, "B", "P", 8)}, {"x": array})
    found = counts(model)
    assert found["Shape"] == shape_nodes
    assert found["Reshape"] + found["Unsqueeze"] == 1


def test_reshapes_of_reshapes_collapse() -> None:
    def there_and_back(x: Value) -> Value:
        return reshape(reshape(reshape(x, shape=(B, P, 2, 4)), shape=(B, P, 8, 1)), shape=(B, P, 8))

    def elsewhere(x: Value) -> Value:
        return reshape(reshape(x, shape=(B, P, 2, 4)), shape=(B, P, 4, 2))

    inputs = {"x": np.ones((2, 3, 8), np.float32)}
    assert counts(shaped(there_and_back, {"x": tensor(f32, "B", "P", 8)}, inputs)) == {"Identity": 1}
    assert counts(shaped(elsewhere, {"x": tensor(f32, "B", "P", 8)}, inputs)) == {"Reshape": 1}


def test_dimension_expressions() -> None:
    types = {"a": tensor(f32, "B", "P+S"), "b": tensor(f32, "S")}
    inputs = {"a": np.zeros((2, 7), np.float32), "b": np.zeros(3, np.float32)}
    for start, length in ((P, S), (P * S, 2 * B - S + 5), (B * B * 3, P + 1), (0 * P + 2, 4 * P - 3 * S)):
        shaped(lambda a, b, s=start, n=length: iota(start=s, length=n), types, inputs)


def test_a_dimension_without_an_input_is_refused() -> None:
    g = Graph("lost")
    g.input("x", tensor(f32, "B", "P*S"))
    with building(g):
        g.output("y", iota(start=0, length=S))
    with pytest.raises(LoweringError, match=r"no input determines dimension S: the inputs are x: f32\[B,P\*S\]") as e:
        lower(g, {})
    assert e.value.place.startswith("test_onnx_backend.py:")


# -- outputs, foreign ops, refusals ------------------------------------------------------------------------------


def test_outputs_that_are_inputs_parameters_or_each_other() -> None:
    g = Graph("plain")
    x, w = g.input("x", tensor(f32, "B", 4)), g.param("w", tensor(f32, 4))
    y = x + w
    for name, v in {"same": x, "weight": w, "first": y, "second": y}.items():
        g.output(name, v)
    weights = Weights.of({"w": np.arange(4, dtype=np.float32)})
    inputs = {"x": np.ones((2, 4), np.float32)}
    model = lower(g, weights)
    assert [v.name for v in model.graph.inputs] == ["x"] and "w" in model.graph.initializers
    assert_same(run(model, inputs), interpret(g, inputs, arrays(weights)))


@pytest.mark.parametrize("name", ["x", "w"])
def test_an_output_named_as_something_else_is_refused(name: str) -> None:
    g = Graph("twice")
    g.output(name, g.input("x", tensor(f32, 4)) + g.param("w", tensor(f32, 4)))
    with pytest.raises(LoweringError, match=f"output {name} has the name of an? (input|parameter)"):
        lower(g, Weights.of({"w": np.zeros(4, np.float32)}))


class Doubled(Op):
    """A target op of the runtime's own domain, as its backend has them."""

    def infer(self, x: Value) -> TensorType:
        return x.type

    def body(self, x: Value) -> Value:
        return x + x

    def onnx(self, op: Builder, x: Any) -> Any:
        return op.QuickGelu(x, alpha=2.0, domain="com.microsoft")


class Mute(Op):
    """An op that no backend can say."""

    def infer(self, x: Value) -> TensorType:
        return x.type

    def numpy(self, x: Any) -> Any:
        return x


class TwoForOne(Mute):
    def onnx(self, op: Builder, x: Any) -> Any:
        return x, x


class WrongType(Mute):
    def onnx(self, op: Builder, x: Any) -> Any:
        return op.reshape(x, (*x.shape, 1))


def one_node(op: Op) -> Graph:
    g = Graph("one")
    g.output("y", g.add(op, [g.input("x", tensor(f32, "B", 4))], {})[0])
    return g


def test_ops_of_another_domain_bring_its_opset() -> None:
    model = lower(one_node(Doubled()), {})
    assert model.opset_imports == {"": 23, "com.microsoft": 1}
    assert [(n.domain, n.op_type) for n in model.graph] == [("com.microsoft", "QuickGelu")]
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    assert_same(run(model, {"x": x}), {"y": x / (1 + np.exp(-2 * x))})


def test_an_op_without_a_form_is_refused_with_its_place() -> None:
    with pytest.raises(LoweringError, match="mute has neither an ONNX form nor a body") as e:
        lower(one_node(Mute()), {})
    assert e.value.place.startswith("test_onnx_backend.py:")
    with pytest.raises(LoweringError, match="gave 2 ONNX values for 1 outputs"):
        lower(one_node(TwoForOne()), {})
    with pytest.raises(LoweringError, match=r"f32\[B,4,1\] where f32\[B,4\] was promised"):
        lower(one_node(WrongType()), {})


def test_equal_nodes_are_made_once_and_unused_ones_not_at_all() -> None:
    g = Graph("shared")
    x = g.input("x", tensor(f32, "B", 4))
    with building(g):
        cast(x, dtype=i64)
        g.output("y", (x * 2.0) + (x * 2.0))
    assert counts(lower(g, {})) == {"Mul": 1, "Add": 1}


def test_a_handle_without_a_type_says_so() -> None:
    op = Builder(23)
    y = op.Sqrt(op.input("x", tensor(f32, 4)))
    with pytest.raises(LoweringError, match="the type of Sqrt_output is not known"):
        op.reshape(y, (2, 2))
    with pytest.raises(AttributeError, match="no 'reshap'"):
        op.reshap  # noqa: B018 - the access is what is tested


def test_masks_stay_boolean() -> None:
    graph = decoder()
    model = lower(pipelines.decode(graph), Weights.initialize(graph))
    node = next(n for n in model.graph if n.op_type == "Attention")
    mask = node.inputs[3]
    assert mask is not None and mask.dtype == onnx_ir.DataType.BOOL
    assert "is_causal" not in node.attributes or node.attributes["is_causal"].as_int() == 0


def test_lowering_leaves_the_graph_as_it_was() -> None:
    graph = pipelines.decode(decoder())
    before = str(graph)
    lower(graph, Weights.initialize(graph))
    assert str(graph) == before
