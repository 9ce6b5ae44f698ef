"""What every engine of serving.py answers: JSON lines in, JSON lines out, one model held open; see `Engine`.

serving_worker.py ENGINE FOLDER THREADS, run by the environment of that engine. Requests:
{"do": "prefill", "tokens": [...]}: seconds until the token after a prompt is chosen.
{"do": "decode", "tokens": [...], "rows": 1, "new": 32}: seconds a step, behind prompts of these tokens.
{"do": "surprise", "tokens": [...]}: minus the log probability of every token after the first, summed.
{"do": "memory"}: most bytes of resident memory so far.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

STEPS = 15
IN_F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
"""Settings of OpenVINO."""


class Engine(Protocol):
    """One engine with one model."""

    def start(self, tokens: list[int], rows: int, new: int) -> None:
        """Forget everything, read the same prompt in every row and choose the token after it."""
        ...

    def step(self) -> None:
        """Read the chosen tokens, choose the next."""
        ...

    def logits(self, tokens: list[int]) -> Array:
        """Logits [S,V] of one row."""
        ...


class Monograph:
    """A folder that `mg.build` wrote."""

    def __init__(self, folder: str, threads: int) -> None:
        from monograph.backends.onnxruntime import open as open_session

        self.session = open_session(Path(folder), threads=threads)
        self.chosen = np.zeros(1, np.int64)

    def start(self, tokens: list[int], rows: int, new: int) -> None:
        given = np.tile(np.asarray(tokens, np.int64), (rows, 1))
        self.chosen = self.session.prefill(given, np.full(rows, len(tokens))).argmax(-1)

    def step(self) -> None:
        self.chosen = self.session.step_greedy(self.chosen)

    def logits(self, tokens: list[int]) -> Array:
        """Through whichever of the graphs for prompts and for steps is farther from the text."""
        ids = np.asarray([tokens], np.int64)
        whole = self.session.run({"input_ids": ids})["logits"][0]
        found = [self.session.prefill(ids[:, :1], np.array([1]))]
        for start in range(1, len(tokens), STEPS):  # So few at once go through the graph of steps.
            found.append(self.session.append(ids[:, start : start + STEPS], every=True)[0])
        stepped = np.concatenate(found)
        return max((whole, stepped), key=lambda logits: surprise(logits, tokens))


class Genai:
    """A folder of onnxruntime-genai's model builder."""

    def __init__(self, folder: str, threads: int) -> None:
        import onnxruntime_genai as og  # pyright: ignore[reportMissingImports]

        config = og.Config(folder)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.library, self.model, self.folder, self.threads = og, og.Model(config), folder, threads
        self.generator: Any = None
        self.plain: Any = None

    def start(self, tokens: list[int], rows: int, new: int) -> None:
        params = self.library.GeneratorParams(self.model)
        most = len(tokens) + new + 2
        params.set_search_options(do_sample=False, min_length=most, max_length=most, batch_size=rows)
        self.generator = self.library.Generator(self.model, params)
        self.generator.append_tokens(np.tile(np.asarray(tokens, np.int32), (rows, 1)) if rows > 1 else tokens)
        self.generator.generate_next_token()

    def step(self) -> None:
        self.generator.generate_next_token()

    def logits(self, tokens: list[int]) -> Array:
        """By ONNX Runtime alone: the engine gives the logits of the last token only."""
        import onnxruntime

        if self.plain is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            self.plain = onnxruntime.InferenceSession(f"{self.folder}/model.onnx", options, ["CPUExecutionProvider"])
        said = json.loads(Path(self.folder, "genai_config.json").read_text())["model"]["decoder"]
        nothing = np.zeros((1, said["num_key_value_heads"], 0, said["head_size"]), np.float32)
        feeds: dict[str, Array] = {
            i.name: nothing for i in self.plain.get_inputs() if i.name.startswith("past_key_values")
        }
        feeds["input_ids"] = np.asarray([tokens], np.int64)
        feeds["attention_mask"] = np.ones((1, len(tokens)), np.int64)
        if any(i.name == "position_ids" for i in self.plain.get_inputs()):
            feeds["position_ids"] = np.arange(len(tokens), dtype=np.int64)[None]
        return self.plain.run(["logits"], feeds)[0][0]


class OpenVino:
    """A folder of optimum-intel, through OpenVINO's own runtime with its state inside, as its pipelines run it.

    exactly: in f32, where it would choose bf16 on a CPU that multiplies it.
    """

    def __init__(self, folder: str, threads: int, *, exactly: bool = False) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
        if exactly:
            core.set_property("CPU", IN_F32)
        self.request = core.compile_model(f"{folder}/openvino_model.xml", "CPU").create_infer_request()
        self.names = {n for i in self.request.get_compiled_model().inputs for n in i.get_names()}
        self.length, self.chosen = 0, np.zeros(1, np.int64)

    def call(self, tokens: Array) -> Array:
        rows, count = tokens.shape
        start, self.length = self.length, self.length + count
        given = {
            "input_ids": tokens,
            "attention_mask": np.ones((rows, self.length), np.int64),
            "position_ids": np.tile(np.arange(start, self.length, dtype=np.int64), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        self.request.infer({k: v for k, v in given.items() if k in self.names}, share_inputs=True)
        return self.request.get_output_tensor(0).data

    def start(self, tokens: list[int], rows: int, new: int) -> None:
        self.request.reset_state()
        self.length = 0
        self.chosen = self.call(np.tile(np.asarray(tokens, np.int64), (rows, 1)))[:, -1].argmax(-1)

    def step(self) -> None:
        self.chosen = self.call(self.chosen[:, None])[:, -1].argmax(-1)

    def logits(self, tokens: list[int]) -> Array:
        self.request.reset_state()
        self.length = 0
        return self.call(np.asarray([tokens], np.int64))[0].copy()


class OpenVinoGenai:
    """The same folder through openvino_genai's pipeline, which chooses tokens itself: one call for all steps."""

    def __init__(self, folder: str, threads: int, *, exactly: bool = False) -> None:
        import openvino_genai  # pyright: ignore[reportMissingImports]

        self.library = openvino_genai
        settings = {"INFERENCE_NUM_THREADS": threads} | (IN_F32 if exactly else {})
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", **settings)

    def measured(self, tokens: list[int], rows: int, new: int) -> dict[str, float]:
        """Seconds to the first token and of each later step, by the pipeline's own clock."""
        import openvino  # pyright: ignore[reportMissingImports]

        config = self.library.GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        ids = np.tile(np.asarray(tokens, np.int64), (rows, 1))
        given = self.library.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        metrics = self.pipeline.generate(given, config).perf_metrics
        # Its time per token counts the tokens of all rows.
        return {"first": metrics.get_ttft().mean / 1e3, "step": rows * metrics.get_tpot().mean / 1e3}


class Transformers:
    """A Hugging Face folder in eager PyTorch."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.cache = torch, transformers.DynamicCache
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.past: Any = None
        self.chosen: Any = None

    def call(self, ids: Any) -> Any:
        found = self.model(ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1].argmax(-1)

    def start(self, tokens: list[int], rows: int, new: int) -> None:
        self.past = self.cache(config=self.model.config)
        self.chosen = self.call(self.torch.tensor([tokens] * rows))

    def step(self) -> None:
        self.chosen = self.call(self.chosen[:, None])

    def logits(self, tokens: list[int]) -> Array:
        return self.model(self.torch.tensor([tokens])).logits[0].numpy()


class Exported:
    """What transformers' own exporter wrote with its fusions for ONNX Runtime: a graph for prompts, one for steps."""

    def __init__(self, folder: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        paths = {k: next(Path(folder).glob(f"{k}*.onnx")) for k in ("prefill", "decode")}
        self.graphs = {
            k: onnxruntime.InferenceSession(str(p), options, providers=["CPUExecutionProvider"])
            for k, p in paths.items()
        }
        self.past: dict[str, Any] = {}
        self.length, self.rows, self.chosen = 0, 1, np.zeros(1, np.int64)

    def call(self, name: str, tokens: Array) -> Array:
        graph = self.graphs[name]
        start, self.length = self.length, self.length + tokens.shape[1]
        feeds: dict[str, Any] = {}
        for given in graph.get_inputs():
            if given.name in self.past:
                feeds[given.name] = self.past[given.name]
            elif given.name == "input_ids":
                feeds[given.name] = self.value(np.ascontiguousarray(tokens))
            elif "mask" in given.name:
                feeds[given.name] = self.value(np.ones((len(tokens), self.length), np.int64))
            elif "position" in given.name:
                ids = np.tile(np.arange(start, self.length, dtype=np.int64), (len(tokens), 1))
                feeds[given.name] = self.value(ids)
            else:
                sys.exit(f"{name} takes {given.name} {given.shape}, which this worker does not know")
        outputs = [o.name for o in graph.get_outputs()]
        found = dict(zip(outputs, graph.run_with_ort_values(outputs, feeds), strict=True))
        logits = found.pop("logits").numpy()
        later = [i.name for i in self.graphs["decode"].get_inputs() if "cache" in i.name]
        self.past = dict(zip(later, found.values(), strict=True))
        return logits

    def start(self, tokens: list[int], rows: int, new: int) -> None:
        self.past, self.length = {}, 0
        self.chosen = self.call("prefill", np.tile(np.asarray(tokens, np.int64), (rows, 1)))[:, -1].argmax(-1)

    def step(self) -> None:
        self.chosen = self.call("decode", self.chosen[:, None])[:, -1].argmax(-1)

    def logits(self, tokens: list[int]) -> Array:
        self.past, self.length = {}, 0
        return self.call("prefill", np.asarray([tokens], np.int64))[0]


class OnnxGenai:
    """A folder that onnx-genai opens (a genai_config.json beside a portable graph): text in, tokens as they come."""

    def __init__(self, folder: str, threads: int) -> None:
        import onnx_genai  # pyright: ignore[reportMissingImports]
        import tokenizers

        self.engine = onnx_genai.Engine.from_dir(folder)
        self.tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.asked = 0

    def measured(self, tokens: list[int], rows: int, new: int) -> dict[str, float]:
        """Seconds to the first token and of each later one: those of a longer answer less those of one token.

        The engine hands all tokens over at the end, reads one row at a time, and knows again the beginnings that it
        has read, so each text begins with tokens of its own.
        """
        if rows > 1:
            sys.exit("onnx-genai's Python engine takes one text")
        first, _ = self.timed(tokens, 1)
        whole, made = self.timed(tokens, new)
        return {"first": first, "step": (whole - first) / max(made - 1, 1)}

    def timed(self, tokens: list[int], new: int) -> tuple[float, int]:
        self.asked += 1
        text = self.tokenizer.decode([1000 + self.asked, *tokens[1:]])
        start = time.perf_counter()
        found = self.engine.generate(text, max_tokens=new, temperature=0.0)
        return time.perf_counter() - start, len(found.token_ids)


ENGINES: dict[str, Callable[[str, int], Any]] = {
    "monograph": Monograph,
    "genai": Genai,
    "openvino": OpenVino,
    "openvino-f32": partial(OpenVino, exactly=True),
    "openvino-genai": OpenVinoGenai,
    "openvino-genai-f32": partial(OpenVinoGenai, exactly=True),
    "transformers": Transformers,
    "exported": Exported,
    "onnx-genai": OnnxGenai,
}


def surprise(logits: Array, tokens: list[int]) -> float:
    """Minus the log probability of every token after the first, summed in f64."""
    x = logits[:-1].astype(np.float64)
    most = x.max(-1, keepdims=True)
    total = np.log(np.exp(x - most).sum(-1)) + most[:, 0]
    return float((total - x[np.arange(len(x)), tokens[1:]]).sum())


def answer(engine: Any, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["do"] == "memory":
        # Not `ru_maxrss`, which begins with what the process that started this one had.
        lines = Path("/proc/self/status").read_text().splitlines()
        return {"bytes": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))}
    tokens = asked["tokens"]
    if asked["do"] == "surprise":
        return {"nats": surprise(engine.logits(tokens), tokens)}
    new = asked.get("new", 1)
    rows = asked.get("rows", 1)
    if isinstance(engine, (OpenVinoGenai, OnnxGenai)):
        found = engine.measured(tokens, rows, new + 1)
        return {"seconds": found["first" if asked["do"] == "prefill" else "step"]}
    start = time.perf_counter()
    engine.start(tokens, rows, new)
    if asked["do"] == "prefill":
        return {"seconds": time.perf_counter() - start}
    engine.step()
    start = time.perf_counter()
    for _ in range(new):
        engine.step()
    return {"seconds": (time.perf_counter() - start) / new}


def main() -> None:
    name, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print goes elsewhere.
    engine = ENGINES[name](folder, threads)
    channel.write(json.dumps({"ready": name}) + "\n")
    for line in sys.stdin:
        channel.write(json.dumps(answer(engine, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
