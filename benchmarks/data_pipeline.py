"""100 MB of text through data preparation: throughput, memory, duplicates planted and found, leaks, and Ray's bytes.

The corpus is made by a seeded script from English that lies in every Python installation (help topics, docstrings,
READMEs and licences of installed packages), recombined by paragraphs. Exact copies (other white space) and near copies
(some words changed) are planted; for near copies the true Jaccard similarity is computed from the words.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from monograph.data import Dataset, Recipe
from monograph.data.clean import Cleaner, Counts
from monograph.data.parts import Parts
from monograph.data.passages import passage_key
from monograph.data.recipe import Clean
from monograph.data.tokenizers import decode_bytes
from monograph.machine import peak_memory
from monograph.training.corpus import python_topics
from report import WORK, Row, parser, publish

SEED = 7
EXACT, NEAR = 0.02, 0.03
FILES = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet")
THRESHOLD = 0.8
BINS = ((0.9, 1.01), (0.8, 0.9), (0.7, 0.8), (0.0, 0.7))


def paragraphs() -> list[str]:
    """Different paragraphs of prose, sorted: at least 25 words, mostly lower-case letters."""
    found: set[str] = set()
    for text in [python_topics(), *_documents()]:
        for block in text.replace("\r\n", "\n").split("\n\n"):
            words = block.split()
            letters = sum(c.islower() for c in block)
            prose = letters > 0.65 * len(block) and block.rstrip().endswith(".") and ">>>" not in block
            if 25 <= len(words) <= 300 and prose:
                found.add("\n".join(line.strip() for line in block.strip().split("\n")))
    return sorted(found)


def _documents() -> Iterator[str]:
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            yield from _docstrings(path)
    for path in sorted(packages.glob("*/**/*")):
        if path.suffix in (".txt", ".md", ".rst") or path.name in ("METADATA", "LICENSE", "README"):
            yield path.read_text(encoding="utf-8", errors="ignore")


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def generate(folder: Path, megabytes: int) -> dict[str, Any]:
    """Write the corpus, unless it is there; gives what was planted: keys of copies and the similarity of near ones."""
    about = folder / "planted.json"
    if about.exists():
        return json.loads(about.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    pool, rng = paragraphs(), random.Random(SEED)
    own: list[str] = []
    size = 0
    while size < megabytes * 1e6 * (1 - EXACT - NEAR):
        own.append("\n\n".join(rng.choices(pool, k=rng.randint(3, 40))))
        size += len(own[-1].encode())
    chosen = rng.sample(range(len(own)), int(len(own) * (EXACT + NEAR)))
    cut = int(len(own) * EXACT)
    exact = [own[i].replace("\n", "\n\n") for i in chosen[:cut]]
    near = [_changed(own[i], rng) for i in chosen[cut:]]
    planted = {
        "megabytes": megabytes,
        "paragraphs": len(pool),
        "exact": [_key(t) for t in exact],
        "near": [[_key(own[i]), _key(t), similarity(own[i], t)] for i, t in zip(chosen[cut:], near, strict=True)],
    }
    everything = [*own, *exact, *near]
    rng.shuffle(everything)
    _write(folder, everything)
    planted["documents"] = len(everything)
    planted["bytes"] = sum(len(t.encode()) for t in everything)
    about.write_text(json.dumps(planted))
    return planted


def _changed(text: str, rng: random.Random) -> str:
    """Up to one word in thirty replaced, or a tenth of the text cut off."""
    words = text.split(" ")
    if rng.random() < 0.25:
        return " ".join(words[: -max(1, len(words) * rng.randint(1, 10) // 100)])
    for i in rng.sample(range(len(words)), max(1, len(words) * rng.randint(0, 100) // 3000)):
        words[i] = rng.choice(("another", "different", "changed", "revised"))
    return " ".join(words)


_CLEANER = Cleaner(Clean())


def _key(text: str) -> str:
    """The key that the pipeline gives a text, after cleaning; empty if cleaning removes it."""
    page = _CLEANER(text, Counts())
    return "" if page is None else passage_key(page.text).hex()


def similarity(a: str, b: str) -> float:
    """True Jaccard similarity of the word 5-grams."""
    left, right = (_shingles(t) for t in (a, b))
    return len(left & right) / len(left | right)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def _write(folder: Path, texts: list[str]) -> None:
    quarter = -(-len(texts) // 4)
    parts = [texts[i * quarter : (i + 1) * quarter] for i in range(4)]
    lines = [b"".join(json.dumps({"text": t}).encode() + b"\n" for t in p) for p in parts[:3]]
    (folder / FILES[0]).write_bytes(lines[0])
    (folder / FILES[1]).write_bytes(gzip.compress(lines[1], 6))
    (folder / FILES[2]).write_bytes(pa.Codec("zstd").compress(lines[2], asbytes=True))
    pq.write_table(pa.table({"text": parts[3]}), folder / FILES[3], row_group_size=1000)


def recipe(folder: Path) -> Recipe:
    return Recipe.of(
        {
            "input": {"paths": [str(folder / f) for f in FILES]},
            "split": {"held_out": 0.02},
            "tokenizer": {"vocab": 16_000, "sample_bytes": 10_000_000},
            "shards": {"tokens": 4_000_000},
            "work": {"piece_bytes": 8_000_000},
        }
    )


def measured(corpus: Path, run: Path, engine: str) -> dict[str, float]:
    """Run the pipeline in a process of its own; seconds, CPU seconds and peak memory of its largest process."""
    command = [sys.executable, __file__, "--inside", str(corpus), str(run), engine]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def inside(corpus: Path, run: Path, engine: str) -> None:
    """What a measured process does."""
    import time

    from monograph.data import Local, RayData, prepare

    began = time.perf_counter()
    if engine.startswith("ray"):
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        chosen: Any = RayData(address=nodes.address)
        started = time.perf_counter() - began
        report = prepare(recipe(corpus), run, engine=chosen)
        nodes.shutdown()
    else:
        started = 0.0
        report = prepare(recipe(corpus), run, engine=Local(int(engine)))
    seconds = time.perf_counter() - began - started
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {
        "seconds": seconds,
        "start": started,
        "cpu": sum(u.ru_utime + u.ru_stime for u in usage),
        "driver": peak_memory() / 1e6,  # ru_maxrss would tell that of the process this one came from.
        "worker": usage[1].ru_maxrss / 1e3,
        **{f"stage {k}": v for k, v in report["seconds"].items()},
    }
    print(json.dumps(found))


def check(run: Path, planted: dict[str, Any]) -> dict[str, Any]:
    """Duplicates found against those planted, by the clusters of the run."""
    parts = Parts.of(run)
    keys = np.concatenate([parts.table(i, "keys") for i in range(len(parts))])
    first = np.load(run / "clusters" / "merged" / "first.npy")
    state = np.load(run / "clusters" / "merged" / "state.npy")
    cluster: dict[str, int] = {}
    for i, key in enumerate(keys.tolist()):
        cluster.setdefault(key.ljust(16, b"\0").hex(), int(first[i]))
    near = [(a, b, s) for a, b, s in planted["near"] if a and b]
    bins = {f"{low} to {high:.2g}": [p for p in near if low <= p[2] < high] for low, high in BINS}
    known = {key for a, b, _ in near for key in (a, b)} | set(planted["exact"])
    strangers = [i for i in np.flatnonzero(state == 2) if bytes(keys[i]).ljust(16, b"\0").hex() not in known]
    return {
        "exact planted": sum(map(bool, planted["exact"])),
        "exact found": int((state == 1).sum()),
        "near planted": {name: len(pairs) for name, pairs in bins.items()},
        "near found": {name: sum(cluster[a] == cluster[b] for a, b, _ in pairs) for name, pairs in bins.items()},
        "not planted": len(strangers),
    }


def leaks(run: Path) -> dict[str, int]:
    """Held-out documents that are in the training shards, by words and by another MinHash than the pipeline's."""
    from datasketch import MinHash, MinHashLSH

    dataset = Dataset.open(run)
    held_out = [_text(dataset, doc) for doc in dataset.held_out]
    index = MinHashLSH(THRESHOLD, 128, weights=(0.05, 0.95))
    for i, text in enumerate(held_out):
        index.insert(i, _sketch(MinHash(128, seed=99), text))
    keys = {passage_key(t) for t in held_out}
    exact = near = 0
    for doc in dataset.train:
        text = _text(dataset, doc)
        exact += passage_key(text) in keys
        found: list[Any] = index.query(_sketch(MinHash(128, seed=99), text))
        near += any(similarity(text, held_out[i]) >= THRESHOLD for i in found)
    return {"held out": len(held_out), "exact leaks": exact, "near leaks": near}


def _text(dataset: Dataset, doc: Any) -> str:
    return decode_bytes(dataset.tokenizer, doc[:-1].tolist()).decode()


def _sketch(sketch: Any, text: str) -> Any:
    sketch.update_batch([" ".join(s).encode() for s in _shingles(text)])
    return sketch


def digest(run: Path) -> str:
    """One digest of all files of the shards."""
    total = hashlib.sha256()
    for path in sorted((run / "shards").rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(run)).encode() + path.read_bytes())
    return total.hexdigest()


def row(name: str, planted: dict[str, Any], found: dict[str, float], run: Path) -> Row:
    seconds = found["seconds"]
    megabytes = planted["bytes"] / 1e6
    return {
        "run": name,
        "MB": round(megabytes, 1),
        "documents": planted["documents"],
        "seconds": round(seconds, 1),
        "MB/s": round(megabytes / seconds, 2),
        "MB per CPU second": round(megabytes / found["cpu"], 2) if not name.startswith("Ray") else None,
        "peak MB, driver": round(found["driver"]),
        "peak MB, worker": round(found["worker"]) if name.startswith("2 ") else None,
        "digest of shards": digest(run)[:12],
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--megabytes", type=int, default=100)
    options.add_argument("--only", nargs="*", default=["small", "1", "2", "ray"], help="runs: small 1 2 ray")
    options.add_argument("--inside", nargs=3, help="used by the benchmark itself")
    given = options.parse_args()
    if given.inside:
        inside(Path(given.inside[0]), Path(given.inside[1]), given.inside[2])
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    base = WORK / "data_pipeline"
    corpora = {
        m: (base / f"corpus{m}", generate(base / f"corpus{m}", m)) for m in (given.megabytes // 4, given.megabytes)
    }
    names = {"small": "1 process", "1": "1 process", "2": "2 processes", "ray": "Ray, 2 workers"}
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    for which in given.only:
        corpus, planted = corpora[given.megabytes // 4 if which == "small" else given.megabytes]
        run = base / f"run-{which}"
        _empty(run)
        found = measured(corpus, run, "1" if which == "small" else which)
        facts[f"measured {which}"] = found
        rows.append(row(names[which], planted, found, run))
        if which == "1":
            facts["duplicates"], facts["leaks"] = check(run, planted), leaks(run)
        print(f"{which} done: {rows[-1]}", file=sys.stderr, flush=True)
    note = _note(facts)
    publish("data_pipeline", rows, note=note, only_print=given.no_publish, **facts)


def _empty(run: Path) -> None:
    import shutil

    shutil.rmtree(run, ignore_errors=True)


def _note(facts: dict[str, Any]) -> str:
    if "duplicates" not in facts:
        return ""
    d, k = facts["duplicates"], facts["leaks"]
    near = ", ".join(f"{d['near found'][b]} of {n} at {b}" for b, n in d["near planted"].items())
    return (
        f"Exact copies found: {d['exact found']} of {d['exact planted']} planted. Near copies found, by true "
        f"similarity (threshold {THRESHOLD}): {near}; found but not planted: {d['not planted']}. "
        f"{k['held out']} documents held out, of which {k['exact leaks']} exact and {k['near leaks']} near-duplicates "
        "are in the training shards (searched by another MinHash, then compared word by word)."
    )


if __name__ == "__main__":
    main()
