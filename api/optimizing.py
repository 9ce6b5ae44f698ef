"""`mg.optimize`: an ONNX file of any exporter, raised and fused, and held against itself in ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir

from .backends.onnx.folder import check_outside, foreign
from .backends.onnx.lower import PRODUCER
from .backends.onnx.save import save
from .branches import kept_of
from .exact import Unchecked, branch_stages, exact_difference, stages_of
from .frontends.onnx.crashes import check_runs
from .frontends.onnx.errors import OnnxFileError, UntypedError
from .frontends.onnx.file import OnnxFile, open_onnx
from .frontends.onnx.load import read_graph
from .frontends.onnx.nested import every_node
from .ir.display import Shown, Table
from .ir.errors import LoweringError, MonographError
from .ir.files import check_writable, whole
from .ir.graph import Graph
from .ir.tensors import Tensor
from .ir.value import Location
from .ir.weights import Weights
from .original import Original, session
from .passes.raising.report import Left
from .raised import FAULTS, SWITCHES, Raised, raised_model
from .undoing import Undone, right_without

FILE = "model.onnx"


@dataclass(repr=False)
class OptimizeReport(Shown):
    """What `optimize` did.

    nodes: of the graph as it was read and as it was written. counts: ONNX nodes by op type, of what was written.
    layers: what was raised, by op. left: softmaxes that are no attention and roots that are no norm, with the first
    obstacle. undone: rewrites that changed an output, by name, with the difference. unfused: attentions that stayed in
    parts, with the reason.
    kept: why the file went out as it came ("": it did not). trials: sets of inputs compared. refused: those that the
    original does not take. error: the largest difference, as a share of the largest number; bound: what is allowed.
    unchecked: why the graphs were not also computed in f64 ("": they were).
    """

    folder: Path
    nodes: tuple[int, int] = (0, 0)
    counts: dict[str, int] = field(default_factory=dict[str, int])
    layers: dict[str, int] = field(default_factory=dict[str, int])
    left: list[Left] = field(default_factory=list[Left])
    undone: list[Undone] = field(default_factory=list[Undone])
    unfused: list[str] = field(default_factory=list[str])
    kept: str = ""
    trials: int = 0
    refused: dict[str, str] = field(default_factory=dict[str, str])
    error: float = 0.0
    bound: float = 0.0
    unchecked: str = ""
    seconds: float = 0.0

    @property
    def refusals(self) -> list[str]:
        """All that was asked for and not done, a line each."""
        whole = [f"the file is as it came: {self.kept}"] if self.kept else []
        return [*whole, *map(str, self.undone), *(f"not raised: {x}" for x in self.left), *self.unfused]

    def table(self) -> Table:
        """What was done, for `repr` and notebooks."""
        rows = [
            ("folder", str(self.folder)),
            ("nodes", f"{self.nodes[0]:,} to {self.nodes[1]:,}"),
            ("raised", ", ".join(f"{n} {op}" for op, n in self.layers.items()) or "nothing"),
            ("refused", "\n".join(self.refusals) or "nothing"),
            ("compared", f"{self.trials} sets of inputs, error {self.error:.2g} of at most {self.bound:.2g}"),
            ("in f64", self.unchecked or "the same"),
            ("took", f"{self.seconds:.1f} s"),
        ]
        return Table("optimize", rows)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain dictionaries and lists."""
        left = [{"what": x.what, "place": str(x.location), "node": x.node, "reason": x.reason} for x in self.left]
        return {**asdict(self), "folder": str(self.folder), "left": left, "refusals": self.refusals}


def optimize(file: str | Path, folder: str | Path, *, strict: bool = False, cache: bool = False) -> OptimizeReport:
    """Write `folder`/model.onnx and one data file: the model of an ONNX file with its layers fused for the CPU.

    Inputs and outputs keep their names and types. The written file gives what the original gives in ONNX Runtime, on
    masks of ones, padded on either side and with holes, batches of 1 and 3 and several lengths, within a bound from the
    arithmetic; at tokens that a mask hides, and where the original gives no number, nothing is promised. A rewrite that
    breaks this is undone, and named in the report. strict: raise LoweringError for anything that was not raised, not
    fused or undone. cache: give a decoder our cache, whatever past it takes itself: the folder is then one that `build`
    writes and `mg.open` opens, and every row of a batch gives what the file gives for that row alone. Raises
    PassError with the node and the reason for a file that cannot be given a cache, OnnxFileError for one that is
    damaged, RuntimeInputError for one that ONNX Runtime does not take. The folder appears whole or not at all.
    """
    start = time.perf_counter()
    given: Any = file  # Callers without types give anything.
    if not isinstance(given, (str, Path)):
        hint = "a model is built, raised: mg.build(model, folder); or exported first: mg.export(model, folder)"
        raise OnnxFileError(f"expected the path of an ONNX file, not a {type(given).__name__}", hint=hint)
    source = file_of(Path(file))
    check_outside(check_writable(folder, foreign))
    if cache:
        from .caching import with_cache

        report = with_cache(source, folder, OptimizeReport(Path(folder)), strict=strict)
        report.seconds = time.perf_counter() - start
        return report
    read = open_onnx(source)
    report = OptimizeReport(Path(folder))
    with whole(folder, replaces=foreign) as stage:
        _made(read, stage.work / FILE, report)
        report.seconds = time.perf_counter() - start
        if strict and report.refusals:
            what = f"{len(report.refusals)} rewrites were refused, and all were asked for"
            raise LoweringError(what, place=str(file), details=report.refusals)
    return report


def _made(read: OnnxFile, path: Path, report: OptimizeReport) -> None:
    """Write what a file becomes; one with values that are no tensors stays as it is, if the runtime takes it."""
    try:
        graph, weights, _ = read_graph(read, kept_of(read), wrap=False)
    except UntypedError as e:
        check_runs(read)
        session(read.path, optimized=False)
        _keep(read, path, report, why_untyped(e, read))
        return
    check_runs(read, graph)
    original = Original.of(read.path, graph)
    report.trials, report.refused, report.bound = len(original.expected), original.refused, original.bound
    _write(read, graph, weights, original, path, report)


def why_untyped(error: UntypedError, read: OnnxFile) -> str:
    """The node and why it has no type."""
    return f"{error.place} {error.what}".removeprefix(f"{read.path}: ")


def softmaxes(read: OnnxFile, reason: str) -> list[Left]:
    """Every softmax of a file that is not raised, subgraphs and functions included, with the reason."""
    found = [n for n in every_node(read.model.graph) if n.op_type.endswith("Softmax")]
    return [Left("softmax", Location(str(read.path), 0, n.name), n.op_type, reason) for n in found]


def file_of(path: Path) -> Path:
    """The ONNX file that a path means: itself, or the one in a folder. Raises OnnxFileError."""
    if not path.is_dir():
        return path
    found = [path / FILE] if (path / FILE).is_file() else sorted(path.glob("*.onnx"))
    if len(found) != 1:
        raise OnnxFileError(f"has {len(found)} ONNX files, expected one", place=str(path))
    return found[0]


def _write(
    read: OnnxFile, graph: Graph, weights: Weights, original: Original, path: Path, report: OptimizeReport
) -> None:
    """Write the best model that gives what the original gives."""
    report.nodes = _nodes(read), 0
    if not original.expected:
        reason = next(iter(original.refused.values()), "it has no inputs")
        _keep(read, path, report, f"nothing to compare with: {reason}")
        return
    made: list[Raised] = []

    def wrong(off: Collection[str]) -> str:
        """What is wrong with the model that is made without some rewrites; rows without a key may be zeros or not."""
        reason = tried(off, every_row=False)
        return tried(off, every_row=True) if reason and not off else reason

    def tried(off: Collection[str], *, every_row: bool) -> str:
        made.clear()
        try:
            made.append(raised_model(graph, weights, off, read.opsets.get("", 0), every_row=every_row))
            save(made[0].model, path)
        except MonographError as e:
            return e.what
        except FAULTS as e:
            return f"a fault, {type(e).__name__}: {e}"
        difference, report.error = original.difference(path)
        return difference or _exactly(graph, weights, made[0], original, report)

    def places() -> list[str]:
        return made[0].report.places if made else []

    report.undone, last = right_without(wrong, SWITCHES, places)
    if last:
        _keep(read, path, report, last)
        return
    (found,) = made
    report.layers, report.left, report.unfused = found.report.counts, found.left, found.unfused
    report.nodes = _nodes(read), sum(found.counts.values())
    report.counts = found.counts


def _exactly(
    graph: Graph, weights: Mapping[str, Tensor], made: Raised, original: Original, report: OptimizeReport
) -> str:
    """What differs in f64, of the graph or of a branch; "" if nothing does, or if nothing was computed, which the
    report says."""
    report.unchecked = ""
    parts = [(stages_of(graph, made, original), weights, made.report.read)]
    parts += [(branch_stages(b.graph, b.raised), b.weights, b.raised.report.read) for b in made.branches]
    for stages, own, fixed in parts:
        try:
            difference = exact_difference(stages, own, fixed)
        except Unchecked as e:
            report.unchecked = report.unchecked or str(e)
        except MonographError as e:
            return f"it cannot be computed in f64: {e.what}"
        else:
            if difference:
                return difference
    return ""


def _keep(read: OnnxFile, path: Path, report: OptimizeReport, reason: str) -> None:
    """Write the file as it came, with its weights in one data file."""
    report.kept, report.error = reason, 0.0
    report.left = softmaxes(read, "the file is as it came")
    files: Any = onnx_ir  # Parts of its types are open.
    try:
        model = files.load(read.path)
    except (files.serde.SerdeError, TypeError, ValueError) as e:
        what = f"cannot be written again: {_first_line(e.__cause__ or e)}"
        raise LoweringError(what, place=str(read.path), details=[reason]) from None
    model.producer_name = PRODUCER
    path.parent.joinpath(f"{FILE}.data").unlink(missing_ok=True)
    files.save(model, path, external_data=f"{FILE}.data")
    report.nodes = _nodes(read), sum(1 for _ in model.graph.all_nodes())


def _nodes(read: OnnxFile) -> int:
    """Nodes of a file, those of branches and loops among them."""
    return sum(1 for _ in every_node(read.model.graph))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
