"""Scaled dot-product attention with everything a mask can mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ..errors import check
from ..flow import Link, Links
from ..graph import Node, Value
from ..op import Op, op
from ..ranges import Range
from ..shard_rules import Cut, Cuts, Indivisible, Stop, first_cut, whole
from ..types import Shape, TensorType, bool_, broadcast, exact_div, i32, i64
from ..value import type_of
from .checks import floating, typed
from .elementwise import cast, constant, tanh
from .linear import matmul
from .logic import less, less_equal, where
from .reduce import softmax
from .shape import concat, expand, iota, reshape, slice_, transpose


def positive_scale(node: Node) -> Value | None:
    """A scale of 0 or less is one on q: some kernels refuse such a scale, others take 0 for one that is not given."""
    scale = node.attributes["scale"]
    if scale > 0:
        return None
    q, *rest = node.operands
    assert q is not None
    return q.graph.add(node.op, (q * scale, *rest), {**node.attributes, "scale": 1.0})[0]


def products(q: Value, k: Value, scale: float) -> Value:
    """Queries [B,S,H,D] times keys [B,T,K,D], scaled: [B,H,S,T]. Those of one group are stacked as rows, so that keys
    are never repeated."""
    batch, rows, heads, width = (q.shape[i] for i in range(4))
    keys, kv_heads = k.shape[1], k.shape[2]
    stacked = (batch, kv_heads, exact_div(heads, kv_heads) * rows, width)
    grouped = reshape(transpose(q * scale, permutation=(0, 2, 1, 3)), shape=stacked)
    scores = matmul(grouped, transpose(k, permutation=(0, 2, 3, 1)))
    return reshape(scores, shape=(batch, heads, rows, keys))


class Attention(Op):
    """softmax(scale * q k^T + bias, masked) v, query heads in groups that share a key/value head.

    A row with no key to attend to gives zeros. (Vaswani et al. 2017; Ainslie et al. 2023)
    q [B,S,H,D], k [B,T,K,D], v [B,T,K,Dv] -> [B,S,H,Dv], H a multiple of K.
    bias: [B,H,S,T] or what broadcasts to it, added. mask: bool [B,H,S,T] or what broadcasts to it, True = may attend.
    lengths: i32 [B], the first lengths[b] keys are valid. sinks: [H], one extra logit per head that takes part in
    the softmax and has no value (Xiao et al. 2023). causal: query i sits at position T - S + i and sees keys up to it.
    window: of these only the newest `window`, itself included (Beltagy et al. 2020). scale: D**-0.5 if not given.
    softcap: c * tanh(scores / c) before masking (Gemma 2).
    """

    wide = True
    rounding: ClassVar[Mapping[str, float]] = {"bias": 0.05}
    choices = {"scale": (...,)}
    canonical = (positive_scale,)

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        """A mean of values, or zeros."""
        v = given[2]
        assert v is not None
        return (Range(min(v.low, 0.0), max(v.high, 0.0), v.rows),)

    def complete(self, *operands: Value | None, scale: float | None, **attributes: Any) -> dict[str, Any]:
        q = operands[0]
        if scale is None and q is not None:
            check(isinstance(q.shape[-1], int), f"head width {q.shape[-1]} is symbolic: give `scale`")
            scale = float(q.shape[-1]) ** -0.5  # type: ignore[arg-type]
        return {"scale": scale, **attributes}

    def infer(
        self,
        q: Value,
        k: Value,
        v: Value,
        bias: Value | None = None,
        mask: Value | None = None,
        lengths: Value | None = None,
        sinks: Value | None = None,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> TensorType:
        floating(q=q)
        for name, x in (("q", q), ("k", k), ("v", v)):
            check(x.rank == 4, f"{name} has rank {x.rank}, expected 4: [B, length, heads, width]")
            check(x.dtype == q.dtype, f"{name} is {x.dtype} but q is {q.dtype}")
        batch, rows, heads, width = q.shape
        check(k.shape[:3] == v.shape[:3], f"k is {k.type} but v is {v.type}: batch, length and heads must agree")
        check(k.shape[0] == batch, f"q has batch {batch} but k has {k.shape[0]}")
        check(k.shape[3] == width, f"q has head width {width} but k has {k.shape[3]}")
        exact_div(heads, k.shape[2])
        full: Shape = (batch, heads, rows, k.shape[1])
        for name, x in (("bias", bias), ("mask", mask)):
            fits = x is None or broadcast(x.shape, full) == full
            check(fits, f"{name} is {type_of(x)}, which does not broadcast to [{','.join(map(str, full))}]")
        if bias is not None:
            check(bias.dtype == q.dtype, f"bias is {bias.dtype} but q is {q.dtype}")
        if mask is not None:
            check(mask.dtype == bool_, f"mask is {mask.dtype}, expected bool (True = may attend)")
        typed(TensorType(i32, (batch,)), ", one number of valid keys per batch row", lengths=lengths)
        typed(TensorType(q.dtype, (heads,)), ", one per query head", sinks=sinks)
        check(softcap is None or softcap > 0, f"softcap is {softcap}, expected a positive number")
        check(window is None or (causal and window > 0), f"window is {window}: it needs causal=True and at least 1 key")
        return TensorType(q.dtype, (batch, rows, heads, v.shape[3]))

    keys = {"k": "key", "v": "value"}
    masks = ("bias", "mask")
    counts = frozenset({"lengths"})

    def links(
        self,
        q: Value,
        k: Value,
        v: Value,
        bias: Value | None = None,
        mask: Value | None = None,
        lengths: Value | None = None,
        sinks: Value | None = None,
        *,
        causal: bool,
        **attributes: Any,
    ) -> Links:
        found = [Link(0, 0, 0), Link(0, 1, 1), Link(0, 2, 2), Link(0, 3, None)]
        for i, x in ((1, k), (2, v)):
            last = Link(i, 3, None if x is k else 3)
            found += [Link(i, 0, 0), Link(i, 1, 1 if causal else None, upto=causal), Link(i, 2, 2), last]
        # Axes of a mask [B,H,S,T] counted from the right: keys, queries, heads, batch.
        ends = (Link(0, 0, 1 if causal else None, upto=causal), Link(0, 0, 1), Link(0, 0, 2), Link(0, 0, 0))
        for i, x in ((3, bias), (4, mask)):
            rank = 0 if x is None else x.rank
            found += [replace(ends[rank - 1 - axis], operand=i, axis=axis) for axis in range(rank)]
        return tuple(found)

    def body(
        self,
        q: Value,
        k: Value,
        v: Value,
        bias: Value | None = None,
        mask: Value | None = None,
        lengths: Value | None = None,
        sinks: Value | None = None,
        *,
        causal: bool,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> Value:
        batch, rows, heads, _ = (q.shape[i] for i in range(4))
        keys, kv_heads, value_width = k.shape[1], k.shape[2], v.shape[3]
        scores = products(q, k, scale)
        if softcap is not None:
            scores = tanh(scores * (1.0 / softcap)) * softcap
        if bias is not None:
            scores = scores + bias
        keep = self.keep(rows, keys, batch, mask, lengths, causal, window)
        if keep is not None:
            scores = where(keep, scores, constant(value=q.dtype.lowest, dtype=q.dtype))
        if sinks is not None:
            extra = expand(reshape(sinks, shape=(1, heads, 1, 1)), shape=(batch, heads, rows, 1))
            scores = concat(scores, extra, axis=-1)
        weights = softmax(scores)
        if sinks is not None:
            weights = slice_(weights, axis=-1, start=0, length=keys)
        if keep is not None:
            weights = where(keep, weights, constant(value=0.0, dtype=q.dtype))
        weights = reshape(weights, shape=(batch, kv_heads, exact_div(heads, kv_heads) * rows, keys))
        y = matmul(weights, transpose(v, permutation=(0, 2, 1, 3)))
        return transpose(reshape(y, shape=(batch, heads, rows, value_width)), permutation=(0, 2, 1, 3))

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        """By heads: queries, keys, values and what is added or masked per head."""
        _, cut = first_cut(node, known)
        q, k, v = node.value("q"), node.value("k"), node.value("v")
        if cut.axis not in (-2, -3) or len(cut.sections) > 1:
            raise Stop(f"{node} is cut by heads only")
        if 1 in (q.shape[-2], k.shape[-2]):
            raise Indivisible(f"{k.shape[-2]} key/value heads for {q.shape[-2]} query heads at {node}")
        found = {x: whole(x, -2) for x in (q, k, v, node.output)}
        for x in (node["bias"], node["mask"]):
            if x is not None and x.rank >= 3 and x.shape[-3] != 1:
                found[x] = whole(x, -3)
        sinks = node["sinks"]
        return found if sinks is None else {**found, sinks: whole(sinks, -1)}

    @staticmethod
    def keep(
        rows: Any, keys: Any, batch: Any, mask: Value | None, lengths: Value | None, causal: bool, window: int | None
    ) -> Value | None:
        """Which keys each query may attend to, as one bool value that broadcasts to [B,H,S,T]; None: all."""
        keep = mask
        key = iota(start=0, length=keys)
        if causal:
            query = reshape(iota(start=keys - rows, length=rows), shape=(rows, 1))
            seen = less_equal(key, query)
            if window is not None:
                seen = seen & less(query, key + window)
            keep = seen if keep is None else keep & seen
        if lengths is not None:
            valid = less(key, reshape(cast(lengths, dtype=i64), shape=(batch, 1, 1, 1)))
            keep = valid if keep is None else keep & valid
        return keep


attention = op(Attention)
