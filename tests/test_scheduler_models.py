"""Every family that generates, and every form of weights: rows of a scheduler give the ids of plain greedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph.frontends.dsl import Model, load_family
from monograph.inference.engine import Engine
from monograph.inference.generate import Settings
from monograph.ir import DType
from monograph.ir.slots import TOKENS
from monograph.ir.weights import Weights
from small_models import OWN, SMALL

GENERATING = [
    "bloom", "deepseek_v3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj", "gru_lm", "lfm2", "llama", "lstm_lm",
    "lstm_seq2seq", "mamba2", "mistral", "mixtral", "rnn_lm", "t5", "transformer2017", "whisper",
]  # fmt: skip
PLAIN = Settings(max_new_tokens=9, eos=())


def model(family: str, **settings: Any) -> Model:
    """A small model whose heads are wide enough for every kernel, with weights that tell tokens apart."""
    found = load_family(family)
    names = {f.name for f in dataclasses.fields(found.config_class)}
    given = {**SMALL, "dim": 32, "head_dim": 8, "rotary_dim": 8, **OWN.get(family, {}), **settings}
    made = found(**{k: v for k, v in given.items() if k in names})
    weights = Weights.initialize(made.graph(), 1)
    made.weights = Weights.of({k: (4 * weights.numpy(k)).astype(np.float32) for k in made.graph().params})
    return made


def source(engine: Engine, seed: int) -> dict[str, Any] | None:
    """What the encoder reads for one row: of another length for every other row."""
    contract, rng = engine.session.contract, np.random.default_rng(seed)
    if not contract.encoder:
        return None
    shape = {"S": 3 + seed % 2}
    found: dict[str, Any] = {}
    for name, type in contract.inputs[contract.encoder].items():
        dims = [1, *(d if isinstance(d, int) else shape.get(str(d), 8) for d in type.shape[1:])]
        ids = type.dtype is DType.i64
        found[name] = rng.integers(0, 50, dims) if ids else rng.standard_normal(dims).astype(np.float32)
    return found | {k: np.ones_like(v) for k, v in found.items() if k == TOKENS.mask}


def check(engine: Engine, prompts: list[list[int]], **scheduler: Any) -> None:
    sources = [source(engine, i) for i in range(len(prompts))]
    wanted = []
    for prompt, inputs in zip(prompts, sources, strict=True):
        wanted.append(engine.generate([prompt], inputs=inputs, max_new_tokens=9, eos=())[0].ids)
    with engine.scheduler(**scheduler) as running:
        for _ in range(2):
            requests = [running.submit(p, PLAIN, inputs=s) for p, s in zip(prompts, sources, strict=True)]
            assert [r.result(60).ids for r in requests] == wanted
        gauges = running.gauges()
    assert gauges.running == gauges.queued == 0 and gauges.ended == {"length": 2 * len(prompts)}


@pytest.mark.parametrize("family", GENERATING)
def test_rows_of_every_family(family: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    with mg.build(model(family), tmp_path / "built") as engine:
        prompts = [rng.integers(0, 50, int(n)).tolist() for n in rng.integers(1, 40, 9)]
        check(engine, [*prompts, [*prompts[0], 7, 8]], rows=3, chunk=11)


@pytest.mark.parametrize(
    "quantize",
    ["int4", "int8", "int8-dynamic", "int2", *(mg.Quantization("int8", prompts=p) for p in ("float", "int8", "same"))],
    ids=str,
)
def test_rows_of_every_form_of_weights(quantize: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    made = model("llama", vocab=128, dim=64, ffn=128, head_dim=16, max_positions=128)
    with mg.build(made, tmp_path / "built", quantize=quantize) as engine:
        prompts = [rng.integers(0, 128, int(n)).tolist() for n in rng.integers(1, 90, 9)]
        for chunk in (40, 18):
            check(engine, [*prompts, [*prompts[0], 7, 8]], rows=4, chunk=chunk)
