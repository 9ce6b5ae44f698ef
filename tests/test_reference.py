"""The reference that the site makes: every op says what it computes, of which shapes, and from whom."""

from __future__ import annotations

import enum
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import monograph as mg
import pytest
from monograph.ir.op import Op

sys.path.insert(0, str(Path(__file__).parent.parent / ".ci"))

import reference

BUILT_IN = [op for group in reference.by_module().values() for op in group]
SOURCE = re.compile(r"\b(19|20)\d\d\b|GGUF|torch\.nn")
"""A paper by its year, or the format or module that an op is."""


@pytest.mark.parametrize("op", BUILT_IN, ids=lambda op: op.name)
def test_an_op_says_what_it_computes(op: Op) -> None:
    text = type(op).__doc__
    assert text, f"{op.name} says nothing"
    assert re.search(r"[.:)]$", text.strip().splitlines()[0]), f"{op.name}: the first line is no sentence or formula"
    for name in names(op):
        word = rf"(?<![\w]){re.escape(name)}(?![\w])"
        assert re.search(word, text) or (op.elementwise and "x" not in text), f"{op.name} does not speak of {name}"
    if not op.elementwise:
        for name in reference.operands_of(op):
            assert has_shape(text, name), f"{op.name} does not tell the shape of {name}"
    if op.body is not None:
        assert SOURCE.search(text), f"{op.name} is a composite without a source"


def names(op: Op) -> list[str]:
    """Operands and attributes."""
    return [*reference.operands_of(op), *op.signature.attributes]


def has_shape(text: str, name: str) -> bool:
    """Whether a shape stands behind a name, or behind the last of several: `b and c [B,S,G,N]`."""
    return bool(re.search(rf"\b{name}\b[^.;]{{0,40}}?\[", text))


def test_the_page_of_ops_has_every_attribute() -> None:
    page = reference.ops_page()
    for op in BUILT_IN:
        section = page.partition(f"### {op.name}\n")[2].partition("\n### ")[0]
        for name in names(op):
            assert f"| `{name}` |" in section, f"{op.name}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in mg.__all__ if name != "ops"])
def test_a_public_name_is_told(name: str) -> None:
    """The name, and everything public of a class, but fields of data, which the docstring of the class tells."""
    thing: Any = getattr(mg, name)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing) and not issubclass(thing, enum.Enum):
        for base in thing.__mro__:
            if base.__module__.startswith("monograph"):
                own = {
                    k: v for k, v in list(vars(base).items()) if not k.startswith("_") and k not in base.__annotations__
                }
                untold = [k for k, v in own.items() if public(v) and not told(v)]
                assert not untold, f"{name}: {untold}"


def public(value: Any) -> bool:
    """Whether a member is a method or a property."""
    return inspect.isfunction(value) or isinstance(value, (property, staticmethod, classmethod))


def told(value: Any) -> bool:
    """Whether a member has a docstring."""
    return bool(getattr(value, "__doc__", None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "load", "build", "export", "verify", "bench", "init", "model"])
def test_a_function_tells_its_errors(name: str) -> None:
    assert re.search(r"\bRaises?\b", inspect.getdoc(getattr(mg, name)) or ""), name
