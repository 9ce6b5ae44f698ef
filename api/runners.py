"""Ways to run a model for the parity table: PyTorch, an exported folder, a built one by calls and by its session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends.onnx.clients import LAYOUTS, MERGED
from .building import to_torch
from .frontends.dsl import Model
from .ir import Graph
from .ir.errors import RuntimeInputError
from .ir.slots import Growth
from .ir.tensors import Array
from .ir.types import Dim
from .passes.differential import newest, window
from .portable import first_state, next_state, slots_of

if TYPE_CHECKING:
    from .backends.onnxruntime import Session

Inputs = Mapping[str, Array]
Outputs = dict[str, Array]
Spans = Sequence[tuple[int, int]]
"""Tokens start..stop of each call: one span is a plain forward, more are a prompt and what is read behind it."""


@dataclass(frozen=True)
class Call:
    """What is asked of a model.

    inputs: those of its plain graph. spans: the calls in which the tokens of its stream are read. mask: which tokens
    count, i64 [B,S], whether the model can be told or not.
    """

    inputs: Inputs
    spans: Spans
    mask: Array


Runner = Callable[[Call], Outputs]
"""Gives outputs by name at all positions of the stream; those of a session only mean something where the mask is 1."""


class Tokens:
    """Which inputs and outputs of a plain graph run along its stream."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.stream = graph, graph.stream

    def axis(self, shape: Sequence[Any]) -> int | None:
        """The axis that has one entry a token."""
        length = self.stream.length if self.stream is not None else ""
        return next((i for i, d in enumerate(shape) if isinstance(d, Dim) and length in d.symbols), None)

    def along(self, name: str) -> bool:
        """Whether an input has one entry a token behind its rows. A mask over all tokens so far is not one of them."""
        if self.stream is not None and name == self.stream.mask:
            return False
        return name in self.graph.inputs and self.axis(self.graph.inputs[name].shape) == 1

    def joined(self, parts: Sequence[Inputs]) -> Outputs:
        """Outputs of consecutive calls as those of one: what has no entry a token is that of the last call."""
        found: Outputs = {}
        for name, value in self.graph.outputs.items():
            axis = self.axis(value.shape)
            given = [p[name] for p in parts if name in p]
            if given:
                found[name] = given[-1] if axis is None or len(given) == 1 else np.concatenate(given, axis=axis)
        return found


def torch_runner(model: Model) -> Runner:
    """Run the PyTorch lowering; it has no cache, so spans make no difference to it."""
    import torch

    from .backends.torch import to_inputs

    module = to_torch(model).eval()

    def run(call: Call) -> Outputs:
        with torch.no_grad():
            found = module(**to_inputs(call.inputs))
        return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in found.items()}

    return run


def run_runner(session: Session, graph: Graph) -> Runner:
    """Run a built folder through `Session.run`: any mask; what it remembers is passed on by the caller."""
    tokens, contract = Tokens(graph), session.contract
    slots = [s for s in contract.slots if s.growth is not Growth.once]
    known = {name for types in contract.inputs.values() for name in types}
    known |= {contract.stream.mask, contract.stream.positions} if contract.stream is not None else set()

    def run(call: Call) -> Outputs:
        state: Outputs = {}
        parts: list[Outputs] = []
        for start, stop in call.spans:
            given = {k: v for k, v in window(graph, call.inputs, start, stop).items() if k in known}
            results = session.run({**given, **state})
            state = {s.input: newest(results[s.output], s) for s in slots}
            parts.append(results)
        return tokens.joined(parts)

    return run


def session_runner(session: Session, graph: Graph, *, chunks: bool = False) -> Runner:
    """Run a built folder as it generates: each row is what its mask keeps, without padding, over buffers.

    The first span comes from prompts of 1, 2, 3... tokens, the others from single steps behind the whole prompt, or,
    with `chunks`, from 1, 2, 3... tokens at a time behind it.
    """
    from .backends.onnxruntime.feeds import others

    contract, stream, tokens = session.contract, session.contract.stream, Tokens(graph)
    assert stream is not None
    beside = others(contract, contract.lengths or contract.masked)

    def run(call: Call) -> Outputs:
        kept = call.mask != 0
        rows = {k: _compact(v, kept) for k, v in call.inputs.items() if tokens.along(k)}
        given = {k: rows.get(k, v) for k, v in call.inputs.items() if k in beside}
        ids, counts = rows[stream.ids], kept.sum(1)
        prompts = np.maximum(kept[:, : call.spans[0][1]].sum(1), 1)
        found = _Found(kept)
        if contract.encoder:
            session.encode({k: v for k, v in call.inputs.items() if k in contract.inputs[contract.encoder]})

        def read(n: int) -> Array:
            part = {k: v[:, :n] if k in rows else v for k, v in given.items()}
            return session.prefill(ids[:, :n], np.minimum(prompts, n), part)

        def behind(start: Array, n: int) -> tuple[Array, Outputs]:
            """The next n tokens of each row, and what comes along; rows that have ended get any."""
            places = np.minimum(start[:, None] + np.arange(n), ids.shape[1] - 1)
            pick = np.arange(len(ids))[:, None]
            return ids[pick, places], {k: rows[k][pick, places] for k in given if k in rows}

        for n in range(1, int(prompts.max()) + 1):
            found.keep(read(n), np.minimum(prompts, n), n <= prompts)
        for n in range(1, int((counts - prompts).max()) + 1):
            if chunks:
                read(int(prompts.max()))
                new, along = behind(prompts, n)
                lengths = np.clip(counts - prompts, 1, n)
                found.keep(session.append(new, lengths, along), prompts + n, prompts + n <= counts)
            else:
                new, along = behind(prompts + n - 1, 1)
                found.keep(session.step(new[:, 0], along), prompts + n, prompts + n <= counts)
        return {contract.output: found.values}

    return run


class _Found:
    """Logits by row and token, put where the mask has its tokens."""

    def __init__(self, kept: Array) -> None:
        self.kept = kept
        self.values: Array = np.zeros(kept.shape, np.float32)

    def keep(self, logits: Array, lengths: Array, wanted: Array) -> None:
        """Note the logits [B,V] after `lengths` tokens of each row, for the rows where they are wanted."""
        if self.values.ndim == 2:
            self.values = np.zeros((*self.kept.shape, *logits.shape[1:]), np.float32)
        for row in np.flatnonzero(wanted):
            self.values[row, np.flatnonzero(self.kept[row])[lengths[row] - 1]] = logits[row]


def _compact(values: Array, kept: Array) -> Array:
    """Of each row [S,...] what is kept, moved to the front; zeros behind it."""
    found = np.zeros_like(values)
    for row, keep in enumerate(kept):
        found[row, : keep.sum()] = values[row, keep]
    return found


def onnx_runner(folder: Path, graph: Graph, *, threads: int | None = None) -> Runner:
    """Run an exported folder as any client would, through its named inputs; state is passed on from call to call.

    threads: None takes what the runtime takes.
    """
    # The file is held against its model, not the 8 bits in which the runtime then multiplies by blocks.
    opened, tokens = Portable(folder, graph, threads=threads, exact=True), Tokens(graph)

    def run(call: Call) -> Outputs:
        source, state = opened.begin(call.inputs)
        parts: list[Outputs] = []
        for span in call.spans:
            results, state = opened.read(call.inputs, span, {**source, **state})
            parts.append({**source, **results})
        return tokens.joined(parts)

    return run


class Portable:
    """An exported folder in ordinary sessions of ONNX Runtime.

    graph: the plain one of its model. exact: products with blocks multiply whole activations, which the runtime would
    round to 8 bits. Raises RuntimeInputError for a folder that is none, or that this runtime cannot run.
    """

    def __init__(self, folder: Path, graph: Graph, *, threads: int | None = None, exact: bool = False) -> None:
        self.graph, self.threads, self.exact = graph, threads, exact
        inside = folder / LAYOUTS["web"].folder
        self.folder = inside if inside.is_dir() else folder
        if (self.folder / f"{MERGED}.onnx").exists():
            what = f"holds {MERGED}.onnx, which takes no masks of its tokens, as the client wants it that it is for"
            hint = "check an export without a layout: the graphs are the same"
            raise RuntimeInputError(what, place=str(self.folder), hint=hint)
        if (self.folder / "encoder_model.onnx").exists():
            self.encoder, self.main = self._session("encoder_model"), self._session("decoder_model")
        elif (self.folder / "model.onnx").exists():
            self.encoder, self.main = None, self._session("model")
        else:
            raise RuntimeInputError("has neither model.onnx nor encoder_model.onnx", place=str(self.folder))
        self.slots = slots_of(self.main)

    def _session(self, name: str) -> Any:
        from .backends import ort

        library = ort.library()
        options = library.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        if self.exact:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        file = self.folder / f"{name}.onnx"
        try:
            return library.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except ort.internals().NotImplemented as e:
            # An export may be for a runtime that has more kernels, such as those in bf16.
            what = f"cannot be compared here: onnxruntime {library.__version__} says on the CPU: {e}"
            raise RuntimeInputError(what, place=str(file)) from None

    def begin(self, inputs: Inputs) -> tuple[Outputs, Outputs]:
        """What the encoder gives, if there is one, and the state before the first token."""
        source = {} if self.encoder is None else _call(self.encoder, inputs)
        batch = next(iter(inputs.values())).shape[0]
        return source, first_state(self.main, batch) | next_state(source, self.slots)

    def read(self, inputs: Inputs, span: tuple[int, int], state: Inputs) -> tuple[Outputs, Outputs]:
        """The outputs for some tokens, and the state behind them."""
        results = _call(self.main, {**window(self.graph, inputs, *span), **state})
        return results, {**state, **next_state(results, self.slots)}


def _call(session: Any, inputs: Inputs) -> Outputs:
    names = [o.name for o in session.get_outputs()]
    wanted = [i.name for i in session.get_inputs()]
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise RuntimeInputError(f"takes {', '.join(missing)} in, which the model of it does not have")
    given = {name: inputs[name] for name in wanted}
    return dict(zip(names, session.run(names, given), strict=True))
