"""SmolLM2-135M by every method of quantization: size, perplexity, greedy agreement, decoding, build time and memory.

Perplexity is over the first 4,000 tokens of the King James Bible in four pieces that each start anew; methods that
read text are calibrated on what follows. Each build and each measurement of quality is a process of its own; decoding
takes turns in one.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from memory import in_process
from monograph.assets import fetch
from monograph.backends.onnxruntime import open as open_session
from monograph.console import working
from monograph.frontends.huggingface import save_pretrained
from monograph.ir import DType
from monograph.machine import median, peak_memory
from report import ROOT, WORK, Row, parser, publish

PLACE, HF = WORK / "quantization", WORK / "smollm2-f32"
HEAD, REST = PLACE / "kjv-head.txt", PLACE / "kjv-rest.txt"
TOKENS, PIECE, PROMPT, NEW = 4000, 1000, 128, 64
CUT = 40_000
"""Characters from which on the text is for calibration; the 4,000 tokens end well before."""

CASES: dict[str, dict[str, Any]] = {
    "f32": {},
    "int8, rtn": {"weights": "int8", "method": "rtn"},
    "int8 by channel, dynamic": {"weights": "int8-dynamic", "method": "rtn"},
    "int8 by channel, SmoothQuant": {"weights": "int8-dynamic", "method": "smoothquant", "calibrate": REST},
    "int4, rtn": {"weights": "int4", "method": "rtn"},
    "int4, k-quant": {"weights": "int4", "method": "kquant"},
    "int4, HQQ": {"weights": "int4", "method": "hqq"},
    "int4, GPTQ": {"weights": "int4", "method": "gptq", "calibrate": REST},
    "int4, AWQ": {"weights": "int4", "method": "awq", "calibrate": REST},
    "int4 and tables in blocks of 64, GPTQ": {
        "weights": "int4", "method": "gptq", "block": 64, "tables": "int4", "calibrate": REST,
    },
    "int4 in blocks of 128, GPTQ": {"weights": "int4", "method": "gptq", "block": 128, "calibrate": REST},
    "mixed, at most 110 MB": {"weights": "int4", "method": "gptq", "size": 110_000_000, "calibrate": REST},
    "mixed, perplexity +2 %": {"weights": "int4", "method": "gptq", "quality": 0.02, "calibrate": REST},
}  # fmt: skip


def folder(name: str) -> Path:
    return PLACE / "".join(c if c.isalnum() else "-" for c in name)


def prepare() -> None:
    """The checkpoint and the text."""
    import sys

    sys.path.insert(0, str(ROOT / "examples"))
    from king_james import text  # pyright: ignore[reportMissingImports]

    PLACE.mkdir(parents=True, exist_ok=True)
    if not (HF / "config.json").exists():
        save_pretrained(mg.load(fetch("smollm2")), HF, dtype=DType.f32)
    if not REST.exists():
        found = text()
        HEAD.write_text(found[:CUT])
        REST.write_text(found[CUT:])


def build(name: str) -> dict[str, Any]:
    """Build one case. Seconds are those that its threads computed, so that what else runs does not count."""
    asked = mg.Quantization(**CASES[name]) if CASES[name] else None
    start = time.process_time()
    report = mg.build(mg.load(HF), folder(name), quantize=asked).report
    seconds = time.process_time() - start
    assert report is not None
    done = report.quantization
    return {
        "seconds": seconds,
        "peak": peak_memory(),
        "bytes": report.bytes,
        "encodings": {} if done is None else done.encodings,
        "in full": 0 if done is None else len(done.fine),
    }


def quality(name: str) -> dict[str, Any]:
    return asdict(mg.quality(folder(name), HEAD, against=str(HF), tokens=TOKENS, window=PIECE))


def decode(names: list[str], threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of NEW steps behind a prompt, for all cases in turn; the first round warms up."""
    sessions = {name: open_session(folder(name), threads=threads) for name in names}
    tokens = np.array([mg.load(HF).tokenizer.encode(HEAD.read_text()[:4000], add_special=False)[:PROMPT]], np.int64)
    found: dict[str, list[float]] = {name: [] for name in names}
    for each in range(rounds + 1):
        for name, session in sessions.items():
            chosen = session.prefill(tokens, np.array([PROMPT])).argmax(-1)
            start = time.perf_counter()
            for _ in range(NEW):
                chosen = session.step_greedy(chosen)
            if each:
                found[name].append(time.perf_counter() - start)
    return found


def row(name: str, built: dict[str, Any], measured: dict[str, Any], seconds: list[float]) -> Row:
    return {
        "weights": name,
        "MB": built["bytes"] / 1e6,
        "perplexity": measured["perplexity"],
        "perplexity (%)": 100 * (measured["perplexity"] / measured["before"] - 1),
        "likeliest token equal (%)": 100 * measured["agreement"],
        "greedy equal (%)": 100 * measured["greedy"],
        "KL (nats)": measured["divergence"],
        "decode (tokens/s)": NEW / median(seconds),
        "build (CPU s)": built["seconds"],
        "peak (MB)": built["peak"] / 1e6,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--one", nargs=2, metavar=("build|quality", "CASE"), help="one step, for the main process")
    options.add_argument("--only", action="append", choices=list(CASES), help="only this case; may be repeated")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--part", choices=("build", "decode"), help="only this; the other as it was left")
    given = options.parse_args()
    if given.one:
        print(json.dumps({"build": build, "quality": quality}[given.one[0]](given.one[1])))
        return
    names, built, measured = given.only or list(CASES), dict[str, Any](), dict[str, Any]()
    with working("text and checkpoint"):
        prepare()
    for name in names:
        kept = folder(name).with_suffix(".json")
        if given.part != "decode":
            with working(f"{name}: build"):
                built[name] = in_process(__file__, "--one", "build", name)
            with working(f"{name}: quality"):
                measured[name] = in_process(__file__, "--one", "quality", name)
            kept.write_text(json.dumps([built[name], measured[name]]))
        built[name], measured[name] = json.loads(kept.read_text())
    if given.part == "build":
        return
    with working(f"decoding, {given.rounds} rounds"):
        seconds = decode(names, given.threads, given.rounds)
    rows = [row(name, built[name], measured[name], seconds[name]) for name in names]
    spread = max(max(s) / min(s) for s in seconds.values())
    note = (
        f"Perplexity of {TOKENS:,} tokens of the King James Bible in pieces of {PIECE}, and its rise; likeliest and "
        "greedy tokens as the f32 model has them. Builds that read text also measure themselves. Decoding: "
        f"{given.threads} threads behind {PROMPT} tokens, median of {given.rounds}, in turn; the slowest round took at "
        f"most {spread:.2f} times the fastest. The f32 weights are those of a file in 4 bits, dequantized."
    )
    publish(
        "quantization", rows, note=note, only_print=given.no_publish, built=built, quality=measured, seconds=seconds
    )


if __name__ == "__main__":
    main()
