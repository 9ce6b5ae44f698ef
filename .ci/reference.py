"""The reference of ops, of the Python names and of the command line, as Markdown made from docstrings.

Own code rather than mkdocstrings: the public names are imported from folders that are called differently in the
package, docstrings are prose without sections, and of an op signature, operands, attributes and lowerings are known to
its class alone. The command line is written by typer itself.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import monograph as mg
from monograph.ir.op import OPS, Op

GROUPS = {
    "Models": "Config key model Scope Family Model Program key_mask Checkpoint GGUF load init".split(),
    "Training": "train Corpus python_topics Pairs Masked Labelled Arrays".split(),
    "Serving": "build export to_torch verify bench".split(),
    "The contract around a model": "Task Stream Slot".split(),
    "Graphs and values": "Graph Value DType Weights MonographError".split(),
}
"""Public names by what they are for; all others come last."""

MORE = {
    "Serving": ["monograph.inference.engine:Engine", "monograph.parity:Parity"],
    "Graphs and values": ["monograph.ir:Op", "monograph.ir:op", "monograph.ir:interpret", "monograph.ir:parse"],
}
"""What public functions give, and what an op of one's own needs."""


def pages() -> dict[str, str]:
    """Text by the name of the page."""
    return {"ops.md": ops_page(), "api.md": api_page(), "commands.md": commands_page()}


# -- ops --------------------------------------------------------------------------------------------------------


def ops_page() -> str:
    """Every op of the language, by the file that it stands in."""
    lines = [
        "# Ops",
        "",
        f"All {len(OPS)} ops. In Python an op is a function of `monograph.ops` on values, and gives one or several.",
        "Operands come first; attributes are given by name. An operand with a default may be left out.",
        "",
        "What an op means is its NumPy reference: of a *primitive* the code is below it; a *composite* is made of",
        "other ops, which are below it, too.",
    ]
    for module, group in by_module().items():
        lines += ["", f"## {module.replace('_', ' ').capitalize()}", ""]
        lines += [f"{inspect.getdoc(importlib.import_module(f'monograph.ir.ops.{module}'))}"]
        for op in group:
            lines += ["", *op_entry(op)]
    return "\n".join(lines) + "\n"


def by_module() -> dict[str, list[Op]]:
    """Ops of the package by the name of their module, both sorted."""
    found: dict[str, list[Op]] = {}
    for op in sorted(OPS.values(), key=lambda op: op.name):
        package, _, module = type(op).__module__.rpartition(".")
        if package == "monograph.ir.ops":
            found.setdefault(module, []).append(op)
    return dict(sorted(found.items()))


def op_entry(op: Op) -> Iterator[str]:
    """Heading, signature, formula, operands and attributes of one op, and what it means."""
    prose, notes = explained(op)
    yield f"### {op.name}"
    yield ""
    yield from fenced("python", call(op.name, parameters(op)))
    yield ""
    yield markdown(prose)
    rows = [*operand_rows(op, notes), *attribute_rows(op, notes)]
    if rows:
        yield ""
        yield "| | type | default | |"
        yield "|---|---|---|---|"
        yield from rows
    yield ""
    yield facts(op)
    yield ""
    source = op.body or op.numpy
    assert source is not None
    what = "What it is made of" if op.body is not None else "What it means"
    yield f'??? note "{what}"'
    yield textwrap.indent("\n".join(fenced("python", textwrap.dedent(inspect.getsource(source)).rstrip())), "    ")


def explained(op: Op) -> tuple[str, dict[str, str]]:
    """(docstring without what it says of single operands and attributes, that by their names)."""
    text = inspect.getdoc(type(op)) or ""
    names = [*operands_of(op), *op.signature.attributes]
    if not names:
        return text, {}
    one = "|".join(map(re.escape, names))
    parts = re.split(rf"(?:^|(?<=[.)]\s))((?:{one})(?:, (?:{one}))*): ", " ".join(text.split()) if text else "")
    notes: dict[str, str] = {}
    for said, what in zip(parts[1::2], parts[2::2], strict=True):
        notes |= dict.fromkeys(said.split(", "), what.strip())
    return parts[0].strip(), notes


def operands_of(op: Op) -> list[str]:
    """Names of operands, with the one that stands for any number."""
    return [*op.signature.operands, *filter(None, [op.signature.variadic])]


def parameters(op: Op) -> list[str]:
    """Operands and attributes as they are written in a call."""
    s = op.signature
    given = [f"{n}=None" if n in s.optional else n for n in s.operands] + ([f"*{s.variadic}"] if s.variadic else [])
    keywords = [n if v is inspect.Parameter.empty else f"{n}={v!r}" for n, v in s.attributes.items()]
    return given + (["*", *keywords] if keywords and not s.variadic else keywords)


def shape_of(op: Op, name: str) -> str:
    """The shape that the docstring gives to an operand, as in `ids i64 [B,S]`."""
    text = " ".join((inspect.getdoc(type(op)) or "").split())
    found = re.search(rf"\b{re.escape(name)}`? ((?:i64 |i32 |bool )?\[[^\]]*\])", text)
    return found[1] if found else ""


def operand_rows(op: Op, notes: dict[str, str]) -> Iterator[str]:
    for name in operands_of(op):
        default = "may be left out" if name in op.signature.optional else ""
        yield f"| `{name}` | value | {default} | {cell(notes.get(name) or shape_of(op, name))} |"


def attribute_rows(op: Op, notes: dict[str, str]) -> Iterator[str]:
    for name, default in op.signature.attributes.items():
        shown = "must be given" if default is inspect.Parameter.empty else f"`{default!r}`"
        kind = cell(type_name(op.signature.hints.get(name, Any)))
        yield f"| `{name}` | {kind} | {shown} | {cell(notes.get(name, ''))} |"


def facts(op: Op) -> str:
    """What the class says of the op."""
    kind = "Composite" if op.body is not None else "Primitive"
    said = [name for name in ("elementwise", "commutative", "random") if getattr(op, name)]
    ways = [name for name, own in (("PyTorch", op.torch), ("ONNX", op.onnx)) if own is not None]
    lowered = f"; {' and '.join(ways)} {'have' if len(ways) == 2 else 'has'} an op or a formula for it" if ways else ""
    return f"*{', '.join([kind, *said])}{lowered}.*"


# -- Python -----------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Every public name, with its signature, what it says of itself, and its methods."""
    lines = ["# Python", "", "All of these are names of `monograph`, unless a module stands before them."]
    listed = {name for group in GROUPS.values() for name in group}
    rest = [name for name in mg.__all__ if name not in listed and name != "ops"]
    for title, names in {**GROUPS, **({"More": rest} if rest else {})}.items():
        lines += ["", f"## {title}"]
        found = [(name, getattr(mg, name)) for name in names if name in mg.__all__]
        found += [(place.partition(":")[2], imported(place)) for place in MORE.get(title, ())]
        for name, thing in found:
            lines += ["", *entry(name, thing)]
    return "\n".join(lines) + "\n"


def imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def entry(name: str, thing: Any) -> Iterator[str]:
    """A class with its public members, or a function."""
    home = getattr(thing, "__module__", "monograph")
    yield f"### {name}"
    yield ""
    if name not in mg.__all__:
        yield f"In `{home}`."
        yield ""
    yield from fenced("python", signature(name, thing))
    yield ""
    yield markdown(inspect.getdoc(thing) or "")
    if not inspect.isclass(thing) or issubclass(thing, enum.Enum):
        return
    for member, value in members(thing):
        yield ""
        if isinstance(value, property):
            yield f"**`{name}.{member}`** &nbsp; {markdown(inspect.getdoc(value) or '')}"
        else:
            yield from fenced("python", signature(f"{name}.{member}", value))
            yield ""
            yield markdown(inspect.getdoc(value) or "")


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties with a docstring, in the order of the code, those of bases of the package last."""
    seen = set[str]()
    for base in cls.__mro__:
        if not base.__module__.startswith("monograph"):
            continue
        for name, value in vars(base).items():
            function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            known = isinstance(function, (FunctionType, property)) and inspect.getdoc(function)
            if known and name not in seen and (not name.startswith("_") or name == "__call__"):
                seen.add(name)
                yield name, function


def signature(name: str, thing: Any) -> str:
    """A call as it is written, over several lines where it is long."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    given = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    parts = list(map(parameter, given))
    kinds = [p.kind for p in given]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    gives = found.return_annotation
    back = "" if inspect.isclass(thing) or gives is inspect.Signature.empty else f" -> {type_name(gives)}"
    return call(name, parts, back)


def call(name: str, parts: list[str], back: str = "") -> str:
    """A call on one line, or with a line for each part."""
    line = f"{name}({', '.join(parts)}){back}"
    return line if len(line) <= 88 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){back}"])


def parameter(p: inspect.Parameter) -> str:
    """One parameter; a default that Python cannot write is left out."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(p.kind, "")
    hint = "" if p.annotation is inspect.Parameter.empty else f": {type_name(p.annotation)}"
    if p.default is inspect.Parameter.empty or p.default is dataclasses.MISSING:
        return f"{stars}{p.name}{hint}"
    shown = "..." if repr(p.default).startswith("<") else repr(p.default)
    return f"{p.name}{hint} = {shown}" if hint else f"{p.name}={shown}"


# -- the command line ---------------------------------------------------------------------------------------------


def commands_page() -> str:
    """The pages that typer writes."""
    words = [sys.executable, "-m", "typer", "monograph.cli", "utils", "docs", "--name", "monograph"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return text.replace("# `monograph`\n", "# The command line\n", 1)


# -- Markdown -----------------------------------------------------------------------------------------------------


def fenced(language: str, text: str) -> Iterable[str]:
    return f"```{language}", text, "```"


def markdown(text: str) -> str:
    """Prose of a docstring: code between quotes stays, what Markdown would take for marks does not."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([\\*_<>\[\]|#])", r"\\\1", p) for p in parts)


def cell(text: str) -> str:
    return markdown(" ".join(text.split()))


def type_name(hint: Any) -> str:
    if isinstance(hint, str):
        return hint
    if isinstance(hint, type) and not getattr(hint, "__args__", None):
        return hint.__name__
    return re.sub(r"\b(typing|monograph[\w.]*)\.", "", str(hint)).replace("NoneType", "None")
