"""SmolLM2-135M, 512 tokens of real text: Monograph's PyTorch and ONNX Runtime against transformers, all in float32.

All three compute with the same weights, dequantized from the 4-bit file once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import torch
from monograph.assets import fetch
from monograph.backends.onnxruntime import open as open_session
from monograph.console import working
from monograph.frontends.huggingface import save_pretrained
from monograph.frontends.task import CAUSAL_LM, LOGITS
from monograph.ir import DType
from monograph.ir.slots import TOKENS
from monograph.parity import compare
from monograph.runners import Call, Inputs, Runner, Spans, onnx_runner, run_runner, torch_runner
from monograph.training.corpus import python_topics
from report import WORK, parser, publish

LENGTH, PREFILL, TOLERANCE = 512, 448, 2e-4
HF, SESSION = WORK / "smollm2-f32", "ONNX Runtime, session"


def cases(ids: Any) -> dict[str, tuple[Inputs, Spans]]:
    """Inputs and calls by name; `ids` holds at least 3 x 512 token ids."""
    one, three = ids[:LENGTH].reshape(1, LENGTH), ids[: 3 * LENGTH].reshape(3, LENGTH)
    right, left, hole = np.ones_like(three), np.ones_like(three), np.ones_like(one)
    for row, padding in enumerate((0, 100, 300)):
        right[row, LENGTH - padding :] = 0
        left[row, :padding] = 0
    hole[0, 200:230] = 0
    whole = [(0, LENGTH)]
    steps = [(0, PREFILL), *((i, i + 1) for i in range(PREFILL, LENGTH))]
    return {
        "plain, batch 1": (inputs(one, np.ones_like(one)), whole),
        "right-padded, batch 3": (inputs(three, right), whole),
        "left-padded, batch 3": (inputs(three, left), whole),
        "hole in the mask, batch 1": (inputs(one, hole), whole),
        f"{LENGTH - PREFILL} decode steps after {PREFILL} tokens": (inputs(one, np.ones_like(one)), steps),
    }


def inputs(ids: Any, mask: Any) -> Inputs:
    return CAUSAL_LM.fill({TOKENS.ids: ids, TOKENS.mask: mask}, TOKENS.names)


def transformers_runner(folder: Path) -> Runner:
    """transformers' own implementation; decode steps pass its own cache on."""
    from transformers import AutoModelForCausalLM, DynamicCache

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(call: Call) -> dict[str, Any]:
        given = call.inputs
        cache = DynamicCache(config=module.config)
        parts = []
        for start, stop in call.spans:
            sliced = {k: torch.from_numpy(given[k][:, start:stop]) for k in (TOKENS.ids, TOKENS.positions)}
            mask = torch.from_numpy(given[TOKENS.mask][:, :stop])
            with torch.no_grad():
                out = module(**sliced, attention_mask=mask, past_key_values=cache, use_cache=True)
            parts.append(out.logits.numpy())
        return {LOGITS: np.concatenate(parts, axis=1)}

    return run


def session_runner(session: Any) -> Runner:
    """As the engine generates: a prompt, then single steps over shared buffers; zeros where it gives no logits."""

    def run(call: Call) -> dict[str, Any]:
        ids, spans = call.inputs[TOKENS.ids], call.spans
        first = session.prefill(ids[:, : spans[0][1]], np.array([spans[0][1]]))
        found = np.zeros((*ids.shape, first.shape[-1]), np.float32)
        found[:, spans[0][1] - 1] = first
        for start, _ in spans[1:]:
            found[:, start] = session.step(ids[:, start])
        return {LOGITS: found}

    return run


def main() -> None:
    given = parser(__doc__).parse_args()
    model = mg.load(fetch("smollm2"))
    text = model.tokenizer.encode(python_topics()[:20_000])
    table = cases(np.array(text[: 3 * LENGTH], np.int64))
    with working("writing float32 checkpoints"):
        if not (HF / "config.json").exists():
            save_pretrained(model, HF, dtype=DType.f32)
        mg.export(model, WORK / "smollm2-onnx")
        mg.build(model, WORK / "smollm2-cpu")
    runners: dict[str, Callable[[], Runner]] = {
        "PyTorch": lambda: torch_runner(model),
        "ONNX, standard ops": lambda: onnx_runner(WORK / "smollm2-onnx", model.graph()),
        "ONNX Runtime, fused": lambda: run_runner(open_session(WORK / "smollm2-cpu"), model.graph()),
        SESSION: lambda: session_runner(open_session(WORK / "smollm2-cpu")),
    }
    expected = run_all(transformers_runner(HF), table)
    rows: dict[str, dict[str, Any]] = {case: {"case": case} for case in table}
    for name, make in runners.items():
        # A session that generates gives logits after its prompt only, so it is compared where it decodes.
        chosen = {k: v for k, v in table.items() if name != SESSION or len(v[1]) > 1}
        found = run_all(make(), chosen)
        for case, (fed, spans) in chosen.items():
            where = fed[TOKENS.mask] != 0
            if name == SESSION:
                where[:, : spans[0][1] - 1] = False
            r = compare(case, name, expected[case], found[case], where, TOLERANCE)
            rows[case][name] = r.difference
            rows[case]["agree"] = min(r.argmax, rows[case].get("agree", 1.0))
        del found
        gc.collect()
    worst = max(v for row in rows.values() for k, v in row.items() if k in runners)
    shown = [
        {"case": case, **{n: row.get(n) for n in runners}, "argmax equal (%)": 100 * row["agree"]}
        for case, row in rows.items()
    ]
    note = (
        f"Largest difference of a logit from transformers {torch_version()}, at valid positions; logits reach "
        f"{max(np.abs(e).max() for e in expected.values()):.0f}. Worst {worst:.1e}, aim {TOLERANCE:g}."
    )
    publish("parity_smollm2", shown, note=note, only_print=given.no_publish)


def run_all(run: Runner, table: dict[str, tuple[Inputs, Spans]]) -> dict[str, Any]:
    return {case: run(Call(fed, spans, fed[TOKENS.mask]))[LOGITS] for case, (fed, spans) in table.items()}


def torch_version() -> str:
    import transformers

    return f"{transformers.__version__} on torch {torch.__version__.partition('+')[0]}"


if __name__ == "__main__":
    main()
