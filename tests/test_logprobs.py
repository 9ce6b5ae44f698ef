"""Log-probabilities against transformers: raw logits and processed scores through its compute_transition_scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from monograph.backends.onnxruntime import build
from monograph.frontends.load import load
from monograph.inference.engine import Engine
from monograph.inference.generate import Settings
from monograph.inference.logprobs import Logprob, likeliest, log_softmax
from monograph.ir.errors import RuntimeInputError

PROMPTS = [[3, 5, 7, 9, 11], [2], [8, 8, 1, 4, 40, 12, 3, 3, 9]]
HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy with a penalty": {"repetition_penalty": 1.7},
    "sampled": {"temperature": 0.8, "seed": 3},
    "sampled with filters": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5},
    "sampled from the likely": {"temperature": 0.7, "min_p": 0.2, "seed": 1},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder / "hf")
    build(load(folder / "hf"), None, folder / "ours")
    return theirs, Engine.open(folder / "ours", threads=1)


def processors(how: dict[str, Any]) -> Any:
    found = transformers.LogitsProcessorList()
    if "repetition_penalty" in how:
        found.append(transformers.RepetitionPenaltyLogitsProcessor(how["repetition_penalty"]))
    if "temperature" in how:
        found.append(transformers.TemperatureLogitsWarper(how["temperature"]))
    for name, kind in (("top_k", transformers.TopKLogitsWarper), ("top_p", transformers.TopPLogitsWarper),
                       ("min_p", transformers.MinPLogitsWarper)):  # fmt: skip
        if name in how:
            found.append(kind(how[name]))
    return found


def wanted(model: Any, prompt: list[int], ids: list[int], how: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """(raw and processed transition scores, all raw and processed log-probabilities [n,V]) of chosen ids."""
    sequence = torch.tensor([prompt + ids])
    with torch.no_grad():
        logits = model(sequence).logits[0, len(prompt) - 1 : -1]
    steps = [sequence[:, : len(prompt) + i] for i in range(len(ids))]
    scores = [processors(how)(s, row[None].clone()) for s, row in zip(steps, logits, strict=True)]
    raw = tuple(row[None] for row in logits)
    found = [model.compute_transition_scores(sequence, x, normalize_logits=True)[0].numpy() for x in (raw, scores)]
    return *found, *(torch.log_softmax(torch.cat(tuple(x)), -1).numpy() for x in (raw, scores))


def check(told: list[Logprob], ids: list[int], expected: tuple[Any, Any, Any, Any], top: int) -> None:
    raw, processed, all_raw, all_processed = expected
    assert [t.id for t in told] == ids
    np.testing.assert_allclose([t.raw for t in told], raw, atol=2e-5)
    np.testing.assert_allclose([t.processed for t in told], processed, atol=2e-5)
    for i, t in enumerate(told):
        for said, row in ((t.top_raw, all_raw[i]), (t.top_processed, all_processed[i])):
            count = min(top, int(np.isfinite(row).sum()))
            assert [x for x, _ in said] == np.argsort(-row, kind="stable")[:count].tolist()
            np.testing.assert_allclose([p for _, p in said], row[[x for x, _ in said]], atol=2e-5)


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_both_kinds_equal_the_transition_scores_of_transformers(both: tuple[Any, Engine], how: dict[str, Any]) -> None:
    theirs, engine = both
    given = {"max_new_tokens": 9, "logprobs": 4, **how}
    alone = [engine.generate(p, **given) for p in PROMPTS]
    together = engine.generate(PROMPTS, **{**given, "seed": [how.get("seed", 0)] * 3})
    with engine.scheduler(rows=2) as scheduler:
        settings = Settings.of({k: v for k, v in given.items() if k != "logprobs"})
        requests = [scheduler.submit(p, settings, logprobs=4) for p in PROMPTS]
        pieces = [list(r) for r in requests]
        served = [r.result(0) for r in requests]
    for i, prompt in enumerate(PROMPTS):
        expected = wanted(theirs, prompt, alone[i].ids, how)
        for found in (alone[i], together[i], served[i]):
            assert found.ids == alone[i].ids and len(found.ids) == 9
            check(found.logprobs, found.ids, expected, 4)
        assert [t for p in pieces[i] for t in p.logprobs] == served[i].logprobs


@pytest.mark.parametrize("chunk", [3, 100])
def test_prompt_tokens_are_told_on_request(both: tuple[Any, Engine], chunk: int) -> None:
    theirs, engine = both
    with engine.scheduler(rows=2, chunk=chunk) as scheduler:
        for _ in range(2):  # The second time the prompts are known, and read again all the same.
            requests = [scheduler.submit(p, Settings(max_new_tokens=2), prompt_logprobs=3) for p in PROMPTS]
            served = [r.result(20) for r in requests]
    found = engine.generate(PROMPTS, max_new_tokens=2, prompt_logprobs=3)
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logits = torch.log_softmax(theirs(torch.tensor([prompt])).logits[0, :-1], -1).numpy()
        chosen = logits[np.arange(len(prompt) - 1), prompt[1:]]
        for said in (served[i].prompt_logprobs, found[i].prompt_logprobs):
            assert said[0] is None and len(said) == len(prompt)
            told = [t for t in said if t is not None]
            check(told, prompt[1:], (chosen, chosen, logits, logits), 3)
        assert found[i].logprobs == served[i].logprobs == []


def test_the_end_token_is_told_and_nothing_is_without_being_asked(both: tuple[Any, Engine]) -> None:
    _, engine = both
    ids = engine.generate(PROMPTS[0], max_new_tokens=9).ids
    end = next(i for i in range(1, 9) if ids[i] not in ids[:i])
    for found in (
        engine.generate(PROMPTS[0], max_new_tokens=9, eos=ids[end], logprobs=0),
        engine.generate(PROMPTS[:1], max_new_tokens=9, eos=ids[end], logprobs=0)[0],
    ):
        assert found.reason == "eos" and found.ids == ids[:end]
        assert [t.id for t in found.logprobs] == ids[: end + 1]
        assert all(t.top_raw == t.top_processed == [] for t in found.logprobs)
    assert engine.generate(PROMPTS[0], max_new_tokens=2).logprobs == []


def test_what_cannot_be_told(both: tuple[Any, Engine]) -> None:
    _, engine = both
    for name in ("logprobs", "prompt_logprobs"):
        for value in (-1, 1.5, True):
            with pytest.raises(RuntimeInputError, match=f"{name} is {value}, expected a number from 0, or None"):
                engine.generate([1], **{name: value})


def test_log_softmax_and_the_likeliest() -> None:
    x = np.array([[1.0, -np.inf, 3.0, 3.0], [0.0, 0.0, 0.0, 1e4]], np.float32)
    np.testing.assert_allclose(log_softmax(x), torch.log_softmax(torch.tensor(x, dtype=torch.float64), -1), atol=1e-12)
    assert [i for i, _ in likeliest(x[0].astype(float), 9)] == [2, 3, 0]
    assert likeliest(x[0].astype(float), 1) == [(2, 3.0)] and likeliest(x[0], 0) == []
