"""SmolLM2-135M on a CPU, everybody at every precision: prompts, steps, perplexity, memory, size, share of the limit.

Each engine runs in an environment of its own and holds its model open; all take turns, round by round, and the
machine's own limits are measured between them. Perplexity is over the same 4,000 tokens of the King James Bible for
all, in four pieces that each start anew. llama.cpp is run through node-llama-cpp: give the folder that it is installed
in by --llamacpp or $MONOGRAPH_LLAMACPP.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monograph as mg
from gguf_llamacpp import peer
from monograph.assets import fetch
from monograph.console import working
from monograph.machine import measure, median
from report import RESULTS, ROOT, Row, parser, publish
from serving_peers import HF, PLACE, Worker, environment, exported, floats, genai, gguf, openvino, spread

WORKER = Path(__file__).parent / "serving_worker.py"
PARAMETERS, TABLE, LAYERS, KEY_NUMBERS = 134_515_008, 49_152 * 576, 30, 2 * 3 * 64
"""Of the model: weights, those of them that are the table of tokens and the head, and numbers of keys and values."""
BYTES = {"fp32": 4.0, "int8": 1.0, "int4": 0.5}
TOKENS, PIECE = 4000, 1000
COLUMNS = {
    "prefill 512": {"do": "prefill", "length": 512},
    "decode at 128": {"do": "decode", "length": 128, "new": 32},
    "decode at 2048": {"do": "decode", "length": 2048, "new": 16},
    "batch 8 decode": {"do": "decode", "length": 128, "new": 16, "rows": 8},
}


@dataclass(frozen=True)
class Entry:
    """One engine at one precision. kind: of serving_worker.py, or llama.cpp. judge: the kind that gives all logits."""

    name: str
    precision: str
    kind: str
    folder: Path
    environment: str = ""
    judge: str = ""
    lacks: tuple[str, ...] = ()

    def command(self, threads: int, modules: Path, kind: str = "") -> list[str]:
        if self.kind == "llama.cpp":
            return ["node", str(WORKER.with_name("llamacpp.mjs")), str(modules), str(self.folder), str(threads)]
        python = PLACE / self.environment / "bin" / "python" if self.environment else Path(sys.executable)
        return [str(python), str(WORKER), kind or self.kind, str(self.folder), str(threads)]

    @property
    def bytes(self) -> int:
        """Of the model's files: graphs and weights."""
        if self.folder.is_file():
            return self.folder.stat().st_size
        kinds = (".onnx", ".data", "_data", ".bin", ".xml", ".safetensors")
        return sum(f.stat().st_size for f in self.folder.iterdir() if f.name.endswith(kinds) and "token" not in f.name)


# -- models ------------------------------------------------------------------------------------------------------


def portable() -> Path:
    """Written anew each time, as what `ours` gives."""
    folder = PLACE / "portable-fp32"
    mg.export(mg.load(HF), folder, layout="genai")
    return folder


def ours(precision: str, settings: Mapping[str, Any], source: Path) -> Path:
    """Built anew each time: what is measured is this checkout."""
    folder = PLACE / f"monograph-{precision}"
    mg.build(mg.load(source), folder, **settings).close()
    return folder


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("Monograph", {}),
    "int8": ("Monograph int8, rows", {"quantize": "int8-dynamic"}),
    "int4": ("Monograph int4", {"quantize": "int4"}),
}


def calibration() -> Path:
    """A file with what follows the text of the perplexity."""
    sys.path.insert(0, str(ROOT / "examples"))
    from king_james import text  # pyright: ignore[reportMissingImports]

    file = PLACE / "calibration.txt"
    file.write_text(text()[10 * TOKENS :])
    return file


def more(wanted: str) -> list[Entry]:
    """Our other builds at one precision."""
    if wanted == "int8":
        rounded = {"quantize": mg.Quantization("int8", prompts="int8")}
        return [Entry("Monograph int8, blocks", wanted, "monograph", ours("int8-blocks", rounded, HF))]
    if wanted == "int4":
        kept = ours("blocks", {}, fetch("smollm2"))
        fast = ours("int4-prompts", {"quantize": mg.Quantization("int4", prompts="int8")}, HF)
        asked = mg.Quantization("int4", "gptq", 64, tables="int4", prompts="int8", calibrate=calibration())
        least = ours("int4-gptq", {"quantize": asked}, HF)
        return [
            Entry("Monograph int4, prompts in int8", wanted, "monograph", fast),
            Entry("the same by GPTQ, blocks of 64, tables too", wanted, "monograph", least),
            Entry("Monograph, the blocks of the GGUF", wanted, "monograph", kept),
        ]
    return []


def entries(wanted: str) -> list[Entry]:
    """Everybody at one precision."""
    name, settings = OURS[wanted]
    found = [
        Entry(name, wanted, "monograph", ours(wanted, settings, HF)),
        *more(wanted),
        Entry("onnxruntime-genai 0.18", wanted, "genai", genai(wanted), "genai"),
        Entry("OpenVINO 2026.4", wanted, "openvino", openvino(wanted), "openvino"),
        Entry("OpenVINO GenAI 2026.4", wanted, "openvino-genai", openvino(wanted), "openvino", "openvino"),
        Entry("llama.cpp", wanted, "llama.cpp", gguf(wanted)),
    ]
    if wanted == "fp32":
        alone, own = ("batch 8 decode",), openvino(wanted)
        found += [
            Entry("OpenVINO 2026.4, in f32", wanted, "openvino-f32", own, "openvino"),
            Entry("OpenVINO GenAI 2026.4, in f32", wanted, "openvino-genai-f32", own, "openvino", "openvino-f32"),
            Entry("transformers 5.24 exported, fused", wanted, "exported", exported(), "exported"),
            Entry("onnx-genai 0.1.0.dev6", wanted, "onnx-genai", portable(), "onnx-genai", "none", alone),
            Entry("transformers 5.24 eager", wanted, "transformers", HF),
        ]
    for each in found:
        if each.environment:
            environment(each.environment)
    return found


# -- measuring ---------------------------------------------------------------------------------------------------


def text_ids() -> list[int]:
    """Tokens of the King James Bible, from its beginning."""
    sys.path.insert(0, str(ROOT / "examples"))
    from king_james import text  # pyright: ignore[reportMissingImports]

    return mg.load(HF).tokenizer.encode(text()[: 8 * TOKENS], add_special=False)[:TOKENS]


def perplexity(entry: Entry, ids: list[int], threads: int, modules: Path) -> float:
    if entry.judge == "none":
        return math.nan
    worker = Worker(entry.command(threads, modules, entry.judge))
    nats = sum(worker.ask(do="surprise", tokens=ids[i : i + PIECE])["nats"] for i in range(0, TOKENS, PIECE))
    worker.close()
    return math.exp(nats / (TOKENS - TOKENS // PIECE))


def rounds(
    found: list[Entry], ids: list[int], threads: int, modules: Path, count: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, int], list[dict[str, float]]]:
    """(seconds by engine and column, peak bytes by engine, limits of the machine round by round)."""
    workers = {e.name: Worker(e.command(threads, modules)) for e in found}
    seconds: dict[str, dict[str, list[float]]] = {e.name: {c: [] for c in COLUMNS if c not in e.lacks} for e in found}
    limits: list[dict[str, float]] = []
    for number in range(count + 1):
        for column, request in COLUMNS.items():
            # Another text each round: some engines know again what they have read.
            tokens = ids[97 * number : 97 * number + request["length"]]
            given = {k: v for k, v in request.items() if k != "length"} | {"tokens": tokens}
            for e in found:
                if column in seconds[e.name]:
                    took = workers[e.name].ask(**given)["seconds"]
                    if number:  # The first round warms everybody up.
                        seconds[e.name][column].append(took)
        ceilings = measure(threads)
        limits.append({"bandwidth": ceilings.bandwidth, "flops": ceilings.flops})
    memory = {name: int(w.ask(do="memory")["bytes"]) for name, w in workers.items()}
    for w in workers.values():
        w.close()
    return seconds, memory, limits[1:]


def speed(column: str, took: float) -> float:
    """Tokens per second."""
    request = COLUMNS[column]
    return (request["length"] if request["do"] == "prefill" else request.get("rows", 1)) / took


def share(column: str, precision: str, took: float, limits: list[dict[str, float]]) -> float:
    """Of the bandwidth that was measured between the rounds, or for prompts of the fp32 arithmetic.

    Of a prompt, the head reads the last token alone.
    """
    request = COLUMNS[column]
    if request["do"] == "prefill":
        return 2 * ((PARAMETERS - TABLE) * request["length"] + TABLE) / took / median([x["flops"] for x in limits])
    past = 4 * LAYERS * KEY_NUMBERS * request["length"] * request.get("rows", 1)
    return (PARAMETERS * BYTES[precision] + past) / took / median([x["bandwidth"] for x in limits])


def row(
    entry: Entry, seconds: dict[str, list[float]], memory: int, score: float, limits: list[dict[str, float]]
) -> Row:
    result: dict[str, Any] = {"precision": entry.precision, "engine": entry.name}
    for column in COLUMNS:
        times = seconds.get(column)
        result[f"{column} (tokens/s)"] = "none" if not times else (
            f"{speed(column, median(times)):,.0f} ±{100 * spread(times):.0f}% "
            f"({100 * share(column, entry.precision, median(times), limits):.0f}%)"
        )  # fmt: skip
    result |= {"peak (MB)": memory / 1e6, "files (MB)": entry.bytes / 1e6}
    return result | {"perplexity": "not given" if math.isnan(score) else f"{score:.2f}"}


def earlier(now: Collection[str]) -> tuple[list[Row], dict[str, Any]]:
    """(rows, figures) of the precisions that are not measured now, as the last run left them."""
    file = RESULTS / "serving.json"
    found = json.loads(file.read_text()) if file.exists() else {"rows": [], "measured": {}}
    rows = [r for r in found["rows"] if r["precision"] not in now]
    return rows, {k: v for k, v in found["measured"].items() if k not in now}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--llamacpp", help="folder in which node-llama-cpp is installed")
    options.add_argument("--precision", nargs="+", default=[*BYTES], choices=[*BYTES])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    modules = peer(given.llamacpp)
    PLACE.mkdir(parents=True, exist_ok=True)
    floats()
    ids, (rows, facts) = text_ids(), earlier(given.precision)
    note = (
        f"{given.threads} threads, medians of {given.rounds} rounds in turn, ± half the range. In brackets: share of "
        "the bandwidth (for prompts: of the fp32 arithmetic) measured between the rounds, for the bytes that the "
        "precision needs. Perplexity: 4,000 tokens of the King James Bible."
    )
    for precision in given.precision:
        with working(f"{precision}: models"):
            found = entries(precision)
        with working(f"{precision}: perplexity"):
            scores = {e.name: perplexity(e, ids, given.threads, modules) for e in found}
        with working(f"{precision}: {given.rounds} rounds"):
            seconds, memory, limits = rounds(found, ids, given.threads, modules, given.rounds)
        rows += [row(e, seconds[e.name], memory[e.name], scores[e.name], limits) for e in found]
        rows.sort(key=lambda r: list(BYTES).index(str(r["precision"])))
        facts[precision] = {"seconds": seconds, "memory": memory, "perplexity": scores, "limits": limits}
        # After each precision: one that cannot be measured does not take the others with it.
        publish("serving", rows, note=note, only_print=given.no_publish, measured=facts)


if __name__ == "__main__":
    main()
