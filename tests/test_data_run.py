"""Whole data runs: what comes out, the same from every engine, after a kill, and without leaks between the splits."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash
from monograph.data import DataError, Dataset, Engine, Local, RayData, Recipe, Shards, prepare
from monograph.data.files import read_json
from monograph.data.passages import passage_key, passages
from monograph.data.shards import VERIFIED
from monograph.data.tokenizers import decode_bytes, train
from monograph.ir.errors import ConfigError
from monograph.training.corpus import python_topics

pytestmark = pytest.mark.slow

RANDOM = random.Random(11)
LINES = [p.replace("\n", " ").strip() for p in passages(python_topics()) if len(p.split()) > 12]


def document() -> str:
    return "\n".join(RANDOM.sample(LINES, 6))


def nearly(text: str) -> str:
    words = text.split(" ")
    words[RANDOM.randrange(len(words))] = "otherwise"
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, int]]:
    """(folder, documents of their own, planted): text, gzipped JSONL, zstd and parquet files."""
    folder = tmp_path_factory.mktemp("corpus")
    own = [document() for _ in range(160)]
    exact = [own[i].replace("\n", "\n\n") for i in range(0, 40, 2)]
    near = [nearly(own[i]) for i in range(41, 79, 2)]
    short = ["too short"] * 3
    everything = [*own, *exact, *near, *short]
    RANDOM.shuffle(everything)
    quarter = len(everything) // 4
    a, b, c, d = (everything[i * quarter : (i + 1) * quarter if i < 3 else None] for i in range(4))
    lines = [b"".join(json.dumps({"text": t}).encode() + b"\n" for t in part) for part in (a, b, c)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines[0]))
    (folder / "b.jsonl").write_bytes(lines[1])
    (folder / "c.jsonl.zst").write_bytes(pa.Codec("zstd").compress(lines[2], asbytes=True))
    pq.write_table(pa.table({"text": d}), folder / "d.parquet", row_group_size=16)
    return folder, own, {"exact": len(exact), "near": len(near), "short": len(short), "all": len(everything)}


def recipe(folder: Path, **tables: dict[str, Any]) -> Recipe:
    base = {
        "input": {"paths": [str(folder)]},
        "clean": {"filters": ["few_words"], "limits": {"few_words": 20}},
        "split": {"held_out": 0.25, "seed": 4},
        "tokenizer": {"vocab": 600, "sample_bytes": 100_000},
        "shards": {"tokens": 10_000},
        "work": {"piece_bytes": 20_000, "memory_bytes": 1 << 12},
    }
    return Recipe.of({k: {**base.get(k, {}), **tables.get(k, {})} for k in {**base, **tables}})


@pytest.fixture(scope="module")
def made(corpus: tuple[Path, list[str], dict[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    prepare(recipe(corpus[0]), run)
    return run


def files(run: Path) -> dict[str, bytes]:
    found = sorted(p for p in (run / "shards").rglob("*") if p.is_file() and p.name != VERIFIED)
    return {str(p.relative_to(run)): p.read_bytes() for p in found}


def texts(run: Path, split: str) -> list[str]:
    dataset = Dataset.open(run)
    end = dataset.tokenizer.eos_id
    docs = list(Shards(run, split))
    assert all(doc[-1] == end and (doc[:-1] != end).all() for doc in docs)
    return [decode_bytes(dataset.tokenizer, doc[:-1].tolist()).decode() for doc in docs]


def test_what_goes_in_comes_out_once(made: Path, corpus: tuple[Path, list[str], dict[str, int]]) -> None:
    _, own, planted = corpus
    report = read_json(made / "report.json")
    assert report["input"]["documents"] == planted["all"]
    assert {f["name"]: f["documents"] for f in report["filters"] if f["kind"] == "document"} == {"few_words": 3}
    assert report["duplicates"]["exact"] == planted["exact"]
    assert report["duplicates"]["near"] == planted["near"]
    found = [*texts(made, "train"), *texts(made, "held_out")]
    assert len(found) == len(own)
    originals = {passage_key(t) for t in own}
    assert sum(passage_key(t) in originals for t in found) >= len(own) - planted["near"]
    share = len(texts(made, "held_out")) / len(own)
    assert 0.15 < share < 0.35


def test_no_leak_between_the_splits(made: Path) -> None:
    """By other means than the pipeline's: hashes of words, and MinHash of datasketch on strings, all pairs."""
    train_texts, held_out = texts(made, "train"), texts(made, "held_out")
    assert not {passage_key(t) for t in train_texts} & {passage_key(t) for t in held_out}

    def sketch(text: str) -> MinHash:
        words = text.lower().split()
        result = MinHash(128)
        result.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
        return result

    left, right = ([sketch(t) for t in part] for part in (train_texts, held_out))
    assert max(a.jaccard(b) for a in left for b in right) < 0.8


def test_near_duplicates_that_stay_are_on_one_side(
    corpus: tuple[Path, list[str], dict[str, int]], tmp_path: Path
) -> None:
    prepare(recipe(corpus[0], duplicates={"near": "keep"}), tmp_path / "run")
    sides = [texts(tmp_path / "run", s) for s in ("train", "held_out")]
    assert sum(map(len, sides)) == len(corpus[1]) + corpus[2]["near"]
    shingled = [[{tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in side] for side in sides]
    assert max(len(a & b) / len(a | b) for a in shingled[0] for b in shingled[1]) < 0.8
    within = [len(a & b) / len(a | b) for side in shingled for i, a in enumerate(side) for b in side[:i]]
    assert sum(s > 0.8 for s in within) >= corpus[2]["near"]


def test_the_split_depends_on_seed_and_content_only(
    corpus: tuple[Path, list[str], dict[str, int]], tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"text": t}) + "\n" for t in reversed(corpus[1][80:])))
    for seed in (4, 5):
        prepare(recipe(few, split={"seed": seed}), tmp_path / f"run{seed}")
    full = {s: set(texts(tmp_path / "run4", s)) for s in ("train", "held_out")}
    assert set(texts(tmp_path / "run5", "held_out")) != full["held_out"]
    prepare(recipe(corpus[0]), tmp_path / "all")
    everything = {s: set(texts(tmp_path / "all", s)) for s in ("train", "held_out")}
    assert full["train"] <= everything["train"] and full["held_out"] <= everything["held_out"]


def test_a_pool_of_processes_writes_the_same_bytes(
    corpus: tuple[Path, list[str], dict[str, int]], made: Path, tmp_path: Path
) -> None:
    prepare(recipe(corpus[0]), tmp_path / "run", engine=Local(2))
    assert files(tmp_path / "run") == files(made)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayData]:
    """A Ray cluster of two worker nodes on this machine, each with one core."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield RayData(address=nodes.address)
    finally:
        nodes.shutdown()


def test_a_cluster_of_two_workers_writes_the_same_bytes(
    corpus: tuple[Path, list[str], dict[str, int]], made: Path, tmp_path: Path, cluster: RayData
) -> None:
    report = prepare(recipe(corpus[0]), tmp_path / "run", engine=cluster)
    assert report["engine"] == "ray"
    assert files(tmp_path / "run") == files(made)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read to its end"):
        broken = tmp_path / "in" / "a.jsonl.gz"
        broken.parent.mkdir()
        broken.write_bytes((corpus[0] / "a.jsonl.gz").read_bytes()[:-20])
        prepare(recipe(broken), tmp_path / "broken", engine=cluster)


def test_a_killed_run_goes_on_where_it_stopped(
    corpus: tuple[Path, list[str], dict[str, int]], made: Path, tmp_path: Path
) -> None:
    path, run = tmp_path / "r.json", tmp_path / "run"
    path.write_text(json.dumps(recipe(corpus[0]).to_dict()))
    code = (
        "import json, sys; from monograph.data import Recipe, prepare; "
        f"prepare(Recipe.of(json.load(open({str(path)!r}))), {str(run)!r}, "
        "show=lambda stage, done, of: print(stage, done, flush=True))"
    )
    for stop in (("clean", 1), ("clean", 3), ("near", 2), ("tokenize", 2), ("pack", 1)):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        seen = [line.split() for line in iter(lambda p=process, at=stop: _until(p, at), "")]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert [stop[0], str(stop[1])] in seen
        assert not (run / "report.json").exists()
    before = {p: p.stat().st_mtime_ns for p in (run / "clean").glob("*/result.json")}
    steps: list[str] = []
    prepare(Recipe.of(json.loads(path.read_text())), run, show=lambda stage, done, of: steps.append(stage))
    assert set(steps) <= {"tokenize", "pack", "report"}
    assert {p: p.stat().st_mtime_ns for p in (run / "clean").glob("*/result.json")} == before
    assert files(run) == files(made)
    assert not list(run.rglob("*.tmp"))


def _until(process: subprocess.Popen[str], stop: tuple[str, int]) -> str:
    """The next line of a process, or nothing once the line it is to be killed at has come."""
    if getattr(process, "reached", False):
        return ""
    assert process.stdout is not None
    line = process.stdout.readline()
    process.reached = line.split() == [stop[0], str(stop[1])]  # type: ignore[attr-defined]
    return line


def test_a_finished_run_is_not_done_again(made: Path, corpus: tuple[Path, list[str], dict[str, int]]) -> None:
    steps: list[str] = []
    before = (made / "report.json").read_bytes()
    prepare(recipe(corpus[0]), made, show=lambda stage, done, of: steps.append(stage))
    assert steps == [] and (made / "report.json").read_bytes() == before


def test_other_settings_or_input_are_refused_unless_asked(
    corpus: tuple[Path, list[str], dict[str, int]], tmp_path: Path
) -> None:
    run, source = tmp_path / "run", tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in corpus[1][:60]))
    prepare(recipe(source), run)
    clean = (run / "clean" / "000000" / "result.json").stat().st_mtime_ns
    with pytest.raises(
        DataError, match=r"from the stage 'tokenizer' on\n  tokenizer.vocab was 600 and is 500\n.*--redo"
    ):
        prepare(recipe(source, tokenizer={"vocab": 500}), run)
    assert Dataset.open(run).vocab == 600
    steps: list[str] = []
    prepare(recipe(source, tokenizer={"vocab": 500}), run, redo=True, show=lambda stage, done, of: steps.append(stage))
    assert Dataset.open(run).vocab == 500 and "clean" not in steps
    assert (run / "clean" / "000000" / "result.json").stat().st_mtime_ns == clean
    time.sleep(0.01)
    source.write_text(source.read_text() + json.dumps({"text": corpus[1][61]}) + "\n")
    with pytest.raises(DataError, match="from the stage 'plan' on"):
        prepare(recipe(source, tokenizer={"vocab": 500}), run)
    assert prepare(recipe(source), run, redo=True)["input"]["documents"] == 61


def test_settings_changed_after_a_stop_do_not_mix(
    corpus: tuple[Path, list[str], dict[str, int]], tmp_path: Path
) -> None:
    class Stop(Engine):
        name = "stop"

        def map(self, tasks: Any) -> Iterator[tuple[int, Any]]:
            yield from list(Local().map(tasks[:1]))
            raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(corpus[0]), tmp_path / "run", engine=Stop())
    other = recipe(corpus[0], clean={"limits": {"few_words": 1}})
    with pytest.raises(DataError, match=r"clean\.limits\.few_words was 20 and is 1"):
        prepare(other, tmp_path / "run")
    assert prepare(other, tmp_path / "run", redo=True)["filters"] == []


def test_the_same_run_whatever_the_size_of_pieces(
    corpus: tuple[Path, list[str], dict[str, int]], made: Path, tmp_path: Path
) -> None:
    prepare(recipe(corpus[0], work={"piece_bytes": 1 << 20, "memory_bytes": 1 << 28}), tmp_path / "run")
    for split in ("train", "held_out"):
        assert texts(tmp_path / "run", split) == texts(made, split)


def test_a_tokenizer_of_ones_own_and_one_that_is_not_there(
    corpus: tuple[Path, list[str], dict[str, int]], tmp_path: Path
) -> None:
    train("unigram", corpus[1][:20], 600, "masked-lm").save(tmp_path / "tok")
    source = corpus[0] / "b.jsonl"
    prepare(recipe(source, tokenizer={"path": str(tmp_path / "tok")}), tmp_path / "run")
    dataset = Dataset.open(tmp_path / "run")
    docs = [*dataset.train, *dataset.held_out]
    assert all(doc[-1] == 3 for doc in docs)  # [SEP]
    originals = {json.loads(line)["text"] for line in source.read_text().splitlines()}
    assert {decode_bytes(dataset.tokenizer, d[:-1].tolist()).decode() for d in docs} <= originals
    with pytest.raises(DataError, match=r"none: has no tokenizer\.json"):
        prepare(recipe(source, tokenizer={"path": str(tmp_path / "none")}), tmp_path / "run2")


def test_nothing_left_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n{"txt": 1}\n')
    with pytest.raises(DataError, match=r"no document is left after cleaning\n  1 documents: .*\n  1 documents: "):
        prepare(recipe(tmp_path / "a.jsonl"), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="full: is not empty and holds no data run"):
        prepare(recipe(tmp_path / "a.jsonl"), tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


class Balanced(HTMLParser):
    """Tags that are open, and those closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_needs_nothing_else_and_escapes(
    tmp_path: Path, corpus: tuple[Path, list[str], dict[str, int]]
) -> None:
    docs = [*corpus[1][:30], "<script>alert(1)</script> " + corpus[1][31], "<b>short</b>"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*docs, docs[30]]))
    prepare(recipe(tmp_path / "a.jsonl"), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in page and "http" not in page.replace("&", "") and "src=" not in page
    assert "&lt;b&gt;short&lt;/b&gt;" in page and "&lt;script&gt;" in page
    tags = Balanced()
    tags.feed(page)
    assert tags.open == [] and tags.wrong == []
    counts = read_json(tmp_path / "run" / "report.json")["lengths"]
    sizes = [len(d) for s in ("train", "held_out") for d in Shards(tmp_path / "run", s)]
    assert sum(sum(c["counts"]) for c in counts.values()) == len(sizes)
    assert max(c["longest"] for c in counts.values()) == max(sizes)
    total = np.zeros(64, int)
    for c in counts.values():
        total[: len(c["counts"])] += c["counts"]
    assert total.tolist() == np.bincount([s.bit_length() - 1 for s in sizes], minlength=64).tolist()


def test_a_worker_that_dies_ends_the_run_and_the_next_goes_on(
    corpus: tuple[Path, list[str], dict[str, int]], made: Path, tmp_path: Path
) -> None:
    engine = Local(2)

    def kill(stage: str, done: int, of: int) -> None:
        if (stage, done) == ("clean", 1):
            assert engine._pool is not None
            os.kill(next(iter(engine._pool._processes)), signal.SIGKILL)

    with pytest.raises(DataError, match="a worker process died without a word"):
        prepare(recipe(corpus[0]), tmp_path / "run", engine=engine, show=kill)
    prepare(recipe(corpus[0]), tmp_path / "run")
    assert files(tmp_path / "run") == files(made)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(number: signal.Signals) -> None:
    code = (
        "import os, time\n"
        "from monograph.data.engine import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = worker_pool(2)\n"
        "    print(*{f.result() for f in [pool.submit(os.getpid) for _ in range(8)]}, flush=True)\n"
        "    print(*pool._processes, flush=True)\n"
        "    pool.submit(time.sleep, 600); pool.submit(time.sleep, 600); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline, "a worker is left behind"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process is there and, where that can be told, is no zombie."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_runs_do_not_share_a_folder(
    corpus: tuple[Path, list[str], dict[str, int]], made: Path, tmp_path: Path
) -> None:
    class Twice(Local):
        def map(self, tasks: Any) -> Iterator[tuple[int, Any]]:
            with pytest.raises(DataError, match="run: another process works in this run folder"):
                prepare(recipe(corpus[0]), tmp_path / "run")
            yield from super().map(tasks)

    prepare(recipe(corpus[0]), tmp_path / "run", engine=Twice())
    assert files(tmp_path / "run") == files(made)


@pytest.mark.parametrize(("module", "extra"), [("ray", "distributed"), ("pyarrow", "data"), ("datasketch", "data")])
def test_a_missing_package_is_named_with_its_command(
    module: str,
    extra: str,
    corpus: tuple[Path, list[str], dict[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf'needs the package {module}.*\n.*pip install "monograph\[{extra}\]"'):
        prepare(recipe(corpus[0]), tmp_path / "run", engine=RayData() if module == "ray" else Local())


def test_the_command(corpus: tuple[Path, list[str], dict[str, int]], tmp_path: Path) -> None:
    from monograph.cli import app
    from typer.testing import CliRunner

    runner = CliRunner()
    path = tmp_path / "r.toml"
    path.write_text(f'[input]\npaths = ["{corpus[0]}/b.jsonl"]\n[tokenizer]\nvocab = 500\n[split]\nheld_out = 0.2\n')
    run = str(tmp_path / "run")
    result = runner.invoke(app, ["data", str(path), "--out", run, "--workers", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    shown = runner.invoke(app, ["data", run, "--check", "--json"])
    assert json.loads(shown.stdout)["train"]["tokens"] == report["splits"]["train"]["tokens"] > 0
    plain = runner.invoke(app, ["data", str(path), "--out", run, "--workers", "1"])
    assert plain.exit_code == 0 and "near-duplicates" in plain.stdout
    path.write_text(path.read_text().replace("vocab", "vocap"))
    wrong = runner.invoke(app, ["data", str(path), "--out", run])
    assert wrong.exit_code == 1 and "did you mean 'vocab'" in wrong.output
    engine = runner.invoke(app, ["data", str(path), "--out", run, "--engine", "rai"])
    assert engine.exit_code == 1 and "did you mean 'ray'" in engine.output
    with pytest.raises(ConfigError):
        Recipe.read(path)


def test_training_reads_a_run(made: Path) -> None:
    from monograph.frontends.dsl import load_family
    from monograph.training.loop import train as train_model

    dataset = Dataset.open(made)
    sizes = {"dim": 32, "ffn": 64, "layers": 1, "heads": 2, "kv_heads": 2, "tied": True}
    losses: list[float] = []
    settings = {"batch": 4, "length": 32, "progress": False, "device": "cpu", "learning_rate": 1e-2}
    model = load_family("llama")(vocab=dataset.vocab, **sizes)
    train_model(model, dataset, steps=40, observe=lambda s: losses.append(s.loss), **settings)  # type: ignore[arg-type]
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.3
