"""A decoder that `monograph build --target onnx` wrote, run with nothing but ONNX Runtime: the contract in a few lines.

    python examples/plain_onnxruntime.py FOLDER 1 2 3

The metadata of the file says what is remembered: which input takes what an output gave, and with how many tokens it
begins. Everything else is the prompt, a mask of ones and counted positions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort


def greedy(folder: str | Path, ids: Sequence[int], new: int) -> list[int]:
    """The likeliest `new` ids after a prompt."""
    options = ort.SessionOptions()
    # Weights in blocks are multiplied as they are; the runtime's own choice is to round what they are multiplied by.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    model = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    names = {i.name for i in model.get_inputs()}
    outputs = [o.name for o in model.get_outputs()]
    slots = json.loads(model.get_modelmeta().custom_metadata_map["monograph.slots"])
    shapes = {i.name: [n if isinstance(n, int) else 0 for n in i.shape[1:]] for i in model.get_inputs()}
    state = {s["input"]: np.zeros([1, *shapes[s["input"]]], np.float32) for s in slots}
    every, rows = list(ids), np.array([ids])
    while len(every) < len(ids) + new:
        given = {"input_ids": rows, "attention_mask": np.ones((1, len(every)), np.int64)}
        given["position_ids"] = np.arange(len(every) - rows.shape[1], len(every))[None]
        found = model.run(outputs, {k: v for k, v in (given | state).items() if k in names})
        results = {k: np.asarray(v) for k, v in zip(outputs, found, strict=True)}
        state = {s["input"]: results[s["output"]] for s in slots}
        every.append(int(results["logits"][0, -1].argmax()))
        rows = np.array([every[-1:]])
    return every[len(ids) :]


if __name__ == "__main__":
    print(*greedy(sys.argv[1], [int(i) for i in sys.argv[2:]], 16))
