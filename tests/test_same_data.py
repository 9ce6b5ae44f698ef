"""A run goes on with the data it was begun with: also what no batch has shown yet is compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.data import Dataset, Recipe, prepare
from monograph.data import train_tokenizer as learn
from monograph.ir.errors import ConfigError
from monograph.training.corpus import Corpus
from monograph.training.dpo import Preferences
from monograph.training.fingerprint import digest_of, fingerprint
from monograph.training.instruct import Instructions
from monograph.training.labelled import Labelled
from monograph.training.masked import Masked, Sharded
from monograph.training.pairs import Pairs
from monograph.training.settings import Settings
from monograph.training.source import Source
from training_runs import TEXT, numbers, run, tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LINES = [line for line in TEXT.splitlines() if line]
BPE, WORDS = (learn(kind, LINES, 300, task) for kind, task in (("byte-bpe", "seq2seq"), ("wordpiece", "masked-lm")))


def corpus(lines: list[str]) -> Source:
    return Corpus.of("\n\n".join(lines), BPE)


def masked(lines: list[str]) -> Source:
    return Masked.of(["\n\n".join(lines)], WORDS)


def pairs(lines: list[str]) -> Source:
    return Pairs.of([(a, a.lower()) for a in lines], BPE)


def labelled(lines: list[str]) -> Source:
    return Labelled.of([(str(i % 2), a) for i, a in enumerate(lines)], WORDS)


def instructions(lines: list[str]) -> Source:
    return Instructions.of(BPE, [{"prompt": a[:12], "completion": a[12:]} for a in lines], held_out=0.1)


def preferences(lines: list[str]) -> Source:
    rows = [{"prompt": a[:9], "chosen": a[9:], "rejected": a[:9:-1]} for a in lines]
    return Preferences.of(BPE, rows, held_out=0.1)


MAKERS = [corpus, masked, pairs, labelled, instructions, preferences]
SETTINGS = Settings(steps=8, batch=2, length=32, device="cpu")


@pytest.mark.parametrize("make", MAKERS)
def test_the_digest_tells_of_every_line(make: Any) -> None:
    whole = make(LINES)
    expected = digest_of(whole)
    assert len(expected) == 64 and digest_of(make(list(LINES))) == expected
    seen = 0
    for i in (3, 50, 97, len(LINES) - 1):
        other = make([*LINES[:i], LINES[i].replace("mat", "tam"), *LINES[i + 1 :]])
        assert digest_of(other) != expected
        seen += fingerprint(other, SETTINGS) != fingerprint(whole, SETTINGS)
    assert seen < 4, "a batch of two rows does not show all four lines"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of data preparation that differ in the last document."""
    folder = tmp_path_factory.mktemp("shards")
    BPE.save(folder / "tokenizer")
    for name, last in (("a", "On all of these we end 1."), ("b", "On all of these we end 2.")):
        rows = [json.dumps({"text": line}) for line in [*LINES, last]]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        tables = {
            "input": {"paths": [str(folder / f"{name}.jsonl")]}, "split": {"held_out": 0.1}, "clean": {"filters": []},
            "tokenizer": {"path": str(folder / "tokenizer")},
        }  # fmt: skip
        prepare(Recipe.of(tables), folder / name)
    return folder / "a", folder / "b"


def test_shards_are_known_by_their_headers(shards: tuple[Path, Path]) -> None:
    first, again, other = (Dataset.open(folder) for folder in (shards[0], shards[0], shards[1]))
    assert digest_of(first) == digest_of(again) != digest_of(other)
    assert digest_of(first) != digest_of(dataclasses.replace(first, documents=False))
    assert first.train.tokens == other.train.tokens and len(first.train) == len(other.train), "counts tell nothing"
    a, b = (Masked(WORDS, Sharded(d.train), Sharded(d.held_out)) for d in (first, other))
    assert digest_of(a) != digest_of(b)


def test_a_run_does_not_go_on_with_data_that_changed_later(tmp_path: Path) -> None:
    before = Corpus.of(TEXT, vocab=300)
    shown = {int(i) for row in next(before.batches(4, 16, 3))["input_ids"] for i in row}
    place = next(i for i, token in enumerate(before.train) if int(token) not in shown)
    after = dataclasses.replace(before, train=np.where(np.arange(len(before.train)) == place, 0, before.train))
    settings: dict[str, Any] = {"steps": 6, "evaluate_every": 3, "folder": tmp_path, "seed": 3}
    begun = run(tiny(), before, until=4, **settings)
    first = Settings(steps=6, batch=4, length=16, seed=3, device="cpu")
    assert fingerprint(before, first) == fingerprint(after, first)
    message = "the data is not the one the run was begun with: its first batch is the same, what comes later is not"
    with pytest.raises(ConfigError, match=message) as e:
        run(tiny(), after, resume=True, **settings)
    assert e.value.place == str(tmp_path / "checkpoints" / "step-00000003")
    with pytest.raises(ConfigError, match="what comes later is not"):
        run(tiny(), dataclasses.replace(before, held_out=before.held_out[:-1]), resume=True, **settings)
    before.save(tmp_path / "data")
    resumed = run(tiny(), Corpus.open(tmp_path / "data"), resume=True, **settings)
    assert numbers(resumed)[:1] == numbers(begun)[3:], "the same from memory and from the disk"


class Own:
    """A source that is no dataclass."""

    task, static, held_out, vocab = "causal-lm", True, (), 300

    def __init__(self, corpus: Corpus) -> None:
        self.tokenizer, self.batches = corpus.tokenizer, corpus.batches

    def held_out_batches(self, batch: int, length: int) -> Iterator[Any]:
        return iter(())


def test_a_source_of_your_own_is_known_by_its_first_batch(tmp_path: Path) -> None:
    own = Own(Corpus.of(TEXT, vocab=300))
    assert digest_of(own) == ""
    settings: dict[str, Any] = {"steps": 4, "evaluate_every": 2, "folder": tmp_path}
    run(tiny(), own, until=3, **settings)  # type: ignore[arg-type]
    assert [s.step for s in run(tiny(), own, resume=True, **settings)] == [3, 4]  # type: ignore[arg-type]
