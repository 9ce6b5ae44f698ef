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
from monograph.inference.sampling import Sampler, Sampling, cool, penalize, process, without
from monograph.ir.errors import MonographError, RuntimeInputError
from test_beams import END, MODELS, VOCAB, reference
from test_scheduler_models import PLAIN, model

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
        made = MODELS["t5"]().eval()
        made.save_pretrained(folder / "model")
        found.append((made, mg.build(load_folder(folder / "model"), folder / "built", threads=1)))
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
    for known_model, engine in engines:
        for _ in range(25):
            prompts, given = drawn(rng)
            width = max(map(len, prompts))
            ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
            mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
            wanted = reference(known_model, {"input_ids": ids, "attention_mask": mask}, 1, dict(given))
            for some, known in zip(engine.generate(prompts, **given), wanted, strict=True):
                several = some if isinstance(some, list) else [some]
                scores, expected = np.array([g.score for g in several]), np.array([s for _, s in known])
                scale = max(1.0, given["max_new_tokens"] ** -given["length_penalty"])
                np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4 * scale)
                ties += [g.ids for g in several] != [i for i, _ in known]
                total += 1
    assert ties <= total / 20


# -- bias, and penalties for what was chosen ----------------------------------------


def expected(
    x: list[float], chosen: list[int], bias: dict[int, float], frequency: float, presence: float
) -> list[float]:
    """By OpenAI's formula: mu[j] -> mu[j] + bias[j] - c[j] * frequency - (c[j] > 0) * presence."""
    found = list(x)
    for j in range(len(x)):
        count = sum(1 for i in chosen if i == j)
        found[j] += bias.get(j, 0.0) - count * frequency - (presence if count else 0.0)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_bias_and_penalties_are_those_of_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 9)).astype(np.float32)
    x[0, 4] = -INF
    prompts = [rng.integers(0, 9, n).tolist() for n in (0, 3, 6)]
    chosen = [rng.integers(0, 9, n).tolist() for n in (5, 0, 8)]
    bias = {int(i): float(rng.normal()) for i in rng.integers(0, 14, 3)}
    frequency, presence = float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2))
    settings = Sampling(frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias)
    seen = [p + c for p, c in zip(prompts, chosen, strict=True)]
    found = process(x, seen, settings, [len(p) for p in prompts])
    wanted = [expected(r.tolist(), c, bias, frequency, presence) for r, c in zip(x, chosen, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert not settings.unchanged


@pytest.mark.parametrize(
    "given",
    [
        {"logit_bias": {-1: 1.0}}, {"logit_bias": {"5": 1.0}}, {"logit_bias": {5: "1"}}, {"logit_bias": {5: INF}},
        {"logit_bias": {True: 1.0}}, {"frequency_penalty": float("nan")}, {"presence_penalty": INF},
        {"frequency_penalty": "1"}, {"presence_penalty": None},
    ],
    ids=str,
)  # fmt: skip
def test_bias_and_penalties_out_of_range(given: dict[str, Any]) -> None:
    with pytest.raises(RuntimeInputError, match=next(iter(given))):
        Settings(**given)


CHANGED = [
    {"logit_bias": {3: 5.0, 7: -100.0}}, {"frequency_penalty": 2.0}, {"presence_penalty": 1.0, "temperature": 1.0},
    {"frequency_penalty": 0.7, "presence_penalty": -0.3, "logit_bias": {9: 1.0}, "top_k": 5, "temperature": 0.8},
    {"frequency_penalty": 1.0, "repetition_penalty": 1.3, "logprobs": 2},
]  # fmt: skip


@pytest.mark.parametrize("given", CHANGED, ids=str)
def test_every_way_to_decode_has_them(tmp_path: Path, given: dict[str, Any]) -> None:
    """Token by token with a session that chooses, by a scheduler beside others, and by guesses: the same ids, which
    are those of choosing from whole logits by hand."""
    prompts = [[5, 9, 5, 9, 5, 9], [3, 3, 3], [8, 1, 2, 30, 8, 1]]
    seeds = [11, 12, 13]
    with mg.build(model("llama"), tmp_path / "a", threads=1) as engine:
        plain = {**given, "max_new_tokens": 14, "eos": ()}
        found = [g.ids for g in engine.generate(prompts, **plain, seed=seeds)]
        unchanged = {k: v for k, v in plain.items() if k in ("temperature", "top_k", "max_new_tokens", "eos")}
        assert found != [g.ids for g in engine.generate(prompts, **unchanged, seed=seeds)]
        for how in ({"lookup": 6}, *([{"draft": engine, "draft_tokens": 3}] if "temperature" not in given else [])):
            assert [g.ids for g in engine.generate(prompts, **plain, seed=seeds, **how)] == found
        with engine.scheduler(rows=2, chunk=4) as running:
            asked = [
                running.submit(p, Settings(**plain, seed=[s]))
                for p, s in zip([*prompts, [1, 2]], [*seeds, 1], strict=True)
            ]
            assert [r.result(60).ids for r in asked[:3]] == found
        for prompt, seed, ids in zip(prompts, seeds, found, strict=True):
            sampler, known = Sampler(Settings(**plain, seed=[seed]), 1), list(prompt)
            logits = engine.session.prefill(np.array([known]), np.array([len(known)]))
            for token in ids:
                assert int(sampler(logits, [known], [len(prompt)])[0]) == token
                known.append(token)
                logits = engine.session.step(np.array([token]))
        with pytest.raises(RuntimeInputError, match="beams"):
            engine.generate(prompts, max_new_tokens=3, num_beams=2, frequency_penalty=1.0)


def test_a_draft_that_cannot_read_the_prompt_guesses_nothing(tmp_path: Path) -> None:
    with (
        mg.build(model("llama"), tmp_path / "a", threads=1) as engine,
        mg.build(model("llama", max_positions=6), tmp_path / "b", threads=1) as draft,
    ):
        for prompts in ([[1] * 7], [[5, 9, 5], [3] * 20], [[4] * 6], [[2, 3], [4] * 5]):
            plain = [g.ids for g in engine.generate(prompts, max_new_tokens=9, eos=(3,))]
            assert [g.ids for g in engine.generate(prompts, max_new_tokens=9, eos=(3,), draft=draft)] == plain


# -- wrong types -------------------------------------------------------------------------------------------------

WRONG: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (([1.5, 2], PLAIN), {}), ((["a"], PLAIN), {}), (("ab", PLAIN), {}), (([[1, 2]], PLAIN), {}),
    (([1 << 70], PLAIN), {}),
    (([True], PLAIN), {}), ((None, PLAIN), {}), (([None], PLAIN), {}), ((5, PLAIN), {}), (([[1], [2, 3]], PLAIN), {}),
    (({1: 2}, PLAIN), {}), (([float("nan")], PLAIN), {}), (([], PLAIN), {}), (([-1], PLAIN), {}), (([50], PLAIN), {}),
    (([1], None), {}), (([1], {"max_new_tokens": 3}), {}), (([1], PLAIN), {"timeout": "a"}),
    (([1], PLAIN), {"timeout": float("nan")}), (([1], PLAIN), {"timeout": True}), (([1], PLAIN), {"inputs": 5}),
    (([1], PLAIN), {"logprobs": 1.5}), (([1], PLAIN), {"prompt_logprobs": True}), (([1], PLAIN), {"adapter": 5}),
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return mg.build(model("llama"), tmp_path_factory.mktemp("wrong") / "built", threads=1)


def test_arguments_of_wrong_types_are_told_where_they_are_given(llama: Engine) -> None:
    with llama.scheduler(rows=2) as running:
        for given, named in WRONG:
            with pytest.raises(RuntimeInputError):
                running.submit(*given, **named)
        for prompt in ((1, 2), range(1, 3), np.array([1, 2], np.uint8)):
            assert running.submit(prompt, PLAIN).result(30).ids == running.submit([1, 2], PLAIN).result(30).ids
    with pytest.raises(RuntimeInputError, match="draft is int"):
        llama.generate([[1]], draft=5)


@pytest.mark.parametrize("name", ["rows", "queue", "chunk", "prefix_bytes"])
@pytest.mark.parametrize("value", [2.5, "8", None, float("nan"), True, -1], ids=str)
def test_a_scheduler_takes_whole_numbers(llama: Engine, name: str, value: Any) -> None:
    with pytest.raises(RuntimeInputError, match=name):
        llama.scheduler(**{name: value})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("place", ["join", "read", "step_greedy", "ordered"])
def test_nobody_waits_for_a_thread_that_has_ended(llama: Engine, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Whatever a fault inside raises: who runs, who waits and who is about to get a row is told."""

    def broken(*given: Any, **named: Any) -> Any:
        raise TypeError("a fault of our own")

    running = llama.scheduler(rows=1)
    monkeypatch.setattr(running._batch.rows, place, broken)
    asked = [running.submit([1, 2], PLAIN) for _ in range(3)]
    for request in asked:
        with pytest.raises(MonographError):
            request.result(20)
    running.close()
