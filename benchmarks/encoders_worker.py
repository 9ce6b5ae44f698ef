"""An encoder by one engine for encoders.py: JSON lines in and out, run by the environment of that engine.

encoders_worker.py ENGINE FOLDER THREADS. Requests: {"rows": 32, "length": 128}: seconds of one forward, and the first
numbers of what comes out of the last row.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]


class Monograph:
    """A folder that `mg.build` wrote."""

    def __init__(self, folder: str, threads: int) -> None:
        from monograph.backends.onnxruntime import open as open_session

        self.session = open_session(folder, threads=threads)

    def run(self, given: Inputs) -> Array:
        return next(iter(self.session.run(given).values()))


class Onnx:
    """An ONNX file in ONNX Runtime with its own optimizations."""

    def __init__(self, file: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]

    def run(self, given: Inputs) -> Array:
        found: Any = self.session.run(None, {k: given[k] for k in self.names})
        return found[0]


class OpenVino:
    """A folder of optimum-intel. exactly: in f32, where it would choose bf16 on a CPU that multiplies it."""

    def __init__(self, folder: str, threads: int, *, exactly: bool = False) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_PRECISION_HINT": "f32"} if exactly else {}
        self.request = core.compile_model(f"{folder}/openvino_model.xml", "CPU", settings).create_infer_request()
        self.names = {n for i in self.request.get_compiled_model().inputs for n in i.get_names()}

    def run(self, given: Inputs) -> Array:
        self.request.infer({k: v for k, v in given.items() if k in self.names}, share_inputs=True)
        return self.request.get_output_tensor(0).data


class Transformers:
    """A Hugging Face folder in PyTorch; `compiled` in front of it compiles the model."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        kind, _, path = folder.rpartition(":")
        model: Any = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        compiler: Any = torch
        self.torch, self.model = torch, compiler.compile(model) if kind else model

    def run(self, given: Inputs) -> Array:
        with self.torch.inference_mode():
            found = self.model(**{k: self.torch.from_numpy(v) for k, v in given.items()})
        return found.last_hidden_state.numpy()


def inputs(rows: int, length: int) -> Inputs:
    """Full rows of ids that all engines take."""
    ids = 1000 + (np.arange(rows)[:, None] * 37 + np.arange(length) * 7) % 20_000
    return {"input_ids": ids.astype(np.int64), "attention_mask": np.ones((rows, length), np.int64),
            "token_type_ids": np.zeros((rows, length), np.int64)}  # fmt: skip


def main() -> None:
    name, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print goes elsewhere.
    kinds: dict[str, Any] = {"monograph": Monograph, "onnx": Onnx, "openvino": OpenVino, "transformers": Transformers,
                             "openvino-f32": partial(OpenVino, exactly=True)}  # fmt: skip
    engine = kinds[name](folder, threads)
    channel.write(json.dumps({"ready": name}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        given = inputs(asked["rows"], asked["length"])
        start = time.perf_counter()
        found = engine.run(given)
        took = time.perf_counter() - start
        channel.write(json.dumps({"seconds": took, "values": np.asarray(found[-1, 0], np.float64).tolist()}) + "\n")


if __name__ == "__main__":
    main()
