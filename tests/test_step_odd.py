"""Odd numbers and ids in the choice of tokens, and beams of an encoder-decoder over many drawn cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from monograph.frontends.huggingface import load_folder
from monograph.inference.beams import Beams, BeamSearch
from monograph.inference.engine import Engine
from monograph.inference.generate import Settings
from monograph.inference.sampling import Sampler, Sampling, cool, penalize, without
from test_beams import END, MODELS, VOCAB, reference

Array = np.ndarray[Any, Any]
INF = np.inf


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-45, 1e-39, 1e-30, 1e-9])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_almost_no_temperature_is_the_likeliest(temperature: float, kind: type) -> None:
    rng = np.random.default_rng(3)
    x = (30 * rng.standard_normal((20, 50))).astype(kind)
    x[rng.random(x.shape) < 0.2] = -INF
    for filters in ({}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        found = Sampler(Sampling(temperature=temperature, seed=1, **filters), len(x))(x, [[]] * len(x))
        np.testing.assert_array_equal(found, x.argmax(axis=-1))


@pytest.mark.parametrize("temperature", [1e9, 1e38, 1e39, 1e300, 1.7e308])
def test_almost_only_temperature_is_any_that_is_possible(temperature: float) -> None:
    x = np.array([[3, -INF, -30, 20, -INF]], np.float32)
    y = cool(x, temperature)
    assert np.isneginf(y[0, [1, 4]]).all() and np.isfinite(y[0, [0, 2, 3]]).all()
    draws = {int(Sampler(Sampling(temperature=temperature, seed=s), 1)(x, [[]])[0]) for s in range(40)}
    assert draws == {0, 2, 3}


@pytest.mark.parametrize("penalty", [5e-324, 1e-320, 1e-40, 1e-3, 1e3, 1e39, 1e308])
def test_penalties_keep_numbers_numbers(penalty: float) -> None:
    x = np.array([[3, -2, 0, -INF, 5, -1e30, 1e30]], np.float32)
    y = penalize(x, [[0, 1, 2, 3, 5, 6, 900]], penalty)
    assert np.isfinite(y[0, [0, 1, 2, 4, 5, 6]]).all() and np.isneginf(y[0, 3]) and y[0, 4] == 5
    assert y[0, 0] >= 0 and y[0, 1] <= 0 and y[0, 2] == 0
    assert np.isfinite(y[0, Sampler(Sampling(repetition_penalty=penalty), 1)(x, [[0, 1, 2]])[0]])


@pytest.mark.parametrize("ids", [[], [3], [3, 3], [-1], [7], [10**12, 2], np.array([0, -5, 8])], ids=str)
def test_tokens_that_there_are_not_cannot_be_left_out(ids: Any) -> None:
    x = np.arange(14, dtype=np.float32).reshape(2, 7)
    found = without(x, ids)
    known = np.isin(np.arange(7), np.asarray(ids, np.int64))  # as transformers does
    np.testing.assert_array_equal(found, np.where(known, -INF, x))
    assert x[0, 3] == 3


class Flat:
    """A session whose logits are always the same."""

    lengths: Array = np.zeros(1, np.int64)

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        return np.tile(np.arange(5, dtype=np.float32), (len(tokens), 1))

    def step(self, tokens: Array) -> Array:
        return np.tile(np.arange(5, dtype=np.float32), (len(tokens), 1))

    def reorder(self, parents: Any, common: Any = None) -> None: ...


def test_beams_leave_out_no_other_tokens() -> None:
    settings = Settings(max_new_tokens=3, eos=(-1, 77))
    search = BeamSearch(
        Flat(), None, [[1]], settings, None, Beams(2, min_new_tokens=2), suppress=[4, 99, -2], suppress_first=[3, -5]
    )
    for _ in search:
        pass
    assert search.results()[0].ids == [2, 3, 3]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Engine]]:
    found: list[tuple[Any, Engine]] = []
    for seed in (100, 103, 111):
        torch.manual_seed(seed)
        folder: Path = tmp_path_factory.mktemp(f"t5-{seed}")
        model = MODELS["t5"]().eval()
        model.save_pretrained(folder / "model")
        found.append((model, mg.build(load_folder(folder / "model"), folder / "built", threads=1)))
    return found


def drawn(rng: np.random.Generator) -> tuple[list[list[int]], dict[str, Any]]:
    """Prompts and settings of one case."""
    prompts = [rng.integers(1, VOCAB, int(rng.integers(1, 9))).tolist() for _ in range(int(rng.integers(1, 4)))]
    count, new = int(rng.integers(2, 7)), int(rng.integers(1, 16))
    given: dict[str, Any] = {
        "num_beams": count, "num_return_sequences": int(rng.integers(1, count + 1)), "max_new_tokens": new,
        "early_stopping": [True, False, "never"][rng.integers(3)],
        "length_penalty": float(rng.choice([-1.5, 0, 0.6, 1, 2])),
        "eos": [(END,), (END, 11), (), (3, 4, 5)][rng.integers(4)],
    }  # fmt: skip
    if rng.random() < 0.3:
        given["min_new_tokens"] = int(rng.integers(0, new + 1))
    if rng.random() < 0.2:
        given["repetition_penalty"] = float(rng.choice([0.7, 1.3]))
    return prompts, given


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_beams_of_t5_are_those_of_transformers_but_for_ties(engines: list[tuple[Any, Engine]], seed: int) -> None:
    """Two texts whose scores differ by the rounding of float32 may change places: those of transformers in float32 and
    in float64 do, too. Any other difference is a fault."""
    rng = np.random.default_rng(seed)
    ties = total = 0
    for model, engine in engines:
        for _ in range(25):
            prompts, given = drawn(rng)
            width = max(map(len, prompts))
            ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
            mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
            wanted = reference(model, {"input_ids": ids, "attention_mask": mask}, 1, dict(given))
            for some, known in zip(engine.generate(prompts, **given), wanted, strict=True):
                several = some if isinstance(some, list) else [some]
                scores, expected = np.array([g.score for g in several]), np.array([s for _, s in known])
                scale = max(1.0, given["max_new_tokens"] ** -given["length_penalty"])
                np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4 * scale)
                ties += [g.ids for g in several] != [i for i, _ in known]
                total += 1
    assert ties <= total / 20
