"""What sessions take in: models with fewer inputs, wrong inputs, encoders and encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime.guard import default_positions
from monograph.frontends.dsl import Model, Scope, Value, key_mask, load_family, model
from monograph.frontends.models.bert import bert
from monograph.frontends.models.transformer2017 import transformer2017
from monograph.ir import interpret, ops
from monograph.ir.errors import RuntimeInputError
from monograph.ir.types import f32
from monograph.passes.differential import MASKS, attention_mask
from ort_models import (
    POSITIONS,
    VOCAB,
    Array,
    Built,
    Small,
    builder,
    close,
    ids_of,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    return builder(tmp_path_factory.mktemp("built"))


# -- models with fewer inputs -----------------------------------------------------------------------------------------


def body(m: Scope, input_ids: Value, mask: Value | None = None, positions: Value | None = None) -> Value:
    x = m.embed("embed", input_ids, VOCAB, 32)
    q, k, v = (m.linear(n, x, 32).split_heads(2) for n in "qkv")
    if positions is not None:
        q, k = (m.rope(t, positions, theta=100.0) for t in (q, k))
    keep = None if mask is None else key_mask(mask)
    return m.linear("head", x + m.linear("o", ops.attention(q, k, v, mask=keep, causal=True).merge_heads(), 32), VOCAB)


@model
def ids_only(m: Scope, c: Small, input_ids: Value) -> Value:
    return body(m, input_ids)


@model
def without_mask(m: Scope, c: Small, input_ids: Value, position_ids: Value) -> Value:
    return body(m, input_ids, None, position_ids)


@model
def without_positions(m: Scope, c: Small, input_ids: Value, attention_mask: Value) -> Value:
    return body(m, input_ids, attention_mask)


@model
def unused_mask(m: Scope, c: Small, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    return body(m, input_ids, None, position_ids)


@model
def masked_embedding(m: Scope, c: Small, input_ids: Value, attention_mask: Value) -> Value:
    x = m.embed("embed", input_ids, VOCAB, 32)
    x = x * attention_mask.cast(f32).reshape(*x.shape[:2], 1)
    q, k, v = (m.linear(n, x, 32).split_heads(4) for n in "qkv")
    return m.linear("head", x + ops.attention(q, k, v, causal=True).merge_heads(), VOCAB)


FEWER = (ids_only, without_mask, without_positions, unused_mask, masked_embedding)


@pytest.mark.parametrize("family", FEWER, ids=lambda f: f.name)
def test_models_with_fewer_inputs(tmp_path: Path, family: Any) -> None:
    """Stateless, with pasts, and as batches of ragged rows: what is not there is not fed."""
    b = Built(family.name, tmp_path, family())
    session, ids = b.open(), ids_of(3, 9)

    def wanted(row: Array) -> Array:
        given = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        given["position_ids"] = np.arange(len(row))[None]
        return interpret(b.graph, {k: given[k] for k in b.graph.inputs}, b.params)["logits"][0]

    full = np.stack([wanted(row) for row in ids])
    ones, positions = np.ones((3, 9), np.int64), np.tile(np.arange(9), (3, 1))
    for more in ({}, {"attention_mask": ones}, {"attention_mask": ones, "position_ids": positions}):
        close(session.run({"input_ids": ids, **more})["logits"], full)
    first = session.run({"input_ids": ids[:, :4]})
    pasts = {s.input: first[s.output] for s in session.contract.slots}
    close(session.run({"input_ids": ids[:, 4:], **pasts})["logits"], full[:, 4:])
    lengths = np.array([2, 5, 3])
    logits = session.prefill(ids, lengths)
    for _ in range(4):
        for i, n in enumerate(lengths):
            close(logits[i], full[i, n - 1], (i, n))
        logits = session.step(ids[np.arange(3), lengths])
        lengths = lengths + 1
    session.truncate([3, 3, 2])
    logits = session.append(np.stack([ids[0, 3:6], ids[1, 3:6], ids[2, 2:5]]), [3, 1, 2])
    for i, n in enumerate((6, 4, 4)):
        close(logits[i], full[i, n - 1], (i, n))


@pytest.mark.parametrize("family", FEWER, ids=lambda f: f.name)
def test_what_a_model_does_not_read_cannot_be_asked_of_it(tmp_path: Path, family: Any) -> None:
    """A mask, or positions, that the model declares is taken as the model takes it; one that it does not is refused
    unless it changes nothing."""
    b = Built(family.name, tmp_path, family())
    session, ids = b.open(), ids_of(2, 4)
    left = np.array([[1, 1, 1, 1], [0, 0, 1, 1]])
    reversed_ = np.tile(np.arange(4)[::-1], (2, 1))
    for name, odd, kept in (("attention_mask", left, left), ("position_ids", reversed_, np.ones((2, 4)))):
        if name in b.graph.inputs:
            mask = odd if name == "attention_mask" else None
            given = {"input_ids": ids, "attention_mask": np.ones((2, 4), np.int64) if mask is None else mask}
            given["position_ids"] = default_positions(left, 4) if mask is not None else odd
            wanted = interpret(b.graph, {k: given[k] for k in b.graph.inputs}, b.params)["logits"]
            close(session.run({"input_ids": ids, name: odd})["logits"][kept == 1], wanted[kept == 1])
        else:
            with pytest.raises(RuntimeInputError, match=f"{name} .* but the model has no such input"):
                session.run({"input_ids": ids, name: odd})


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


def test_texts_and_sources_that_are_too_long(encoder: Built, tmp_path: Path) -> None:
    """An encoder has as many positions as its table; a source is bound by its own tables only."""
    long = np.ones((1, 21), np.int64)
    with pytest.raises(RuntimeInputError, match="21 tokens do not fit: the model was built for at most 20 positions"):
        encoder.open().run({"input_ids": long})
    for name, bound in (("input_ids", VOCAB), ("token_type_ids", 2), ("position_ids", 20)):
        for value in (-1, bound):
            with pytest.raises(RuntimeInputError, match=f"{name} holds {value}, "):
                encoder.open().run({"input_ids": [[1]]} | {name: [[value]]})
    b = Built("seq2seq", tmp_path, SEQ2SEQ["transformer2017"](), max_positions=8)
    session = b.open()
    session.encode({"input_ids": long})
    close(
        session.prefill([[1, 2]], [2]), session.run({"input_ids": long, "decoder_input_ids": [[1, 2]]})["logits"][:, -1]
    )
    with pytest.raises(RuntimeInputError, match=f"input_ids holds {VOCAB}, but the model has {VOCAB}"):
        session.encode({"input_ids": [[VOCAB]]})


@pytest.mark.parametrize("inputs", [None, [], 3, "input_ids", [("input_ids", [[1]])], {3: [[1]]}, {None: 1}, object()])
def test_inputs_are_arrays_by_name(built: Callable[[str], Built], inputs: Any) -> None:
    with pytest.raises(RuntimeInputError, match=r"inputs (are|have the name) .*, expected (arrays by name|texts)"):
        built("llama").open().run(inputs)
