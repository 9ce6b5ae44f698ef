"""Sampling: each filter against an independent computation, the order, and reproducible draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monograph.inference.errors import GenerationError
from monograph.inference.sampling import (
    Array,
    Sampler,
    Sampling,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize,
    process,
    softmax,
)
from monograph.ir.errors import RuntimeInputError

INF = math.inf


def logits(rows: int = 3, vocab: int = 40, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 3, (rows, vocab)).astype(np.float32)


def kept(x: Array) -> list[set[int]]:
    return [set(np.flatnonzero(row > -INF).tolist()) for row in x]


def test_penalty_divides_positive_and_multiplies_negative_once_per_token() -> None:
    x = np.array([[2.0, -2.0, 1.0, 0.0], [3.0, 3.0, -1.0, 4.0]], np.float32)
    y = penalize(x, [[0, 1, 0, 0], [3, 9]], 2.0)
    assert y.tolist() == [[1.0, -4.0, 1.0, 0.0], [3.0, 3.0, -1.0, 2.0]], "id 9 is outside the vocabulary"
    assert x[0, 0] == 2.0, "the input is not changed"


def test_top_k_by_hand() -> None:
    x = np.array([[1.0, 5.0, 3.0, 3.0, 0.0]], np.float32)
    assert kept(keep_top_k(x, 1)) == [{1}]
    assert kept(keep_top_k(x, 2)) == [{1, 2, 3}], "what equals the k-th largest stays"
    assert kept(keep_top_k(x, 4)) == [{0, 1, 2, 3}]
    assert kept(keep_top_k(x, 99)) == [{0, 1, 2, 3, 4}]


def test_top_p_by_hand() -> None:
    x = np.log(np.array([[0.1, 0.5, 0.15, 0.25]]))
    assert kept(keep_top_p(x, 0.01)) == [{1}]
    assert kept(keep_top_p(x, 0.49)) == [{1}]
    assert kept(keep_top_p(x, 0.6)) == [{1, 3}]
    assert kept(keep_top_p(x, 0.8)) == [{1, 2, 3}]
    assert kept(keep_top_p(x, 0.95)) == [{0, 1, 2, 3}]


def test_min_p_by_hand() -> None:
    x = np.log(np.array([[0.1, 0.5, 0.15, 0.25]]))
    assert kept(keep_min_p(x, 0.51)) == [{1}]
    assert kept(keep_min_p(x, 0.49)) == [{1, 3}]
    assert kept(keep_min_p(x, 0.25)) == [{1, 2, 3}]


@given(hnp.arrays(np.float64, (2, 12), elements=st.floats(-20, 20)), st.floats(0.02, 0.98))
@settings(max_examples=80, deadline=None)
def test_top_p_is_the_smallest_set_that_reaches_p(x: Array, p: float) -> None:
    for row, chosen in zip(softmax(x), kept(keep_top_p(x, p)), strict=True):
        inside = sorted(row[list(chosen)])
        outside = [row[i] for i in range(len(row)) if i not in chosen]
        assert sum(inside) >= p - 1e-12
        assert sum(inside[1:]) < p + 1e-12, "without its least likely member the set is too small"
        assert not outside or max(outside) <= inside[0]


def test_filters_keep_values_and_work_on_what_is_left() -> None:
    x = logits()
    settings = Sampling(temperature=0.5, top_k=10, top_p=0.7, min_p=0.2, repetition_penalty=1.5)
    seen = [[1, 2], [], [39]]
    y = process(x, seen, settings)
    for row, ids, result in zip(x.astype(np.float64), seen, y, strict=True):
        expected = [v / 1.5 if v > 0 and i in ids else v * 1.5 if i in ids else v for i, v in enumerate(row)]
        expected = [v / 0.5 for v in expected]
        left = sorted(range(40), key=lambda i: -expected[i])[:10]
        total = sum(math.exp(expected[i]) for i in left)
        mass, nucleus = 0.0, []
        for i in left:
            if mass < 0.7:
                nucleus.append(i)
            mass += math.exp(expected[i]) / total
        final = {i for i in nucleus if math.exp(expected[i] - expected[left[0]]) >= 0.2}
        assert set(np.flatnonzero(result > -INF).tolist()) == final
        np.testing.assert_allclose(result[sorted(final)], [expected[i] for i in sorted(final)], rtol=1e-6)


def test_order_matters_and_is_penalty_first() -> None:
    x = np.array([[4.0, 3.9, 1.0]], np.float32)
    y = process(x, [[0]], Sampling(temperature=1.0, top_k=1, repetition_penalty=2.0))
    assert kept(y) == [{1}], "the penalty comes before top-k"


def test_greedy_is_argmax_and_ignores_filters() -> None:
    x = logits(4, 100)
    sampler = Sampler(Sampling(top_k=5, top_p=0.1), 4)
    assert sampler(x, [[]] * 4).tolist() == [int(max(range(100), key=lambda i: row[i])) for row in x]


def test_draw_inverts_the_distribution() -> None:
    x = np.log(np.array([0.2, 1e-300, 0.5, 0.3]))
    x[1] = -INF
    assert [draw(x, u) for u in (0.0, 0.1999, 0.2001, 0.6999, 0.7001, 0.999999999)] == [0, 0, 2, 2, 3, 3]


def test_drawn_frequencies() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    sampler = Sampler(Sampling(temperature=1.0, seed=3), 1)
    n = 4000
    drawn = np.bincount([int(sampler(np.log(p)[None], [[]])[0]) for _ in range(n)], minlength=4) / n
    assert np.abs(drawn - p).max() < 4 * math.sqrt(0.25 / n), drawn


def test_rows_draw_from_streams_of_their_own() -> None:
    x = np.zeros((3, 50), np.float32)

    def tokens(seed: int | list[int] | None, rows: int = 3) -> Array:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), rows)
        return np.stack([sampler(x[:rows], [[]] * rows) for _ in range(12)], 1)

    first = tokens(7)
    assert np.array_equal(first, tokens(7))
    assert not np.array_equal(first, tokens(8))
    assert len({tuple(r) for r in first.tolist()}) == 3, "rows differ"
    assert np.array_equal(first[:1], tokens(7, 1)), "a row does not see how many there are"
    assert np.array_equal(tokens([5, 7, 5])[1], first[0]), "a seed in a list: as if alone"
    assert not np.array_equal(tokens(None), tokens(None))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, expected 0 (greedy) or a positive number"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range(given: dict[str, float], message: str) -> None:
    with pytest.raises(RuntimeInputError) as e:
        Sampling(**given)  # type: ignore[arg-type]
    assert message in str(e.value)


def test_wrong_number_of_seeds() -> None:
    with pytest.raises(RuntimeInputError, match="2 seeds were given for 3 rows"):
        Sampler(Sampling(temperature=1.0, seed=[1, 2]), 3)


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(value: float, temperature: float) -> None:
    x = logits(3)
    x[1, 4] = value
    with pytest.raises(GenerationError, match=f"largest logit of row 1 is {value}"):
        Sampler(Sampling(temperature=temperature), 3)(x, [[]] * 3)


@pytest.mark.slow
def test_every_step_equals_transformers() -> None:
    import torch
    from transformers.generation import logits_process as hf

    x = logits(5, 300, seed=1)
    ids = np.random.default_rng(2).integers(0, 300, (5, 20))
    cases = [
        (Sampling(1.0, repetition_penalty=1.3), [hf.RepetitionPenaltyLogitsProcessor(1.3)]),
        (Sampling(0.7), [hf.TemperatureLogitsWarper(0.7)]),
        (Sampling(1.0, top_k=17), [hf.TopKLogitsWarper(17)]),
        (Sampling(1.0, top_p=0.83), [hf.TopPLogitsWarper(0.83)]),
        (Sampling(1.0, min_p=0.07), [hf.MinPLogitsWarper(0.07)]),
        (
            Sampling(0.8, 40, 0.9, 0.05, 1.2),
            [
                hf.RepetitionPenaltyLogitsProcessor(1.2),
                hf.TemperatureLogitsWarper(0.8),
                hf.TopKLogitsWarper(40),
                hf.TopPLogitsWarper(0.9),
                hf.MinPLogitsWarper(0.05),
            ],
        ),
    ]
    for sampling, processors in cases:
        theirs = hf.LogitsProcessorList(processors)(torch.tensor(ids), torch.tensor(x)).numpy()
        ours = process(x, ids.tolist(), sampling)
        assert kept(ours) == kept(theirs), sampling
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=str(sampling))


def test_a_row_of_which_nothing_is_possible_is_an_error_under_every_filter() -> None:
    logits = np.full((1, 5), -np.inf, np.float32)
    for how in ({}, {"top_p": 0.5}, {"top_k": 2}, {"top_k": 2, "top_p": 0.5}):
        with pytest.raises(GenerationError, match="no token can be chosen"):
            Sampler(Sampling(temperature=1.0, seed=0, **how), 1)(logits, [[1]])


def test_draws_follow_the_probabilities_with_and_without_tokens_that_are_out() -> None:
    rng = np.random.default_rng(0)
    for out in ([], [0, 3, 9]):
        logits = rng.standard_normal(10).astype(np.float32)
        logits[out] = -np.inf
        expected = softmax(logits)
        counts = np.bincount([draw(logits, (i + 0.5) / 20_000) for i in range(20_000)], minlength=10)
        np.testing.assert_allclose(counts / 20_000, expected, atol=1e-4)
        assert draw(logits, np.nextafter(1.0, 0.0)) not in out and draw(logits, 0.0) not in out
    wide = rng.standard_normal(3000)
    wide[rng.permutation(3000)[:500]] = -np.inf
    cumulative = np.cumsum(softmax(wide))
    for u in rng.random(2000):
        assert draw(wide, u) == int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
