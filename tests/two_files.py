"""What two ONNX files give in ONNX Runtime, and how far that lies apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

Feeds = dict[str, np.ndarray]


def results(path: Path, feeds: Feeds) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def apart(a: Path, b: Path, feeds: Feeds, kept: np.ndarray | None = None) -> float:
    """The largest difference of two files, at tokens that are kept."""
    pairs = zip(results(a, feeds), results(b, feeds), strict=True)
    return max(float(np.abs(x - y)[slice(None) if kept is None else kept].max()) for x, y in pairs)
