"""A GGUF model of small size keeps its blocks: built, exported, trained beside, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from monograph.backends.onnx import export
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.choices import EXACT
from monograph.backends.onnxruntime.quantized import narrow_products
from monograph.frontends.dsl import Model
from monograph.frontends.load import load
from monograph.ir import interpret, parse
from monograph.ir.encoded import Encoded, plain
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.differential import CASES, difference, sample_inputs
from monograph.passes.encode import through_float
from test_gguf import Q, rows_as_llama_cpp_stores_them, write_gguf

pytestmark = pytest.mark.slow
SIZES = {"vocab": 96, "dim": 64, "ffn": 96, "layers": 2, "heads": 4, "kv_heads": 2}
METADATA = {
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def write_llama(path: Path, kind: str, table: str = "Q8_0") -> Path:
    """A small llama whose layers are stored in `kind` (mixed: Q4_0, value projections Q5_0), its table in another."""
    from monograph.frontends.dsl import load_family

    family = load_family("llama")
    graph = family(**SIZES, tied=True).graph()
    weights = Weights.initialize(graph, 3)
    assert family.gguf is not None
    back = {v: k for k, v in family.gguf.names.items()}
    arrays: dict[str, Any] = {}
    for name in graph.params:
        stem = name.removesuffix(".weight").split(".")
        number = next((p for p in stem if p.isdigit()), "")
        stored = back[".".join("{}" if p.isdigit() else p for p in stem)].format(number)
        heads = {"q_proj": 4, "k_proj": 2}.get(stem[-1])
        x = weights.numpy(name) * (1 if "norm" in name else 5)
        arrays[f"{stored}.weight"] = rows_as_llama_cpp_stores_them(x, heads) if heads else x
    layers = [k for k in arrays if "norm" not in k and "token" not in k]
    kinds = {k: Q[kind] if kind != "mixed" else Q.Q5_0 if "attn_v" in k else Q.Q4_0 for k in layers}
    return write_gguf(path, arrays, METADATA, kinds | {"token_embd.weight": Q[table]})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model with layers of each format, and one where the value projections differ."""
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: write_llama(folder / f"{kind}.gguf", kind) for kind in ("Q4_0", "Q4_1", "Q8_0", "mixed")}


def logits(model: Model, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of the plain graph in the reference."""
    graph = model.graph()
    assert model.weights is not None
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}
    return interpret(graph, given, {k: t.numpy() for k, t in model.weights.items()})["logits"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_the_graph_keeps_the_blocks_through_every_pipeline(files: dict[str, Path], kind: str) -> None:
    model = load(files[kind])
    graph = model.graph(encoded=True)
    assert str(parse(str(graph))) == str(graph)
    assert str(graph).count(f"<{kind.lower()}>") == 14 + (kind == "Q8_0")
    for name in ("encode", "decode"):
        assert difference(graph, pipelines.optimize(graph, name)[0], cases=CASES[:3] + CASES[-1:]) is None
    w = model.weights
    assert w is not None
    stored = w["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(stored, Encoded)
    file = next(t for t in gguf.GGUFReader(str(files[kind])).tensors if t.name == "blk.0.ffn_up.weight")
    assert np.array_equal(stored.stored().reshape(-1), np.asarray(file.data).reshape(-1))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "mixed"])
def test_built_for_onnx_runtime(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model = load(files[kind])
    assert model.weights is not None
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 96, (1, 12))
    want = logits(model, ids)
    report = build(model, None, tmp_path / "narrow")
    # q, k and v are one product each layer, unless they are stored differently.
    products = 2 * (4 if kind != "mixed" else 6) + 1 + 2 * (kind != "mixed")
    counts = report.nodes["model.onnx"]
    assert counts["GatherBlockQuantized"] == 1
    assert counts["MatMulNBits"] == products
    assert report.through_float == (
        {f"model.layers.{i}.self_attn.v_proj.weight": "Q5_0" for i in range(2)} if kind == "mixed" else {}
    )
    # All but a head over the embedding's table, which goes in two parts, and is as good as float.
    assert narrow_products(report.folder)
    exact = build(model, None, tmp_path / "exact", choices=EXACT)
    assert not narrow_products(exact.folder)
    for folder, tolerance in ((report.folder, 0.05), (exact.folder, 1e-5)):
        session = open_session(folder)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(12)[None]}
        got = session.run(given)["logits"]
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
        session.prefill(ids[:, :8], np.array([8]))
        for i in range(8, 12):
            step = session.step(ids[:, i])
        np.testing.assert_allclose(step, want[:, -1], atol=tolerance * np.abs(want).max())
    wide = build(model, plain(model.weights), tmp_path / "plain")
    assert "MatMulNBits" not in wide.nodes["model.onnx"]
    assert 2 * report.bytes < wide.bytes


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "mixed"])
def test_exported_for_any_runtime(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    import onnxruntime

    model = load(files[kind])
    assert model.weights is not None
    graph = pipelines.encode(model.graph(encoded=True))
    path = export(graph, model.weights, tmp_path)
    options = onnxruntime.SessionOptions()
    # Else the runtime makes MatMulNBits of DequantizeLinear and MatMul, and rounds activations to 8 bits for it.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = sample_inputs(graph, CASES[2])
    want = interpret(pipelines.encode(model.graph()), given, {k: t.numpy() for k, t in model.weights.items()})["logits"]
    got = session.run(["logits"], given)[0]
    keep = given["attention_mask"] != 0
    np.testing.assert_allclose(got[keep], want[keep], atol=1e-4 * np.abs(want).max())
    numbers = sum(np.prod(t.shape) for t in model.weights.values())
    stored = (tmp_path / "model.onnx.data").stat().st_size
    assert stored < numbers * (1.7 if kind == "mixed" else 1.4 if kind == "Q8_0" else 1.2)


def test_formats_without_an_encoding_are_named(files: dict[str, Path]) -> None:
    model = load(files["mixed"])
    assert model.weights is not None
    plain_ones = through_float(model.graph(encoded=True), model.weights)
    assert plain_ones == {f"model.layers.{i}.self_attn.v_proj.weight": "Q5_0" for i in range(2)}


def test_adapters_train_over_blocks_and_merge_into_numbers(files: dict[str, Path]) -> None:
    import torch
    from monograph.backends.torch import to_torch
    from monograph.passes.encode import keep_encodings
    from monograph.passes.lora import lora_params
    from monograph.training.adapters import Adapter, Lora

    model = load(files["Q4_1"])
    assert model.weights is not None
    lora = Lora(rank=4, alpha=8.0)
    graph = model.graph()
    lora.insert(graph)
    assert keep_encodings(graph, model.weights) == 15
    names = lora_params(graph)
    drawn = Weights.initialize(graph, 0, graph.params[names[0]].init)
    module = to_torch(pipelines.train(graph), model.weights | {k: drawn[k] for k in names})
    held = {str(t.dtype) for k, t in module.state_dict().items() if "proj.weight" in k and "lora" not in k}
    assert held == {"torch.uint8"}
    optimizer = torch.optim.Adam([module.get_parameter(k) for k in names], 1e-2)
    ids = torch.arange(24)[None] % 7
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(24)[None]}
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        out = module(**given)["logits"]
        loss = torch.nn.functional.cross_entropy(out[0, :-1], ids[0, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    trained = Weights.of({k: module.get_parameter(k).detach().numpy() for k in names})
    merged = Adapter(lora, trained).merged(model)
    assert merged.weights is not None
    assert merged.weights["model.layers.0.mlp.up_proj.weight"].type.encoding is None
    assert str(merged.weights["model.embed_tokens.weight"].type.encoding) == "q8_0"
    with torch.no_grad():
        want = module(**given)["logits"].numpy()
    np.testing.assert_allclose(logits(merged, ids.numpy()), want, atol=1e-4 * np.abs(want).max())
