"""The parity table: what is asked of which model, what it finds, and state by the names that a file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from monograph import ops
from monograph.frontends.dsl import load_family
from monograph.ir import interpret
from monograph.ir.errors import ConfigError
from monograph.ir.slots import Growth, Slot, state
from monograph.ir.types import f32, tensor
from monograph.ir.weights import Weights
from monograph.parity import CHUNKS, inputs_of, mask_of, rows_alone
from monograph.passes.differential import CASES, Case, random_params
from monograph.portable import first_state, next_state, slots_of, stream_of
from small_models import small
from test_encodings import encoded

pytestmark = pytest.mark.slow


class Tiny(mg.Config):
    vocab: int = 40
    dim: int = 16
    heads: int = 2


def body(m: mg.Scope, c: Tiny, ids: mg.Value, positions: mg.Value | None, mask: mg.Value | None) -> mg.Value:
    x = m.embed("embed", ids, c.vocab, c.dim)
    q, k, v = (m.linear(n, x, c.dim).split_heads(c.heads) for n in "qkv")
    if positions is not None:
        q, k = (m.rope(y, positions, theta=100.0) for y in (q, k))
    hidden = None if mask is None else mg.key_mask(mask)
    attended = ops.attention(q, k, v, mask=hidden, causal=True).merge_heads()
    return m.linear("head", x + m.linear("o", attended, c.dim), c.vocab)


@mg.model
def ids_only(m: mg.Scope, c: Tiny, input_ids: mg.Value) -> mg.Value:
    return body(m, c, input_ids, None, None)


@mg.model
def no_mask(m: mg.Scope, c: Tiny, input_ids: mg.Value, position_ids: mg.Value) -> mg.Value:
    return body(m, c, input_ids, position_ids, None)


@mg.model
def no_positions(m: mg.Scope, c: Tiny, input_ids: mg.Value, attention_mask: mg.Value) -> mg.Value:
    return body(m, c, input_ids, None, attention_mask)


@mg.model
def unread_mask(m: mg.Scope, c: Tiny, input_ids: mg.Value, attention_mask: mg.Value) -> mg.Value:
    return body(m, c, input_ids, None, None)


@mg.model
def unread_positions(
    m: mg.Scope, c: Tiny, input_ids: mg.Value, attention_mask: mg.Value, position_ids: mg.Value
) -> mg.Value:
    return body(m, c, input_ids, None, attention_mask)


def with_weights(model: mg.Model, seed: int = 1) -> mg.Model:
    model.weights = Weights.of(random_params(model.graph(), seed))
    return model


@pytest.mark.parametrize("family", [ids_only, no_mask, no_positions, unread_mask, unread_positions])
def test_models_without_some_of_the_inputs_are_verified(family: mg.Family) -> None:
    """Masks are those that the model can be told; a session takes rows of any length from all of them."""
    parity = mg.verify(with_weights(family()), torch=False)
    assert parity.passed
    told = "attention_mask" in family().graph().inputs and family is not unread_mask
    by_backend = {b: {r.case for r in parity.rows if r.backend == b} for b in ("ort", "ort session", "ort chunks")}
    assert len(by_backend["ort session"]) == len(by_backend["ort chunks"]) == len(CASES) + len(CHUNKS)
    assert len(by_backend["ort"]) == (len(CASES) + len(CHUNKS) if told else 4)
    assert all(r.scale > 0.1 for r in parity.rows)


OWN = mg.Task(
    "own-task", {"tokens": "i64[B,L]", "keep": "i64[B,L]", "where": "i64[B,L]", "picture": "f32[B,3]"},
    output="scores", stream=mg.Stream("L", "tokens", "keep", "where"), generates=True,
)  # fmt: skip


@mg.model(task=OWN)
def captioned(m: mg.Scope, c: Tiny, picture: mg.Value, tokens: mg.Value, keep: mg.Value, where: mg.Value) -> Any:
    x = m.embed("embed", tokens, c.vocab, c.dim)
    x = x + m.linear("see", picture, c.dim).reshape(picture.shape[0], 1, c.dim)
    q, k, v = (m.linear(n, x, c.dim).split_heads(c.heads) for n in "qkv")
    q, k = (m.rope(y, where, theta=100.0) for y in (q, k))
    near = ops.attention(q, k, v, mask=mg.key_mask(keep), causal=True, window=3).merge_heads()
    return {"scores": m.linear("head", x + near, c.vocab), "states": near}


def test_a_task_of_ones_own_with_a_window_a_picture_and_two_outputs() -> None:
    parity = mg.verify(with_weights(captioned()))
    assert parity.passed
    whole = {"torch", "onnx", "ort", "ort session", "ort chunks"}
    assert {r.backend for r in parity.rows} == whole
    assert {r.output for r in parity.rows if r.backend == "ort"} == {"scores", "states"}
    assert {r.output for r in parity.rows if r.backend == "ort session"} == {"scores"}


def test_other_weights_are_seen_by_every_way(tmp_path: Path) -> None:
    engine = mg.build(with_weights(captioned(), 1), tmp_path / "cpu", threads=1)
    parity = mg.verify(with_weights(captioned(), 2), engine, torch=False)
    assert not any(r.passed for r in parity.rows)


@pytest.mark.parametrize("family", ["vit", "whisper", "t5", "bert", "mamba2", "lfm2", "gemma3_text", "bloom"])
def test_families_of_every_kind(family: str) -> None:
    """Pictures, sounds, encoder-decoders, states, windows: all lowerings agree."""
    parity = mg.verify(with_weights(small(family)), torch=False)
    assert parity.passed, [r for r in parity.rows if not r.passed][:3]


def test_rows_alone_are_those_of_the_reference() -> None:
    graph = small("llama").graph()
    params, task, case = random_params(graph), small("llama").task, Case("right-padded", 3)
    inputs = inputs_of(task, graph, case)
    found = rows_alone(graph, inputs, mask_of(case), params, "logits")
    kept = mask_of(case) != 0
    np.testing.assert_allclose(found[kept], interpret(graph, inputs, params)["logits"][kept], atol=1e-5)


# -- state by the file -------------------------------------------------------------------------------------------------


def opened(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_an_exported_file_says_what_it_remembers(tmp_path: Path) -> None:
    session = opened(mg.export(with_weights(captioned()), tmp_path / "out") / "decoder_model.onnx")
    slots = slots_of(session)
    assert [str(s) for s in slots] == [
        "slot past_key_values.0.key -> present.0.key: window(axis=2, window=3)",
        "slot past_key_values.0.value -> present.0.value: window(axis=2, window=3)",
        "slot encoder.0 -> _: once(first=encoder.0)",
    ]
    assert stream_of(session) == OWN.stream
    first = first_state(session, 2)
    windows = [s for s in slots if s.growth is Growth.window]
    assert {k: v.shape for k, v in first.items()} == {s.input: (2, 2, 0, 8) for s in windows}
    present = {s.output: np.arange(2 * 2 * 5 * 8, dtype=np.float32).reshape(2, 2, 5, 8) for s in windows}
    kept = next_state({**present, "scores": np.zeros(1)}, slots)
    assert kept.keys() == first.keys()
    np.testing.assert_array_equal(kept["past_key_values.0.key"], present["present.0.key"][:, :, -2:])
    assert next_state({"encoder.0": 1}, slots) == {"encoder.0": 1}


def test_a_file_of_another_exporter_is_read_by_its_names(tmp_path: Path) -> None:
    path = mg.export(with_weights(small("llama")), tmp_path / "out") / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    said = slots_of(opened(path))
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    session = opened(path)
    named = slots_of(session)
    assert [(s.input, s.output, s.growth, s.axis) for s in named] == [
        (s.input, s.output, s.growth, s.axis) for s in said
    ]
    assert {k: v.shape for k, v in first_state(session, 3).items()} == {s.input: (3, 2, 0, 4) for s in named}
    assert stream_of(session) == mg.Stream()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected a list"),
        ('[{"input": 3}]', "slots are damaged"),
        ("[[]]", "expected an object"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = mg.export(with_weights(ids_only()), tmp_path / "out") / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    next(p for p in model.metadata_props if p.key == "monograph.slots").value = text
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=message):
        slots_of(opened(path))


def test_states_of_an_encoder_begin_those_of_its_decoder() -> None:
    past, present, initial = state(0, "h")
    slot = Slot(past, present, Growth.replace, tensor(f32, "B", 4), first=initial)
    assert next_state({initial: 1, "other": 2}, [slot]) == {past: 1}
    assert next_state({present: 3}, [slot]) == {past: 3}


def test_products_of_blocks_are_held_in_float_and_as_they_are_served() -> None:
    """8-bit activations are off by more than rounding; the same graph in float is not."""
    model = load_family("llama")(vocab=40, dim=32, ffn=64, layers=1, heads=4, max_positions=32)
    params = random_params(model.graph())
    name = "model.layers.0.mlp.down_proj.weight"
    model.weights = Weights({**Weights.of(params), name: encoded("q8_0", 32, 64)})
    rows = mg.verify(model, mg.build(model, threads=1), torch=False).rows
    assert all(r.passed for r in rows)
    worst = {b: max(r.difference for r in rows if r.backend == b) for b in ("ort 8-bit", "ort", "ort session")}
    assert worst["ort 8-bit"] > 1e-3 > 1e-4 > max(worst["ort"], worst["ort session"])
