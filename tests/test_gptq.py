"""GPTQ against its definition: after each column the others are the least-squares answer to the error made so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monograph.ir.encodings import Encoding, int8, q4_0, q4_1, q8_0
from monograph.passes.quantize.gptq import Gptq, inverse_factor
from monograph.passes.quantize.grid import Grid

Array = np.ndarray[Any, Any]


class Nearest:
    """Scales from the largest number of a block, without any search."""

    name = "rtn"

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        block = encoding.block_of(weight.shape[1])
        blocks = weight.reshape(len(weight), -1, block)
        top = 127 if encoding.bits == 8 else 7
        low = blocks.min(-1, keepdims=True) if encoding.minimum else None
        if low is not None:
            scale = ((blocks.max(-1, keepdims=True) - low) / 15).astype(encoding.scale.numpy)
            low = low.astype(encoding.scale.numpy)
            codes = np.clip(np.rint((blocks - low.astype(np.float32)) / scale.astype(np.float32)), 0, 15)
        else:
            scale = (np.abs(blocks).max(-1, keepdims=True) / top).astype(encoding.scale.numpy)
            codes = np.clip(np.rint(blocks / scale.astype(np.float32)), -top - 1, top) + encoding.zero
        return encoding.joined(codes.astype(np.int8 if encoding.bits == 8 else np.uint8), scale, low)


def inputs(rows: int, columns: int, seed: int) -> Array:
    """Correlated channels, as activations have them."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((columns, columns)) * 0.98 ** np.abs(np.subtract.outer(*[np.arange(columns)] * 2))
    return (rng.standard_normal((rows, columns)) @ mixed).astype(np.float32)


def numbers(encoding: Encoding, lines: Array, shape: tuple[int, ...]) -> Array:
    grid = Grid.of(encoding, lines)
    codes = encoding.codes(lines).astype(np.float32)
    return (codes * grid.scale[..., None] + grid.low[..., None]).reshape(shape)


def naive(weight: Array, hessian: Array, grid: Grid, block: int, order: Array) -> Array:
    """Codes by the definition of optimal brain quantization: one inverse for each column, no factor, no blocks."""
    left = weight.astype(np.float64)
    codes = np.zeros(weight.shape)
    for at, column in enumerate(order):
        rest = order[at:]
        inverse = np.linalg.inv(hessian[np.ix_(rest, rest)])
        w = left[:, column].copy()
        codes[:, column] = grid.codes(w.astype(np.float32), column // block)
        error = w - grid.values(codes[:, column], column // block)
        left[:, rest] -= np.outer(error / inverse[0, 0], inverse[0])
    return codes


CASES = [(q4_0, 64), (q4_0, 160), (q4_1, 96), (q8_0, 64), (int8, 40)]


@pytest.mark.parametrize("encoding,columns", CASES)
@pytest.mark.parametrize("ordered", [False, True])
def test_equals_its_definition(encoding: Encoding, columns: int, ordered: bool) -> None:
    """Scales fixed beforehand, so that nothing but the codes is compared."""
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((24, columns)).astype(np.float32)
    x = inputs(4 * columns, columns, 1)
    hessian = x.T.astype(np.float64) @ x
    base = Nearest()
    fixed = base.lines("w", weight, encoding)

    class Fixed(Nearest):
        def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
            if weight.shape[1] == columns:
                return fixed
            at = Fixed.done
            Fixed.done += 1
            size = fixed.shape[1] // (columns // encoding.block)
            return np.ascontiguousarray(fixed[:, at * size : (at + 1) * size])

        done = 0

    found = Gptq(Fixed(), {"w": hessian}, ordered=ordered).lines("w", weight, encoding)
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(columns)
    order = np.argsort(-np.diagonal(hessian), kind="stable") if ordered else np.arange(columns)
    expected = naive(weight, damped, Grid.of(encoding, fixed), encoding.block_of(columns), order)
    different = encoding.codes(found).reshape(weight.shape) != expected
    assert different.mean() < 0.002, f"{different.sum()} of {different.size} codes differ"  # ties of float32


@pytest.mark.parametrize("encoding,columns", CASES)
@pytest.mark.parametrize("ordered", [False, True])
def test_better_than_nearest_over_the_text(encoding: Encoding, columns: int, ordered: bool) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((32, columns)).astype(np.float32)
    x = inputs(4 * columns, columns, 2)
    base = Nearest()
    lines = {
        "rtn": base.lines("w", weight, encoding),
        "gptq": Gptq(base, {"w": x.T @ x}, ordered=ordered).lines("w", weight, encoding),
    }
    error = {k: np.square(x @ (numbers(encoding, v, weight.shape) - weight).T).mean() for k, v in lines.items()}
    assert error["gptq"] < 0.7 * error["rtn"], error


def test_factor_of_the_inverse() -> None:
    x = inputs(200, 30, 4).astype(np.float64)
    hessian = x.T @ x
    factor, order = inverse_factor(hessian, 0.0, True)
    assert factor is not None
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(hessian[np.ix_(order, order)]), rtol=1e-6, atol=1e-9)
    assert not np.tril(factor, -1).any()


def test_without_activations_it_is_the_base() -> None:
    weight = np.random.default_rng(5).standard_normal((4, 64)).astype(np.float32)
    base = Nearest()
    expected = base.lines("w", weight, q4_0)
    for hessians in ({}, {"w": np.zeros((64, 64))}):
        np.testing.assert_array_equal(Gptq(base, hessians).lines("w", weight, q4_0), expected)
