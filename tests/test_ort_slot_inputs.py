"""Stateless runs over slots of every growth, what comes beside tokens, and feeds held against graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime.contract import Contract
from monograph.backends.onnxruntime.feeds import check_feeds
from monograph.backends.onnxruntime.guard import default_positions
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.ir import interpret
from monograph.ir.bounds import bounds_of
from monograph.ir.errors import LoweringError, RuntimeInputError
from monograph.ir.types import f32, i32, tensor
from monograph.passes.differential import MASKS, attention_mask
from slot_nets import FORMS, HEADS, VOCAB, WIDTH, WINDOW, B, Made, Net, S, close


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    folder, known = tmp_path_factory.mktemp("slots"), dict[str, Made]()

    def get(parts: str, *, lengths: bool, **settings: Any) -> Made:
        key = f"{parts} {lengths} {settings}"
        if key not in known:
            known[key] = Made(parts, folder / str(len(known)), lengths=lengths, **settings)
        return known[key]

    return get


# -- stateless --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", ["append window replace along fixed", "window window2", "once append window"])
def test_run_with_pasts_and_masks(made: Callable[..., Made], parts: str, lengths: bool, kind: str) -> None:
    """One call, and two where the second is given what the first gave, uncut or as much of it as counts."""
    m = made(parts, lengths=lengths)
    session, rng = m.open(), np.random.default_rng(3)
    ids, mask = rng.integers(0, VOCAB, (3, 9)), attention_mask(kind, 3, 9)
    along = {"sound": rng.standard_normal((3, 9, 3), np.float32)}
    fixed = {"style": rng.standard_normal((3, WIDTH), np.float32), "frames": rng.standard_normal((3, 5, 4), np.float32)}
    along, fixed = ({k: v for k, v in d.items() if k in m.plain.inputs} for d in (along, fixed))
    s, positions = m.stream, default_positions(mask, 9)
    given = {s.ids: ids, s.mask: mask, s.positions: positions}
    wanted = interpret(m.plain, given | along | fixed, m.params)["logits"]
    close(session.run({s.ids: ids, s.mask: mask, **along, **fixed})["logits"][mask == 1], wanted[mask == 1])
    first = session.run({k: v[:, :6] for k, v in (given | along).items()} | fixed)
    for cut in (False, True):
        pasts = {x.input: first[x.output] for x in m.contract.slots if x.output}
        if cut:
            pasts |= {x.input: pasts[x.input][:, :, 1 - WINDOW :] for x in m.contract.slots if x.window}
        rest = {
            s.ids: ids[:, 6:],
            s.mask: mask,
            s.positions: positions[:, 6:],
            **{k: v[:, 6:] for k, v in along.items()},
        }
        close(session.run(rest | pasts | fixed)["logits"][mask[:, 6:] == 1], wanted[:, 6:][mask[:, 6:] == 1], cut)


def test_a_model_without_a_mask(made: Callable[..., Made]) -> None:
    """Padding behind all tokens changes nothing for them; any other mask cannot be meant."""
    for lengths in (True, False):
        m = made("append along nomask", lengths=lengths)
        ids, sound = np.array([[3, 1, 4, 1], [2, 7, 0, 0]]), np.ones((2, 4, 3), np.float32)
        mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
        found = m.open().run({"input_ids": ids, "attention_mask": mask, "sound": sound})["logits"]
        close(found[0], m.full(ids[0], sound=sound[:1])[0])
        close(found[1, :2], m.full(ids[1, :2], sound=sound[1:, :2])[0])
        with pytest.raises(RuntimeInputError, match="attention_mask hides tokens before others, but the model has no"):
            m.open().run({"input_ids": ids, "attention_mask": mask[:, ::-1], "sound": sound})


ALL = "once append window replace along fixed"
IDS, FRAMES = np.array([[1, 2, 3], [4, 5, 6]]), np.ones((2, 2, 4), np.float32)
SOUND, STYLE = {"sound": np.ones((2, 3, 3), np.float32)}, {"style": np.ones((2, WIDTH), np.float32)}
GIVEN = SOUND | STYLE
WRONG: dict[str, tuple[Callable[[Session], Any], str]] = {
    "no source": (lambda s: (s.reset(), s.prefill(IDS, [3, 3], GIVEN)), "0 sources are read for 2 rows"),
    "sources": (
        lambda s: (s.encode({"frames": np.ones((3, 2, 4), np.float32)}), s.prefill(IDS, [3, 3], GIVEN)),
        "3 sources are read for 2 rows",
    ),
    "source type": (lambda s: s.encode({"frames": np.ones((2, 2, 4))}), r"frames is float64\[2, 2, 4\], expected f32"),
    "source rank": (
        lambda s: s.encode({"frames": np.ones((2, 4), np.float32)}),
        r"frames is float32\[2, 4\], expected f32\[B,F,4\]",
    ),
    "source size": (lambda s: s.encode({"frames": FRAMES[..., :3]}), "axis 2 of frames is 3, expected 4"),
    "source empty": (lambda s: s.encode({"frames": np.ones((2, 0, 4), np.float32)}), r"frames has shape \[2, 0, 4\]"),
    "source missing": (lambda s: s.encode({}), r"input frames f32\[B,F,4\] is missing"),
    "along missing": (lambda s: s.prefill(IDS, [3, 3], STYLE), r"input sound f32\[B,U,3\] is missing"),
    "fixed missing": (lambda s: s.prefill(IDS, [3, 3], SOUND), r"input style f32\[B,16\] is missing"),
    "along short": (
        lambda s: s.prefill(IDS, [3, 3], GIVEN | {"sound": np.ones((2, 2, 3), np.float32)}),
        r"sound is \[2, 2, 3\], but the tokens are \[2, 3\]",
    ),
    "fixed rows": (
        lambda s: s.prefill(IDS, [3, 3], GIVEN | {"style": np.ones((3, WIDTH), np.float32)}),
        r"style is \[3, 16\], but the tokens are \[2, 3\]",
    ),
    "fixed width": (
        lambda s: s.prefill(IDS, [3, 3], GIVEN | {"style": np.ones((2, 9), np.float32)}),
        "axis 1 of style is 9, expected 16",
    ),
    "fixed later": (
        lambda s: (s.prefill(IDS, [3, 3], GIVEN), s.append(IDS, None, GIVEN)), "style stays for a batch: give it to",
    ),
    "along later": (lambda s: (s.prefill(IDS, [3, 3], GIVEN), s.step([1, 1])), r"input sound f32\[B,U,3\] is missing"),
    "unknown": (lambda s: s.prefill(IDS, [3, 3], GIVEN | {"stile": 1}), "no input 'stile', did you mean 'style'"),
    "chunk": (
        lambda s: (s.prefill(IDS, [3, 3], GIVEN), s.append(IDS, [0, 3], {"sound": GIVEN["sound"]})),
        r"lengths are \[0, 3\], expected 2 numbers from 1 to 3",
    ),
    "run": (
        lambda s: s.run({"decoder_input_ids": IDS, "frames": np.ones((3, 2, 4), np.float32), **GIVEN}),
        "axis 0 of encoder.0 is 3, expected 2",
    ),
    "state": (
        lambda s: s.run(GIVEN | {"decoder_input_ids": IDS, "frames": FRAMES, "past_state.0.h": np.ones((2, 16), "f4")}),
        "input past_key_values.0.key .* is missing, but other pasts are given",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(made: Callable[..., Made], case: str, lengths: bool) -> None:
    call, message = WRONG[case]
    session = made(ALL, lengths=lengths).open()
    session.encode({"frames": FRAMES})
    with pytest.raises(RuntimeInputError, match=message):
        call(session)


def test_a_window_that_was_cut_does_not_say_how_much_there_was(made: Callable[..., Made]) -> None:
    session = made("window window2", lengths=True).open()
    first = session.run({"input_ids": IDS})
    pasts = {x.input: first[x.output] for x in session.contract.slots}
    session.run({"input_ids": IDS, **pasts})
    long = {k: np.zeros((2, HEADS, 4, 8), np.float32) for k in pasts}
    with pytest.raises(RuntimeInputError, match=r"past_key_values.0.key holds 4 tokens, and does not say how many"):
        session.run({"input_ids": IDS, **long})
    with pytest.raises(RuntimeInputError, match=r"past_key_values.0.key holds 3 tokens, but 4 of 6 count"):
        session.run({"input_ids": IDS, "attention_mask": np.ones((2, 9), int), **pasts})


# -- feeds ------------------------------------------------------------------------------------------------------------


def test_feeds_are_held_against_the_graphs(made: Callable[..., Made]) -> None:
    """File, name and both types of everything that a session does not feed, or would feed as something else."""
    m, graph = made("append window replace", lengths=False), Net("append window replace", "masked").graph
    check_feeds(m.contract, {"model.masked.onnx": graph})
    graph.inputs["position_ids"].type = tensor(i32, B, S)
    graph.inputs["past_state.0.h"].type = tensor(f32, B, 8)
    graph.input("table", tensor(f32, "N", 4))
    types = {"model.masked.onnx": {k: v.type for k, v in graph.inputs.items()}}
    slots = (replace(m.contract.slots[0], output="presents"), *m.contract.slots[1:])
    with pytest.raises(LoweringError) as e:
        check_feeds(m.contract, {"model.masked.onnx": graph})
    assert "model.masked.onnx: position_ids: the contract has i64[B,S], the graph has i32[B,S]" in str(e.value)
    assert "model.masked.onnx: table: the contract has nothing, the graph has f32[N,4]" in str(e.value)
    with pytest.raises(LoweringError) as e:
        check_feeds(replace(m.contract, inputs=types, slots=slots), {"model.masked.onnx": graph})
    for line in (
        "position_ids: a session feeds i64[B,S], the graph has i32[B,S]",
        "past_state.0.h: a session feeds f32[B,16], the graph has f32[B,8]",
        "table: f32[N,4], expected one entry a row [B,...] or a token [B,S,...]",
        "presents: the slot becomes f32[B,2,P+S,8], the graph gives nothing",
    ):
        assert f"model.masked.onnx: {line}" in str(e.value)


def test_tables_bound_what_chooses_from_them(made: Callable[..., Made]) -> None:
    m = made("append window replace", lengths=True)
    assert m.contract.bounds == {"input_ids": VOCAB, "position_ids": 64}
    with pytest.raises(RuntimeInputError, match="tokens holds 30, but the model has 30, from 0 to 29"):
        m.open().prefill([[30]], [1])
    with pytest.raises(RuntimeInputError, match="position_ids holds 60, but the model has 60"):
        m.open().run({"input_ids": [[1]], "position_ids": [[60]]})
    assert bounds_of(Net("once append", "plain").graph) == {"decoder_input_ids": VOCAB, "decoder_position_ids": 64}


def test_contracts_are_read_as_they_were_written(made: Callable[..., Made]) -> None:
    for parts in (ALL, "window replace nomask"):
        m = made(parts, lengths=True)
        assert Contract.read(m.folder) == m.contract


def test_arrays_outlive_their_buffers() -> None:
    memory = CpuMemory()
    array = memory.download(memory.row(memory.upload(np.arange(12.0).reshape(3, 4)), 1))
    gc.collect()
    assert array.tolist() == [[4.0, 5.0, 6.0, 7.0]]
    source = memory.upload(np.arange(10.0).reshape(1, 10))
    memory.shift(source, 2, source, 0, 7, row=0, axis=1)
    assert memory.download(source).tolist() == [[2, 3, 4, 5, 6, 7, 8, 7, 8, 9]], "what overlaps is moved whole"
    assert memory.allocate((2, 0, 3), np.dtype(np.float32)).shape == (2, 0, 3)
