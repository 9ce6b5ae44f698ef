"""Mamba 2: layers of a convolution and a state space, no attention. (Dao & Gu 2024)"""

from __future__ import annotations

import math
from typing import Any

from ...ir import DType, Init, Value, ops
from ...ir.errors import ConfigError
from ...ir.weights import Weights
from ..activations import activated
from ..dsl import Checkpoint, Config, Scope, key, model
from ..harmless import INITIAL, SPEED, keys
from ..layers import like, widened

_INFINITE = {"__float__": "Infinity"}


class Mamba2(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    layers: int = key("num_hidden_layers")
    heads: int = key("num_heads")
    width: int = key("head_dim")
    size: int = key("state_size", 128)
    groups: int = key("n_groups", 8)
    taps: int = key("conv_kernel", 4)
    bias: bool = key("use_bias", False)
    conv_bias: bool = key("use_conv_bias", True)
    wide_residual: bool = key("residual_in_fp32", True)
    limits: list[Any] | None = key("time_step_limit", None)
    eps: float = key("layer_norm_epsilon", 1e-5)
    tied: bool = key("tie_word_embeddings", False)
    activation: str = key("hidden_act", "silu")

    noted = {
        **keys(INITIAL, "time_step_rank time_step_min time_step_max time_step_floor rescale_prenorm_residual"),
        **keys(SPEED, "chunk_size"),
        "expand": "it follows from the number and the width of heads",
    }

    @property
    def inner(self) -> int:
        return self.heads * self.width

    @property
    def limit(self) -> tuple[float, float]:
        """Least and largest step; newer checkpoints write an infinite one as {"__float__": "Infinity"}."""
        given: list[Any] = self.limits or [0.0, math.inf]
        found = [math.inf if v == _INFINITE else v for v in given]
        if len(found) != 2 or not all(isinstance(v, (int, float)) for v in found):
            raise ConfigError(f"time_step_limit is {given}, expected the least and the largest step")
        return float(found[0]), float(found[1])


def stored(weights: Weights) -> Weights:
    """Old checkpoints call the embeddings `embedding`."""
    return weights.renamed(lambda k: k.replace(".embedding.", ".embeddings."))


def mixer(m: Scope, c: Mamba2, x: Value, counts: Value) -> Value:
    """A state space between two projections. A token that does not count has a step of 0: it changes no state.

    The state and what becomes of it are at least f32.
    """
    (batch, length, _), dtype = x.shape, x.dtype
    shared = c.groups * c.size
    projected = m.linear("in_proj", x, 2 * c.inner + 2 * shared + c.heads, bias=c.bias)
    gate, mixed, step = parts(projected, c.inner, c.inner + 2 * shared, c.heads)
    w = (m / "conv1d").param("weight", c.inner + 2 * shared, 1, c.taps).reshape(c.inner + 2 * shared, c.taps)
    w_bias = (m / "conv1d").param("bias", c.inner + 2 * shared, init=Init("zeros")) if c.conv_bias else None
    mixed, _ = ops.causal_conv(mixed, w, w_bias, mask=counts)
    x, b, into = parts(widened(activated(mixed, c.activation)), c.inner, shared, shared)
    x = x.reshape(batch, length, c.heads, c.width)
    b, into = (y.reshape(batch, length, c.groups, c.size) for y in (b, into))
    step = steps(c, widened(step + m.param("dt_bias", c.heads, init=Init("zeros"))), counts)
    rate = ops.neg(ops.exp(widened(m.param("A_log", c.heads, init=Init("zeros")))))
    y, _ = ops.state_space(x * step.reshape(batch, length, c.heads, 1), step * rate, b, into)
    y = y + x * widened(m.param("D", c.heads, init=Init("ones"))).reshape(c.heads, 1)
    y = like(gated_norm(m / "norm", c, y.merge_heads(), widened(gate)), dtype)
    return m.linear("out_proj", y, c.dim, bias=c.bias)


def steps(c: Mamba2, x: Value, counts: Value) -> Value:
    """How far each head steps [B,S,H]: softplus(x) within the limits, 0 where nothing counts."""
    low, high = c.limit
    x = ops.softplus(x)
    if low > 0:
        x = ops.maximum(x, ops.constant(value=low, dtype=x.dtype))
    if high < math.inf:
        x = ops.minimum(x, ops.constant(value=high, dtype=x.dtype))
    return ops.where(counts.reshape(*counts.shape, 1), x, ops.constant(value=0.0, dtype=x.dtype))


def gated_norm(m: Scope, c: Mamba2, x: Value, gate: Value) -> Value:
    """RMS norm of x * silu(gate), each group of channels by itself."""
    w = m.param("weight", c.inner, init=Init("ones"))
    grouped = (x * ops.silu(gate)).reshape(*x.shape[:2], c.groups, c.inner // c.groups)
    scaled = grouped * ops.rsqrt(ops.mean(grouped * grouped) + c.eps)
    return scaled.reshape(*x.shape) * widened(w)


def parts(x: Value, *widths: int) -> list[Value]:
    """Consecutive slices of the last axis."""
    starts = [sum(widths[:i]) for i in range(len(widths))]
    return [ops.slice_(x, axis=-1, start=at, length=n) for at, n in zip(starts, widths, strict=True)]


TIED = {"lm_head.weight": "backbone.embeddings.weight"}


@model(checkpoint=Checkpoint("Mamba2ForCausalLM", prefix="backbone", tied=TIED, layout=stored))
def mamba2(m: Scope, c: Mamba2, input_ids: Value, attention_mask: Value) -> Value:
    counts = attention_mask.cast(DType.bool_)
    x = m.embed("backbone.embeddings", input_ids, c.vocab, c.dim)
    x = widened(x) if c.wide_residual else x
    for b in m.layers("backbone.layers", c.layers):
        x = x + like(mixer(b / "mixer", c, b.rms_norm("norm", like(x, m.dtype), c.eps), counts), x.dtype)
    x = m.rms_norm("backbone.norm_f", like(x, m.dtype), c.eps)
    return m.linear("lm_head", x, c.vocab, tie="backbone.embeddings" if c.tied else None)
