"""What Optimum or onnxruntime-genai make of folders: `python clients_worker.py optimum|genai JOBS`, results as JSON.

Runs in an environment of the client, without Monograph. See clients.py for the jobs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

Job = dict[str, Any]
Result = dict[str, Any]
CLASSES = {
    "causal-lm": "ORTModelForCausalLM",
    "seq2seq-lm": "ORTModelForSeq2SeqLM",
    "speech-to-text": "ORTModelForSpeechSeq2Seq",
    "feature-extraction": "ORTModelForFeatureExtraction",
    "masked-lm": "ORTModelForMaskedLM",
    "sequence-classification": "ORTModelForSequenceClassification",
    "image-classification": "ORTModelForImageClassification",
}


def padded(rows: list[list[int]], pad: int, side: str) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask) of one length."""
    longest = max(map(len, rows))
    fill = [longest - len(r) for r in rows]
    left = side == "left"
    ids = [[pad] * n + r if left else r + [pad] * n for n, r in zip(fill, rows, strict=True)]
    mask = [[0] * n + [1] * len(r) if left else [1] * len(r) + [0] * n for n, r in zip(fill, rows, strict=True)]
    return ids, mask


def optimum(folder: Path, job: Job) -> Result:
    """Ids, or values, by Optimum's class for the task; text by the tokenizer that transformers finds in the folder."""
    from unittest.mock import MagicMock

    import torch
    import torch.onnx.symbolic_opset14 as symbolic

    # Optimum 1.27 imports these for its exporter, which does nothing here; torch 2.13 has them no more.
    for name in "_attention_scale _causal_attention_mask _onnx_symbolic _type_utils jit_utils symbolic_helper".split():
        symbolic.__dict__.setdefault(name, MagicMock())
    classes = importlib.import_module("optimum.onnxruntime")
    from transformers import AutoTokenizer

    model = getattr(classes, CLASSES[job["task"]]).from_pretrained(folder)
    result: Result = {}
    if job.get("texts"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        result["texts"] = [list(map(int, tokenizer(t)["input_ids"])) for t in job["texts"]]
    side = "left" if job["task"] == "causal-lm" else "right"

    def given(rows: list[list[int]]) -> dict[str, Any]:
        ids, mask = padded(rows, job["pad"], side)
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def features() -> Any:
        return torch.tensor(job["features"]["values"]).reshape(job["features"]["shape"])

    def written(inputs: dict[str, Any], start: int) -> list[list[int]]:
        length = {"max_new_tokens": job["new"], "min_new_tokens": job["new"], "do_sample": False, "num_beams": 1}
        return [row[start:] for row in model.generate(**inputs, **length).tolist()]

    if job["task"] == "speech-to-text":
        result["batch"] = written({"input_features": features()}, -job["new"])
    elif job["task"] in ("causal-lm", "seq2seq-lm"):
        causal = job["task"] == "causal-lm"
        result["batch"] = written(given(job["rows"]), max(map(len, job["rows"])) if causal else 1)
        result["single"] = [written(given([r]), len(r) if causal else 1)[0] for r in job["rows"]]
    else:
        found = model(**({"pixel_values": features()} if "features" in job else given(job["rows"])))
        values = found.last_hidden_state if "last_hidden_state" in found else found.logits
        result |= {"values": values.flatten().tolist(), "shape": list(values.shape)}
    return result


def genai(folder: Path, job: Job) -> Result:
    """Ids by onnxruntime-genai, which pads on the right; text by its own tokenizer."""
    import numpy as np

    og = importlib.import_module("onnxruntime_genai")
    model = og.Model(str(folder))
    result: Result = {}
    if job.get("texts"):
        tokenizer = og.Tokenizer(model)
        result["texts"] = [list(map(int, tokenizer.encode(t))) for t in job["texts"]]

    def written(rows: list[list[int]]) -> list[list[int]]:
        ids, _ = padded(rows, job["pad"], "right")
        total = len(ids[0]) + job["new"]
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=total, min_length=total, do_sample=False, batch_size=len(rows))
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(ids, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [list(map(int, generator.get_sequence(i)))[len(ids[0]) :] for i in range(len(rows))]

    result["batch"] = written(job["rows"])
    result["single"] = [written([r])[0] for r in job["rows"]]
    return result


def main() -> None:
    client = {"optimum": optimum, "genai": genai}[sys.argv[1]]
    given = json.loads(Path(sys.argv[2]).read_text())
    results: dict[str, Result] = {}
    for job in given["jobs"]:
        try:
            results[job["name"]] = client(Path(given["models"]) / job["name"], job)
        except Exception as e:  # whatever a client says of a folder is the result
            results[job["name"]] = {"error": f"{type(e).__name__}: {e}"[:300]}
    names = ("optimum", "optimum-onnx", "transformers", "onnxruntime") if sys.argv[1] == "optimum" else (
        "onnxruntime-genai", "onnxruntime"
    )  # fmt: skip
    print(json.dumps({"version": ", ".join(f"{n} {v}" for n in names if (v := found(n))), "results": results}))


def found(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return ""


if __name__ == "__main__":
    main()
