"""The n-gram table against nltk, against the formulas of the papers in dictionaries, and against itself."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from monograph.data.byte_level import train_tokenizer
from monograph.data.errors import CorpusError
from monograph.inference.generate import generate
from monograph.ir.errors import ConfigError, MonographError, RuntimeInputError, WeightsError
from monograph.ir.interpret import Array
from monograph.training.baselines.arpa import save_arpa
from monograph.training.baselines.ngram import NGram, NGramSession, estimate
from monograph.training.corpus import python_topics

VOCAB = 60


def zipf_text(length: int = 3000, seed: int = 0) -> Array:
    """Token ids in which some follow others often: a random walk over words of falling frequency."""
    rng = np.random.default_rng(seed)
    after = np.stack([rng.permutation(VOCAB - 5) for _ in range(VOCAB)])
    ids = [0]
    for jump in np.minimum(rng.zipf(1.4, length - 1) - 1, VOCAB - 6):
        ids.append(int(after[ids[-1], jump]))
    return np.array(ids)


def words() -> tuple[Array, Array, int]:
    """(text, held-out text, vocabulary): English, one token a word; some words stand in the held-out text only."""
    text = python_topics().split()[:9000]
    known = {w: i for i, w in enumerate(dict.fromkeys(text))}
    ids = np.array([known[w] for w in text])
    return ids[:8600], ids[8600:], len(known)


class Naive:
    """Kneser-Ney as the papers write it, in dictionaries of tuples, one probability at a time."""

    def __init__(self, ids: list[int], vocab: int, order: int, modified: bool) -> None:
        self.order, self.vocab = order, vocab
        raw = {k: Counter(zip(*(ids[i:] for i in range(k)), strict=False)) for k in range(1, order + 1)}
        self.c: dict[int, Counter[tuple[int, ...]]] = {order: raw[order]}
        for k in range(1, order):
            self.c[k] = Counter(gram[1:] for gram in raw[k + 1])
        self.d = {k: self.discount(self.c[k], modified) for k in self.c}
        self.after: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for table in self.c.values():
            for gram, n in table.items():
                self.after[gram[:-1]].append(n)

    @staticmethod
    def discount(table: Counter[tuple[int, ...]], modified: bool) -> list[float]:
        n1, n2, n3, n4 = (sum(1 for v in table.values() if v == i) for i in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        if not modified:
            return [0, y, y, y]
        return [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]

    def p(self, context: tuple[int, ...], w: int) -> float:
        context = context[max(len(context) - self.order + 1, 0) :]
        k = len(context) + 1
        below = self.p(context[1:], w) if context else 1 / self.vocab
        counts = self.after[context]
        if not counts:
            return below
        n, d = self.c[k][(*context, w)], self.d[k]
        held = sum(d[min(v, 3)] for v in counts)
        return max(n - d[min(n, 3)], 0) / sum(counts) + held / sum(counts) * below


@pytest.mark.parametrize("modified", [True, False], ids=["modified", "one discount"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_probability_equals_the_papers(order: int, modified: bool) -> None:
    text, held_out, vocab = words()
    assert set(held_out) - set(text)
    model, naive = NGram.fit(text, vocab, order, modified=modified), Naive(text.tolist(), vocab, order, modified)
    np.testing.assert_allclose(model.discounts, [naive.d[k][1:] for k in range(1, order + 1)], rtol=1e-12)
    ids = held_out.tolist()
    wanted = [naive.p(tuple(ids[:i]), w) for i, w in enumerate(ids)]
    np.testing.assert_allclose(np.exp(model.log_probabilities(held_out)), wanted, rtol=1e-9)
    perplexity = math.exp(-sum(map(math.log, wanted)) / len(wanted))
    assert abs(model.perplexity(held_out) / perplexity - 1) < 1e-9


@pytest.mark.slow
def test_every_probability_and_the_perplexity_equal_nltk() -> None:
    """nltk takes one discount for all orders but the lowest, which it leaves as it is; given that, both must agree."""
    from nltk import lm

    order, discount = 3, 0.4
    # The text ends as it begins, because nltk counts what follows the very first tokens in another way.
    text = zipf_text(1500)
    text = np.concatenate([text, text[:4]])
    grams = [tuple(str(t) for t in text[i : i + k]) for k in range(1, order + 1) for i in range(len(text) - k + 1)]
    theirs = lm.KneserNeyInterpolated(order, discount=discount)
    theirs.fit([grams], [str(t) for t in text])
    ours = NGram.fit(text, VOCAB, order, discounts=[[0] * 3, [discount] * 3, [discount] * 3])
    held_out = np.random.default_rng(2).permutation(text)[:120]
    held_out[60:] = text[700:760]
    names = [str(t) for t in held_out]
    wanted = [theirs.score(w, names[max(i - order + 1, 0) : i]) for i, w in enumerate(names)]
    np.testing.assert_allclose(np.exp(ours.log_probabilities(held_out)), wanted, rtol=1e-9)
    perplexity = 2 ** (-sum(math.log2(p) for p in wanted) / len(wanted))
    assert abs(ours.perplexity(held_out) / perplexity - 1) < 1e-9


@pytest.mark.parametrize("order", [1, 2, 4])
def test_distributions_sum_to_one_and_say_what_the_text_scores_say(order: int) -> None:
    text = zipf_text(800)
    model, rng = NGram.fit(text, VOCAB, order), np.random.default_rng(3)
    contexts = [
        [],
        [VOCAB - 1],
        *(text[i : i + 6].tolist() for i in range(0, 60, 7)),
        rng.integers(0, VOCAB, 5).tolist(),
    ]
    for context in contexts:
        p = model.probabilities(context)
        assert p.min() > 0 and abs(p.sum() - 1) < 1e-12
        np.testing.assert_allclose(np.exp(model.logits(context)), p, rtol=1e-12)
        for w in (0, 3, VOCAB - 1):
            np.testing.assert_allclose(model.log_probabilities(np.array([*context, w]))[-1], math.log(p[w]), rtol=1e-12)


def test_counts_of_a_text_that_can_be_counted_by_hand() -> None:
    """a b a c: two different tokens before a bigram's end decide, not how often it stands there."""
    a, b, c = 0, 1, 2
    model = NGram.fit(np.array([a, b, a, b, a, c, b]), 3, 2, discounts=0.5)
    # Bigrams: ab ab ba ba ac cb. Before a: {b}; before b: {a, c}; before c: {a}.
    unigram = (np.array([1, 2, 1]) - 0.5) / 4 + 1.5 / 4 / 3
    np.testing.assert_allclose(model.probabilities([]), unigram, rtol=1e-15)
    np.testing.assert_allclose(model.probabilities([a])[b], 1.5 / 3 + 1 / 3 * unigram[b], rtol=1e-15)
    np.testing.assert_allclose(model.probabilities([c])[a], 0.5 * unigram[a], rtol=1e-15)


def test_rows_are_scored_alone() -> None:
    model = NGram.fit(zipf_text(), VOCAB, 4)
    rows = zipf_text(240, seed=4).reshape(8, 30)
    alone = [model.log_probabilities(row) for row in rows]
    np.testing.assert_array_equal(model.log_probabilities(rows), alone)


@pytest.mark.parametrize("ids", [[0], [1, 2], [1, 1, 1, 1], [0, 1, 2, 3, 4]])
def test_tiny_texts_have_probabilities_too(ids: list[int]) -> None:
    model = NGram.fit(np.array(ids), 6, 5)
    for context in ([], ids, ids[:1], [5, 5]):
        assert abs(model.probabilities(context).sum() - 1) < 1e-12
    assert np.isfinite(model.perplexity(np.array([5, 4, 3, *ids])))


def test_estimates_of_small_texts() -> None:
    assert estimate(np.array([3, 3, 3])) == [0.5] * 3
    assert estimate(np.array([1, 1, 2])) == [0.5] * 3  # 2 / (2 + 2 * 1)
    assert estimate(np.array([1] * 3 + [2])) == [0.6] * 3
    assert estimate(np.array([1] * 8 + [2] * 4 + [3] * 2 + [4])) == [0.5, 1.25, 2.0]
    assert estimate(np.array([1] * 2 + [2] * 9 + [3] * 2 + [4] * 40))[2] == 0.0


def test_more_context_helps_on_text_that_has_it() -> None:
    """Bigrams beat unigrams and training text beats held-out text; on noise no order helps much."""
    text, held_out = zipf_text(20000), zipf_text(2000)
    other = np.random.default_rng(5).integers(0, VOCAB, 2000)
    scores = [NGram.fit(text, VOCAB, k).perplexity(held_out) for k in (1, 2)]
    assert scores[1] < 0.6 * scores[0]
    assert NGram.fit(text, VOCAB, 2).perplexity(other) > VOCAB


def test_saved_and_loaded_table_is_the_same(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("the cat sat on the mat and the dog sat on the cat " * 20, 270)
    ids = np.array(tokenizer.encode("the cat sat on the mat and the dog sat on the log " * 5))
    model = NGram.fit(ids, tokenizer.size, 4, tokenizer=tokenizer)
    again = NGram.load(model.save(tmp_path / "table"))
    assert again.perplexity(ids) == model.perplexity(ids) and again.order == 4 and again.entries == model.entries
    assert again.tokenizer is not None and again.tokenizer.decode(ids[:3].tolist()) == tokenizer.decode(
        ids[:3].tolist()
    )
    assert sorted(p.name for p in (tmp_path / "table").iterdir()) == sorted(
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    )


def read_arpa(file: Path) -> tuple[list[int], dict[tuple[str, ...], list[float]]]:
    """(counts of the header, log10 probability and backoff of each n-gram)."""
    sizes: list[int] = []
    table: dict[tuple[str, ...], list[float]] = {}
    for line in file.read_text().splitlines():
        if line.startswith("ngram "):
            sizes.append(int(line.split("=")[1]))
        elif "\t" in line:
            p, gram, *backoff = line.split("\t")
            table[tuple(gram.split(" "))] = [float(p), *map(float, backoff)]
    return sizes, table


@pytest.mark.parametrize("order", [1, 2, 4])
def test_arpa_file_says_the_same_to_a_reader_that_backs_off(order: int, tmp_path: Path) -> None:
    """The longest n-gram that is in the file, times the backoff weights of the contexts that were too long."""
    model = NGram.fit(zipf_text(1200), VOCAB, order)
    words = ["</s>", *(f"<w{i}>" for i in range(1, VOCAB))]
    sizes, table = read_arpa(save_arpa(model, tmp_path / "table.arpa", words))
    assert sizes == [VOCAB + 2, *(len(x.keys) for x in model.levels)] and sum(sizes) == len(table)
    assert table["<s>",][0] == table["<unk>",][0] == -99

    def score(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in table:
            return table[*context, word][0]
        return (table[context][1] if context in table else 0.0) + score(context[1:], word)

    held_out = zipf_text(200, seed=1)
    names = [words[i] for i in held_out]
    wanted = [score(tuple(names[max(i - order + 1, 0) : i]), w) for i, w in enumerate(names)]
    np.testing.assert_allclose(model.log_probabilities(held_out) / math.log(10), wanted, rtol=1e-8)


@pytest.mark.parametrize("words", [["a"] * VOCAB, ["a", "b"], ["a b", *map(str, range(VOCAB - 1))], [""] * VOCAB])
def test_words_that_an_arpa_file_cannot_hold_are_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 60 without white space"):
        save_arpa(NGram.fit(zipf_text(100), VOCAB, 2), tmp_path / "table.arpa", words)
    assert not list(tmp_path.iterdir())


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    model = NGram.fit(zipf_text(500), VOCAB, 3)
    level = model.levels[1]
    broken = {
        "not sorted": (level.keys[::-1].copy(), level.probability, level.backoff),
        "leave the": (level.keys + 10**9, level.probability, level.backoff),
        "not one i64 for each probability": (level.keys, level.probability[1:], level.backoff),
        "expected one for each of": (level.keys, level.probability, level.backoff[1:]),
        "3.probability is not between 0 and 1": (level.keys, level.probability * np.nan, level.backoff),
    }
    for message, parts in broken.items():
        other = NGram(VOCAB, model.discounts, model.unigram, (model.levels[0], type(level)(*parts)))
        with pytest.raises(WeightsError, match=message):
            NGram.load(other.save(tmp_path))
    folder = model.save(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError):
        NGram.load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="describes no n-gram table"):
        NGram.load(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NGram.fit(np.array([], int), 5), "expected one axis and at least one token"),
        (lambda: NGram.fit(np.array([1, 7]), 5), "ids go from 1 to 7, outside the vocabulary of 5"),
        (lambda: NGram.fit(np.array([1, 2]), 5, 0), "order is 0"),
        (lambda: NGram.fit(np.array([1, 2]), 5, 2, discounts=1.5), "expected 0 <= D <= 1"),
    ],
)
def test_bad_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(MonographError, match=message) as caught:
        make()  # type: ignore[operator]
    assert isinstance(caught.value, (CorpusError, ConfigError))


def test_ids_outside_the_vocabulary_are_refused() -> None:
    model = NGram.fit(zipf_text(100), VOCAB, 2)
    for ids in ([VOCAB], [-1]):
        with pytest.raises(RuntimeInputError, match="outside the vocabulary of 60"):
            model.perplexity(np.array(ids))


def test_samples_follow_the_distribution() -> None:
    model = NGram.fit(zipf_text(), VOCAB, 2)
    drawn = np.array(model.sample([0], 3000, seed=1))
    assert (model.sample([0], 5, seed=1) == drawn[:5]).all()
    pairs = Counter(b for a, b in pairwise(drawn.tolist()) if a == 14)
    p, n = model.probabilities([14]), sum(pairs.values())
    top = int(p.argmax())
    assert n > 100 and abs(pairs[top] / n - p[top]) < 4 * math.sqrt(p[top] * (1 - p[top]) / n)
    greedy = model.sample([14], 3, temperature=1e-3)
    assert greedy[0] == top


def test_serves_the_generation_loop_like_any_model() -> None:
    text = "the cat sat on the mat . the dog sat on the rug . " * 30
    tokenizer = train_tokenizer(text, 280)
    model = NGram.fit(np.array(tokenizer.encode(text)), tokenizer.size, 8)
    session = NGramSession(model)
    prompts = ["the dog sat", "the cat"]
    together = generate(session, tokenizer, prompts, max_new_tokens=6)
    assert session.lengths.tolist() == [len(tokenizer.encode(p)) + 5 for p in prompts]
    alone = [generate(session, tokenizer, [p], max_new_tokens=6)[0] for p in prompts]
    assert [g.text for g in together] == [g.text for g in alone]
    assert together[0].text.startswith(" on the rug .")
    for g in together:
        context = g.prompt
        for token in g.ids:
            assert token == int(model.probabilities(context).argmax())
            context = [*context, token]
    with pytest.raises(RuntimeInputError, match="1 tokens for 2 rows"):
        generate(session, tokenizer, prompts, max_new_tokens=1)
        session.step(np.array([1]))


def test_real_text_perplexity_falls_with_the_order() -> None:
    text = python_topics()[:120_000]
    tokenizer = train_tokenizer(text, 400)
    ids = np.array(tokenizer.encode(text))
    cut = int(0.9 * len(ids))
    scores = [NGram.fit(ids[:cut], tokenizer.size, k).perplexity(ids[cut:]) for k in (1, 2, 3, 5)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.35 * scores[0]
