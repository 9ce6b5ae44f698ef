"""Guesses change how fast tokens come, and not which: greedy ids, seeded ids, and distributions of plain decoding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.frontends.dsl import load_family
from monograph.inference.engine import Engine
from monograph.inference.generate import Decoding, Settings
from monograph.inference.guesses import Draft, Lookup, alike, followers
from monograph.inference.sampling import process, softmax
from monograph.inference.speculative import Pace, Speculated, Speculative, verdict
from monograph.ir import MonographError
from monograph.ir.weights import Weights
from ort_models import random_params
from small_models import OWN, SMALL

Array = np.ndarray[Any, Any]
CUTTABLE = ("llama", "gemma3_text", "mistral", "gpt2", "bloom", "deepseek_v3", "t5", "transformer2017")
UNCUT = {"mamba2": "is one state and no past", "lfm2": "is one state and no past", "lstm_lm": "is one state"}
EXTRA = {"lfm2": {"layer_types": ["conv", "full_attention"]}}
PROMPTS = [[3, 9, 3, 9, 3, 9, 3], [7], [11, 12, 13, 14, 11, 12], [5, 5, 5]]


class Engines:
    """An engine by family and seed of its weights, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known = folder, dict[tuple[Any, ...], Engine]()

    def __call__(self, family: str, seed: int = 0, **changes: Any) -> Engine:
        key = family, seed, *sorted(changes.items())
        if key not in self.known:
            place = self.folder / f"{len(self.known)}"
            found = load_family(family)
            fields = {f.name for f in dataclasses.fields(found.config_class)}
            own = {**OWN.get(family, {}), **EXTRA.get(family, {})}
            given = {**SMALL, **own, "dim": 32, "head_dim": 8, "window": 6, **changes}
            model = found(**{k: v for k, v in given.items() if k in fields})
            params = random_params(model.graph(), seed=seed)
            build(model, Weights.of({k: v * 4 if "embed" not in k else v for k, v in params.items()}), place)
            engine = Engine(open_session(place, threads=1, capacity=8))
            engine.session.config["decoder_start_token_id"] = 1
            self.known[key] = engine
        return self.known[key]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.mark.parametrize("family", CUTTABLE)
@pytest.mark.parametrize("how", ["lookup", "draft", "self"])
def test_greedy_ids_are_those_of_plain_decoding(engines: Engines, family: str, how: str) -> None:
    engine = engines(family)
    given: dict[str, Any] = {"lookup": 6}
    if how != "lookup":
        draft = engines(family, seed=1) if how == "draft" else Engine(open_session(engine.folder, threads=1))
        draft.session.config["decoder_start_token_id"] = 1
        given = {"draft": draft, "draft_tokens": 5}
    for settings in ({"eos": ()}, {"eos": (4, 17, 20)}, {"eos": (), "repetition_penalty": 1.4}, {"max_new_tokens": 1}):
        common = {"max_new_tokens": 30, **settings}
        plain = engine.generate(PROMPTS, **common)
        found = engine.generate(PROMPTS, **common, **given)
        assert [g.ids for g in found] == [g.ids for g in plain]
        assert [g.reason for g in found] == [g.reason for g in plain]
        alone = engine.generate(PROMPTS[2], **common, **given)
        assert alone.ids == plain[2].ids
    if how == "self":
        found = engine.generate(PROMPTS, max_new_tokens=30, eos=(), **given)
        assert all(g.accepted_per_call > 1.5 for g in found)
        assert all(g.accepted <= g.guessed for g in found)
        assert all(len(g.ids) == 1 + g.calls + g.accepted for g in found)


@pytest.mark.parametrize("settings", [
    {"temperature": 1.0}, {"temperature": 0.7, "top_k": 9}, {"temperature": 2.0, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.3, "repetition_penalty": 1.5},
])  # fmt: skip
def test_a_seed_gives_the_same_ids_with_looked_up_guesses(engines: Engines, settings: dict[str, Any]) -> None:
    engine = engines("llama")
    common = {"max_new_tokens": 25, "eos": (), "seed": 5, **settings}
    plain = engine.generate(PROMPTS, **common)
    assert [g.ids for g in engine.generate(PROMPTS, **common, lookup=8)] == [g.ids for g in plain]


def test_a_row_is_drawn_as_alone_whatever_its_neighbours(engines: Engines) -> None:
    engine, draft = engines("llama"), engines("llama", seed=1)
    common: dict[str, Any] = {"max_new_tokens": 25, "eos": (4, 9), "temperature": 1.0, "draft": draft}
    together = engine.generate(PROMPTS, **common, seed=[8, 6, 7, 5])
    for prompt, seed, one in zip(PROMPTS, [8, 6, 7, 5], together, strict=True):
        assert engine.generate([prompt], **common, seed=[seed])[0].ids == one.ids


@pytest.mark.parametrize("family", UNCUT)
def test_states_that_cannot_be_cut_are_refused_by_name(engines: Engines, family: str) -> None:
    recurrent, plain = engines(family), engines("llama")
    with pytest.raises(MonographError, match=UNCUT[family]):
        recurrent.generate([1, 2], lookup=4, max_new_tokens=4)
    with pytest.raises(MonographError, match=f"the draft cannot go back: .*{UNCUT[family]}"):
        plain.generate([1, 2], draft=recurrent, max_new_tokens=4)


def test_what_does_not_go_together(engines: Engines) -> None:
    engine, draft = engines("llama"), engines("llama", seed=1)
    wrong: dict[str, dict[str, Any]] = {
        "lookup is 0": {"lookup": 0},
        "lookup is 33": {"lookup": 33},
        "lookup is True": {"lookup": True},
        "draft_tokens is 'x'": {"draft": draft, "draft_tokens": "x"},
        "draft and lookup": {"draft": draft, "lookup": 3},
        "beams are not guessed": {"num_beams": 2, "lookup": 3},
        "the draft has 40 tokens, the model 50": {"draft": engines("llama", vocab=40)},
    }
    for said, given in wrong.items():
        with pytest.raises(MonographError, match=said):
            engine.generate([1, 2, 3], max_new_tokens=5, **given)


def test_a_draft_with_fewer_positions_guesses_as_long_as_it_can(engines: Engines) -> None:
    engine, draft = engines("llama"), engines("llama", seed=0, max_positions=16)
    plain = engine.generate(PROMPTS, max_new_tokens=40, eos=())
    found = engine.generate(PROMPTS, max_new_tokens=40, eos=(), draft=draft)
    assert [g.ids for g in found] == [g.ids for g in plain]
    assert found[1].accepted > 3


# -- distributions ----------------------------------------------------------------------------------------------------

V, LENGTH, ROWS = 6, 3, 6000


class Chain:
    """A model whose logits depend on the last two tokens; a session without any state to compute."""

    uncut = ""

    def __init__(self, seed: int, mixed: Chain | None = None) -> None:
        self.table = np.random.default_rng(seed).normal(0, 1.5, (V, V, V)).astype(np.float32)
        if mixed is not None:
            self.table = 0.6 * mixed.table + 0.4 * self.table
        self.rows: list[list[int]] = []
        self.owner = object()

    @property
    def lengths(self) -> Array:
        return np.array([len(r) for r in self.rows])

    def of(self, row: list[int]) -> Array:
        return self.table[row[-2], row[-1]]

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        self.rows = [t[:n].tolist() for t, n in zip(tokens, lengths, strict=True)]
        return np.stack([self.of(r) for r in self.rows])

    def step(self, tokens: Array) -> Array:
        return self.append(tokens[:, None])

    def append(self, tokens: Array, lengths: Any = None, *, every: bool = False) -> Array:
        counts = [tokens.shape[1]] * len(tokens) if lengths is None else list(lengths)
        found = np.zeros((*tokens.shape, V), np.float32)
        for b, row in enumerate(self.rows):
            for i in range(counts[b]):
                row.append(int(tokens[b, i]))
                found[b, i] = self.of(row)
        return found if every else found[np.arange(len(tokens)), np.array(counts) - 1]

    def truncate(self, lengths: Any) -> None:
        self.rows = [r[:n] for r, n in zip(self.rows, lengths, strict=True)]

    def reorder(self, parents: Any, common: Any = None) -> None:
        self.rows = [list(self.rows[p]) for p in parents]


PROMPT = [1, 4, 2, 0, 1, 4]
FILTERS: list[dict[str, Any]] = [
    {}, {"temperature": 0.7}, {"top_k": 4}, {"top_p": 0.85}, {"min_p": 0.15},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.6},
]  # fmt: skip


def exact(model: Chain, settings: Settings) -> Array:
    """The probability of every continuation, by enumeration."""
    found = np.zeros((V,) * LENGTH)
    for at in np.ndindex(found.shape):
        seen, p = list(PROMPT), 1.0
        for token in at:
            p *= float(softmax(process(model.of(seen)[None], [seen], settings))[0, token])
            seen.append(token)
        found[at] = p
    return found.reshape(-1)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("how", ["plain", "lookup", "draft", "other draft"])
def test_sampled_tokens_have_the_distribution_of_plain_sampling(filters: dict[str, Any], how: str) -> None:
    model = Chain(0)
    settings = Settings.of({"temperature": 1.0, "max_new_tokens": LENGTH, "eos": (), "seed": 11, **filters})
    rows = [list(PROMPT) for _ in range(ROWS)]
    if how == "plain":
        decoding = Decoding(model, None, rows, settings)
    else:
        other = Chain(1, mixed=model if how == "draft" else None)
        drafter = Lookup() if how == "lookup" else Draft(other, other.prefill, settings, 100)
        decoding = Speculative(model, None, rows, settings, drafter=drafter, longest=4)
    list(decoding)
    results = decoding.results()
    if how != "plain":
        assert sum(g.accepted for g in results if isinstance(g, Speculated)) > ROWS // 12
    counts = np.zeros((V,) * LENGTH)
    for one in results:
        counts[tuple(one.ids)] += 1
    wanted = exact(model, settings) * ROWS
    assert counts.reshape(-1)[wanted == 0].sum() == 0
    assert chi_square(counts.reshape(-1), wanted) < 3.5


def chi_square(counts: Array, wanted: Array) -> float:
    """How many deviations a chi-square statistic is above what it should be (Wilson and Hilferty 1931)."""
    order = np.argsort(-wanted)
    few = wanted[order] < 5
    counts = np.append(counts[order][~few], counts[order][few].sum())
    wanted = np.append(wanted[order][~few], wanted[order][few].sum())
    counts, wanted = counts[wanted > 0], wanted[wanted > 0]
    degrees = len(wanted) - 1
    x = float(((counts - wanted) ** 2 / wanted).sum())
    return ((x / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / (2 / (9 * degrees)) ** 0.5


def test_a_wrong_rule_would_be_seen() -> None:
    """Keeping every guess, which is wrong, is far outside what the test above allows."""
    model, other = Chain(0), Chain(1, mixed=Chain(0))
    settings = Settings.of({"temperature": 1.0, "max_new_tokens": LENGTH, "eos": (), "seed": 11})
    assert chi_square(exact(other, settings) * ROWS, exact(model, settings) * ROWS) > 10


def test_the_verdict_is_a_draw_from_p() -> None:
    stream, p, q = np.random.default_rng(3), np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    counts = np.zeros(4)
    for _ in range(20000):
        counts[verdict(p, q, int(stream.choice(4, p=q)), stream)[0]] += 1
    assert counts[3] == 0
    assert chi_square(counts, p * 20000) < 3.5


def test_followers_and_common_beginnings() -> None:
    assert followers([1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]
    assert followers([1, 2, 7, 1, 2, 8, 1, 2], 1) == [8]
    assert followers([1, 2, 3], 4) == []
    assert followers([5, 5, 5, 5], 3) == [5]
    assert followers([1, 2, 1, 2], 0) == []
    assert followers([4], 3) == []
    assert alike([1, 2, 3], [1, 2, 3]) == 2
    assert alike([1, 2, 3, 4], [1, 2, 9, 4, 5]) == 2


def test_the_pace_rests_after_wrong_guesses() -> None:
    pace = Pace(8, 4)
    for _ in range(3):
        pace.saw(pace.next(), 0)
    assert [pace.next() for _ in range(5)] == [0, 0, 0, 0, 1]
    for _ in range(9):
        pace.saw(pace.count, pace.count)
    assert pace.count == 8
    pace.saw(8, 2)
    assert pace.next() == 3
