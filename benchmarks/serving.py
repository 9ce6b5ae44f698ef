"""SmolLM2-135M on a CPU, everybody at every precision: prompts, steps, perplexity, memory, size, share of the limit.

Each engine runs in an environment of its own and holds its model open; all take turns, round by round, and the
machine's own limits are measured between them. Perplexity is over the same 4,000 tokens of the King James Bible for
all, in four pieces that each start anew. llama.cpp is run through node-llama-cpp: give the folder that it is installed
in by --llamacpp or $MONOGRAPH_LLAMACPP.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from gguf_llamacpp import peer
from monograph.assets import fetch
from monograph.console import working
from monograph.frontends.huggingface import save_pretrained
from monograph.ir import DType
from monograph.machine import measure, median
from report import RESULTS, ROOT, WORK, Row, parser, publish

PLACE = WORK / "serving"
HF = WORK / "smollm2-f32"
WORKER = Path(__file__).parent / "serving_worker.py"
PACKAGES = {
    "genai": ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "transformers==5.23.0", "onnx", "onnx-ir"],
    "onnx-genai": ["onnx-genai==0.1.0.dev6", "onnxruntime==1.32.0", "tokenizers"],
    "exported": ["transformers==5.24.0", "onnxruntime==1.32.0", "onnx", "onnxscript", "accelerate"],
    "openvino": ["openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers", "nncf",
                 "transformers==5.5.4", "requests"],
}  # fmt: skip
"""What each environment gets after torch, which comes first and alone, so that nothing brings another build of it."""
LATER = {"openvino": ["optimum==2.3.0", "optimum-intel==2.2.0"]}
"""Without their requirements, one of which brings a CUDA build of torch."""
PARAMETERS, LAYERS, KEY_NUMBERS = 134_515_008, 30, 2 * 3 * 64
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


class Worker:
    """A process that holds a model open."""

    def __init__(self, command: list[str]) -> None:
        quiet = {"HF_HUB_OFFLINE": "1", "OPENVINO_TELEMETRY": "0"}
        self.log = PLACE / "worker.log"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
            env=os.environ | quiet,
        )  # fmt: skip
        self.command = command
        self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.command)} ended:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


# -- models ------------------------------------------------------------------------------------------------------


def environment(name: str) -> Path:
    """The Python of an engine's own environment, made if it is not there."""
    python = PLACE / name / "bin" / "python"
    if not (PLACE / name / "ready").exists():
        venv.create(PLACE / name, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        run([*pip, "torch==2.13.0"])
        run([*pip, "torch==2.13.0", *PACKAGES[name]])
        for package in LATER.get(name, ()):
            run([*pip, "--no-deps", package])
        (PLACE / name / "ready").touch()
    return python


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def made(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder or file that `make` writes, if it is not there yet."""
    if not folder.exists():
        make(folder)
    return folder


def genai(precision: str) -> Path:
    def make(folder: Path) -> None:
        python = str(environment("genai"))
        options = ["-i", str(HF), "-o", str(folder), "-p", precision, "-e", "cpu", "-c", str(PLACE / "cache")]
        run([python, "-m", "onnxruntime_genai.models.builder", *options])

    return made(PLACE / f"genai-{precision}", make)


OPENVINO = """
import sys
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer
import openvino
from openvino_tokenizers import convert_tokenizer
source, target, precision = sys.argv[1:]
settings = {"int8": {"bits": 8, "sym": False}, "int4": {"bits": 4, "sym": False, "group_size": 64}}
config = OVWeightQuantizationConfig(**settings[precision]) if precision in settings else None
model = OVModelForCausalLM.from_pretrained(source, export=True, load_in_8bit=False, quantization_config=config,
                                           compile=False)
model.save_pretrained(target)
for kind, made in zip(("tokenizer", "detokenizer"),
                      convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)):
    openvino.save_model(made, f"{target}/openvino_{kind}.xml")
"""


def openvino(precision: str) -> Path:
    def make(folder: Path) -> None:
        run([str(environment("openvino")), "-c", OPENVINO, str(HF), str(folder), precision])

    return made(PLACE / f"openvino-{precision}", make)


EXPORT = """
import sys, torch
from transformers import AutoModelForCausalLM
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.arange(18).reshape(2, 9) + 5
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
config = OnnxConfig(dynamic=True, ort_fusions="cpu")
OnnxExporter().export_for_generation(model, inputs, config=config).save_pretrained(sys.argv[2])
"""


def exported() -> Path:
    return made(PLACE / "exported-fp32", lambda f: run([str(environment("exported")), "-c", EXPORT, str(HF), str(f)]))


def gguf(precision: str) -> Path:
    """The model as a GGUF file: the original Q4_1 blocks, or the numbers they stand for in Q8_0 or F32."""
    source = fetch("smollm2")
    if precision == "int4":
        return source
    kind = {"int8": "Q8_0", "fp32": "F32"}[precision]

    def make(file: Path) -> None:
        import gguf as library

        reader = library.GGUFReader(source)
        writer = library.GGUFWriter(file, "llama")
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
                continue
            several = field.types[0] == library.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if several else None)
        wanted = library.GGMLQuantizationType[kind]
        for tensor in reader.tensors:
            numbers = library.dequantize(tensor.data, tensor.tensor_type)
            stored = wanted if numbers.ndim > 1 else library.GGMLQuantizationType.F32
            writer.add_tensor(tensor.name, library.quantize(numbers.astype(np.float32), stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return made(PLACE / f"smollm2-{kind.lower()}.gguf", make)


def portable() -> Path:
    return made(PLACE / "portable-fp32", lambda f: mg.export(mg.load(HF), f, layout="genai"))


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
    """Of the bandwidth that was measured between the rounds, or for prompts of the fp32 arithmetic."""
    request = COLUMNS[column]
    if request["do"] == "prefill":
        return 2 * PARAMETERS * request["length"] / took / median([x["flops"] for x in limits])
    past = 4 * LAYERS * KEY_NUMBERS * request["length"] * request.get("rows", 1)
    return (PARAMETERS * BYTES[precision] + past) / took / median([x["bandwidth"] for x in limits])


def spread(values: list[float]) -> float:
    """Half the distance between the fastest and the slowest, as a share of the median."""
    return (max(values) - min(values)) / 2 / median(values)


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
    if not (HF / "config.json").exists():
        save_pretrained(mg.load(fetch("smollm2")), HF, dtype=DType.f32)
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
