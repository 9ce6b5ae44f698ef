"""Shards and batches: what was written comes back, damage is found on opening, batches keep documents apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from monograph.data.errors import DataError, ShardError
from monograph.data.packing import all_batches, batches, permuted, rows
from monograph.data.shards import VERIFIED, Shard, Shards, ShardWriter, shard_name, token_type


def write(folder: Path, docs: list[list[int]], per_shard: int = 7, vocab: int = 500, split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    groups = [docs[i : i + per_shard] for i in range(0, len(docs), per_shard)]
    for n, group in enumerate(groups):
        with ShardWriter(folder, shard_name(split, n), split, vocab, "abc") as writer:
            for doc in group:
                writer.write(np.array(doc, token_type(vocab)).tobytes())
            writer.lengths(np.array([len(d) for d in group]))
    about = {"shards": len(groups), "documents": len(docs), "tokens": sum(map(len, docs))}
    (folder / "dataset.json").write_text(json.dumps({"splits": {split: about}, "tokenizer": "abc", "vocab": vocab}))
    return folder


def some_docs(count: int = 30, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 500, int(n)).tolist() for n in rng.integers(1, 20, count)]


@pytest.mark.parametrize("vocab", [500, 1 << 16, (1 << 16) + 1])
def test_documents_come_back(tmp_path: Path, vocab: int) -> None:
    docs = [*some_docs(), [vocab - 1]]
    shards = Shards(write(tmp_path / "s", docs, vocab=vocab))
    assert len(shards) == len(docs) and shards.tokens == sum(map(len, docs))
    assert [d.tolist() for d in shards] == docs
    assert shards[-1].tolist() == docs[-1] and [d.tolist() for d in shards[3:6]] == docs[3:6]
    assert shards[0].dtype == (np.uint16 if vocab <= 1 << 16 else np.uint32)
    assert isinstance(shards.shards[0].tokens, np.memmap)
    with pytest.raises(IndexError, match="document 31 of 31"):
        shards.document(31)
    shards.verify()


def test_files_are_plain_little_endian(tmp_path: Path) -> None:
    write(tmp_path / "s", [[1, 258], [3]])
    assert (tmp_path / "s" / "train-00000.tokens").read_bytes() == bytes([1, 0, 2, 1, 3, 0])
    assert (tmp_path / "s" / "train-00000.offsets").read_bytes() == np.array([0, 2, 3], "<i8").tobytes()


def test_windows_equal_the_concatenation(tmp_path: Path) -> None:
    docs = some_docs(25)
    docs[4] = docs[11] = []
    shards = Shards(write(tmp_path / "s", docs, per_shard=4))
    flat = np.concatenate([np.array(d, np.int64) for d in docs])
    number = np.repeat(np.arange(len(docs)), [len(d) for d in docs])
    for start, stop in itertools.product(range(0, len(flat), 5), (1, 3, 17, 60, 10_000)):
        ids, numbers = shards.window(start, start + stop)
        assert ids.tolist() == flat[start : start + stop].tolist()
        assert numbers.tolist() == number[start : start + stop].tolist()


@pytest.mark.parametrize("kind", ["tokens", "offsets"])
def test_truncated_and_missing_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "s", some_docs()) / f"train-00002.{kind}"
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(ShardError, match=rf"train-00002\.{kind}: has {len(data) - 3} bytes, expected {len(data)} "):
        Shards(tmp_path / "s")
    path.unlink()
    with pytest.raises(ShardError, match=rf"train-00002\.{kind}: is missing"):
        Shards(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "other"}, "has tokenizer 'other', expected 'abc'"),
        ({"vocab": 501}, "has vocab 501, expected 500"),
        ({"split": "held_out"}, "has split 'held_out', expected 'train'"),
        ({"dtype": "uint32"}, "bytes, expected"),
        ({"dtype": "int8"}, "dtype is 'int8', expected uint16 or uint32"),
        ({"documents": -1}, "documents is -1"),
        ({"tokens": "9"}, "tokens is '9'"),
        ({"format": "x"}, "is not the header of a shard"),
    ],
)
def test_headers_are_checked(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path / "s", some_docs()) / "train-00001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ShardError, match=message):
        Shards(tmp_path / "s")


def test_other_damage(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", some_docs())
    with pytest.raises(ShardError, match="has no split 'test': it has train"):
        Shards(folder, "test")
    about = json.loads((folder / "dataset.json").read_text())
    about["splits"]["train"]["documents"] += 1
    (folder / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ShardError, match="hold 30 documents, expected 31"):
        Shards(folder)
    folder = write(tmp_path / "t", some_docs())
    (folder / "train-00000.json").write_text("{")
    with pytest.raises(DataError, match=r"train-00000\.json: is not JSON"):
        Shards(folder)
    folder = write(tmp_path / "u", some_docs())
    offsets = np.fromfile(folder / "train-00000.offsets", "<i8")
    offsets[1] = 10_000
    offsets.tofile(folder / "train-00000.offsets")
    shards = Shards(folder)
    with pytest.raises(ShardError, match="document 0 runs from 0 to 10000"):
        shards.document(0)
    offsets[-1] -= 1
    offsets.tofile(folder / "train-00000.offsets")
    with pytest.raises(ShardError, match=r"train-00000\.offsets: runs from 0 to"):
        Shards(folder)


def test_verify_reads_every_byte(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", some_docs())
    path = folder / "train-00003.tokens"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    shards = Shards(folder)
    with pytest.raises(ShardError, match=r"train-00003\.tokens: has SHA-256"):
        shards.verify()


def test_files_are_compared_with_their_digests_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "s", some_docs())
    compared: list[str] = []
    verify = Shard.verify_digests
    monkeypatch.setattr(Shard, "verify_digests", lambda self: (compared.append(self.path.stem), verify(self)))
    Shards(folder).verify_once()
    assert len(compared) == len(Shards(folder).shards)
    Shards(folder).verify_once()
    assert len(compared) == len(Shards(folder).shards), "nothing has changed since"
    tokens = sorted(folder.glob("*.tokens"))
    contents = [p.read_bytes() for p in tokens]
    for change in (
        lambda data: bytes([data[0] ^ 64]) + data[1:],
        lambda data: bytes(len(data)),
        lambda data: data[::-1],
    ):
        tokens[1].write_bytes(change(contents[1]))
        with pytest.raises(ShardError, match=r"train-00001\.tokens: has SHA-256"):
            Shards(folder).verify_once()
        tokens[1].write_bytes(contents[1])
    del compared[:]
    (folder / VERIFIED).write_text("[")
    Shards(folder).verify_once()
    assert len(compared) == len(tokens), "a damaged note is none"


def test_a_writer_that_was_told_wrong_lengths_refuses(tmp_path: Path) -> None:
    with (
        pytest.raises(ShardError, match="6 bytes were written for 2 tokens"),
        ShardWriter(tmp_path, "x", "train", 500, "abc") as writer,
    ):
        writer.write(bytes(6))
        writer.lengths(np.array([2]))
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_one_pass_covers_every_token_and_keeps_documents_apart(tmp_path: Path, length: int) -> None:
    docs = some_docs(40)
    shards = Shards(write(tmp_path / "s", docs))
    flat, number = shards.window(0, shards.tokens)
    at = 0
    for batch in all_batches(shards, 3, length):
        assert {v.shape[1] for v in batch.values()} == {length}
        for row in range(len(batch["input_ids"])):
            n = int(batch["attention_mask"][row].sum())
            assert batch["input_ids"][row, :n].tolist() == flat[at : at + n].tolist()
            for i in range(n):
                p = at + i
                begin = i == 0 or number[p] != number[p - 1]
                assert batch["position_ids"][row, i] == (0 if begin else batch["position_ids"][row, i - 1] + 1)
                follows = p + 1 < len(flat) and number[p + 1] == number[p]
                assert batch["labels"][row, i] == (flat[p + 1] if follows else -100)
            seen = batch["document_ids"][row, :n]
            assert (seen == np.unique(number[at : at + n], return_inverse=True)[1]).all()
            assert (batch["document_ids"][row, n:] == -1).all() and (batch["labels"][row, n:] == -100).all()
            at += n
    assert at == shards.tokens


def test_training_batches_are_seeded_resumable_and_cover_a_pass(tmp_path: Path) -> None:
    shards = Shards(write(tmp_path / "s", some_docs(60)))
    length, batch = 8, 3
    count = rows(shards, length)
    steps = 2 * count // batch + 2
    first = list(itertools.islice(batches(shards, batch, length, seed=5), steps))
    for start in (0, 1, 7, steps - 1):
        again = next(batches(shards, batch, length, seed=5, start=start))
        assert all((again[k] == first[start][k]).all() for k in again)
    other = next(batches(shards, batch, length, seed=6))
    assert (other["input_ids"] != first[0]["input_ids"]).any()
    flat, _ = shards.window(0, shards.tokens)
    places = {tuple(flat[i : i + length]): i for i in range(len(flat) - length + 1)}
    begins = [places[tuple(r)] for b in first for r in b["input_ids"]]
    one, two = begins[:count], begins[count : 2 * count]
    for turn in (one, two):
        assert sorted(turn) == list(range(min(turn), min(turn) + length * count, length)), "each row of a pass once"
    assert one != sorted(one) and one != two


def test_ranks_share_the_rows_of_a_step(tmp_path: Path) -> None:
    shards = Shards(write(tmp_path / "s", some_docs(60)))
    whole = list(itertools.islice(batches(shards, 4, 8, seed=1), 5))
    halves = [list(itertools.islice(batches(shards, 2, 8, seed=1, rank=r, world=2), 5)) for r in (0, 1)]
    for step, (a, b) in enumerate(zip(*halves, strict=True)):
        assert (np.concatenate([a["input_ids"], b["input_ids"]]) == whole[step]["input_ids"]).all()
    with pytest.raises(DataError, match="rank is 2, expected 0 to 1"):
        next(batches(shards, 2, 8, rank=2, world=2))


def test_too_few_tokens(tmp_path: Path) -> None:
    shards = Shards(write(tmp_path / "s", [[1, 2, 3]]))
    with pytest.raises(DataError, match="hold 3 tokens, fewer than a row of 4"):
        rows(shards, 4)
    assert rows(shards, 3) == 1
    with pytest.raises(DataError, match="length of a row is 0"):
        rows(shards, 0)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000])
def test_permuted_is_a_permutation(n: int) -> None:
    found = [permuted(i, n, 99) for i in range(n)]
    assert sorted(found) == list(range(n))
    if n > 10:
        assert found != list(range(n)) and found != [permuted(i, n, 100) for i in range(n)]
