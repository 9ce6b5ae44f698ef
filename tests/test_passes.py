"""Each pass by golden text, before and after; near misses with their reason; numbers before against after.

A golden file holds `pass: name`, the graph before, `----`, the graph after, and under another `----` the near misses.
MONOGRAPH_UPDATE_GOLDEN=1 writes the last two parts anew; read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from monograph.ir import Graph, interpret, parse, verify
from monograph.passes import fuse
from monograph.passes.canonicalize import canonicalize, remove_dropout
from monograph.passes.cse import cse
from monograph.passes.dce import dce
from monograph.passes.decompose import decompose
from monograph.passes.differential import random_params
from monograph.passes.fold import fold
from monograph.passes.lora import add_lora, merge_lora
from monograph.passes.manager import FunctionPass, RewritePass
from monograph.passes.state import add_state

GOLDEN = sorted((Path(__file__).parent / "golden" / "passes").glob("*.txt"))
FUNCTIONS = (
    add_state, canonicalize, cse, dce, decompose, fold, remove_dropout,
)  # fmt: skip
PASSES: dict[str, FunctionPass | RewritePass] = {f.__name__: FunctionPass(f.__name__, f) for f in FUNCTIONS}
PASSES |= {p.name: p for p in (fuse.LAYERS, fuse.BLOCKS, fuse.RESIDUALS)}
PASSES["add_lora"] = FunctionPass("add_lora", lambda g: add_lora(g, 2, 4.0, ["q_proj", "up_proj"], 0.1))
PASSES["merge_lora"] = FunctionPass("merge_lora", merge_lora)
CHANGE_THE_CONTRACT = ("add_state", "add_lora")


def read(path: Path) -> list[str]:
    return [part.strip() for part in path.read_text().split("\n----\n")]


def test_every_pass_has_a_golden_case() -> None:
    used = {read(path)[0].splitlines()[0].removeprefix("pass: ") for path in GOLDEN}
    assert used == set(PASSES)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    head, _, before = read(path)[0].partition("\n")
    graph = verify(parse(before))
    original = graph.copy()
    report = PASSES[head.removeprefix("pass: ")].run(graph)
    verify(graph)
    misses = "\n".join(map(str, report.misses))
    found = [f"{head}\n{str(original).strip()}", str(graph).strip(), *([misses] if misses else [])]
    if os.environ.get("MONOGRAPH_UPDATE_GOLDEN"):
        path.write_text("\n\n----\n\n".join(found) + "\n")
    assert [found[0], *found[1:]] == read(path)


@pytest.mark.parametrize(
    "path", [p for p in GOLDEN if not p.stem.startswith(CHANGE_THE_CONTRACT)], ids=lambda p: p.stem
)
def test_golden_keeps_the_numbers(path: Path) -> None:
    before, after = (parse(text) for text in (read(path)[0].partition("\n")[2], read(path)[1]))
    params = random_params(before)
    inputs = _inputs(before)
    expected, found = interpret(before, inputs, params), interpret(after, inputs, params)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def _inputs(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"B": 2, "S": 5}
    made = {}
    for name, v in graph.inputs.items():
        shape = [d if isinstance(d, int) else d.substitute(sizes) for d in v.shape]
        if v.dtype.is_float:
            made[name] = rng.standard_normal(shape).astype(v.dtype.numpy)
        else:
            made[name] = rng.integers(0, 2, shape).astype(v.dtype.numpy)
    return made


def test_fold_keeps_the_type_of_an_empty_result() -> None:
    graph = parse(
        "graph empty() {\n"
        "  %0 = constant(value=[[1.0,2.0,3.0]], dtype=f32) : f32[1,3]\n"
        "  %1 = slice(%0, axis=-2, start=0, length=0) : f32[0,3]\n"
        "  return y=%1\n"
        "}\n"
    )
    fold(graph)
    assert str(graph.outputs["y"].type) == "f32[0,3]"
