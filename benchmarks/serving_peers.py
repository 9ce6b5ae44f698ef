"""The engines beside ours: an environment for each, what they make of SmolLM2, and how one is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph.assets import fetch
from monograph.frontends.huggingface import save_pretrained
from monograph.ir import DType
from monograph.machine import median
from report import WORK

PLACE = WORK / "serving"
HF = WORK / "smollm2-f32"
PACKAGES = {
    "genai": ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "transformers==5.23.0", "onnx", "onnx-ir"],
    "onnx-genai": ["onnx-genai==0.1.0.dev6", "onnxruntime==1.32.0", "tokenizers"],
    "exported": ["transformers==5.24.0", "onnxruntime==1.32.0", "onnx", "onnxscript==0.7.2", "accelerate"],
    "openvino": ["openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers", "nncf",
                 "transformers==5.5.4", "requests"],
}  # fmt: skip
"""What each environment gets after torch, which comes first and alone, so that nothing brings another build of it."""
LATER = {"openvino": ["optimum==2.3.0", "optimum-intel==2.2.0"]}
"""Without their requirements, one of which brings a CUDA build of torch."""


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
    """A folder or file that `make` writes, if it is not there yet; half of one is never taken for it."""
    if not folder.exists():
        part = folder.with_name(f"part-{folder.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        make(part)
        part.replace(folder)
    return folder


def floats() -> Path:
    """SmolLM2 as a checkpoint of f32 weights, as the blocks of the file that is fetched say."""
    return made(HF, lambda f: save_pretrained(mg.load(fetch("smollm2")), f, dtype=DType.f32))


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


def spread(values: list[float]) -> float:
    """Half the distance between the fastest and the slowest, as a share of the median."""
    return (max(values) - min(values)) / 2 / median(values)
