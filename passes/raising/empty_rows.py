"""Rows without a key: attention gives zeros there, softmax over the lowest number everywhere the mean of all values."""

from __future__ import annotations

from typing import cast

from ...ir.graph import Node, Value
from ...ir.ops.attention import Attention
from ...ir.ops.logic import where
from ...ir.ops.reduce import any as any_
from ...ir.ops.reduce import mean
from ...ir.ops.shape import expand, reshape, transpose
from ...ir.types import exact_div


def means_where_empty(node: Node) -> Value | None:
    """The output [B,S,H,Dv] of an attention, but the mean of all values where a query has no key; None if all have one.

    It is written before where nodes go at present.
    """
    op, attributes = cast("Attention", node.op), node.attributes
    q, v, (batch, rows, heads, _) = node.value("q"), node.value("v"), node.output.shape
    keys, own, width = v.shape[1:]
    keep = op.keep(rows, keys, batch, node["mask"], node["lengths"], attributes["causal"], attributes["window"])
    if keep is None:
        return None
    found = any_(keep)
    found = reshape(found, shape=(1,) * (4 - found.rank) + found.shape)
    shared = (batch, 1, own, exact_div(heads, own), width)
    filling = expand(reshape(mean(v, axis=1), shape=(batch, 1, own, 1, width)), shape=shared)
    filling = reshape(filling, shape=(batch, 1, heads, width)).cast(q.dtype)
    return where(transpose(found, permutation=(0, 2, 1, 3)), node.output, filling)
