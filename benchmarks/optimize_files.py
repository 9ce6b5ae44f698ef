"""Real ONNX files through `monograph optimize`, beside every other optimizer: size, error, latency, memory, growth.

    python benchmarks/optimize_files.py [--whisper FOLDER] [--only files decoding ragged pair cost growth]

SmolLM2, MiniLM and Whisper as transformers' exporter and torch.onnx write them, and files from packages. Exporters and
other optimizers run in environments of their own; all files run in one ONNX Runtime, on one thread, and take turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph.console import out, table, working
from monograph.frontends.onnx.file import open_onnx
from monograph.frontends.onnx.load import read_graph
from monograph.hard_inputs import Trial, hard_inputs
from monograph.ir import Graph
from monograph.machine import interleaved, median
from monograph.original import Original
from monograph.passes.past_inputs import past_symbols
from optimize_files_growth import Stack
from optimize_files_made import (
    PLACE,
    RIVALS,
    SLOWEST,
    command,
    export,
    files,
    megabytes,
    nodes,
    optimized,
    smollm2,
    spent,
)
from report import RESULTS, ROOT, Row, machine, markdown, parser, replaced

PASTS, ROUNDS = (512, 2048), 11
SAMPLE = 0.1
"""Seconds of calls that one measurement takes at least."""
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
LENGTH = 64
"""Tokens of a row where latencies are compared."""
PARTS = ("files", "decoding", "ragged", "pair", "cost", "growth")

NOTES = {
    "files": f"One thread, medians of {ROUNDS} rounds in turn, batch 1, {LENGTH} tokens (one behind a past of "
    f"{PASTS[0]} where a file takes one). Error: ours, the largest of all hard inputs, as a share of the largest "
    "number. "
    "Ratios: latency over that of the file as it came; `wrong`: outputs beyond the bound on some of these inputs.",
    "decoding": f"One thread, batch 1, medians of {2 * ROUNDS} rounds in turn.",
    "ragged": "Three prompts padded on the left in one batch; the error as a share of the largest logit.",
    "pair": "Greedy ids of the pair, against those of the file, which reads all tokens anew for each.",
    "cost": f"CPU seconds and peak memory of a process; stopped after {SLOWEST} s. `right`: equal on all hard inputs.",
    "growth": "One process each, on one thread.",
}


def feeds(graph: Graph, past: int) -> dict[str, Any]:
    """One row without padding: LENGTH tokens, or one behind a past."""
    pasts = past_symbols(graph)
    if not pasts:
        found = hard_inputs(graph, Trial("all-ones", 1, LENGTH)) or hard_inputs(
            graph, Trial("all-ones", 1, LENGTH, True)
        )
        assert found is not None
        return found.feeds
    rng, given = np.random.default_rng(0), dict[str, Any]()
    for name, v in graph.inputs.items():
        if v in pasts:
            shape = [d if isinstance(d, int) else past if str(d) == pasts[v] else 1 for d in v.shape]
            given[name] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        elif "mask" in name:
            given[name] = np.ones((1, past + 1), np.int64)
        else:
            given[name] = np.full((1, 1), past if "pos" in name else 77)
    return given


def session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(own: Any, given: Mapping[str, Any]) -> Callable[[], Any]:
    """One call. Values are handed over once, as a caller does that keeps what came out for the next step."""
    import onnxruntime as ort

    values = {i.name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(given[i.name])) for i in own.get_inputs()}
    names = [o.name for o in own.get_outputs()]
    return lambda: own.run_with_ort_values(names, values)


def timed(works: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each, taken in turn."""

    def clocked(work: Callable[[], Any], times: int = 1) -> Callable[[], float]:
        def one() -> float:
            start = time.perf_counter()
            for _ in range(times):
                work()
            return (time.perf_counter() - start) / times

        return one

    first = [clocked(work)() for work in works.values() for _ in range(2)]
    times = max(1, round(SAMPLE / min(first)))
    return interleaved({name: clocked(work, times) for name, work in works.items()}, rounds)


# -- parts -------------------------------------------------------------------------------------------------------


def compare_files(whisper: Path | None, match: str) -> tuple[list[Row], dict[str, Any]]:
    """Nodes, error and latency of every file, as it came and as each optimizer makes it."""
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    for name, (path, kind) in files(whisper).items():
        if match.lower() not in name.lower():
            continue
        with working(name):
            made_by, cost = optimized(name, path, kind)
            graph, _, _ = read_graph(open_onnx(path))
            original = Original.of(path, graph)
            found = {engine: original.difference(p) for engine, p in made_by.items() if engine != "as it came"}
            able = {
                engine: p for engine, p in made_by.items() if engine == "as it came" or not unable(found[engine][0])
            }
            given = feeds(graph, PASTS[0])
            works = {engine: runner(session(p), given) for engine, p in able.items()}
            times = timed(works)
            del works
        base = median(times["as it came"])
        facts[name] = {
            "cost": cost,
            "seconds": times,
            "errors": found,
            "MB": {e: megabytes(p) for e, p in made_by.items()},
        }
        rows.append({
            "file": name, "nodes": nodes(path), "ours": nodes(made_by["ours"]) if "ours" in made_by else None,
            "MB": round(megabytes(path)), "MB ours": round(megabytes(made_by["ours"])),
            "error": f"{found['ours'][1]:.1e}" if not found["ours"][0] else found["ours"][0][:60],
            "ms as it came": round(1e3 * base, 2),
            "ours (ratio)": round(median(times["ours"]) / base, 3),
            **{f"{rival} (ratio)": told(rival, cost, found, times, base) for rival in RIVALS},
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows, facts


def unable(wrong: str) -> bool:
    return "does not take it" in wrong or "ONNXRuntimeError" in wrong or "is gone" in wrong


def told(rival: str, cost: Any, found: Any, times: Any, base: float) -> str:
    """A ratio, wrong beside it where outputs are; or why there is none."""
    if cost[rival]["failed"]:
        return "fails"
    if rival not in times:
        return "does not run"
    return f"{median(times[rival]) / base:.3f}{', wrong' if found[rival][0] else ''}"


def decode() -> tuple[list[Row], dict[str, Any]]:
    """Milliseconds a token behind a past: transformers' fused file, what we make of each export, and our own build."""
    smol = smollm2()
    rival = export(smol, "hf-fused") / "decode.onnx"
    sources = {
        "ours, of the transformers export": export(smol, "hf") / "decode.onnx",
        "ours, of the fused transformers export": rival,
        "ours, of torch.onnx with past": export(smol, "cached") / "model.onnx",
    }
    paths = {"transformers fused, as it came": rival}
    for name, path in sources.items():
        folder = PLACE / "decode" / path.parent.name
        mg.optimize(path, folder)
        paths[name] = folder / "model.onnx"
    graphs = {name: read_graph(open_onnx(path))[0] for name, path in paths.items()}
    opened = {name: session(path) for name, path in paths.items()}
    engines = {}
    given = {
        "ours with --cache, of the transformers export": export(smol, "hf") / "prefill.onnx",
        "ours with --cache, of torch.onnx without past": export(smol, "uncached") / "model.onnx",
    }
    for name, path in given.items():
        folder = PLACE / "decode" / f"cache-{path.parent.name}"
        mg.optimize(path, folder, cache=True)
        engines[name] = mg.open(folder, threads=1)
    mg.build(mg.load(smol), PLACE / "decode" / "own").close()
    engines["our build of the checkpoint"] = mg.open(PLACE / "decode" / "own", threads=1)
    seconds: dict[str, dict[str, list[float]]] = {}
    for past in PASTS:
        works = {name: runner(own, feeds(graphs[name], past)) for name, own in opened.items()}
        works |= {name: stepper(engine, past) for name, engine in engines.items()}
        seconds[str(past)] = timed(works, 2 * ROUNDS)
    base = {past: median(seconds[past]["transformers fused, as it came"]) for past in seconds}
    sizes = {name: megabytes(path) for name, path in paths.items()}
    sizes |= {name: sum(f.stat().st_size for f in e.folder.glob("*.onnx*")) / 1e6 for name, e in engines.items()}
    rows: list[Row] = [
        {
            "file": name, "MB": round(sizes[name]),
            **{f"ms at past {past}": round(1e3 * median(times[name]), 2) for past, times in seconds.items()},
            **{f"ratio at {past}": round(median(times[name]) / base[past], 3) for past, times in seconds.items()},
        }
        for name in seconds[str(PASTS[0])]
    ]  # fmt: skip
    for engine in engines.values():
        engine.close()
    return rows, {"seconds": seconds, "MB": sizes}


def stepper(engine: Any, past: int) -> Callable[[], Any]:
    """One step behind `past` tokens, which is forgotten again."""
    own = engine.session
    own.prefill(np.random.default_rng(0).integers(0, 1000, (1, past)), [past])

    def step() -> None:
        own.step(np.array([77]))
        own.truncate([past])

    return step


def ragged() -> tuple[list[Row], dict[str, Any]]:
    """Prompts of three lengths in a batch padded on the left: logits of last tokens against PyTorch's, each alone."""
    smol = smollm2()
    right = np.load(export(smol, "eager") / "eager.npz")
    prompts = [right[f"prompt{i}"] for i in range(3)]
    longest = max(map(len, prompts))
    ids, mask, places = (np.zeros((3, longest), np.int64) for _ in range(3))
    for i, p in enumerate(prompts):
        ids[i, longest - len(p) :], mask[i, longest - len(p) :], places[i, longest - len(p) :] = p, 1, np.arange(len(p))
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    plain, fused = (export(smol, kind) / "model.onnx" for kind in ("hf-masked", "hf-masked-fused"))
    found: dict[str, Any] = {}
    for name, path in (("transformers, as it came", plain), ("transformers fused, as it came", fused)):
        found[name] = last(path, given)
    folder = PLACE / "ragged"
    mg.optimize(plain, folder / "plain")
    found["ours, of the transformers export"] = last(folder / "plain" / "model.onnx", given)
    for name, path in (("transformers export", plain), ("fused transformers export", fused)):
        mg.optimize(path, folder / path.parent.name, cache=True)
        with mg.open(folder / path.parent.name, threads=1) as engine:
            rows = np.zeros((3, longest), np.int64)
            for i, p in enumerate(prompts):
                rows[i, : len(p)] = p
            counts = np.array([len(p) for p in prompts])
            found[f"ours with --cache, of the {name}"] = engine.session.prefill(rows, counts)
    scale = np.abs(right["last"]).max()
    rows_: list[Row] = []
    for name, logits in found.items():
        logits = np.asarray(logits).reshape(3, -1)
        error = np.abs(logits - right["last"]).max(1) / scale
        same = int((logits.argmax(1) == right["last"].argmax(1)).sum())
        rows_.append({"file": name, "largest error": f"{error.max():.1e}", "first tokens as PyTorch": f"{same} of 3"})
    return rows_, {}


def last(path: Path, given: Mapping[str, Any]) -> Any:
    own = session(path)
    wanted = {i.name: given[i.name] for i in own.get_inputs()}
    return own.run(["logits"], wanted)[0][:, -1]


def pair() -> tuple[list[Row], dict[str, Any]]:
    """Ids of the pair made of an export without a cache against greedy of that file, which reads all anew each time."""
    source = export(smollm2(), "uncached") / "model.onnx"
    folder = PLACE / "decode" / "cache-uncached"
    if not folder.exists():
        mg.optimize(source, folder, cache=True)
    own, rng, count = session(source), np.random.default_rng(1), 24
    prompts = [rng.integers(0, 40_000, n).tolist() for n in (3, 17, 64)]
    rows: list[Row] = []
    with mg.open(folder, threads=1) as engine:
        together = engine.generate(prompts, max_new_tokens=count)
        for prompt, batched in zip(prompts, together, strict=True):
            ids = list(prompt)
            for _ in range(count):
                given = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
                ids.append(int(own.run(["logits"], given)[0][0, -1].argmax()))
            alone = engine.generate(prompt, max_new_tokens=count).ids
            wanted = ids[len(prompt) :][: len(alone)]
            rows.append({"prompt": len(prompt), "tokens": len(alone), "alone as the file": alone == wanted,
                         "in a batch as the file": batched.ids == ids[len(prompt) :][: len(batched.ids)]})  # fmt: skip
    return rows, {}


def cost() -> tuple[list[Row], dict[str, Any]]:
    """What each optimizer spends on two of SmolLM2's exports."""
    rows: list[Row] = []
    smol = smollm2()
    exports = {"decode, transformers": export(smol, "hf") / "decode.onnx"}
    exports["without past, torch.onnx"] = export(smol, "uncached") / "model.onnx"
    for name, path in exports.items():
        graph, _, _ = read_graph(open_onnx(path))
        original = Original.of(path, graph)
        for engine in ("ours", *RIVALS):
            target = PLACE / "cost" / engine
            what = spent(command(engine, path, target, "gpt2"))
            wrong = what["failed"] or original.difference(target / "model.onnx")[0]
            state = "fails" if what["failed"] else "wrong" if wrong else "right"
            rows.append({"file": name, "optimizer": engine, "CPU s": round(what["cpu"], 1), "MB": round(what["MB"]),
                         "result": state})  # fmt: skip
            print(rows[-1], flush=True)
    return rows, {}


def growth() -> tuple[list[Row], dict[str, Any]]:
    """CPU seconds and memory of `monograph optimize` on stacks of layers."""
    rows: list[Row] = []
    for size in SIZES:
        path = PLACE / f"stack{size}.onnx"
        count = Stack(size).save(path)
        what = spent([sys.executable, "-m", "monograph", "optimize", str(path), "-o", str(PLACE / "stack"), "--json"])
        rows.append({"nodes": count, "CPU s": round(what["cpu"], 1), "ms a node": round(1e3 * what["cpu"] / count, 2),
                     "MB": round(what["MB"]), "failed": what["failed"]})  # fmt: skip
        print(rows[-1], flush=True)
    return rows, {}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--whisper", type=Path, help="a Hugging Face folder of Whisper base")
    options.add_argument("--match", default="", help="of files: those whose name has this in it")
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = options.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    parts: dict[str, tuple[list[Row], dict[str, Any]]] = {}
    works = {
        "files": lambda: compare_files(given.whisper, given.match),
        "decoding": decode,
        "ragged": ragged,
        "pair": pair,
        "cost": cost,
        "growth": growth,
    }
    for name, work in works.items():
        if name in given.only:
            parts[name] = work()
    for name, (rows, _) in parts.items():
        out().print(table(f"optimize_files: {name}", rows))
    if not given.no_publish:
        keep(parts)


def keep(parts: Mapping[str, tuple[list[Row], dict[str, Any]]]) -> None:
    """Write results of parts beside those of earlier ones, and their tables into the pages."""
    path = RESULTS / "optimize_files.json"
    content = json.loads(path.read_text()) if path.exists() else {"benchmark": "optimize_files", "parts": {}}
    for name, (rows, facts) in parts.items():
        command = f"python benchmarks/optimize_files.py --only {name}"
        content["parts"][name] = {"command": command, **machine(), **facts, "rows": rows}
        about = content["parts"][name]
        text = (
            f"{markdown(rows)}\n\n`{command}`, {about['date']}, {about['cpu']}, {about['cores']} cores. {NOTES[name]}\n"
        )
        for page in sorted((ROOT / "docs").glob("*.md")):
            page.write_text(replaced(page.read_text(), f"optimize_files {name}", text))
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
