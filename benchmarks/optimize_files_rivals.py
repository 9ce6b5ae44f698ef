"""Run in an environment with the other optimizers: NAME FILE OUT TYPE writes OUT/model.onnx as one of them makes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx

BESIDE = "model.onnx.data"


def runtime(file: str, target: Path, kind: str) -> None:
    """ONNX Runtime's script, told what model it is."""
    from onnxruntime.transformers.optimizer import optimize_model

    made = optimize_model(file, model_type=kind, num_heads=0, hidden_size=0)
    made.save_model_to_file(str(target), use_external_data_format=True)


def script(file: str, target: Path, kind: str) -> None:
    """onnxscript's optimizer and its fusions for ONNX Runtime."""
    import onnx_ir
    import onnxscript.optimizer  # pyright: ignore[reportMissingImports]
    from onnxscript.rewriter.ort_fusions import optimize_for_ort  # pyright: ignore[reportMissingImports]

    model = onnx_ir.load(file)
    onnxscript.optimizer.optimize(model)
    found: Any = optimize_for_ort(model)
    onnx_ir.save(found[0] if isinstance(found, tuple) else found, target, external_data=BESIDE)


def slim(file: str, target: Path, kind: str) -> None:
    import onnxslim  # pyright: ignore[reportMissingImports]

    save(onnxslim.slim(file), target)


def simple(file: str, target: Path, kind: str) -> None:
    import onnxsim  # pyright: ignore[reportMissingImports]

    made, right = onnxsim.simplify(onnx.load(file))
    if not right:
        sys.exit("onnxsim finds its own result wrong")
    save(made, target)


def save(model: Any, target: Path) -> None:
    onnx.save(model, target, save_as_external_data=True, location=BESIDE, size_threshold=1024)


NAMES = {"onnxruntime.transformers": runtime, "onnxscript": script, "onnxslim": slim, "onnxsim": simple}

if __name__ == "__main__":
    folder = Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    NAMES[sys.argv[1]](sys.argv[2], folder / "model.onnx", sys.argv[4])
