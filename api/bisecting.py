"""`mg.bisect`: the smallest part in which two ONNX files, two runtimes or two sides of a pass differ, as files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .frontends.dsl import Model
from .frontends.onnx.crashes import check_runs
from .frontends.onnx.load import model_of_proto, read_graph
from .hard_inputs import Hard, Trial, both_ways, hard_inputs, valid
from .inner_parts import Part, inside
from .ir.display import Shown, Table
from .ir.errors import MonographError, RuntimeInputError
from .ir.files import check_writable, whole
from .ir.graph import Graph
from .ir.interpret import interpret
from .ir.tensors import Array, ArrayTensor, held
from .optimizing import file_of
from .original import EPSILONS, apart, bound_of
from .subgraphs import Side, run
from .twin_values import aligned, beyond, in_one_width

BEFORE, AFTER, INPUTS, REPORT = "before.onnx", "after.onnx", "inputs.npz", "report.json"
NOISE = 8 * EPSILONS[next(d for d in EPSILONS if str(d) == "f32")]
"""Share of the largest number by which one node, written alike, may differ between two files of one runtime."""


class BisectError(MonographError):
    """Two models that cannot be compared: other contracts, or inputs that one of them does not take."""

    exit_code = 2


@dataclass(repr=False)
class Bisection(Shown):
    """Where two models differ.

    value: the first that differs although all it is computed from agrees ("": nothing differs); node, op: what makes
    it in the second model; layer: its scope. nodes: of the part, by name. error: as a share of the largest number;
    bound: what is allowed. trial: the inputs. confirmed: the part alone shows the difference. what: the difference.
    """

    value: str = ""
    node: str = ""
    op: str = ""
    layer: str = ""
    nodes: list[str] = field(default_factory=list[str])
    error: float = 0.0
    bound: float = 0.0
    trial: str = ""
    what: str = ""
    confirmed: bool = False
    trials: int = 0
    folder: str = ""

    @property
    def differs(self) -> bool:
        return bool(self.what)

    def table(self) -> Table:
        """What was found, for `repr` and notebooks."""
        if not self.differs:
            return Table("bisect", [("difference", f"none on {self.trials} sets of inputs, bound {self.bound:.2g}")])
        rows = [("value", self.value), ("node", f"{self.node} ({self.op})"), ("layer", self.layer or "none")]
        rows += [
            ("error", f"{self.error:.3g} of at most {self.bound:.2g}"),
            ("inputs", self.trial),
            ("what", self.what),
        ]
        return Table("bisect", [*rows, ("part", f"{len(self.nodes)} nodes"), ("written", self.folder or "nothing")])

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {"differs": self.differs, **asdict(self)}


def bisect(
    a: str | Path, b: str | Path | None = None, folder: str | Path | None = None, *, bound: float | None = None
) -> Bisection:
    """The smallest part in which two ONNX files (or folders with one) differ; b None: ONNX Runtime and our reference.

    folder: a new one, which gets both parts (before.onnx, after.onnx), their inputs (inputs.npz) and report.json, whole
    or not at all. bound: a difference that is allowed, as a share of the largest number (None: from the arithmetic of
    the first file). Raises BisectError for files with other inputs or outputs, and for inputs that one does not take;
    OnnxFileError for a damaged file.
    """
    if bound is not None and not 0 <= bound < float("inf"):
        raise BisectError(f"bound is {bound!r}, expected a number of at least 0")
    if folder is not None:
        check_writable(folder, lambda f: "is there already")
    first = Side.of(file_of(Path(a)))
    second = first if b is None else Side.of(file_of(Path(b)))
    _check_contracts(first, second)
    graph, _, _ = read_graph(first.file)
    check_runs(first.file, graph)
    if second is not first:
        check_runs(second.file, read_graph(second.file)[0])
    limit = bound_of(graph) if bound is None else bound
    found = Bisection(bound=limit)
    last: RuntimeInputError | None = None
    for trial, draws in _draws(graph):
        for hard in draws:
            try:
                old = first.values(hard.feeds)
                break
            except RuntimeInputError as e:
                last = e
        else:
            continue  # The first file does not take these inputs: they say nothing.
        found.trials += 1
        found.trial = str(trial)
        parts = (
            _runtimes(first, graph, hard, old, found) if b is None else _files(first, second, graph, hard, old, found)
        )
        if parts:
            _write(found, parts, folder)
            return found
    if not found.trials:
        raise BisectError(f"nothing to compare on: {last.what if last else 'no inputs can be drawn'}", place=str(a))
    found.trial = ""
    return found


def _draws(graph: Graph) -> Iterator[tuple[Trial, list[Hard]]]:
    """Inputs of each trial, and such whose lengths are one for files that take no others."""
    for trial in both_ways(graph):
        drawn = (hard_inputs(graph, t) for t in (trial, replace(trial, joined=True)))
        yield trial, [hard for hard in drawn if hard is not None]


def _check_contracts(a: Side, b: Side) -> None:
    """Raises BisectError that names the first inputs or outputs that are not alike."""
    lines: list[str] = []
    for kind in ("input", "output"):
        listed: Any = [[(v.name, v.type) for v in getattr(s.model.graph, kind)] for s in (a, b)]
        old, new = (
            {k: t for k, t in found if kind == "output" or k not in s.stored}
            for found, s in zip(listed, (a, b), strict=True)
        )
        lines += [f"{kind} {k} is only in {a.path}" for k in old if k not in new]
        lines += [f"{kind} {k} is only in {b.path}" for k in new if k not in old]
        for k in old:
            if k in new and old[k].tensor_type.elem_type != new[k].tensor_type.elem_type:
                kinds = [onnx.TensorProto.DataType.Name(t[k].tensor_type.elem_type) for t in (old, new)]
                lines.append(f"{kind} {k} is {kinds[0]} in {a.path} and {kinds[1]} in {b.path}")
    if lines:
        raise BisectError("the inputs and outputs of both are not alike", details=lines)


Parts = tuple[Any, Any, dict[str, Array]]
"""Both parts as models, and their inputs by name."""


def _files(a: Side, b: Side, graph: Graph, hard: Hard, old: Mapping[str, Array], found: Bisection) -> Parts | None:
    """The part in which two files differ on some inputs; None where their outputs agree."""
    try:
        new = b.values(hard.feeds)
    except RuntimeInputError as e:
        raise BisectError(
            f"the second file does not take {found.trial}, which the first does", details=[str(e)]
        ) from None
    counts = {k: valid(graph.outputs[k], old[k], hard) for k in a.outputs if k in graph.outputs and k in old}
    wrong = [k for k in counts if apart(old[k], new.get(k), counts[k], found.bound)[0]]
    return _between(a, b, (old, new), wrong, found) if wrong else None


def _between(
    a: Side,
    b: Side,
    values: tuple[Mapping[str, Array], Mapping[str, Array]],
    wrong: Sequence[str],
    found: Bisection,
) -> Parts:
    """The part in which two files differ whose outputs `wrong` do; inside of a branch or a step of a loop, if there."""
    old, new = values
    agreed, twins = aligned(a, b, old, new, found.bound)
    live = {n for node in b.region_of(wrong, agreed) for n in node.output}
    differing = {n: m for n, m in twins.items() if n in live and beyond(old[m], new[n], found.bound)}
    written = [n for n in differing if _differently(a, b, n, twins)]
    pointed = next(
        (n for n in written if beyond(old[twins[n]], new[n], NOISE) and _agree(b, n, agreed, old, new)), None
    )
    value = pointed or next(iter(differing), wrong[0])
    twin = twins.get(value, value)
    x, y = in_one_width(old[twin], new[value])
    found.what, found.error = apart(x, y, np.ones(x.shape, np.bool_), NOISE if pointed else found.bound)
    before, after, inputs = _parts(a, b, (twin, value), agreed, values, found)
    deeper = replace(found)
    try:
        parts = _inside(Part(before, twin, a.path), Part(after, value, b.path), inputs, deeper)
    except MonographError:  # A graph inside that is none by itself: its node is the smallest part.
        return before, after, inputs
    if parts is None or not deeper.confirmed:
        return before, after, inputs
    vars(found).update(vars(deeper))
    return parts


def _inside(a: Part, b: Part, inputs: Mapping[str, Array], found: Bisection) -> Parts | None:
    """The part inside of what makes two values; None where it has no graphs inside, or these agree."""

    def wrong(old: Mapping[str, Array], new: Mapping[str, Array]) -> list[str]:
        return [k for k, x in old.items() if k in new and beyond(x, new[k], min(NOISE, found.bound))]

    opened = inside(a, b, inputs, lambda old, new: bool(wrong(old, new)))
    if opened is None:
        return None
    *models, fed = opened
    with tempfile.TemporaryDirectory() as scratch:
        sides: list[Side] = []
        for name, model in zip((BEFORE, AFTER), models, strict=True):
            (Path(scratch) / name).write_bytes(model.SerializeToString())
            sides.append(Side.of(Path(scratch) / name))
        one, two = sides
        values = one.values(fed), two.values(fed)
        differing = wrong(*({k: x[k] for k in one.outputs} for x in values))
        return _between(one, two, values, differing, found) if differing else None


def _agree(b: Side, name: str, agreed: Mapping[str, str], old: Mapping[str, Array], new: Mapping[str, Array]) -> bool:
    """Whether all that a node reads is the same in both, but for the noise of one node."""
    inputs = b.inputs_of([b.makers[name]])
    return all(n in agreed and (n not in new or not beyond(old[agreed[n]], new[n], NOISE)) for n in inputs)


def _differently(a: Side, b: Side, name: str, twins: Mapping[str, str]) -> bool:
    """Whether two files write the node of a value in two ways: other attributes, operands or stored numbers."""
    one, two = a.makers.get(twins[name]), b.makers.get(name)
    if one is None or two is None:
        return False
    sides = [sorted(x.SerializeToString() for x in n.attribute) for n in (one, two)]
    operands = [n for n in one.input if n not in a.stored], [twins.get(n, n) for n in two.input if n not in b.stored]
    if sides[0] != sides[1] or operands[0] != operands[1] or one.op_type != two.op_type:
        return True
    kept = [[s.numbers(n) for n in x.input if n in s.stored] for s, x in ((a, one), (b, two))]
    return kept[0] != kept[1]


def _parts(
    a: Side,
    b: Side,
    pair: tuple[str, str],
    agreed: Mapping[str, str],
    values: tuple[Mapping[str, Array], Mapping[str, Array]],
    found: Bisection,
) -> Parts:
    """Both sides of a value down to values that agree, fed with the numbers of the first file, and the proof."""
    (twin, value), (old, new) = pair, values
    constant = {n for s in (a, b) for n, m in s.makers.items() if m.op_type == "Constant"}
    cuts = {k: v for k, v in agreed.items() if k not in constant and v not in constant}
    own = b.region(value, cuts)
    other = a.region(twin, set(cuts.values()))
    used = {n: cuts.get(n, n) for n in b.inputs_of(own)}
    types = {k: new[k].dtype for k in used if k in new}
    alike = {k for k, v in used.items() if k == v and types.get(k, old[v].dtype) == old[v].dtype}
    names = {v: v if k in alike else f"cut.{i}" for i, (k, v) in enumerate(used.items())}
    given_a = {n: (names.get(n, n), old[n]) for n in a.inputs_of(other)}
    given_b = {k: (names[v], old[v]) for k, v in used.items()}
    before, after = a.part(other, twin, old[twin], given_a), b.part(own, value, new[value], given_b, types)
    inputs = dict([*given_a.values(), *given_b.values()])
    _describe(found, value, own)
    x, y = run(before, inputs, a.path)[twin], run(after, inputs, b.path)[value]
    found.confirmed = beyond(x, y, min(NOISE, found.bound))
    return before, after, inputs


def _describe(found: Bisection, value: str, nodes: list[Any]) -> None:
    maker = next(n for n in nodes if value in n.output)
    found.value, found.node, found.op = value, maker.name, maker.op_type
    found.layer = maker.name.rpartition("/")[0]
    plain = [n for n in nodes if n.op_type != "Constant" or n is maker]
    found.nodes = [n.name for n in plain]


def _runtimes(a: Side, graph: Graph, hard: Hard, old: Mapping[str, Array], found: Bisection) -> Parts | None:
    """The first node that our reference computes otherwise than ONNX Runtime from the same operands."""
    model = model_of_proto(a.file.model, a.path.parent, a.path.name)
    whole_run = run(a.model, hard.feeds, a.path, optimized=True)
    mine = _reference(model, hard.feeds)
    wrong = [
        k for k in a.outputs if k in whole_run
        and apart(whole_run[k], mine.get(k), valid(graph.outputs[k], whole_run[k], hard), found.bound)[0]
    ]  # fmt: skip
    if not wrong:
        return None
    for node in a.model.graph.node:
        given = {n: (n, old[n]) for n in a.inputs_of([node]) if n in old}
        for name in (n for n in node.output if n in old and node.op_type != "Constant"):
            part = a.part([node], name, old[name], given)
            inputs = dict(given.values())
            result = _reference(model_of_proto(part), inputs)[name]
            found.what, found.error = apart(old[name], result, np.ones(old[name].shape, np.bool_), found.bound)
            if found.what:
                _describe(found, name, [node])
                found.confirmed = True
                return part, part, inputs
    value = wrong[0]
    found.what, found.error = apart(
        whole_run[value], mine[value], valid(graph.outputs[value], mine[value], hard), found.bound
    )
    own = a.region(value, ())
    _describe(found, value, own)
    found.confirmed = True
    part = a.part(own, value, old[value], {n: (n, hard.feeds[n]) for n in a.inputs_of(own)})
    return part, part, {n: hard.feeds[n] for n in a.inputs_of(own)}


def _reference(model: Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    graph, weights = model.graph(), model.weights
    read = {k: held(weights[k], v.type, k) for k, v in graph.params.items()} if weights is not None else {}
    return interpret(graph, {k: feeds[k] for k in graph.inputs}, read)


def bisect_pass(
    model: Model, pipeline: str, name: str, folder: str | Path | None = None, *, bound: float | None = None
) -> Bisection:
    """The smallest part in which the graphs before and after a pass of a named pipeline differ, both in standard ops.

    Of a pass that runs several times, its first run; weights are the model's, or random. Raises BisectError for a
    pass that is not in the pipeline and for one that changes the inputs or outputs. Else as `bisect`.
    """
    from .backends.onnx.lower import lower
    from .backends.onnx.save import save
    from .passes.differential import random_params
    from .passes.pipelines import PIPELINES

    passes = PIPELINES[pipeline].passes if pipeline in PIPELINES else ()
    if name not in [p.name for p in passes]:
        known = ", ".join(dict.fromkeys(p.name for p in passes)) or f"pipelines: {', '.join(PIPELINES)}"
        raise BisectError(f"pipeline {pipeline!r} has no pass {name!r}", hint=f"known: {known}")
    graph = model.graph()
    weights: Any = model.weights or {k: ArrayTensor(x) for k, x in random_params(graph).items()}
    with tempfile.TemporaryDirectory() as scratch:
        sides = [Path(scratch) / "before" / "model.onnx", Path(scratch) / "after" / "model.onnx"]
        for step in passes:
            if step.name == name:
                save(lower(graph.copy(), weights), _made(sides[0]))
            step.run(graph)
            if step.name == name:
                save(lower(graph.copy(), weights), _made(sides[1]))
                break
        return bisect(sides[0], sides[1], folder, bound=bound)


def _made(path: Path) -> Path:
    path.parent.mkdir()
    return path


def _write(found: Bisection, parts: Parts, folder: str | Path | None) -> None:
    """Both parts, their inputs and the report, in a new folder that appears whole."""
    if folder is None:
        return
    found.folder = str(folder)
    before, after, inputs = parts
    with whole(folder, replaces=lambda f: "is there already") as stage:
        for name, model in ((BEFORE, before), (AFTER, after)):
            with stage.open(name) as f:
                f.write(model.SerializeToString())
        with stage.open(INPUTS) as f:
            arrays: Any = inputs
            np.savez(f, **arrays)
        with stage.open(REPORT) as f:
            f.write((json.dumps(found.as_json(), indent=2) + "\n").encode())
