"""Duplicates: signatures against true similarity, links against brute force, clusters against a graph library."""

from __future__ import annotations

import random
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monograph.data import duplicates
from monograph.data.files import whole_folder, write_json
from monograph.data.minhash import Signer, bands, related, shingles
from monograph.data.parts import Parts, clean_piece
from monograph.data.readers import plan
from monograph.data.recipe import Duplicates, Recipe

RANDOM = random.Random(3)
WORDS = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in "mnprst"]


def text(words: int = 120) -> str:
    return " ".join(RANDOM.choices(WORDS, k=words))


def changed(original: str, places: int) -> str:
    """The text with some words replaced by one that it does not hold."""
    words = original.split()
    for i in RANDOM.sample(range(len(words)), places):
        words[i] = "otherwise"
    return " ".join(words)


def true_similarity(a: str, b: str, size: int = 5) -> float:
    sets = [{tuple(t.split()[i : i + size]) for i in range(len(t.split()) - size + 1)} for t in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def prepared(run: Path, texts: list[str], part_bytes: int = 3000, **settings: object) -> tuple[Recipe, Parts]:
    """A run folder after cleaning, without filters."""
    run.mkdir()
    (run / "in.txt").write_text("\n".join(texts))
    values = {
        "input": {"paths": [str(run / "in.txt")], "documents": "line"},
        "clean": {"filters": []},
        "duplicates": settings,
    }
    recipe = Recipe.of(values)
    write_json(run / "recipe.json", recipe.to_dict())
    found = []
    for i, spans in enumerate(plan(recipe.input, part_bytes)):
        result = clean_piece(recipe, spans, run / "clean" / f"{i:06d}")
        found += [[i, j, p["documents"]] for j, p in enumerate(result["parts"])]
    write_json(run / "parts.json", found)
    return recipe, Parts.of(run)


def clustered(run: Path, recipe: Recipe, parts: Parts, count: int) -> tuple[list[int], list[int]]:
    """(first of its cluster, state) of every document, with the key space cut into `count` ranges."""
    tasks = [run / "exact" / f"{i}" for i in range(count)]
    for i, task in enumerate(tasks):
        duplicates.exact(run, i, count, task)
    duplicates.merge_exact(run, parts.documents, tasks)
    near = [(b, i) for b in range(bands(recipe.duplicates)[0]) for i in range(count)]
    for b, i in near:
        duplicates.near(run, i, count, b, recipe.duplicates.threshold, run / "near" / f"{b}-{i}")
    found = [run / "near" / f"{b}-{i}" for b, i in near]
    duplicates.clusters(run, parts.documents, found, recipe.duplicates.threshold)
    merged = run / "clusters" / "merged"
    return np.load(merged / "first.npy").tolist(), np.load(merged / "state.npy").tolist()


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], dict[int, int], dict[int, int]]:
    """60 texts of their own, exact copies (number -> original) and near copies, in a shuffled order."""
    own = [text() for _ in range(60)]
    entries = [(t, None, "own") for t in own]
    entries += [(own[i].replace(" ", "   "), i, "exact") for i in range(10)] + [(own[3], 3, "exact")] * 3
    entries += [(changed(own[i], 1), i, "near") for i in range(20, 35)]
    RANDOM.shuffle(entries)
    at = {t: n for n, (t, _, kind) in reversed(list(enumerate(entries))) if kind == "own"}
    exact = {n: at[own[i]] for n, (_, i, kind) in enumerate(entries) if kind == "exact" and i is not None}
    near = {n: at[own[i]] for n, (_, i, kind) in enumerate(entries) if kind == "near" and i is not None}
    return [t for t, _, _ in entries], exact, near


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("part_bytes", [2000, 1 << 20])
def test_planted_duplicates_are_found_and_nothing_else(
    tmp_path: Path, corpus: tuple[list[str], dict[int, int], dict[int, int]], count: int, part_bytes: int
) -> None:
    texts, exact, near = corpus
    recipe, parts = prepared(tmp_path / "run", texts, part_bytes)
    assert len(parts) == (1 if part_bytes > 2000 else len(parts)) and parts.documents == len(texts)
    first, state = clustered(tmp_path / "run", recipe, parts, count)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(texts)))
    graph.add_edges_from([*exact.items(), *near.items()])
    expected = {i: min(c) for c in nx.connected_components(graph) for i in c}
    assert first == [expected[i] for i in range(len(texts))]
    kept = [i for i, s in enumerate(state) if s == duplicates.KEPT]
    assert kept == sorted(set(expected.values()))
    assert state.count(duplicates.EXACT) == len(exact) and state.count(duplicates.NEAR) == len(near)


def test_signatures_estimate_the_true_similarity() -> None:
    sign = Signer(Duplicates(permutations=512))
    for places in (0, 1, 3, 8, 30):
        a = text(200)
        b = changed(a, places)
        estimate = float((sign(a) == sign(b)).mean())
        assert estimate == pytest.approx(true_similarity(a, b), abs=0.1)
    assert (sign("One, two THREE four five!") == sign("one two three four five")).all()
    assert (sign("a b c d e") == sign("a b c d f")).mean() < 0.05


def test_signatures_of_long_and_empty_texts() -> None:
    sign = Signer(Duplicates())
    assert sign("").shape == (128,) and (sign("") == np.uint32(0xFFFFFFFF)).all()
    long = text(9000)
    whole = np.array(shingles(long.split(), 5))
    by_hand = sign._minhash()
    by_hand.update_batch(whole.tolist())
    assert (sign(long) == by_hand.hashvalues).all()


def test_bands_follow_the_threshold_and_catch_what_lies_above_it() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        b, r = bands(Duplicates(threshold=threshold))
        assert b * r <= 128
        assert 1 - (1 - threshold**r) ** b > 0.98, "what truly reaches the threshold becomes a candidate"
    assert related(Duplicates(threshold=0.8, permutations=100)) == pytest.approx(0.8 - 3 * 0.04)
    assert bands(Duplicates(threshold=1.0)) == (1, 128)


def test_band_keys_agree_exactly_where_rows_do() -> None:
    sign = Signer(Duplicates())
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 1 << 32, (50, 128), dtype=np.uint32)
    signatures[1, :8], signatures[2, 8:15] = signatures[0, :8], signatures[0, 8:15]
    keys = sign.keys(signatures)
    assert keys.shape == (sign.bands, 50)
    same = [
        (band, i, j)
        for band in range(sign.bands)
        for i in range(50)
        for j in range(i)
        if keys[band, i] == keys[band, j]
    ]
    assert same == [(0, 1, 0)]


@given(st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=8))
def test_groups_are_those_of_a_dictionary(slices: list[list[int]]) -> None:
    base, first, last, expected = 0, {}, {}, []
    arrays = []
    for keys in slices:
        order = np.argsort(np.array(keys, np.uint64), kind="stable")
        arrays.append((np.array(keys, np.uint64)[order], base + order))
        for i, key in enumerate(keys):
            if key in first:
                expected.append((base + i, first[key]))
            first.setdefault(key, base + i)
            last[key] = base + i
        base += len(keys)
    found = [(int(a), int(b), int(c)) for x in duplicates.groups(arrays) for a, b, c in zip(*x, strict=True)]
    assert sorted(f[:2] for f in found) == sorted(expected)
    assert all(first <= previous < later for later, first, previous in found)


def test_groups_hold_the_keys_not_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that every document has costs one entry, however many documents there are."""
    monkeypatch.setattr(duplicates, "_LEAST", 100)
    sizes = []
    merge = duplicates._merge

    def spy(known, waiting):  # type: ignore[no-untyped-def]
        result = merge(known, waiting)
        sizes.append(len(result[0][0]))
        return result

    monkeypatch.setattr(duplicates, "_merge", spy)
    slices = ((np.zeros(100, np.uint64), np.arange(i * 100, i * 100 + 100)) for i in range(50))
    found = sum(len(later) for later, _, _ in duplicates.groups(slices))
    assert found == 4999 and set(sizes) == {1}


def test_clusters_lead_to_the_smallest_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_CHUNK", 7)
    n = 60
    rng = np.random.default_rng(1)
    edges = rng.integers(0, n, (40, 2)).astype(np.int64)
    alike = rng.uniform(0.7, 0.9, 40).astype(np.float32)
    exact = np.array([[9, 2], [11, 2], [30, 11]], np.int64)
    for name, some, similar in (("e", exact, np.ones(3)), ("n", edges, alike)):
        with whole_folder(tmp_path / name) as folder:
            np.save(folder / "edges.npy", some)
            np.save(folder / "similarity.npy", similar)
    duplicates.merge_exact(tmp_path, n, [tmp_path / "e"])
    duplicates.clusters(tmp_path, n, [tmp_path / "n"], 0.8)
    merged = tmp_path / "clusters" / "merged"
    for name, links in (("first", edges[alike >= 0.8]), ("side", edges)):
        graph = nx.Graph([*links.tolist(), *exact.tolist()])
        graph.add_nodes_from(range(n))
        expected = {i: min(c) for c in nx.connected_components(graph) for i in c}
        assert np.load(merged / f"{name}.npy").tolist() == [expected[i] for i in range(n)]
    first, state = np.load(merged / "first.npy"), np.load(merged / "state.npy")
    assert np.flatnonzero(state == duplicates.KEPT).tolist() == sorted(set(first.tolist()))
    assert np.flatnonzero(state == duplicates.EXACT).tolist() == [9, 11, 30]


def test_ranges_bound_the_memory_of_a_task() -> None:
    assert duplicates.ranges(1000, 12, 1 << 20) == 1
    count = duplicates.ranges(10**9, 12, 1 << 28)
    assert 10**9 / count * 12 * 8 <= 1 << 28
    bounds = [duplicates._bound(i, 5) for i in range(6)]
    assert bounds == sorted(bounds) and bounds[0] == bytes(8)


def test_lookup_and_excerpts_go_by_number(tmp_path: Path) -> None:
    texts = [text(30) for _ in range(25)]
    _, parts = prepared(tmp_path / "run", texts, 500)
    assert len(parts) > 3
    keys = np.concatenate([parts.table(i, "keys") for i in range(len(parts))])
    ids = np.array([24, 0, 7, 7, 13])
    assert (parts.lookup(ids, "keys") == keys[ids]).all()
    assert parts.excerpts([24, 3], 20) == {24: texts[24][:20], 3: texts[3][:20]}
    assert [t for i in range(len(parts)) for t in parts.texts(i)] == texts
