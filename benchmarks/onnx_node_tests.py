"""ONNX's own backend suite, by its own runner and tolerances, through our Backend: import, reference, re-export.

    python benchmarks/onnx_node_tests.py

Every node test of the installed `onnx` is run twice: on the imported graph by the reference in NumPy, and by ONNX
Runtime on the file that is written of it again. What does not pass is listed with what went wrong, and with whether
ONNX Runtime passes the file as it stands.
"""

from __future__ import annotations

import unittest
import warnings
from collections.abc import Iterable
from typing import Any

import onnx
from monograph.backends.onnx.backend import EVALUATOR, REFERENCE, WRITTEN, MonographBackend
from monograph.console import working
from monograph.frontends.onnx.runtime import open_session
from monograph.frontends.onnx.tables import HANDLERS
from monograph.ir.errors import RuntimeInputError
from onnx.backend.base import Backend, BackendRep
from onnx.backend.test import BackendTest
from onnx.backend.test.loader import load_model_tests
from report import Row, parser, publish

GROUPS = ("attention", "rotary_embedding", "rms_normalization", "layer_normalization", "swiglu", "gelu", "softmax",
          "tensorscatter")  # fmt: skip
REST, OTHERS = "other operators with a meaning in the IR", "operators that stay foreign"


def opset_of(model: onnx.ModelProto) -> int:
    return max([23, *(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))])


class Reference(Backend):
    """The imported graph in NumPy."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        return MonographBackend.prepare(model, mode=REFERENCE, opset=opset_of(model))


class Written(Reference):
    """The file that is written of it, in ONNX Runtime; evaluated: models that ONNX's own evaluator had to run."""

    evaluated = 0

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        made = MonographBackend.prepare(model, mode=WRITTEN, opset=opset_of(model))
        cls.evaluated += made.engine == EVALUATOR
        return made


class _Session(BackendRep):
    """A file as it stands in ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.session = open_session(model.SerializeToString())

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        names = [i.name for i in self.session.get_inputs()]
        return tuple(self.session.run(None, dict(zip(names, inputs, strict=True))))


class Original(Reference):
    """Without anything of ours."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        try:
            return _Session(model)
        except RuntimeInputError as e:
            raise unittest.SkipTest(str(e)) from None


class Kept(unittest.TestResult):
    """Names of tests by how they ended, and the last line of what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.passed, self.skips, self.wrong = set[str](), set[str](), dict[str, str]()

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed.add(name_of(test))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.skips.add(name_of(test))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        said = (line for line in str(err[1]).splitlines() if line.strip())
        self.wrong[name_of(test)] = next(said, type(err[1]).__name__)[:160]

    addFailure = addError


def name_of(test: unittest.TestCase) -> str:
    return test.id().rpartition(".")[2].removesuffix("_cpu")


def ran(backend: type[Backend], only: Iterable[str] | None = None) -> Kept:
    """All node tests, or those of these names, through one backend."""
    suite = BackendTest(backend, __name__)
    for name in only or [r"test_.*"]:
        suite.include(f"^{name}_cpu$")
    result = Kept()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = suite.enable_report().test_cases["OnnxBackendNodeModelTest"]
        unittest.defaultTestLoader.loadTestsFromTestCase(tests).run(result)
    return result


def groups() -> dict[str, str]:
    """The group of each node test, by the operators that it has."""
    found: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    for case in cases:
        name = next((g for g in GROUPS if case.name.startswith((f"test_{g}", f"test_{g.replace('_', '')}"))), None)
        nodes: Any = case.model.graph.node if case.model is not None else ()
        mapped = any((n.domain.replace("ai.onnx", ""), n.op_type) in HANDLERS for n in nodes)
        found[case.name] = name or (REST if mapped else OTHERS)
    return found


def main() -> None:
    given = parser(__doc__).parse_args()
    kinds = groups()
    with working("the reference"):
        reference = ran(Reference)
    with working("written again"):
        written = ran(Written)
    failed = sorted({*reference.wrong, *written.wrong})
    with working("what fails, as it stands"):
        original = ran(Original, failed) if failed else Kept()
    rows: list[Row] = []
    for group in (*GROUPS, REST, OTHERS):
        names = {n for n, g in kinds.items() if g == group}
        row: Row = {"tests of": group, "run": len(names & {*reference.passed, *reference.wrong})}
        for label, kept in (("reference", reference), ("written again", written)):
            row[label] = len(names & kept.passed)
        row["not passed by both"] = len(names & {*failed})
        row["of these, ONNX Runtime passes the original"] = len(names & {*failed} & original.passed)
        rows.append(row)
    rows.append({k: "all" if k == "tests of" else sum(r[k] for r in rows) for k in rows[0]})
    why = {n: {"reference": reference.wrong.get(n, ""), "written": written.wrong.get(n, ""),
               "as it stands": "passes" if n in original.passed else original.wrong.get(n, "is not opened")}
           for n in failed}  # fmt: skip
    note = (
        f"onnx {onnx.__version__}. {Written.evaluated} files that ONNX Runtime does not open, as they stand or written "
        "again, were run by ONNX's own evaluator."
    )
    publish("onnx_node_tests", rows, note=note, only_print=given.no_publish, failures=why)


if __name__ == "__main__":
    main()
