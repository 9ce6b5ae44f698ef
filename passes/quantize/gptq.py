"""GPTQ: round column by column, and let the columns that are left make up for each error. (Frantar et al. 2023)

Of y = x @ w.T the squared error over the text is e @ H @ e.T with H = x.T @ x. When a column is rounded, the best that
the later ones can do is a multiple of a row of the Cholesky factor of the inverse of H.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.encodings import Encoding
from ...ir.tensors import Array
from .grid import Grid, recoded
from .plan import Method

DAMPING = 0.01
"""Share of the mean of the diagonal of H that is added to it, so that channels which the text never uses count."""

_STEP = 128
"""Columns after which the errors so far are passed on to all that follow, in one product."""


@dataclass(frozen=True)
class Gptq:
    """Codes by GPTQ on the scales that another method chooses.

    base: who chooses the scale of each block, when its turn comes. hessian: x.T @ x by name of the weight. ordered:
    take the columns with the largest activations first; then all scales are chosen beforehand.
    """

    base: Method
    hessians: dict[str, Array]
    damping: float = DAMPING
    ordered: bool = False

    @property
    def name(self) -> str:
        return "gptq"

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        """See Method. Weights without a Hessian are rounded by the base."""
        hessian = self.hessians.get(name)
        if hessian is None:
            return self.base.lines(name, weight, encoding)
        factor, order = inverse_factor(hessian, self.damping, self.ordered)
        if factor is None:
            return self.base.lines(name, weight, encoding)
        return _Rounding(self, name, encoding, weight, factor, order).lines()


def inverse_factor(hessian: Array, damping: float, ordered: bool) -> tuple[Array | None, Array]:
    """(U, order): U upper triangular with U.T @ U the inverse of the damped H, whose rows and columns are in `order`.

    None for an H of zeros, over which every rounding is as good.
    """
    diagonal = np.diagonal(hessian)
    order = np.argsort(-diagonal, kind="stable") if ordered else np.arange(len(diagonal))
    mean = float(diagonal.mean())
    if not mean > 0:
        return None, order
    damped = hessian[np.ix_(order, order)]
    damped[np.diag_indices_from(damped)] += damping * mean
    # H = R @ R.T with R upper triangular is the Cholesky factor of H read backwards; U is the inverse of R.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.triu(np.linalg.inv(upper)), order


class _Rounding:
    """One weight on its way to codes. Columns are rows here, so that each lies together in memory."""

    def __init__(self, method: Gptq, name: str, encoding: Encoding, weight: Array, factor: Array, order: Array) -> None:
        self.method, self.name, self.encoding = method, name, encoding
        self.factor, self.order = factor.astype(np.float32), order
        self.left = np.ascontiguousarray(weight.T[order], np.float32)
        self.codes = np.empty(weight.shape[::-1], encoding.codes_type.numpy)
        self.block = encoding.block_of(weight.shape[1])
        # The scales of a block are chosen when it is reached, unless columns of all blocks take turns.
        later = encoding.block and not method.ordered
        self.chosen = [] if later else [method.base.lines(name, weight, encoding)]
        self.grids = [Grid.of(encoding, found) for found in self.chosen]

    def lines(self) -> Array:
        width, step = len(self.left), max(_STEP, self.block if not self.grids else 0)
        for start in range(0, width, step):
            stop = min(start + step, width)
            errors = self._rounded(start, stop)
            for at in range(stop, width, _STEP):  # In pieces, so that no second copy of the weight is in memory.
                self.left[at : at + _STEP] -= self.factor[start:stop, at : at + _STEP].T @ errors
        return recoded(self.encoding, np.concatenate(self.chosen, axis=-1), self.codes.T)

    def _rounded(self, start: int, stop: int) -> Array:
        """Round columns start..stop; gives the errors that the others are to make up for."""
        errors = np.empty((stop - start, self.left.shape[1]), np.float32)
        for i in range(start, stop):
            grid, block = self._grid(i)
            w = self.left[i]
            codes = grid.codes(w, block)
            self.codes[self.order[i]] = codes
            error = (w - grid.values(codes, block)) / self.factor[i, i]
            self.left[i + 1 : stop] -= np.outer(self.factor[i, i + 1 : stop], error)
            errors[i - start] = error
        return errors

    def _grid(self, i: int) -> tuple[Grid, int]:
        """The grid of the i-th column to be rounded, and which of its blocks that is in."""
        if len(self.grids) == 1 and self.grids[0].scale.shape[1] * self.block == len(self.left):
            return self.grids[0], int(self.order[i]) // self.block
        if i % self.block == 0:
            now = np.ascontiguousarray(self.left[i : i + self.block].T)
            self.chosen.append(self.method.base.lines(self.name, now, self.encoding))
            self.grids.append(Grid.of(self.encoding, self.chosen[-1]))
        return self.grids[-1], 0
