"""What a model is built for: provider, element type, runtime version, and the kernels that exist there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir

from ..ir.errors import LoweringError, MonographError, did_you_mean
from ..ir.types import DType
from . import ort
from .traps import KINDS, Facts

if TYPE_CHECKING:
    from .onnxruntime.choices import Choices

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FOLDER = Path(__file__).parent
_ANY = 2**31 - 1
_SHOWN = 10


@dataclass(frozen=True)
class Kernel:
    """One kernel of a provider: op versions first to last, and the element types allowed for each type parameter.

    first 0: any version, where a table only knows that the op is there.
    types: type parameter (or operand name) of the op's schema => element types such as `float` or `int64`.
    """

    domain: str
    op: str
    first: int
    last: int
    types: Mapping[str, frozenset[str]]

    def takes(self, since: int) -> bool:
        """Whether it implements the op as it was defined in version `since` (ONNX Runtime's own rule)."""
        return self.first in (0, since) or (self.first < since <= self.last and self.last != _ANY)

    @property
    def line(self) -> str:
        """The kernel as a line of a table file."""
        span = f"{self.first}-{'' if self.last == _ANY else self.last}" if self.first else "*"
        types = " ".join(f"{k}={','.join(sorted(v))}" for k, v in sorted(self.types.items()))
        return f"{self.domain or 'ai.onnx'} {self.op} {span} {types}".rstrip()

    @staticmethod
    def parse(line: str) -> Kernel:
        domain, op, span, *types = line.split()
        first, last = span.split("-") if span != "*" else ("0", "")
        allowed = {k: frozenset(v.split(",")) for k, v in (t.split("=") for t in types)}
        return Kernel("" if domain == "ai.onnx" else domain, op, int(first), int(last or _ANY), allowed)


class KernelTable:
    """The kernels of one provider. `source` says where they were read from, `facts` what else is known of them."""

    def __init__(self, provider: str, kernels: Iterable[Kernel], source: str, facts: Facts | None = None) -> None:
        self.provider, self.source, self.facts = provider, source, facts or Facts()
        self.kernels: dict[tuple[str, str], list[Kernel]] = {}
        for k in kernels:
            self.kernels.setdefault((k.domain, k.op), []).append(k)

    def __len__(self) -> int:
        return sum(map(len, self.kernels.values()))

    def check(self, model: onnx_ir.Model) -> None:
        """Raises one LoweringError that lists every node without a kernel: op, types, layer, and what there is."""
        self._raise("have no kernel", model, (self.problem(node, model.opset_imports) for node in model.graph))
        traps = ([trap] for node in model.graph for trap in self.trapped(node, model.opset_imports, "refuse"))
        self._raise("are known to go wrong", model, traps)

    def _raise(self, what: str, model: onnx_ir.Model, problems: Iterable[list[str]]) -> None:
        lines = list(dict.fromkeys(line for found in problems for line in found))
        if lines:
            more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            raise LoweringError(
                f"{len(lines)} nodes {what} on {self.provider} ({self.source})",
                place=model.graph.name or "",
                details=[*lines[:_SHOWN], *more],
            )

    def trapped(self, node: onnx_ir.Node, opsets: Mapping[str, int], *weights: str) -> list[str]:
        """What is known to go wrong with a node, of those weights: op, layer, what, thread."""
        schema = schema_of(node.op_type, opsets.get(node.domain, 1), node.domain)
        names = [labels[-1] for labels in schema["inputs"]] if schema else []
        found = [t for t in self.facts.traps if t.weight in weights and t.catches(node, names)]
        return [f"{node.domain or 'ai.onnx'}.{node.op_type} at {place_of(node)}: {t}" for t in found]

    def problem(
        self, node: onnx_ir.Node, opsets: Mapping[str, int], *, wide: bool = False, whole: bool = False
    ) -> list[str]:
        """Why a node cannot run: op, types, layer, and what there is; nothing if it can. wide: were its 16-bit floats
        f32. whole: by a kernel of its own, not by the function that stands for it."""
        schema = schema_of(node.op_type, opsets.get(node.domain, 1), node.domain)
        since = schema["since"] if schema else opsets.get(node.domain, 1)
        given = _types(node, schema)
        if wide:
            given = {k: "float" if v in ("float16", "bfloat16") else v for k, v in given.items()}
        found = self.kernels.get((node.domain, node.op_type), [])
        # On the CPU, ONNX Runtime puts casts around an op that has only an f32 kernel.
        cast = self.provider == "cpu" and not whole
        wider = {k: "float" if v == "float16" and cast else v for k, v in given.items()}
        if any(k.takes(since) and (_fits(k, given) or _fits(k, wider)) for k in found):
            return []
        if schema and schema["function"] and not whole:
            return []
        shown = ", ".join(f"{k}={v}" for k, v in given.items())
        what = f"{node.domain or 'ai.onnx'}.{node.op_type} (version {since}) for {shown}"
        return [f"{what} at {place_of(node)}: {self._alternatives(node, found)}"]

    def _alternatives(self, node: onnx_ir.Node, found: list[Kernel]) -> str:
        if not found:
            known = {op for domain, op in self.kernels if domain == node.domain}
            return f"the provider has no kernel of that name{did_you_mean(node.op_type, known)}"
        return "there is " + "; ".join(k.line.split(" ", 2)[2] for k in found)


def place_of(node: onnx_ir.Node) -> str:
    """Where a node comes from: the user's line and the layer, or its own name."""
    where = node.metadata_props.get("scope") or node.name or ""
    return " ".join(filter(None, (node.metadata_props.get("source", ""), where)))


def _fits(kernel: Kernel, given: Mapping[str, str]) -> bool:
    return all(given[k] in allowed for k, allowed in kernel.types.items() if k in given)


def _types(node: onnx_ir.Node, schema: dict[str, Any] | None) -> dict[str, str]:
    """Element type by type parameter of the schema, where the model says what it is."""
    given: dict[str, str] = {}
    names = (schema or {"inputs": [], "outputs": []})["inputs"], (schema or {"inputs": [], "outputs": []})["outputs"]
    for values, formal in zip((node.inputs, node.outputs), names, strict=True):
        for i, v in enumerate(values):
            if v is None or v.dtype is None or not formal:
                continue
            for label in formal[min(i, len(formal) - 1)]:
                given.setdefault(label, _ELEMENT.get(v.dtype.name, v.dtype.name.lower()))
    return given


ELEMENT_NAMES = {DType.f64: "double", DType.f32: "float", DType.f16: "float16", DType.bf16: "bfloat16"}
"""What kernel tables call the float types."""

_ELEMENT = {"DOUBLE": "double", "FLOAT": "float", "STRING": "string"}


@lru_cache(maxsize=4096)
def schema_of(op: str, opset: int, domain: str) -> dict[str, Any] | None:
    """{since, inputs, outputs, function}: labels (type parameter and name) of each operand; None if unknown."""
    try:
        s: Any = onnx.defs.get_schema(op, opset, domain)  # its annotations lack the two facts below
    except onnx.defs.SchemaError:
        return _contrib().get((domain, op))
    function = s.has_function or s.has_context_dependent_function
    sides = {side: [(p.type_str, p.name) for p in getattr(s, side)] for side in ("inputs", "outputs")}
    return {"since": s.since_version, "function": function, **sides}


@lru_cache(maxsize=1)
def _contrib() -> dict[tuple[str, str], dict[str, Any]]:
    """Schemas that only ONNX Runtime has."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for s in ort.internals().get_all_operator_schema():
        if s.domain == "com.microsoft" or s.name == "SimplifiedLayerNormalization":
            sides = {side: [(p.typeStr, p.name) for p in getattr(s, side)] for side in ("inputs", "outputs")}
            found[s.domain, s.name] = {"since": s.since_version, "function": False, **sides}
    return found


def runtime_version() -> str:
    """Version of the ONNX Runtime that would run a model here."""
    return str(ort.library().__version__)


@lru_cache(maxsize=8)
def kernel_table(provider: str) -> KernelTable:
    """The kernels of `cpu`, asked of the installed runtime, or of `cuda`, from the table that is shipped."""
    if provider == "cuda":
        return read_table(_FOLDER / "kernels_cuda.txt", provider)
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        kernels = map(Kernel.parse, json.loads(asked.stdout.splitlines()[-1]))
        facts = read_table(_FOLDER / "kernels_cpu.txt", provider).facts
        return KernelTable(provider, kernels, f"asked of ONNX Runtime {runtime_version()}", facts)
    return read_table(_FOLDER / "kernels_cpu.txt", provider)


# In a process of its own: the GPU package, on a machine without CUDA, crashes when it is asked (1.31.1).
_ASK = """
import json
from onnxruntime.capi import onnxruntime_pybind11_state as runtime
lines = []
for k in runtime.get_all_opkernel_def():
    if k.provider == "CPUExecutionProvider":
        first, last = k.version_range
        types = [f"{n}=" + ",".join(sorted(t[7:-1] for t in ts if t.startswith("tensor("))) for n, ts in
                 sorted(k.type_constraints.items())]
        span = f"{first}-{'' if last == 2**31 - 1 else last}"
        lines.append(" ".join([k.domain or "ai.onnx", k.op_name, span, *types]))
print(json.dumps(lines))
"""


def read_table(path: Path, provider: str) -> KernelTable:
    """A table file: `# source: ...` on a line of its own, then one kernel, trap or other fact a line."""
    lines = path.read_text().splitlines()
    source = next(line.removeprefix("# source: ") for line in lines if line.startswith("# source: "))
    kernels = [Kernel.parse(x) for x in lines if x and not x.startswith(("#", *KINDS))]
    return KernelTable(provider, kernels, source, Facts.parse([x for x in lines if x.startswith(KINDS)]))


TYPES = {"cpu": ("double", "float", "float16"), "cuda": ("double", "float", "float16", "bfloat16")}
"""Float types in which a provider multiplies matrices; on the CPU f16 by way of f32, and bf16 not at all."""


def float_type(dtype: str | DType) -> DType:
    """A float type by its name. Raises MonographError for another."""
    known = [str(d) for d in ELEMENT_NAMES]
    if str(dtype) not in known:
        what = f"dtype is {str(dtype)!r}, expected one of {', '.join(known)}"
        raise MonographError(f"{what}{did_you_mean(str(dtype), known)}")
    return DType(str(dtype))


_MEANT = {"gpu": "cuda", "nvidia": "cuda", "x86": "cpu", "x64": "cpu", "arm": "cpu"}
"""What people call a provider that is called otherwise here."""


def meant(target: str, known: Iterable[str]) -> str:
    """`did_you_mean` for the name of a target: `gpu` means cuda, though `cpu` looks more alike."""
    name = target.lower().partition(":")[0]
    return did_you_mean(_MEANT.get(name, name), known)


@dataclass(frozen=True)
class Target:
    """Where a model is to run. provider: cpu or cuda. dtype: of weights and activations. choices: which of several
    legal ops a build takes (None: those shipped for the provider)."""

    provider: str = "cpu"
    dtype: DType = DType.f32
    runtime: str = ""
    choices: Choices | None = None

    @staticmethod
    def of(target: str | Target, dtype: str | DType | None = None) -> Target:
        """`cpu`, `cuda`, or a Target as it is. dtype: None for f32 on cpu, f16 on cuda. Raises MonographError for
        another name, LoweringError for a dtype that the provider cannot multiply in."""
        if isinstance(target, Target):
            return target
        if target not in PROVIDERS:
            hint = f"known: {', '.join(PROVIDERS)}; mg.export(model, folder) writes portable ONNX"
            raise MonographError(f"no target is called {target!r}{meant(target, PROVIDERS)}", hint=hint)
        asked = float_type(dtype) if dtype is not None else DType.f32 if target == "cpu" else DType.f16
        if ELEMENT_NAMES[asked] not in TYPES[target]:
            what = f"{target} has no kernel that multiplies matrices in {asked}"
            others = [str(d) for d, name in ELEMENT_NAMES.items() if name in TYPES[target]]
            raise LoweringError(what, hint=f"{', '.join(others)} are there, and weights in fewer bits by quantize")
        return Target(target, asked, runtime_version())

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime's name for the provider."""
        return PROVIDERS[self.provider]

    @property
    def table(self) -> KernelTable:
        return kernel_table(self.provider)

    def has(self, op: str, dtype: DType, domain: str = "com.microsoft") -> bool:
        """Whether the provider has a kernel of the op whose main type parameter, T, may be `dtype`."""
        name = ELEMENT_NAMES[dtype]
        return any(name in k.types.get("T", ()) for k in self.table.kernels.get((domain, op), ()))

    def __str__(self) -> str:
        return f"{self.provider} {self.dtype}"
