"""Ops that mix tokens, in models of a user: sums and causal convolutions decode; what looks ahead does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph.ir import ops
from monograph.ir.errors import PassError
from monograph.ir.weights import Weights

pytestmark = pytest.mark.slow

VOCAB, DIM = 31, 8
PROMPTS = np.array([6, 2, 4])
Mix = Callable[[mg.Scope, mg.Value], mg.Value]


class Tiny(mg.Config):
    vocab: int = mg.key("vocab_size", VOCAB)


def attended(m: mg.Scope, x: mg.Value) -> mg.Value:
    q, k, v = (m.linear(n, x, DIM).split_heads(2) for n in "qkv")
    return x + ops.attention(q, k, v, causal=True).merge_heads()


def channels_first(x: mg.Value) -> mg.Value:
    return ops.transpose(x, permutation=(0, 2, 1))


def convolved(m: mg.Scope, x: mg.Value, dilation: int = 1, groups: int = 1) -> mg.Value:
    zeros = ops.expand(ops.constant(value=0.0, dtype=x.dtype), shape=(x.shape[0], DIM, 2 * dilation))
    w = (m / "conv").param("weight", DIM, DIM // groups, 3)
    return channels_first(ops.conv1d(ops.concat(zeros, channels_first(x), axis=2), w, dilation=dilation, groups=groups))


def looking_ahead(m: mg.Scope, x: mg.Value) -> mg.Value:
    return channels_first(ops.conv1d(channels_first(x), (m / "conv").param("weight", DIM, DIM, 3), padding=1))


MIXES: dict[str, Mix] = {
    "sum": lambda m, x: ops.cumsum(x, axis=1) * 0.1,
    "sum, then attention": lambda m, x: attended(m, x + ops.cumsum(x, axis=1) * 0.1),
    "convolution": convolved,
    "convolution, then attention": lambda m, x: attended(m, x + convolved(m, x)),
    "attention, then convolution": lambda m, x: convolved(m, attended(m, x)),
    "channels alone, dilated": lambda m, x: attended(m, x + convolved(m, x, dilation=2, groups=DIM)),
}


def model(mix: Mix) -> mg.Model:
    @mg.model(name="mixing", std=0.7)
    def mixing(m: mg.Scope, c: Tiny, input_ids: mg.Value, attention_mask: mg.Value) -> mg.Value:
        x = m.embed("embed", input_ids, c.vocab, DIM)
        counts = attention_mask.cast(x.dtype).reshape(*x.shape[:2], 1)
        return m.linear("head", mix(m, x * counts), c.vocab)

    made: mg.Model = mixing(Tiny())
    made.weights = Weights.initialize(made.graph(), 3)
    return made


@pytest.mark.parametrize("name", MIXES)
def test_steps_and_chunks_give_what_the_whole_gives(name: str) -> None:
    session: Any = mg.build(model(MIXES[name]), threads=1).session
    tokens = np.random.default_rng(0).integers(0, VOCAB, (3, 14))
    whole = [session.run({"input_ids": tokens[b : b + 1, : n + 8]})["logits"][0] for b, n in enumerate(PROMPTS)]

    def close(got: np.ndarray, after: int) -> None:
        want = np.stack([w[n + after - 1] for w, n in zip(whole, PROMPTS, strict=True)])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())

    close(session.prefill(tokens[:, : PROMPTS.max()], PROMPTS), 0)
    for i in range(3):
        close(session.step(tokens[range(3), PROMPTS + i]), i + 1)
    close(session.append(tokens[np.arange(3)[:, None], PROMPTS[:, None] + 3 + np.arange(5)]), 8)


def test_a_convolution_over_later_tokens_is_refused() -> None:
    with pytest.raises(PassError, match="conv1d looks 1 tokens ahead, where none is known yet"):
        mg.build(model(looking_ahead))
