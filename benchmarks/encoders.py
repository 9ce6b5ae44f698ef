"""MiniLM on a CPU, sentences a second: against ONNX Runtime's own optimizer, OpenVINO, and PyTorch eager and compiled.

Each engine holds its model open in an environment of its own; all take turns. fp32, and int8 where an engine has it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph.assets import fetch
from monograph.console import working
from monograph.machine import median
from report import Row, parser, publish
from serving_peers import PLACE, Worker, environment, made, run, spread

WORKER = Path(__file__).with_name("encoders_worker.py")
SHAPES = ((32, 128), (1, 16))

OPTIMIZE = """
import sys, torch
from transformers import AutoModel
from onnxruntime.transformers.optimizer import optimize_model
source, target = sys.argv[1:]
model = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, ids, mask, types):
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
names = ["input_ids", "attention_mask", "token_type_ids"]
ids = torch.ones((2, 8), dtype=torch.int64)
axes = {n: {0: "batch", 1: "length"} for n in [*names, "last_hidden_state"]}
torch.onnx.export(Plain(), (ids, ids, ids), target + ".raw.onnx", input_names=names, output_names=["last_hidden_state"],
                  dynamic_axes=axes, opset_version=17, dynamo=False)
made = optimize_model(target + ".raw.onnx", model_type="bert", num_heads=12, hidden_size=384)
print(made.get_fused_operator_statistics(), file=sys.stderr)
made.save_model_to_file(target)
"""

QUANTIZE = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
source, target = sys.argv[1:]
quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
"""

OPENVINO = """
import sys
from optimum.intel import OVModelForFeatureExtraction, OVWeightQuantizationConfig
source, target, precision = sys.argv[1:]
config = OVWeightQuantizationConfig(bits=8, sym=False) if precision == "int8" else None
OVModelForFeatureExtraction.from_pretrained(source, export=True, load_in_8bit=False, quantization_config=config,
                                            compile=False).save_pretrained(target)
"""


def commands(source: Path, threads: int) -> dict[str, list[str]]:
    """How to start each engine, by name."""
    place, here = PLACE / "encoders", sys.executable
    place.mkdir(parents=True, exist_ok=True)
    model = mg.load(source)
    mg.build(model, place / "f32").close()
    mg.build(model, place / "int8", quantize="int8-dynamic").close()
    exporter = str(environment("exported"))
    fp32 = made(place / "fp32.onnx", lambda f: run([exporter, "-c", OPTIMIZE, str(source), str(f)]))
    int8 = made(place / "int8.onnx", lambda f: run([exporter, "-c", QUANTIZE, str(fp32), str(f)]))
    intel = str(environment("openvino"))
    for kind in ("fp32", "int8"):
        made(place / f"openvino-{kind}", lambda f, kind=kind: run([intel, "-c", OPENVINO, str(source), str(f), kind]))
    started = {
        "Monograph fp32": (here, "monograph", place / "f32"),
        "Monograph int8": (here, "monograph", place / "int8"),
        "ONNX Runtime optimizer fp32": (exporter, "onnx", fp32),
        "ONNX Runtime optimizer int8": (exporter, "onnx", int8),
        "OpenVINO fp32": (intel, "openvino-f32", place / "openvino-fp32"),
        "OpenVINO, bf16 where it chooses": (intel, "openvino", place / "openvino-fp32"),
        "OpenVINO int8": (intel, "openvino", place / "openvino-int8"),
        "PyTorch eager fp32": (exporter, "transformers", source),
        "PyTorch compiled fp32": (exporter, "transformers", f"compiled:{source}"),
    }
    return {
        name: [python, str(WORKER), kind, str(path), str(threads)] for name, (python, kind, path) in started.items()
    }


def cosine(a: Any, b: Any) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    with working("models"):
        started = commands(fetch("minilm"), given.threads)
    workers = {name: Worker(command) for name, command in started.items()}
    seconds: dict[tuple[str, int], list[float]] = {(n, r): [] for n in workers for r, _ in SHAPES}
    values: dict[str, list[float]] = {}
    with working(f"{given.rounds} rounds"):
        for number in range(given.rounds + 2):
            for rows, length in SHAPES:
                for name, worker in workers.items():
                    found = [worker.ask(rows=rows, length=length) for _ in range(1 if rows > 1 else 10)]
                    values[name] = found[-1]["values"]
                    if number > 1:  # The first rounds warm everybody up.
                        seconds[name, rows].append(median([f["seconds"] for f in found]))
    for worker in workers.values():
        worker.close()
    right = values["PyTorch eager fp32"]
    table: list[Row] = []
    for name in workers:
        cells: dict[str, Any] = {"engine": name}
        for rows, length in SHAPES:
            times = seconds[name, rows]
            cells[f"{rows} x {length} (sentences/s)"] = f"{rows / median(times):,.1f} ±{100 * spread(times):.0f}%"
        table.append({**cells, "cosine to PyTorch": f"{cosine(values[name], right):.6f}"})
    note = f"{given.threads} threads, medians of {given.rounds} rounds in turn, ± half the range."
    facts = {f"{n}, {r} rows": t for (n, r), t in seconds.items()}
    publish("encoders", table, note=note, only_print=given.no_publish, seconds=facts)


if __name__ == "__main__":
    main()
