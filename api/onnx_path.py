"""Whether a path names an ONNX file, or a folder of such and of no checkpoint."""

from __future__ import annotations

from pathlib import Path

_CHECKPOINTS = ("*.safetensors", "*.gguf", "*.bin")


def is_onnx(path: Path) -> bool:
    """Whether what lies at a path is read as ONNX."""
    if path.suffix == ".onnx":
        return not path.is_dir()
    return path.is_dir() and any(path.glob("*.onnx")) and not any(f for kind in _CHECKPOINTS for f in path.glob(kind))
