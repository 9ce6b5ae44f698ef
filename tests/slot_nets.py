"""Serving graphs made by hand, with slots of every growth, and full forwards of the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnx.lower import lower
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.contract import FILE, VERSION, Contract
from monograph.backends.onnxruntime.feeds import check_feeds, counts_of
from monograph.backends.onnxruntime.files import write_variants
from monograph.backends.onnxruntime.ops import group_query_attention
from monograph.backends.onnxruntime.rewrites import mask_variant
from monograph.backends.target import Target
from monograph.frontends.dsl import Scope, Value
from monograph.ir import Graph, interpret, ops
from monograph.ir.bounds import bounds_of
from monograph.ir.files import staged
from monograph.ir.manifest import seal
from monograph.ir.slots import PAST, TARGETS, TOKENS, Growth, Slot, Stream, encoded, key_value, past_of, state
from monograph.ir.types import Dim, bool_, f32, i32, i64, tensor
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from monograph.passes.manager import Pipeline

Array = np.ndarray[Any, Any]
VOCAB, WIDTH, HEADS, WINDOW = 30, 16, 2, 5
B, S, P = (Dim.symbol(n) for n in ("B", "S", PAST))

FORMS = [pytest.param(True, id="lengths"), pytest.param(False, id="masked")]
"""Whether a folder has the graph for lengths, which then generates."""


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
        seal(folder)

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
