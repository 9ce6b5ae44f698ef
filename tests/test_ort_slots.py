"""Sessions over graphs made by hand: each growth of a slot alone and all of them mixed, against full forwards."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnx.lower import lower
from monograph.backends.onnxruntime import Session, held
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.contract import FILE, VERSION, Contract
from monograph.backends.onnxruntime.feeds import bounds_of, check_feeds, counts_of
from monograph.backends.onnxruntime.files import write_variants
from monograph.backends.onnxruntime.guard import default_positions
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.backends.onnxruntime.ops import group_query_attention
from monograph.backends.onnxruntime.rewrites import mask_variant
from monograph.backends.target import Target
from monograph.frontends.dsl import Scope, Value
from monograph.ir import Graph, interpret, ops
from monograph.ir.errors import LoweringError, RuntimeInputError
from monograph.ir.files import staged
from monograph.ir.slots import PAST, TARGETS, TOKENS, Growth, Slot, Stream, encoded, key_value, past_of, state
from monograph.ir.types import Dim, bool_, f32, i32, i64, tensor
from monograph.ir.weights import Weights
from monograph.passes.differential import MASKS, attention_mask, random_params
from monograph.passes.manager import Pipeline

Array = np.ndarray[Any, Any]
VOCAB, WIDTH, HEADS, WINDOW = 30, 16, 2, 5
B, S, P, W = (Dim.symbol(n) for n in ("B", "S", PAST, past_of(WINDOW)))


class Net:
    """A small decoder with the layers that are asked for, as one of three graphs: plain, lengths or masked.

    parts: append and window (attention), replace (GRU), once (attention over what an encoder makes of floats),
    along (a float input for every token), fixed (a float input for every row), nomask (padding is not hidden).
    """

    def __init__(self, parts: str, form: str) -> None:
        self.parts, self.form, self.graph = parts.split(), form, Graph(f"net_{form}")
        self.stream: Stream = TARGETS if "once" in self.parts else TOKENS
        self.slots: list[Slot] = []
        self.build()

    def build(self) -> None:
        g, stream = self.graph, self.stream
        self.rows = Dim.symbol(stream.length)
        ids = g.input(stream.ids, tensor(i64, B, self.rows))
        self.positions = g.input(stream.positions, tensor(i64, B, self.rows))
        total = self.rows if self.form == "plain" else P + self.rows
        masked = self.form != "lengths" and "nomask" not in self.parts
        self.mask = g.input(stream.mask, tensor(i64, B, total)) if masked else None
        m = Scope(g, "", f32, 1.0)
        x = m.embed("embed", ids, VOCAB, WIDTH)
        if "along" in self.parts:
            x = x + m.linear("along", g.input("sound", tensor(f32, B, self.rows, 3)), WIDTH)
        if "fixed" in self.parts:
            x = x + ops.reshape(g.input("style", tensor(f32, B, WIDTH)), shape=(B, 1, WIDTH))
        x = x + m.embed("places", self.positions, 64, WIDTH)
        for kind, window in (("append", None), ("window", WINDOW), ("append2", None), ("window2", WINDOW)):
            if kind in self.parts:
                x = x + self.attention(m / kind, x, window)
        if "replace" in self.parts:
            x = x + self.gru(m / "gru", x)
        if "once" in self.parts:
            x = x + self.cross(m / "cross", x)
        g.output("logits", m.linear("head", x, VOCAB))

    def attention(self, m: Scope, x: Value, window: int | None) -> Value:
        q, k, v = (m.linear(n, x, HEADS * 8) for n in "qkv")
        if self.form == "plain":
            q, k, v = (t.split_heads(HEADS) for t in (q, k, v))
            return ops.attention(
                q, k, v, mask=self.keys(self.mask, self.rows), causal=True, window=window
            ).merge_heads()
        past = Dim.symbol(past_of(window))
        index = sum(s.growth in (Growth.append, Growth.window) for s in self.slots) // 2
        names = [key_value(index, part) for part in ("key", "value")]
        inputs = [self.graph.input(i, tensor(f32, B, HEADS, past, 8)) for i, _ in names]
        growth = Growth.append if window is None else Growth.window
        self.slots += [Slot(i, o, growth, v.type, 2, window or 0) for (i, o), v in zip(names, inputs, strict=True)]
        if self.form == "lengths":
            lengths, most = (self.counted(window or 0)[i] for i in (0, 1))
            y, *presents = group_query_attention(
                q, *inputs, lengths, most, k, v, heads=HEADS, scale=8**-0.5, window=window
            )
        else:
            appended = [ops.cache_append(p, t.split_heads(HEADS)) for p, t in zip(inputs, (k, v), strict=True)]
            keys, values = (ops.cache_read(p) for p in appended)
            keep = None
            if self.mask is not None:
                own = ops.slice_(self.mask, axis=1, start=P - past, length=past + self.rows) if window else self.mask
                keep = self.keys(own, past + self.rows)
            y, presents = (
                ops.attention(q.split_heads(HEADS), keys, values, mask=keep, causal=True, window=window).merge_heads(),
                appended,
            )
        for (_, output), present in zip(names, presents, strict=True):
            self.graph.output(output, present)
        return y

    def counted(self, window: int) -> tuple[Value, Value]:
        names, g = counts_of(window), self.graph
        if names[0] not in g.inputs:
            g.input(names[0], tensor(i32, B))
            g.input(names[1], tensor(i32))
        return g.inputs[names[0]], g.inputs[names[1]]

    def keys(self, mask: Value | None, keys: Any) -> Value | None:
        return None if mask is None else ops.reshape(ops.cast(mask, dtype=bool_), shape=(B, 1, 1, keys))

    def gru(self, m: Scope, x: Value) -> Value:
        """A GRU that reads what counts only, wherever it is."""
        if self.form == "lengths":
            lengths = ops.cast(self.counted(0)[0], dtype=i64)
            kept = ops.less(self.positions, ops.reshape(lengths, shape=(B, 1)))
        elif self.mask is None:
            kept = None
        else:
            start = P if self.form == "masked" else 0
            kept = ops.cast(ops.slice_(self.mask, axis=1, start=start, length=self.rows), dtype=bool_)
        order, place, lengths = ops.compact(kept) if kept is not None else (None, None, None)
        weights = [m.param(n, 3 * WIDTH, WIDTH) for n in ("ih", "hh")]
        h0 = None
        if self.form != "plain":
            name, output, _ = state(0, "h")
            h0 = self.graph.input(name, tensor(f32, B, WIDTH))
            self.slots.append(Slot(name, output, Growth.replace, h0.type))
        y, last = ops.gru(self.taken(x, order), *weights, None, None, h0, lengths)
        if self.form != "plain":
            self.graph.output(state(0, "h")[1], last)
        return self.taken(y, place)

    def taken(self, x: Value, index: Value | None) -> Value:
        if index is None:
            return x
        return ops.take_along_axis(x, ops.expand(ops.reshape(index, shape=(B, self.rows, 1)), shape=x.shape), axis=1)

    def cross(self, m: Scope, x: Value) -> Value:
        frames = Dim.symbol("F")
        if self.form == "plain":
            memory = encoder_of(self.graph, m)
        else:
            memory = self.graph.input(encoded(0), tensor(f32, B, frames, WIDTH))
            self.slots.append(Slot(encoded(0), "", Growth.once, memory.type, 1))
        q = m.linear("q", x, WIDTH).split_heads(HEADS)
        k, v = (m.linear(n, memory, WIDTH).split_heads(HEADS) for n in "kv")
        return ops.attention(q, k, v).merge_heads()


def encoder_of(graph: Graph, m: Scope) -> Value:
    return ops.tanh(m.linear("memory", graph.input("frames", tensor(f32, B, Dim.symbol("F"), 4)), WIDTH))


class Made:
    """A folder over hand-made graphs, and what a full forward says."""

    def __init__(self, parts: str, folder: Path, *, lengths: bool, limit: int = 60, alone: str = "") -> None:
        plain, masked = Net(parts, "plain"), Net(parts, "masked")
        self.plain, self.stream, self.folder = plain.graph, plain.stream, folder
        self.params = random_params(plain.graph)
        graphs = {"model.masked.onnx": masked.graph}
        if lengths:
            graphs["model.onnx"] = Net(parts, "lengths").graph
        if "once" in parts:
            encoder = Graph("encoder")
            encoder.output(encoded(0), encoder_of(encoder, Scope(encoder, "cross", f32, 1.0)))
            graphs["encoder.onnx"] = encoder
        self.contract = Contract(
            VERSION, "decoder", "net", "causal-lm", "cpu", "f32", "", "model.masked.onnx",
            "model.onnx" if lengths else "",
            "encoder.onnx" if "once" in parts else "", tuple(masked.slots), self.stream, alone,
            {file: {k: v.type for k, v in g.inputs.items()} for file, g in graphs.items()},
            positions=limit, bounds=bounds_of(masked.graph),
        )  # fmt: skip
        check_feeds(self.contract, graphs)
        weights = Weights.of(self.params)
        models = {file: lower(served(g), weights, pipeline=Pipeline("none", [])) for file, g in graphs.items()}
        with staged(folder) as stage:
            write_variants(stage, models)
            for name, text in ((FILE, self.contract.to_json()), ("config.json", "{}")):
                with stage.open(name) as f:
                    f.write(text.encode())

    def open(self, **settings: Any) -> Session:
        return open_session(self.folder, **{"threads": 1, "capacity": 4, **settings})

    def full(self, ids: Array, **inputs: Array) -> Array:
        """Logits [1,S,V] of one row without padding, in the reference."""
        s = self.stream
        given = {s.ids: ids[None], s.mask: np.ones((1, len(ids)), np.int64), s.positions: np.arange(len(ids))[None]}
        given |= inputs
        return interpret(self.plain, {k: given[k] for k in self.plain.inputs}, self.params)["logits"]


def served(graph: Graph) -> Graph:
    graph = graph.copy()
    mask_variant(Target.of("cpu")).run(graph)
    return graph


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    folder, known = tmp_path_factory.mktemp("slots"), dict[str, Made]()

    def get(parts: str, *, lengths: bool, **settings: Any) -> Made:
        key = f"{parts} {lengths} {settings}"
        if key not in known:
            known[key] = Made(parts, folder / str(len(known)), lengths=lengths, **settings)
        return known[key]

    return get


def close(got: Array, wanted: Array, what: object = "") -> None:
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5 * scale, err_msg=str(what))


class Reader:
    """A session that reads rows, and checks every answer against full forwards of each row alone."""

    def __init__(self, made: Made, session: Session, batch: int, seed: int = 0) -> None:
        self.made, self.session, self.rng = made, session, np.random.default_rng(seed)
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.sounds: list[list[Array]] = [[] for _ in range(batch)]
        self.fixed = {"style": self.rng.standard_normal((batch, WIDTH), np.float32)}
        self.fixed = {k: v for k, v in self.fixed.items() if k in made.plain.inputs}
        self.source = {"frames": self.rng.standard_normal((batch, 6, 4), np.float32)}
        self.source = {k: v for k, v in self.source.items() if k in made.plain.inputs}
        if self.source:
            session.encode(self.source)

    def tokens(self, counts: list[int]) -> tuple[Array, dict[str, Array]]:
        """Random tokens and what comes along with them, padded on the right with anything."""
        shape = (len(self.rows), max(counts))
        ids = self.rng.integers(0, VOCAB, shape)
        sound = self.rng.standard_normal((*shape, 3), np.float32)
        for row, count in enumerate(counts):
            self.rows[row] += ids[row, :count].tolist()
            self.sounds[row] += list(sound[row, :count])
        return ids, {"sound": sound} if "sound" in self.made.plain.inputs else {}

    def check(self, logits: Array, what: object) -> None:
        assert logits.dtype == np.float32 and logits.shape == (len(self.rows), VOCAB)
        for row, ids in enumerate(self.rows):
            close(logits[row], self.wanted(row)[-1], (what, row, len(ids)))
        assert self.session.lengths.tolist() == [len(r) for r in self.rows]

    def wanted(self, row: int) -> Array:
        inputs = {k: v[row : row + 1] for k, v in (self.fixed | self.source).items()}
        return self.made.full(np.array(self.rows[row]), sound=np.array([self.sounds[row]]), **inputs)[0]

    def prefill(self, counts: list[int]) -> None:
        self.rows, self.sounds = [[] for _ in counts], [[] for _ in counts]
        ids, along = self.tokens(counts)
        self.check(self.session.prefill(ids, counts, along | self.fixed), "prefill")

    def append(self, counts: list[int]) -> None:
        ids, along = self.tokens(counts)
        even = len(set(counts)) == 1
        self.check(self.session.append(ids, None if even else counts, along), ("append", counts))

    def step(self) -> None:
        ids, along = self.tokens([1] * len(self.rows))
        self.check(self.session.step(ids[:, 0], along), "step")

    def truncate(self, lengths: list[int]) -> None:
        self.session.truncate(lengths)
        self.rows = [r[:n] for r, n in zip(self.rows, lengths, strict=True)]
        self.sounds = [r[:n] for r, n in zip(self.sounds, lengths, strict=True)]


PARTS = (
    "append", "window", "replace", "once append", "append window replace", "append window append2 window2",
    "once append window replace along fixed", "window replace nomask", "append along nomask",
)  # fmt: skip
FORMS = [pytest.param(True, id="lengths"), pytest.param(False, id="masked")]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", PARTS)
def test_prompts_steps_and_ragged_chunks(made: Callable[..., Made], parts: str, lengths: bool, batch: int) -> None:
    """Prompts longer and shorter than the window, three windows of steps, even and ragged chunks, capacity grown."""
    if parts == "once append" and lengths is False:
        parts = "once window"
    m = made(parts, lengths=lengths)
    reader = Reader(m, m.open(), batch)
    reader.prefill([9, 1, 4][:batch])
    for _ in range(3 * WINDOW):
        reader.step()
    reader.append([4] * batch)
    reader.append([1, 6, 3][:batch])
    reader.step()
    reader.append([3, 3, 1][:batch])
    reader.step()
    assert reader.session.state_bytes > 0
    assert set(reader.session._loaded) == {m.contract.lengths or m.contract.masked} | (
        {"encoder.onnx"} if "once" in parts else set()
    )
    assert reader.session.capacity >= max(len(r) for r in reader.rows)


@pytest.mark.parametrize("lengths", FORMS)
def test_a_session_is_used_again(made: Callable[..., Made], lengths: bool) -> None:
    """Other batch sizes, the same again, after a reset: nothing of the batch before is left."""
    m = made("append window replace along fixed", lengths=lengths)
    session = m.open()
    owners = {id(session.owner): session.owner}
    for seed, counts in enumerate(([5], [2, 7, 3], [6, 1, 1], [4, 2, 9], [3])):
        reader = Reader(m, session, len(counts), seed)
        reader.prefill(counts)
        reader.step()
        reader.step()
        owners[id(session.owner)] = session.owner
        if seed == 2:
            session.reset()
            assert session.lengths.tolist() == []
            with pytest.raises(RuntimeInputError, match="call `prefill` first"):
                session.step([1, 1, 1])
    assert len(owners) == 6


@pytest.mark.parametrize("lengths", FORMS)
def test_long_windows_are_moved_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: bool) -> None:
    """More tokens than a window's buffer has places, one by one and in chunks that do not fit at once."""
    monkeypatch.setattr(held, "SLACK", 6)
    m = Made("window replace window2", tmp_path / "out", lengths=lengths, limit=0)
    reader = Reader(m, m.open(), 2)
    reader.prefill([3, 8])
    reader.append([14, 9])
    for _ in range(15):
        reader.step()
    reader.append([13, 2])
    token = HEADS * 8 * 4 * 4 * 2  # Keys and values of two layers and two rows.
    states = 2 * WIDTH * 4
    places = (WINDOW - 1 + 6) if lengths else WINDOW - 1
    assert reader.session.state_bytes == places * token + (2 * states if lengths else states)
    assert reader.session.capacity > 10**9


# -- forgetting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", FORMS)
def test_truncate_what_only_appends(made: Callable[..., Made], lengths: bool) -> None:
    reader = Reader(
        made("append along nomask", lengths=lengths), made("append along nomask", lengths=lengths).open(), 3
    )
    reader.prefill([9, 3, 5])
    reader.step()
    for lengths_now in ([4, 4, 6], [4, 1, 2], [4, 1, 2]):
        reader.truncate(lengths_now)
        reader.step()
        reader.append([2, 1, 3])
        reader.truncate(lengths_now)
    reader.append([5, 5, 5])


@pytest.mark.parametrize("lengths", FORMS)
def test_truncate_windows(made: Callable[..., Made], lengths: bool) -> None:
    """As far as what a window has dropped is not needed: 4 of the past count."""
    m = made("append window append2 window2", lengths=lengths)
    reader = Reader(m, m.open(), 2)
    reader.prefill([9, 4])
    if lengths:  # A buffer has more places than count, and cuts within them are free.
        for _ in range(6):
            reader.step()
        reader.truncate([10, 4])
        reader.append([2, 3])
        reader.truncate([9, 4])
    reader.truncate([9, 3])
    reader.step()
    kept, now = ([9, 3], 10)
    with pytest.raises(
        RuntimeInputError, match=rf"past_key_values.1.key holds the newest \d of the {now} tokens of row 0"
    ):
        reader.session.truncate([8, kept[1]])
    assert reader.session.lengths.tolist() == [10, 4], "a cut that is refused changes nothing"
    reader.step()


@pytest.mark.parametrize("lengths", FORMS)
def test_states_are_not_cut(made: Callable[..., Made], lengths: bool) -> None:
    m = made("append window replace", lengths=lengths)
    reader = Reader(m, m.open(), 2)
    reader.prefill([2, 3])
    reader.truncate([2, 3])
    with pytest.raises(RuntimeInputError, match=r"past_state.0.h is one state and no past: the 3 tokens of row 1 stay"):
        reader.session.truncate([2, 2])
    reader.step()


# -- calls that die ---------------------------------------------------------------------------------------------------


class Dying:
    """Makes the n-th call of the runtime from now on fail, as a full disk or a missing kernel would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.left, self.error = -1, error
        for name in ("bind", "run"):
            monkeypatch.setattr(CpuMemory, name, self.wrapped(getattr(CpuMemory, name), name))

    def wrapped(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(memory: CpuMemory, *args: Any) -> Any:
            if name == "run":
                self.count()
                return method(memory, *args)
            bound = method(memory, *args)
            run = bound.run

            def counted() -> None:
                run()
                self.count()

            bound.run = counted
            return bound

        return call

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_error_in_the_middle_changes_nothing(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, lengths: bool, call: int
) -> None:
    """A chunk that dies at its first, second or third row, and goes through when it is given again."""
    m = made("append window replace", lengths=lengths)
    dying = Dying(monkeypatch, RuntimeInputError("no room"))
    reader = Reader(m, m.open(), 3)
    reader.prefill([7, 2, 4])
    reader.step()
    before, state = [list(r) for r in reader.rows], reader.rng.bit_generator.state
    dying.left = call
    with pytest.raises(RuntimeInputError, match=r"no room \(what was read before stays\)"):
        reader.append([3, 1, 2])
    reader.rows = before
    assert reader.session.lengths.tolist() == [8, 3, 5]
    reader.step()
    reader.rng.bit_generator.state = state
    reader.append([3, 1, 2])
    reader.step()
    dying.left = 1
    with pytest.raises(RuntimeInputError, match=r"no room \(everything read is forgotten"):
        reader.prefill([2, 2, 2])
    assert reader.session.lengths.tolist() == []
    reader.prefill([2, 5, 2])
    reader.step()


def test_an_error_between_the_pieces_of_a_chunk_forgets(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "SLACK", 4)
    m = made("window replace window2", lengths=True, limit=0)
    dying = Dying(monkeypatch, RuntimeInputError("no room"))
    reader = Reader(m, m.open(), 1)
    reader.prefill([7])
    dying.left = 2
    with pytest.raises(RuntimeInputError, match=r"no room \(everything read is forgotten: call `prefill` first\)"):
        reader.append([6])
    assert reader.session.lengths.tolist() == []
    with pytest.raises(RuntimeInputError, match="nothing has been read yet"):
        reader.session.step([1])
    reader.prefill([7])
    reader.append([6])


@pytest.mark.parametrize("lengths", FORMS)
def test_an_interrupt_leaves_nothing_half_read(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, lengths: bool
) -> None:
    m = made("append window replace", lengths=lengths)
    dying = Dying(monkeypatch, KeyboardInterrupt())
    reader = Reader(m, m.open(), 2)
    reader.prefill([3, 2])
    dying.left = 1
    ids = np.array([1, 2])
    with pytest.raises(KeyboardInterrupt):
        reader.session.step(ids)
    assert reader.session.lengths.tolist() == ([] if lengths else [3, 2]), "all of it, or nothing"
    for counts in ([3, 2], [1, 6]):
        reader.prefill(counts)
        reader.step()
        reader.step()


def test_room_is_looked_at_before_anything_is_read(made: Callable[..., Made]) -> None:
    for lengths in (True, False):
        m = made("append window replace", lengths=lengths)
        reader = Reader(m, m.open(), 2)
        reader.prefill([57, 2])
        with pytest.raises(RuntimeInputError, match="61 tokens do not fit: the model was built for at most 60"):
            reader.session.append(np.zeros((2, 4), np.int64))
        reader.append([3, 4])


# -- rows that stand no padding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["append window", "replace append", "once append replace fixed"])
def test_rows_are_alone_where_the_contract_says_so(made: Callable[..., Made], parts: str) -> None:
    m = made(parts, lengths=False, alone="it counts columns")
    reader = Reader(m, m.open(), 3)
    session, graph = reader.session, reader.session.graph(m.contract.masked)
    seen: list[Array] = []
    run = session.memory.run

    def watched(loaded: Any, feeds: Any) -> Any:
        if loaded is graph:
            seen.append(session.memory.download(feeds[m.stream.mask]))
        return run(loaded, feeds)

    session.memory.run = watched  # type: ignore[method-assign]
    reader.prefill([7, 2, 4])
    reader.step()
    reader.append([2, 7, 5])
    reader.step()
    assert [mask.shape[0] for mask in seen] == [1] * 9 + [3], "three times each row alone, then all are of one length"
    assert all(mask.all() for mask in seen), "no row sees padding"


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
