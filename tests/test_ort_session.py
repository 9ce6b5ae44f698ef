"""Built folders and their sessions: any mask, prompts and steps, ragged batches, limits, damaged folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.compact import Compact
from monograph.backends.onnxruntime.guard import default_positions, lengths_allowed, right_padded
from monograph.backends.onnxruntime.padded import Padded
from monograph.frontends.dsl import Config, Model, Scope, Value, key_mask, load_family, model
from monograph.frontends.models.bert import bert
from monograph.frontends.models.gpt2 import gpt2
from monograph.frontends.models.llama import llama
from monograph.frontends.models.transformer2017 import transformer2017
from monograph.ir import MonographError, interpret, ops
from monograph.ir.errors import ConfigError, LoweringError, RuntimeInputError, WeightsError
from monograph.ir.weights import Tensor, Weights
from monograph.passes.differential import MASKS, attention_mask, random_params

Array = np.ndarray[Any, Any]
VOCAB, POSITIONS = 40, 80


class Small(Config):
    """A decoder of one layer whose attention has what is asked for."""

    kind: str = "window"
    positions: int = POSITIONS

    @property
    def max_positions(self) -> int:
        return self.positions


@model
def small(m: Scope, c: Small, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    """kind: window (and softcap, sinks), norms (of q and k), bias (over keys), narrow (rotation of 8 channels)."""
    width = 8 if c.kind == "narrow" else 16
    x = m.embed("embed", input_ids, VOCAB, 32)
    for b in m.layers("layers", 2):
        h = b.rms_norm("norm", x, 1e-6)
        q, k, v = (b.linear(n, h, heads * width).split_heads(heads) for n, heads in (("q", 4), ("k", 2), ("v", 2)))
        if c.kind == "norms":
            q, k = b.rms_norm("q_norm", q, 1e-6), b.rms_norm("k_norm", k, 1e-6)
        q, k = (b.rope(t, position_ids, theta=100.0) for t in (q, k))
        extra: dict[str, Any] = {"window": 3, "softcap": 4.0} if c.kind == "window" else {}
        if c.kind == "window":
            extra["sinks"] = b.param("sinks", 4)
        if c.kind == "bias":
            extra["bias"] = b.param("bias", 1, 4, 1, 1)
        y = ops.attention(q, k, v, mask=key_mask(attention_mask), causal=True, **extra)
        x = x + b.linear("o", y.merge_heads(), 32)
    return m.linear("head", m.rms_norm("norm", x, 1e-6), VOCAB)


SIZES = {"vocab": VOCAB, "dim": 64, "layers": 2, "heads": 4, "max_positions": POSITIONS}
MODELS: dict[str, Callable[[], Model]] = {
    "llama": lambda: llama(kv_heads=2, ffn=48, tied=True, **SIZES),
    "gpt2": lambda: gpt2(inner=48, **SIZES),
    **{kind: lambda kind=kind: small(kind=kind) for kind in ("window", "norms", "bias", "narrow")},
}  # fmt: skip
RECURRENT = ("rnn_lm", "lstm_lm", "gru_lm")
MODELS |= {k: lambda k=k: load_family(k)(vocab=VOCAB, dim=16, layers=2) for k in RECURRENT}
GENERATING = sorted(MODELS)
CACHED = sorted(set(MODELS) - set(RECURRENT))
ONE_GRAPH = ("bias", *RECURRENT)
"""Models without a graph for lengths."""


class Built:
    """A built model with its weights, and the reference for it."""

    def __init__(self, name: str, folder: Path, made: Model) -> None:
        self.name, self.folder, self.graph = name, folder / name, made.graph()
        self.params = random_params(self.graph)
        self.report = build(made, Weights.of(self.params), self.folder)

    def open(self, **settings: Any) -> Session:
        return open_session(self.folder, **{"threads": 1, "capacity": 4, **settings})

    def logits(self, ids: Array, mask: Array | None = None, positions: Array | None = None) -> Array:
        """Logits [B,S,V] of a full forward in the reference."""
        mask = np.ones(ids.shape, np.int64) if mask is None else mask
        positions = default_positions(mask, ids.shape[1]) if positions is None else positions
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return interpret(self.graph, inputs, self.params)["logits"]

    def last(self, row: list[int]) -> Array:
        return self.logits(np.array([row]))[0, -1]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    folder, known = tmp_path_factory.mktemp("built"), dict[str, Built]()

    def get(name: str) -> Built:
        if name not in known:
            known[name] = Built(name, folder, MODELS[name]())
        return known[name]

    return get


def close(got: Array, wanted: Array, what: object = "") -> None:
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5 * scale, err_msg=str(what))


def ids_of(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


# -- the guard --------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=3))
def test_right_padded_means_ones_then_zeros(rows: list[list[int]]) -> None:
    mask = np.array(rows)
    shapes = [[1] * n + [0] * (4 - n) for n in range(1, 5)]
    found = right_padded(mask)
    if all(r in shapes for r in rows):
        assert found is not None and found.tolist() == [sum(r) for r in rows]
    else:
        assert found is None


def test_lengths_are_allowed_only_where_they_say_everything() -> None:
    ones, padded = np.ones((2, 5), np.int64), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert lengths_allowed(ones, None, 5, False) is not None
    assert lengths_allowed(padded, None, 5, False) is not None
    assert lengths_allowed(padded, None, 5, True) is None, "under a window, padding has keys here and none there"
    assert lengths_allowed(padded, None, 2, False) is None, "padding behind a past hides the new tokens"
    assert lengths_allowed(ones, None, 2, False) is None, "the kernel takes several new tokens of one row only"
    assert lengths_allowed(ones[:1], None, 2, False) is not None
    assert lengths_allowed(ones, None, 1, False) is not None
    assert lengths_allowed(ones, np.arange(5)[None] + np.zeros((2, 1), int), 5, False) is not None
    assert lengths_allowed(ones, np.arange(1, 6)[None] + np.zeros((2, 1), int), 5, False) is None
    assert lengths_allowed(np.array([[0, 0]]), None, 2, False) is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", GENERATING)
def test_run_with_every_mask(built: Callable[[str], Built], name: str, kind: str, batch: int) -> None:
    b = built(name)
    session = b.open()
    ids, mask = ids_of(batch, 7), attention_mask(kind, batch, 7)
    found = session.run({"input_ids": ids, "attention_mask": mask})
    close(found["logits"][mask == 1], b.logits(ids, mask)[mask == 1])
    by_lengths = right_padded(mask) is not None and (name != "window" or mask.all())
    assert set(session._loaded) == {"model.onnx"} | (
        set() if by_lengths or name in ONE_GRAPH else {"model.masked.onnx"}
    )
    assert np.isfinite(found["logits"]).all()


def test_a_row_that_is_all_padding_is_harmless(built: Callable[[str], Built]) -> None:
    b = built("llama")
    ids, mask = ids_of(3, 6), attention_mask("left-padded", 3, 6)
    mask[1] = 0
    found = b.open().run({"input_ids": ids, "attention_mask": mask})["logits"]
    close(found, b.logits(ids, mask))


@pytest.mark.parametrize("name", ["llama", "gpt2", "narrow"])
def test_positions_that_were_asked_for(built: Callable[[str], Built], name: str) -> None:
    b = built(name)
    ids = ids_of(2, 5)
    positions = np.array([[3, 4, 5, 6, 7], [9, 2, 2, 0, 30]])
    session = b.open()
    found = session.run({"input_ids": ids, "position_ids": positions})["logits"]
    close(found, b.logits(ids, positions=positions))
    # A kernel that rotates by lengths cannot be told other positions; where the graph reads them, they are an input.
    assert ("model.masked.onnx" in session._loaded) == (name == "llama")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_run_with_pasts(built: Callable[[str], Built], kind: str, batch: int) -> None:
    """Two calls, the second with the presents of the first as pasts, equal one."""
    b = built("llama")
    session = b.open()
    ids, mask = ids_of(batch, 7), attention_mask(kind, batch, 7)
    positions = default_positions(mask, 7)
    first = session.run({"input_ids": ids[:, :4], "attention_mask": mask[:, :4], "position_ids": positions[:, :4]})
    pasts = {k.replace("present.", "past_key_values."): v for k, v in first.items() if k.startswith("present.")}
    rest = {"input_ids": ids[:, 4:], "attention_mask": mask, "position_ids": positions[:, 4:], **pasts}
    wanted = b.logits(ids, mask, positions)[:, 4:]
    close(session.run(rest)["logits"][mask[:, 4:] == 1], wanted[mask[:, 4:] == 1])


# -- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATING)
def test_prefill_and_64_steps_equal_one_forward(built: Callable[[str], Built], name: str) -> None:
    b = built(name)
    ids = ids_of(1, 70)
    wanted = b.logits(ids)[0]
    session = b.open()
    close(session.prefill(ids[:, :6], [6])[0], wanted[5])
    for i in range(6, 70):
        close(session.step(ids[:, i])[0], wanted[i], i)
    assert session.lengths.tolist() == [70] and session.capacity >= 70
    assert set(session._loaded) == {"model.onnx"}
    assert isinstance(session._cache, Compact if session.contract.lengths else Padded)


@pytest.mark.parametrize("name", GENERATING)
def test_ragged_rows_equal_each_row_alone(built: Callable[[str], Built], name: str) -> None:
    b = built(name)
    ids, lengths = ids_of(3, 9), np.array([9, 1, 4])
    rows = [ids[i, :n].tolist() for i, n in enumerate(lengths)]
    session = b.open()
    logits = session.prefill(ids, lengths)
    for step in range(12):
        for i, row in enumerate(rows):
            close(logits[i], b.last(row), (step, i))
        tokens = logits.argmax(axis=1)
        for row, token in zip(rows, tokens, strict=True):
            row.append(int(token))
        logits = session.step(tokens)
    assert session.lengths.tolist() == [21, 13, 16]


def test_a_recurrent_state_cannot_be_cut(built: Callable[[str], Built]) -> None:
    b = built("lstm_lm")
    session = b.open()
    ids = ids_of(2, 6)
    session.prefill(ids[:, :3], [3, 3])
    session.truncate([3, 3])
    with pytest.raises(RuntimeInputError, match=r"past_state.0.h is one state and no past: the 3 tokens of row 0 stay"):
        session.truncate([2, 3])
    close(session.append(ids[:, 3:]), b.logits(ids)[:, -1])
    assert session.contract.positions == 0 and session.contract.kind == "decoder"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CACHED)
def test_truncate_and_append(built: Callable[[str], Built], name: str, batch: int) -> None:
    """Rows are cut to different lengths and get other tokens: what was cut leaves no trace."""
    b = built(name)
    ids, more = ids_of(batch, 8), ids_of(batch, 5, seed=1)
    session = b.open()
    session.prefill(ids, np.full(batch, 8))
    session.step(ids[:, 0])
    session.step(ids[:, 1])
    cut = np.array([8, 9, 8] if name == "window" else [6, 3, 9])[:batch]  # A window of 3 keeps 2 of a prompt.
    session.truncate(cut)
    assert session.lengths.tolist() == cut.tolist()
    logits = session.append(more)
    for i in range(batch):
        row = [*ids[i].tolist(), int(ids[i, 0]), int(ids[i, 1])][: cut[i]] + more[i].tolist()
        close(logits[i], b.last(row), i)
    assert session.lengths.tolist() == (cut + 5).tolist()


def test_a_session_is_used_again_for_other_batches(built: Callable[[str], Built]) -> None:
    b = built("llama")
    session = b.open()
    for batch, length in ((3, 5), (1, 20), (3, 2)):
        ids = ids_of(batch, length, seed=batch)
        close(session.prefill(ids, np.full(batch, length)), b.logits(ids)[:, -1])
        close(session.step(ids[:, 0]), b.logits(np.concatenate([ids, ids[:, :1]], axis=1))[:, -1])
        session.reset()
        assert session.lengths.tolist() == []


def test_logits_are_the_callers_to_keep(built: Callable[[str], Built]) -> None:
    session = built("llama").open()
    first = session.prefill(ids_of(1, 3), [3])
    second = session.step([1])
    kept = first.copy(), second.copy()
    session.step([2])
    session.step([3])
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(second, kept[1])
    assert first.dtype == np.float32 and first.shape == (1, VOCAB)


@pytest.mark.parametrize("name", ["llama", "bias"])
def test_capacity(built: Callable[[str], Built], name: str) -> None:
    """Buffers double up to the model's positions; beyond, one error with the numbers, and nothing is lost."""
    b = built(name)
    session = b.open(capacity=4)
    ids = ids_of(1, POSITIONS)
    session.prefill(ids[:, : POSITIONS - 1], [POSITIONS - 1])
    close(session.step(ids[:, -1])[0], b.last(ids[0].tolist()))
    assert session.capacity == POSITIONS
    with pytest.raises(RuntimeInputError, match=f"{POSITIONS + 1} tokens do not fit.* at most {POSITIONS} positions"):
        session.step([1])
    assert session.lengths.tolist() == [POSITIONS]
    session.truncate([POSITIONS - 1])
    close(session.step(ids[:, -1])[0], b.last(ids[0].tolist()))
    with pytest.raises(RuntimeInputError, match="81 tokens do not fit"):
        session.prefill(np.zeros((1, 81), np.int64), [81])
    with pytest.raises(RuntimeInputError, match="do not fit"):
        session.run({"input_ids": np.zeros((1, 81), np.int64)})


def unbounded(b: Built) -> Session:
    """A session that lets ids beyond the vocabulary through, so that the runtime fails in the middle of a call."""
    session = b.open()
    session.contract = replace(session.contract, bounds={})
    return session


@pytest.mark.parametrize("name", ["llama", "bias", "lstm_lm"])
def test_a_prompt_that_fails_is_not_gone_on_from(built: Callable[[str], Built], name: str) -> None:
    session = unbounded(built(name))
    session.prefill([[1, 2]], [2])
    with pytest.raises(RuntimeInputError, match=r"ONNX Runtime: (?s:.)*everything read is forgotten"):
        session.prefill([[1, VOCAB]], [2])
    with pytest.raises(RuntimeInputError, match="call `prefill` first"):
        session.step([1])
    close(session.prefill([[1, 2]], [2])[0], built(name).last([1, 2]))


def test_rows_that_do_not_all_fit_take_nothing(built: Callable[[str], Built]) -> None:
    session = built("llama").open()
    session.prefill(ids_of(2, POSITIONS - 2), [POSITIONS - 2, 3])
    with pytest.raises(RuntimeInputError, match="81 tokens do not fit"):
        session.append(ids_of(2, 3))
    assert session.lengths.tolist() == [POSITIONS - 2, 3]


def test_tuned_sessions_give_the_same(built: Callable[[str], Built]) -> None:
    b = built("llama")
    ids = ids_of(2, 30)
    close(b.open(tune=True, threads=None).prefill(ids, [30, 12]), b.open().prefill(ids, [30, 12]))


# -- wrong inputs -----------------------------------------------------------------------------------------------------

PASTS = [f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")]
WRONG: dict[str, tuple[Callable[[Session], Any], str]] = {
    "no ids": (lambda s: s.run({}), "input input_ids i64 .* is missing"),
    "unknown": (lambda s: s.run({"input_idz": 1}), "no input 'input_idz', did you mean 'input_ids'"),
    "own input": (lambda s: s.run({"input_ids": [[1]], "lengths": [1]}), "no input 'lengths'"),
    "floats": (lambda s: s.run({"input_ids": np.ones((1, 2))}), r"input_ids is float64\[1, 2\], expected integers"),
    "ragged": (lambda s: s.run({"input_ids": [[1, 2], [3]]}), "input_ids has rows of different lengths"),
    "rank": (lambda s: s.run({"input_ids": [1, 2]}), r"input_ids is int64\[2\], expected integers of rank 2"),
    "empty": (lambda s: s.run({"input_ids": np.zeros((1, 0), int)}), r"shape \[1, 0\], expected at least 1"),
    "mask": (
        lambda s: s.run({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}),
        r"attention_mask is \[1, 3\], expected \[1, 2\]",
    ),
    "positions": (
        lambda s: s.run({"input_ids": [[1, 2]], "position_ids": [[1], [2]]}),
        r"position_ids is \[2, 1\], expected \[1, 2\]",
    ),
    "one past": (
        lambda s: s.run({"input_ids": [[1]], "past_key_values.0.key": np.zeros((1, 2, 3, 16), np.float32)}),
        "past_key_values.0.value .* is missing, but other pasts are given",
    ),
    "past shape": (
        lambda s: s.run({"input_ids": [[1]], "past_key_values.0.key": np.zeros((1, 4, 3, 16), np.float32)}),
        "past_key_values.0.value .* is missing, but other pasts are given",
    ),
    "past heads": (
        lambda s: s.run({"input_ids": [[1]], **{k: np.zeros((1, 4, 3, 16), np.float32) for k in PASTS}}),
        "axis 1 of past_key_values.0.key is 4, expected 2",
    ),
    "past dtype": (
        lambda s: s.run({"input_ids": [[1]], **{k: np.zeros((1, 2, 3, 16)) for k in PASTS}}),
        r"past_key_values.0.key is float64\[1, 2, 3, 16\], expected f32\[B,2,P,16\]",
    ),
    "past lengths": (
        lambda s: s.run({"input_ids": [[1]], **{k: np.zeros((1, 2, i, 16), np.float32) for i, k in enumerate(PASTS)}}),
        "axis 2 of past_key_values.0.value is 1, expected P = 0",
    ),
    "positions beyond": (
        lambda s: s.run({"input_ids": [[1, 2]], "position_ids": [[0, POSITIONS]]}),
        f"position_ids holds {POSITIONS}, but the model has {POSITIONS}",
    ),
    "positions before": (
        lambda s: s.run({"input_ids": [[1, 2]], "position_ids": [[0, -1]]}), "position_ids holds -1, which is not",
    ),
    "step first": (lambda s: s.step([1]), "call `prefill` first"),
    "rows": (lambda s: (s.prefill([[1, 2]], [2]), s.step([1, 2])), "2 rows were given, but `prefill` began 1"),
    "length 0": (lambda s: s.prefill([[1], [2]], [1, 0]), r"lengths are \[1, 0\], expected 2 numbers from 1 to 1"),
    "length 3": (lambda s: s.prefill([[1, 2]], [3]), r"lengths are \[3\], expected 1 numbers from 1 to 2"),
    "truncate up": (lambda s: (s.prefill([[1, 2]], [2]), s.truncate([3])), r"rows of \[2\] tokens cannot be cut"),
    "negative": (lambda s: s.prefill([[1, -100]], [1]), "tokens holds -100, which is not a token"),
    "encode": (lambda s: s.encode({}), "llama has no encoder"),
    "id": (lambda s: s.prefill([[VOCAB]], [1]), "tokens holds 40, but the model has 40, from 0 to 39"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(built: Callable[[str], Built], case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(RuntimeInputError, match=message):
        call(built("llama").open())


SEQ2SEQ: dict[str, Callable[[], Model]] = {
    "transformer2017": lambda: transformer2017(vocab=VOCAB, dim=32, heads=4, ffn=40, layers=2, decoder_layers=2),
    "lstm_seq2seq": lambda: load_family("lstm_seq2seq")(vocab=VOCAB, dim=16, layers=2),
}


# -- encoders and encoder-decoders ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Built:
    made = bert(vocab=VOCAB, dim=32, layers=2, heads=4, ffn=40, max_positions=20)
    return Built("bert", tmp_path_factory.mktemp("encoder"), made)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", [*MASKS, "empty row"])
def test_encoder_with_every_mask(encoder: Built, kind: str, batch: int) -> None:
    ids = ids_of(batch, 7)
    mask = attention_mask("holed" if kind == "empty row" else kind, batch, 7)
    if kind == "empty row":
        mask[-1] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    wanted = interpret(encoder.graph, {**inputs, "position_ids": np.tile(np.arange(7), (batch, 1))}, encoder.params)
    found = encoder.open().run(inputs)
    for name in ("last_hidden_state", "pooler_output"):
        close(found[name], wanted[name], name)
    assert encoder.report.attentions == {"total": 2, "ort_multi_head_attention": 2}


def test_encoders_have_no_cache(encoder: Built) -> None:
    session = encoder.open()
    assert session.lengths.tolist() == [] and session.config["model_type"] == "bert"
    for call in (lambda: session.prefill([[1]], [1]), lambda: session.step([1])):
        with pytest.raises(RuntimeInputError, match="bert has no cache: call `run`"):
            call()
    with pytest.raises(RuntimeInputError, match=r"axis 1 of attention_mask is 2, expected S = 3"):
        session.run({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", ["transformer2017", "lstm_seq2seq"])
def test_encoder_decoder(tmp_path: Path, family: str, batch: int) -> None:
    """Source once, then prompts and steps; and the stateless run with masks on both sides."""
    b = Built("seq2seq", tmp_path, SEQ2SEQ[family]())
    session = b.open()
    source, mask = ids_of(batch, 6), attention_mask("holed", batch, 6)
    target, lengths = ids_of(batch, 5, seed=2), np.array([5, 2, 4])[:batch]
    session.encode({"input_ids": source, "attention_mask": mask})

    def last(i: int, row: list[int]) -> Array:
        inputs = {
            "input_ids": source[i : i + 1],
            "attention_mask": mask[i : i + 1],
            "decoder_input_ids": np.array([row]),
        }
        inputs |= {"position_ids": np.arange(6)[None], "decoder_position_ids": np.arange(len(row))[None]}
        inputs["decoder_attention_mask"] = np.ones((1, len(row)), np.int64)
        return interpret(b.graph, {k: inputs[k] for k in b.graph.inputs}, b.params)["logits"][0, -1]

    rows = [target[i, :n].tolist() for i, n in enumerate(lengths)]
    logits = session.prefill(target, lengths)
    for _ in range(4):
        for i, row in enumerate(rows):
            close(logits[i], last(i, row), i)
        tokens = logits.argmax(axis=1)
        for row, token in zip(rows, tokens, strict=True):
            row.append(int(token))
        logits = session.step(tokens)
    given = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
    padded = attention_mask("left-padded", batch, 5)
    for own in ({}, {"decoder_attention_mask": padded}):
        kept = own.get("decoder_attention_mask", np.ones((batch, 5), np.int64))
        full = {**given, "decoder_attention_mask": kept, "decoder_position_ids": default_positions(kept, 5),
                "position_ids": np.tile(np.arange(6), (batch, 1))}  # fmt: skip
        wanted = interpret(b.graph, {k: full[k] for k in b.graph.inputs}, b.params)["logits"]
        close(session.run({**given, **own})["logits"][kept == 1], wanted[kept == 1])


# -- building ---------------------------------------------------------------------------------------------------------


def test_what_a_build_reports(built: Callable[[str], Built]) -> None:
    b = built("llama")
    r = b.report
    assert r.attentions == {"total": 2, "ort_group_query_attention": 2} and r.fused == 2 and r.misses == []
    assert r.nodes["model.onnx"]["GroupQueryAttention"] == 2 and "Attention" not in r.nodes["model.onnx"]
    assert r.nodes["model.onnx"]["SkipSimplifiedLayerNormalization"] == 4 and r.nodes["model.onnx"]["QuickGelu"] == 2
    assert r.nodes["model.masked.onnx"]["Attention"] == 2
    assert "Transpose" not in r.nodes["model.onnx"], "weights are stored as the kernels want them"
    params = sum(v.nbytes for v in b.params.values())
    assert params <= r.bytes < 1.1 * params + 4096 * 10, "both graphs read one copy of every weight"
    assert r.bound == 300_000_000 + 3 * 4 * 128 * 64, "the largest tensor is the packed projection"
    assert {s.name for s in r.steps} >= {"add_state", "pack_projections", "ort_group_query_attention", "cse"}
    assert r.summary().startswith("2 of 2 attentions fused, 0.")


def test_the_folder_is_complete(built: Callable[[str], Built]) -> None:
    b = built("llama")
    names = {p.name for p in b.folder.iterdir()}
    assert names == {"model.onnx", "model.masked.onnx", "model.onnx.data", "monograph.json", "config.json"}
    assert b.open().config["num_key_value_heads"] == 2
    contract = json.loads((b.folder / "monograph.json").read_text())
    slots = [(s["input"], s["output"], s["growth"], s["type"], s["axis"]) for s in contract["slots"]]
    assert slots[3] == ("past_key_values.1.value", "present.1.value", "append", "f32[B,2,P,16]", 2) and len(slots) == 4
    assert contract["inputs"]["model.onnx"]["input_ids"] == "i64[B,S]" and contract["positions"] == POSITIONS
    assert contract["stream"]["ids"] == "input_ids" and contract["bounds"] == {"input_ids": VOCAB}


def test_strict_names_the_layer_and_the_reason(tmp_path: Path) -> None:
    made = small(kind="bias")
    weights = Weights.of(random_params(made.graph()))
    with pytest.raises(LoweringError) as e:
        build(made, weights, tmp_path / "out", strict=True)
    assert "0 of 2 attentions were fused" in str(e.value)
    assert "layers.0: it has a bias over keys" in str(e.value) and "layers.1" in str(e.value)
    assert not (tmp_path / "out").exists()
    assert build(made, weights, tmp_path / "out").attentions["onnx_cached_attention"] == 2


@pytest.mark.parametrize("positions", [0, -5, 2.5])
def test_positions_are_a_whole_number(tmp_path: Path, positions: Any) -> None:
    with pytest.raises(LoweringError, match=f"max_positions is {positions}, expected a whole number of at least 1"):
        build(MODELS["llama"](), None, tmp_path / "out", max_positions=positions)
    assert not (tmp_path / "out").exists()


def test_a_plain_graph_builds_too(tmp_path: Path) -> None:
    made = MODELS["llama"]()
    graph = made.graph()
    params = random_params(graph)
    build(graph, Weights.of(params), tmp_path / "out", max_positions=16)
    session = open_session(tmp_path / "out", threads=1)
    assert session.config == {} and session.capacity == 16
    ids = ids_of(1, 5)
    inputs = {"input_ids": ids, "attention_mask": np.ones((1, 5), np.int64), "position_ids": np.arange(5)[None]}
    close(session.prefill(ids, [5])[0], interpret(graph, inputs, params)["logits"][0, -1])


class Broken(Tensor):
    """A tensor whose file turns out to be damaged when it is read."""

    def __init__(self, of: Tensor) -> None:
        self.type = of.type

    def numpy(self) -> Array:
        raise WeightsError("tensor cannot be read: the file was changed after it was opened")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    made = MODELS["llama"]()
    weights = Weights.of(random_params(made.graph()))
    broken = weights | {"model.layers.1.mlp.down_proj.weight": Broken(weights["model.layers.1.mlp.down_proj.weight"])}
    with pytest.raises(WeightsError, match="changed after it was opened"):
        build(made, broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    build(made, weights, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(WeightsError):
        build(made, broken, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_build_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="model llama has no weights"):
        build(MODELS["llama"](), None, tmp_path)
    with pytest.raises(WeightsError, match=r"(?s)20 weights of llama are missing.*model.norm.weight: f32\[64\]"):
        build(MODELS["llama"](), Weights.of({}), tmp_path)


# -- damaged folders --------------------------------------------------------------------------------------------------


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "monograph.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def slot(folder: Path, **changes: Any) -> None:
    slots = json.loads((folder / "monograph.json").read_text())["slots"]
    edit(folder, slots=[slots[0] | changes, *slots[1:]])


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[MonographError], str]] = {
    "no contract": (lambda f: (f / "monograph.json").unlink(), ConfigError, "it is not a folder that `build` wrote"),
    "not json": (lambda f: (f / "monograph.json").write_text("{"), ConfigError, "is not JSON"),
    "not an object": (lambda f: (f / "monograph.json").write_text("[]"), ConfigError, "is of version list, expected 3"),
    "config": (lambda f: (f / "config.json").write_text("{"), ConfigError, r"config\.json: is not JSON"),
    "version": (lambda f: edit(f, version=1), ConfigError, "is of version 1, expected 3"),
    "unknown key": (lambda f: edit(f, colour="red"), ConfigError, "unknown key 'colour'"),
    "type": (lambda f: edit(f, positions="many"), ConfigError, "'positions' is 'many', expected int"),
    "slot": (lambda f: edit(f, slots=[{"input": "x"}]), ConfigError, "slot 0: key 'growth' is missing"),
    "growth": (lambda f: slot(f, growth="shrink"), ConfigError, "slot 0: growth is 'shrink', expected one of append, "),
    "axis": (lambda f: slot(f, axis=None), ConfigError, "slot 0: past_key_values.0.key: axis is None, expected one of"),
    "window": (lambda f: slot(f, window=3), ConfigError, "growth append with window 3"),
    "slot type": (lambda f: slot(f, type="f32[B"), ConfigError, r"slot 0: 'f32\[B' is not a type"),
    "stream": (lambda f: edit(f, stream={"ids": 3}), ConfigError, "stream: 'ids' is 3, expected str"),
    "bounds": (lambda f: edit(f, bounds={"input_ids": 0}), ConfigError, "'bounds' says 0 of 'input_ids'"),
    "input type": (lambda f: edit(f, inputs={"model.onnx": {"input_ids": 1}}), ConfigError, "input_ids: 1 is not a"),
    "outside": (lambda f: edit(f, masked="../model.onnx"), ConfigError, "names '../model.onnx'"),
    "no file": (lambda f: (f / "model.masked.onnx").unlink(), ConfigError, "names 'model.masked.onnx'"),
    "heads": (
        lambda f: slot(f, type="f32[B,4,P,16]"), RuntimeInputError,
        r"past_key_values.0.key: a session feeds f32\[B,4,P,16\], the graph has f32\[B,2,P,16\]",
    ),
    "slot name": (
        lambda f: slot(f, input="past_key_values.7.key"), RuntimeInputError,
        "past_key_values.7.key: the contract has a slot, the graph has no input",
    ),
    "slot output": (
        lambda f: slot(f, output="presents"), RuntimeInputError,
        "presents: the contract has an output, the graph has none",
    ),
    "input": (
        lambda f: edit(f, inputs={"model.onnx": {"input_ids": "i32[B,S]"}}), RuntimeInputError,
        r"input_ids: the contract has int32\[batch_size, sequence_length\], the graph has int64\[batch_size, seq",
    ),
    "stream name": (
        lambda f: edit(f, stream={"length": "S", "ids": "ids", "mask": "m", "positions": "p"}), RuntimeInputError,
        "ids: a decoder reads tokens, and the graph reads none",
    ),
    "provider": (lambda f: edit(f, provider="cuda"), RuntimeInputError, "sessions on cuda are not supported yet"),
    "graph cut": (
        lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:900]), WeightsError, "is 900 bytes",
    ),
    "data cut": (
        lambda f: (f / "model.onnx.data").write_bytes((f / "model.onnx.data").read_bytes()[:1000]), WeightsError,
        "is 1000 bytes long",
    ),
    "data longer": (
        lambda f: (f / "model.onnx.data").write_bytes((f / "model.onnx.data").read_bytes() + b"x"), WeightsError,
        r"model\.onnx\.data: is \d+ bytes long, but \d+ were written: build the model again",
    ),
    "data of another": (
        lambda f: (f / "model.onnx.data").write_bytes(bytes((f / "model.onnx.data").stat().st_size)), WeightsError,
        r"model\.onnx\.data: is not the file that was written: build the model again",
    ),
    "bytes": (lambda f: edit(f, bytes={"model.onnx": "1"}), ConfigError, "'bytes' says '1' of 'model.onnx'"),
    "no data": (lambda f: (f / "model.onnx.data").unlink(), ConfigError, "names 'model.onnx.data'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folders_are_refused(built: Callable[[str], Built], tmp_path: Path, case: str) -> None:
    damage, error, message = DAMAGE[case]
    folder = tmp_path / "copy"
    shutil.copytree(built("llama").folder, folder)
    damage(folder)
    with pytest.raises(error, match=message):
        open_session(folder, threads=1)
