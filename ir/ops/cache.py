"""State of incremental decoding: append new keys or values to a cache, and read it. Inserted by passes only."""

from __future__ import annotations

from .. import shard_rules
from ..errors import check
from ..graph import Value
from ..op import Op, op
from ..types import TensorType
from .shape import concat, transpose


class CacheAppend(Op):
    """past [B,K,P,D] followed by new [B,S,K,D]: [B,K,P+S,D], as `past_key_values.N.key` has it. (Pope et al. 2022)"""

    shard = shard_rules.needs_all

    def infer(self, past: Value, new: Value) -> TensorType:
        check(past.rank == 4 and new.rank == 4, f"past is {past.type} and new is {new.type}, expected rank 4")
        batch, heads, length, width = past.shape
        expected = (batch, new.shape[1], heads, width)
        check(new.shape == expected and new.dtype == past.dtype, f"new is {new.type} but past is {past.type}")
        return TensorType(past.dtype, (batch, heads, length + new.shape[1], width))

    def body(self, past: Value, new: Value) -> Value:
        return concat(past, transpose(new, permutation=(0, 2, 1, 3)), axis=-2)


class CacheRead(Op):
    """cache [B,K,T,D] in the layout of attention: [B,T,K,D]. (Pope et al. 2022)"""

    shard = shard_rules.needs_all

    def infer(self, cache: Value) -> TensorType:
        check(cache.rank == 4, f"cache is {cache.type}, expected rank 4")
        batch, heads, length, width = cache.shape
        return TensorType(cache.dtype, (batch, length, heads, width))

    def body(self, cache: Value) -> Value:
        return transpose(cache, permutation=(0, 2, 1, 3))


cache_append, cache_read = op(CacheAppend), op(CacheRead)
