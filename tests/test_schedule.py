"""Learning rates step by step, against the formulas of the papers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from monograph.training.schedule import learning_rate, rate_at
from monograph.training.settings import SCHEDULES, Settings

pytestmark = pytest.mark.slow

PEAK, STEPS, WARMUP, FINAL = 3e-3, 200, 40, 0.05


def rates(schedule: str, steps: int = STEPS, **changes: float) -> list[float]:
    given = {"peak": PEAK, "warmup": WARMUP, "final": FINAL, **changes}
    return [learning_rate(i, steps=steps, schedule=schedule, **given) for i in range(steps)]  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_straight_line_to_the_peak(schedule: str) -> None:
    found = rates(schedule)
    assert found[:WARMUP] == pytest.approx([PEAK * k / WARMUP for k in range(1, WARMUP + 1)], rel=1e-12)
    assert found[0] == PEAK / 40 and found[WARMUP - 1] == PEAK == max(found)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_jumps(schedule: str) -> None:
    """No change from step to step is larger than that of the steepest line in it: the warm-up or the last fifth."""
    found = rates(schedule)
    steepest = max(PEAK / WARMUP, PEAK * (1 - FINAL) / (0.2 * STEPS)) * 1.0001
    assert max(abs(a - b) for a, b in pairwise(found)) <= steepest
    assert all(a >= b for a, b in pairwise(found[WARMUP:])), "after the peak it only falls"


def test_cosine_of_loshchilov_and_hutter() -> None:
    """eta_min + (eta_max - eta_min) / 2 * (1 + cos(pi * T_cur / T_i))."""
    low = FINAL * PEAK
    for step in (40, 77, 119, 160, 199):
        done = (step - WARMUP + 1) / (STEPS - WARMUP)
        expected = low + 0.5 * (PEAK - low) * (1 + math.cos(math.pi * done))
        assert rates("cosine")[step] == pytest.approx(expected, rel=1e-12)
    assert rates("cosine")[119] == pytest.approx((PEAK + low) / 2), "half-way down after half of the steps"
    assert rates("cosine")[-1] == pytest.approx(low)


def test_linear() -> None:
    found = rates("linear")
    falls = [a - b for a, b in pairwise(found[WARMUP:])]
    assert falls == pytest.approx([PEAK * (1 - FINAL) / (STEPS - WARMUP)] * len(falls), rel=1e-9)
    assert found[119] == pytest.approx(PEAK * (1 + FINAL) / 2) and found[-1] == pytest.approx(FINAL * PEAK)
    assert rates("linear", final=0.0)[-1] == 0


@pytest.mark.parametrize(("decay", "begin"), [(0.2, 160), (0.5, 100), (0.1, 180), (1.0, 40)])
def test_wsd_is_level_and_then_a_line(decay: float, begin: int) -> None:
    """Warm-up, stable, decay (Hu et al. 2024); a decay over all steps begins when the warm-up is over."""
    found = rates("wsd", decay=decay)
    assert set(found[WARMUP:begin]) <= {PEAK}
    left = [1 - (i - begin + 1) / (STEPS - begin) for i in range(begin, STEPS)]
    assert found[begin:] == pytest.approx([PEAK * (FINAL + (1 - FINAL) * x) for x in left], rel=1e-12)
    assert found[begin] < PEAK and found[-1] == pytest.approx(FINAL * PEAK)
    assert rates("wsd", decay=0.0)[WARMUP:] == [PEAK] * (STEPS - WARMUP)


def test_inverse_square_root_of_the_transformer() -> None:
    """dim^-0.5 * min(step^-0.5, step * warmup^-1.5) with steps from 1 (Vaswani et al. 2017, equation 3)."""
    dim, warmup, steps = 512, 4000, 100_000
    for number in (1, 10, 3999, 4000, 4001, 16_000, 100_000):
        paper = dim**-0.5 * min(number**-0.5, number * warmup**-1.5)
        ours = learning_rate(
            number - 1, peak=(dim * warmup) ** -0.5, steps=steps, warmup=warmup, schedule="inverse_sqrt"
        )
        assert ours == pytest.approx(paper, rel=1e-12)
    assert rates("inverse_sqrt")[159] == PEAK / 2, "a quarter of the way of the square root: 160 = 4 * 40"
    assert rates("inverse_sqrt", warmup=0)[3] == PEAK / 2


def test_constant() -> None:
    assert set(rates("constant")[WARMUP:]) == {PEAK}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_runs_of_one_step_and_of_nothing_but_warm_up(schedule: str) -> None:
    assert 0 < learning_rate(0, peak=1.0, steps=1, warmup=0, schedule=schedule, final=0.1) <= 1
    assert learning_rate(9, peak=1.0, steps=10, warmup=20, schedule=schedule) == 0.5
    assert learning_rate(10, peak=1.0, steps=10, warmup=10, schedule=schedule) <= 1.0, "past the end"


def test_rates_of_settings() -> None:
    s = Settings(steps=200, learning_rate=PEAK, schedule="wsd", decay=0.5, final=FINAL, device="cpu")
    assert s.warmup == 10, "a twentieth"
    assert [rate_at(i, s) for i in range(200)] == rates("wsd", warmup=10, decay=0.5)
