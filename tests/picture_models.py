"""Own models of many shapes, for pictures: none of them is a family, and few name their layers as families do."""

from __future__ import annotations

import math

import monograph as mg
from monograph import Value, ops
from monograph.frontends.layers import attention


class Sizes(mg.Config):
    dim: int = 16
    layers: int = 4


def feed(m: mg.Scope, x: Value, width: int = 32) -> Value:
    return m.linear("down", ops.silu(m.linear("up", x, width)), 16)


def attend(m: mg.Scope, x: Value, attention_mask: Value, window: int | None = None) -> Value:
    return attention(m, x, heads=2, causal=True, mask=mg.key_mask(attention_mask), window=window)


@mg.model
def handwritten(m: mg.Scope, c: Sizes, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    """Attention in primitives that no pass raises, and layers without a list."""
    x = m.embed("tok", input_ids, 31, c.dim) + m.embed("pos", position_ids, 64, c.dim)
    for i in range(c.layers):
        b = m / f"blk{i}"
        h = b.layer_norm("ln1", x, 1e-5)
        q, k, v = (b.linear(n, h, c.dim).split_heads(2).transpose(0, 2, 1, 3) for n in "qkv")
        scores = (q @ k.transpose(0, 1, 3, 2)) * (1 / math.sqrt(c.dim // 2))
        scores = ops.where(mg.key_mask(attention_mask), scores, ops.constant(value=-1e9, dtype=scores.dtype))
        y = (ops.softmax(scores) @ v).transpose(0, 2, 1, 3).merge_heads()
        x = x + b.linear("o", y, c.dim)
        x = x + feed(b, b.layer_norm("ln2", x, 1e-5))
    return m.linear("head", x, 31)


@mg.model
def shared(m: mg.Scope, c: Sizes, input_ids: Value, attention_mask: Value) -> Value:
    """One layer, used again and again."""
    x = m.embed("tok", input_ids, 31, c.dim)
    for _ in range(c.layers):
        x = x + attend(m / "one", m.rms_norm("n1", x, 1e-6), attention_mask)
        x = x + feed(m, m.rms_norm("n2", x, 1e-6))
    return m.linear("head", x, 31)


@mg.model
def skips(m: mg.Scope, c: Sizes, input_ids: Value) -> Value:
    """Long skips, and layers whose first block reads two values."""
    x = m.embed("tok", input_ids, 31, c.dim)
    kept: list[Value] = []
    for b in m.layers("down", c.layers):
        x = x + feed(b, b.rms_norm("n", x, 1e-6))
        kept.append(x)
    for b, skip in zip(m.layers("up", c.layers), reversed(kept), strict=True):
        x = b.linear("mix", ops.concat(x, skip, axis=-1), c.dim)
        x = x + feed(b, b.rms_norm("n", x, 1e-6))
    return m.linear("head", x, 31)


@mg.model
def scaled(m: mg.Scope, c: Sizes, input_ids: Value, attention_mask: Value) -> Value:
    """Residual lines with factors, gates, norms on both sides, and a layer that has one block more."""
    x = m.rms_norm("first", m.embed("tok", input_ids, 31, c.dim), 1e-6) * 4.0
    for i, b in enumerate(m.layers("layers", c.layers)):
        h = b.rms_norm("pre", x, 1e-6)
        y = attend(b / "attn", h, attention_mask, 3 if i % 2 else None) * ops.sigmoid(b.linear("gate", h, c.dim))
        x = x * 0.5 + b.rms_norm("post", y, 1e-6) * 0.7
        if i == 2:
            x = x + b.linear("adapter", x, c.dim)
    return m.linear("head", x, 31)


@mg.model
def mixed(m: mg.Scope, c: Sizes, input_ids: Value, attention_mask: Value) -> Value:
    """Layers with other skeletons, in an irregular order."""
    x = m.embed("tok", input_ids, 31, c.dim)
    for i, b in enumerate(m.layers("layers", 8)):
        h = b.rms_norm("n", x, 1e-6)
        if i in (2, 5):
            x = x + attend(b / "attn", h, attention_mask)
            x = x + feed(b, b.rms_norm("n2", x, 1e-6))
        else:
            y, _ = ops.causal_conv(h, (b / "conv").param("weight", c.dim, 3))
            x = x + b.linear("out", y, c.dim)
    return m.linear("head", m.rms_norm("norm", x, 1e-6), 31)


PAIR = mg.Task("pair", {"input_ids": "i64[B,S]", "pixels": "f32[B,N,48]"}, output="score")


@mg.model(task=PAIR)
def towers(m: mg.Scope, c: Sizes, input_ids: Value, pixels: Value) -> dict[str, Value]:
    """Two encoders that meet in a score; three outputs."""
    x, y = m.embed("text.tok", input_ids, 31, c.dim), m.linear("image.patch", pixels, c.dim)
    for b in m.layers("text.layers", 3):
        x = x + attention(b / "attn", b.rms_norm("n", x, 1e-6), heads=2)
    for b in m.layers("image.layers", 3):
        y = y + attention(b / "attn", b.rms_norm("n", y, 1e-6), heads=2)
    x, y = m.linear("text.out", ops.mean(x, axis=1), 8), m.linear("image.out", ops.mean(y, axis=1), 8)
    return {"score": ops.sum(x * y, axis=-1), "text": x, "image": y}


@mg.model
def stages(m: mg.Scope, c: Sizes, input_ids: Value) -> Value:
    """Lists of layers within a list, no stage as another."""
    x = m.embed("tok", input_ids, 31, c.dim)
    for s, width in enumerate((16, 24)):
        for i in range(3):
            b = m / "stages" / s / "blocks" / i
            h = b.rms_norm("n", x, 1e-6)
            x = x + b.linear("o", ops.relu(b.linear("i", h, 2 * width)), width)
        x = (m / "stages" / s).linear("wider", x, 24)
    return m.linear("head", x, 31)


@mg.model
def routed(m: mg.Scope, c: Sizes, input_ids: Value, attention_mask: Value) -> Value:
    """Experts and a shared one in every second layer."""
    x = m.embed("tok", input_ids, 31, c.dim)
    for i, b in enumerate(m.layers("layers", 6)):
        x = x + attend(b / "attn", b.rms_norm("n", x, 1e-6), attention_mask)
        h = b.rms_norm("n2", x, 1e-6)
        if i % 2:
            weights, chosen = ops.topk(ops.softmax(b.linear("router", h, 4)), k=2)
            shapes = {"gate": (32, 16), "up": (32, 16), "down": (16, 32)}
            experts = [(b / "experts" / j / n).param("weight", *s) for j in range(4) for n, s in shapes.items()]
            x = x + ops.moe(h, weights, chosen, *experts) + feed(b / "shared", h)
        else:
            x = x + feed(b, h)
    return m.linear("head", x, 31)


@mg.model
def bare(m: mg.Scope, c: Sizes, input_ids: Value) -> Value:
    """A table and nothing else."""
    return m.embed("tok", input_ids, 31, c.dim)


@mg.model
def chain(m: mg.Scope, c: Sizes, input_ids: Value) -> Value:
    """No norms and no residual lines."""
    x = m.embed("tok", input_ids, 31, c.dim)
    for b in m.layers("l", c.layers):
        x = ops.tanh(b.linear("w", x, c.dim))
    return m.linear("head", x, 31)


OWN = (handwritten, shared, skips, scaled, mixed, towers, stages, routed, bare, chain)
