"""Builds for measurements: short versions of a model whose times add up to the whole, and whether they are right."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir

from ...frontends.dsl import Model, Program, plain_graph
from ...ir.files import Stage
from ...ir.graph import Graph
from ...ir.interpret import interpret
from ...ir.tensors import Tensor
from ...ir.types import f32
from ...passes.differential import Case, sample_inputs
from ...passes.shorten import layers_of, shortened, without
from ..target import Target
from .beside import Beside
from .build import planned
from .choices import Choices
from .contract import Contract
from .files import write_variants
from .guard import Array
from .session import Session
from .tune_loads import Load, Runner

CHECKED = 24
"""Tokens a row on which a draft is compared with the reference: more than a prompt of a graph of its own has."""

SHORT, REPEATS = 0.05, 3
"""Of what takes fewer seconds, the best of so many calls counts as one."""

_MOST = 4_000_000_000
"""Bytes of numbers that the reference may hold: of larger models the shipped choices stand for it."""


class Loose(Stage):
    """Files that nobody wants after a crash: written under their own names, and not brought to the disk."""

    @contextlib.contextmanager
    def open(self, name: str) -> Generator[BinaryIO, None, None]:
        with self.path(name).open("w+b") as file:
            yield file


@dataclass(frozen=True)
class Versions:
    """What is measured in place of a whole model: `base`, and for each kind of layer a version with one layer more.

    times: how often each difference counts. whole: nothing could be left out, and `base` is the model itself.
    """

    base: Model
    more: tuple[Model, ...] = ()
    times: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.more

    @staticmethod
    def of(model: Model, target: Target) -> Versions:
        """The shortest versions of a model that still have everything."""
        graph = plain_graph(model, target.dtype)
        found = shortened(layers_of(graph))
        if found is None:
            return Versions(_program(model, graph))
        longer = [without(graph, {*found.base, layer}) for layer, _ in found.more]
        more = tuple(_program(model, g) for g in longer)
        return Versions(_program(model, without(graph, found.base)), more, tuple(n for _, n in found.more))


def _program(model: Model, graph: Graph) -> Model:
    return replace(model, source=Program(model.name, model.task, graph))


class Draft:
    """One version of a model as one set of choices builds it. nodes: its graphs as text, to tell builds apart."""

    def __init__(
        self,
        model: Model,
        weights: Mapping[str, Tensor],
        target: Target,
        positions: int | None,
        fine: Collection[str],
    ) -> None:
        report, self.models = planned(model, weights, Path(), target, positions, beside=Beside(fine=fine))
        self.contract: Contract = report.contract

    @property
    def nodes(self) -> str:
        """What distinguishes it from another draft of the same model: nodes, and settings of the session."""
        chosen = self.contract.choices
        session = chosen.threads, chosen.spinning, chosen.prepacked, self.contract.disabled_optimizers
        tiled = chosen.flash and any(n.op_type == "GroupQueryAttention" for m in self.models.values() for n in m.graph)
        return f"{session} {tiled}\n" + "\n".join(f"{k}\n{_text(m)}" for k, m in sorted(self.models.items()))

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        write_variants(Loose(folder, folder), self.models)
        self.models = {}
        return folder


def _text(model: onnx_ir.Model) -> str:
    return "\n".join(map(str, model.graph))


class Subject:
    """All versions under one set of choices, open for every load."""

    def __init__(
        self, drafts: list[Draft], versions: Versions, folder: Path, loads: tuple[Load, ...], threads: int | None
    ) -> None:
        self.versions, self.loads = versions, loads
        self.contract = drafts[0].contract
        self.folders = [d.write(folder / str(i)) for i, d in enumerate(drafts)]
        contracts = [d.contract for d in drafts]
        self.runners = [
            [Runner(f, c, load, threads) for f, c in zip(self.folders, contracts, strict=True)] for load in loads
        ]

    @property
    def weights(self) -> tuple[int, ...]:
        """How often each version counts: times of the base and the longer ones add up to those of the whole model."""
        return (1 - sum(self.versions.times), *self.versions.times)

    def seconds(self, load: int, version: int) -> float:
        """One request of a load to a version."""
        runner = self.runners[load][version]
        best = found = runner.measure().of(self.loads[load])
        if found < SHORT:
            best = min(found, *(runner.measure().of(self.loads[load]) for _ in range(REPEATS - 1)))
        return best

    def outputs(self, examples: Examples) -> list[Array]:
        """Main outputs of the base version on every example."""
        session = Session(self.folders[0], self.contract, threads=1)
        return examples.run(session)


class Examples:
    """Inputs on which drafts are compared with the reference, and what is expected."""

    def __init__(self, model: Model, weights: Mapping[str, Tensor], target: Target) -> None:
        self.graph = plain_graph(model, target.dtype)
        self.output = model.task.output
        stream = model.task.stream
        told = stream is not None and stream.mask in self.graph.inputs and bool(self.graph.inputs[stream.mask].users)
        # Sources of encoders have a length of their own, and may be long.
        alone = model.task.separated
        kinds = ("all-ones", "right-padded") if told and not alone else ("all-ones",)
        self.inputs = [sample_inputs(self.graph, Case(kind, 1 if alone else 2, CHECKED)) for kind in kinds]
        self.kept = [i[stream.mask] if told and stream is not None else None for i in self.inputs]
        self.expected: list[Array] | None = None
        if sum(weights[k].cast(f32).bytes for k in self.graph.params) <= _MOST:
            params = {k: weights[k].cast(f32).numpy().astype(v.dtype.numpy) for k, v in self.graph.params.items()}
            found = [interpret(self.graph, i, params)[self.output] for i in self.inputs]
            self.expected = [*found, *self._last(found)]

    def _last(self, found: list[Array]) -> list[Array]:
        """What generation gives after a prompt and single steps, where the model generates: the last of all-ones."""
        return [found[0][:, -1]] if self.graph.stream is not None else []

    def run(self, session: Session) -> list[Array]:
        known = {name for types in session.contract.inputs.values() for name in types}
        stream = session.contract.stream
        known |= set(stream.names) if stream is not None else set()
        given = [{k: v for k, v in i.items() if k in known} for i in self.inputs]
        found = [session.run(i)[self.output] for i in given]
        if self.graph.stream is None or stream is None:
            return found
        return [*found, self.generated(session, given[0])]

    def generated(self, session: Session, given: Mapping[str, Array]) -> Array:
        """Logits after a prompt of all tokens but three, and steps."""
        contract, stream = session.contract, session.contract.stream
        assert stream is not None
        ids = given[stream.ids]
        along = {k: v for k, v in given.items() if k in contract.inputs[contract.lengths or contract.masked]}
        along = {k: v for k, v in along.items() if k not in stream.names}
        if contract.encoder:
            session.encode({k: v for k, v in given.items() if k in contract.inputs[contract.encoder]})
            along = {}
        rows = [k for k, v in along.items() if v.ndim > 1 and v.shape[1] == CHECKED]
        logits = self.read(session, ids, along, rows, CHECKED - 3)
        for at in range(CHECKED - 3, CHECKED):
            beside = {k: along[k][:, at : at + 1] for k in rows}
            logits = session.step(ids[:, at], beside or None)
        return logits

    def read(self, session: Session, ids: Array, along: Mapping[str, Array], rows: list[str], count: int) -> Array:
        part = {k: v[:, :count] if k in rows else v for k, v in along.items()}
        return session.prefill(ids[:, :count], np.full(len(ids), count), part)

    def difference(self, found: list[Array]) -> float:
        """Largest difference from the reference where the mask keeps, relative to the largest value if above 1."""
        assert self.expected is not None
        worst = 0.0
        for i, (got, wanted) in enumerate(zip(found, self.expected, strict=True)):
            kept = self.kept[i] if i < len(self.kept) else None
            if kept is not None and wanted.shape[:2] == kept.shape:
                got, wanted = got[kept != 0], wanted[kept != 0]
            gap = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
            scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
            worst = max(worst, float(np.inf if np.isnan(gap).any() else gap.max(initial=0.0)) / scale)
        return worst


class Workshop:
    """Where drafts of a model are made: its versions, weights, target and loads."""

    def __init__(
        self, model: Model, weights: Mapping[str, Tensor], target: Target, folder: Path, loads: tuple[Load, ...],
        *, positions: int | None, threads: int | None, fine: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.weights, self.target, self.folder, self.loads = weights, target, folder, loads
        self.positions, self.threads, self.fine, self.made = positions, threads, fine, 0
        self.limit = planned(model, weights, Path(), target, positions, beside=Beside(fine=fine))[0].contract.limit
        self.versions = Versions.of(model, target)
        self.examples = Examples(self.versions.base, weights, target)

    def drafts(self, choices: Choices) -> list[Draft]:
        """Every version as these choices build it. Raises MonographError where they cannot."""
        target = replace(self.target, choices=choices)
        models = (self.versions.base, *self.versions.more)
        return [Draft(m, self.weights, target, self.positions, self.fine) for m in models]

    def subject(self, drafts: list[Draft]) -> Subject:
        """Drafts of all versions, written and open."""
        return Subject(drafts, self.versions, self.place(), self.loads, self.threads)

    def whole(self, model: Model, choices: Choices) -> Subject:
        """The model as it is, built by these choices."""
        draft = Draft(model, self.weights, replace(self.target, choices=choices), self.positions, self.fine)
        return Subject([draft], Versions(model), self.place(), self.loads, self.threads)

    def place(self) -> Path:
        self.made += 1
        return self.folder / str(self.made)
