"""Facts of ops: every op that a pipeline can hold has the facts that passes and backends ask it for."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import monograph
import pytest
from monograph.ir import Op

ROOMS = ("ir", "passes", "frontends", "backends", "training", "inference", "api")


def concrete_ops() -> list[type[Op]]:
    """Op classes of the package that have a meaning of their own, whether or not text can name them."""
    for room in ("ir", "passes", "backends"):
        package = importlib.import_module(f"monograph.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    ours = [op for op in subclasses(Op) if op.__module__.startswith(f"{monograph.__name__}.")]
    return [op for op in ours if not set(op.__subclasses__()).intersection(ours)]


def subclasses(op: type[Op]) -> Iterator[type[Op]]:
    for sub in op.__subclasses__():
        yield sub
        yield from subclasses(sub)


def of_language(op: type[Op]) -> bool:
    return op.__module__.startswith("monograph.ir.")


def has(op: type[Op], fact: str) -> bool:
    """Whether an op or a base of its family answers, not the default for all ops."""
    return getattr(op, fact) is not getattr(Op, fact)


@pytest.mark.parametrize("op", concrete_ops(), ids=lambda op: op.__name__)
def test_an_op_has_its_facts(op: type[Op]) -> None:
    assert (op.body is None) != (op.numpy is None), "a composite has a body, a primitive numpy semantics"
    assert op.__doc__, "the docstring is the formula"
    assert "infer" in dir(op), "the shape rule"
    assert op.elementwise or has(op, "shard") or op.body is not None, "how it is cut over ranks"
    if op.body is None:
        assert has(op, "flops"), "how many operations it takes"
        assert op.elementwise or has(op, "links") or op.states or not of_language(op), "which elements it reads"
    if op.torch is not None:
        assert has(op, "backward_reads"), "what the backward pass reads again"
    if op.random:
        assert not op.commutative


LANGUAGE = list(filter(of_language, concrete_ops()))


@pytest.mark.parametrize("op", LANGUAGE, ids=lambda op: op.__name__)
def test_an_op_of_the_language_reaches_every_target(op: type[Op]) -> None:
    """But for recurrent ops, which have ONNX ops of their own, and parts of encoded weights, which are stored."""
    assert op.torch is not None or op.body is not None
    assert op.onnx is not None or op.body is not None or op.states or op.reads_encoded


def test_nothing_asks_an_op_for_its_name() -> None:
    root = Path(monograph.__file__).parents[1]
    asks = re.compile(r"op\.name (?:==|!=|in |not in )")
    files = [p for room in ROOMS for p in (root / room).rglob("*.py")]
    found = {str(p.relative_to(root)) for p in files if asks.search(p.read_text())}
    assert files
    assert not found, "compare with the op's class, or ask a fact of it"
