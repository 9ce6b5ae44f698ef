"""The embedding whose table is also the head: its gradient is added to that of the head in place.

By itself PyTorch makes a second gradient as large as the table, of zeros but for a batch's few rows, and sums both.
Here the rows of each token are summed first, as there, so that the gradient has the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .products import by_hand
from .untyped import applied


def tied_embedding(ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of `table` [V,C] for ids [...], the table as the head must take it)."""
    if not by_hand(ids, table) or table.device.type != "cpu":
        return functional.embedding(ids, table), table
    return applied(_Tied, ids, table)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(ids)
        ctx.set_materialize_grads(False)
        ctx.shape = table.shape
        return functional.embedding(ids, table), table.view_as(table)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[None, torch.Tensor | None]:
        of_rows, of_table = grads
        (ids,) = ctx.saved_tensors
        if of_rows is None:
            return None, of_table
        if of_table is None:
            of_table = of_rows.new_zeros(ctx.shape)
        rows = of_rows.reshape(-1, ctx.shape[1]).to(of_table.dtype)
        tokens, places = ids.reshape(-1).unique(return_inverse=True)
        sums = rows.new_zeros(len(tokens), ctx.shape[1]).index_add(0, places, rows)
        if torch.is_grad_enabled():  # The backward pass is itself differentiated.
            return None, of_table.index_add(0, tokens, sums)
        return None, of_table.index_add_(0, tokens, sums)
