"""Transcripts: what a tiny Whisper says of several sounds at once, against transformers' logits token by token."""

from __future__ import annotations

from typing import Any

import monograph as mg
import numpy as np
import pytest
import tokenizers
import torch
from family_parity import reference_model
from monograph.frontends.audio import LogMel
from monograph.inference.speech import NO_TIMES, START, transcribe
from monograph.ir.errors import RuntimeInputError
from test_family_whisper import CASES

pytestmark = pytest.mark.slow

HEAR = LogMel(mels=8, rate=800, window=40, hop=100, seconds=3)
"""24 frames, as the tiny model has."""
SPECIAL = {START: 3, "<|en|>": 4, "<|fr|>": 5, "<|transcribe|>": 6, "<|translate|>": 7, NO_TIMES: 8}
SAYS = [f"w{i}" for i in range(61)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(the model of transformers, our engine)."""
    folder = tmp_path_factory.mktemp("whisper")
    model = reference_model(CASES["whisper"])
    model.save_pretrained(folder / "checkpoint")
    words = {**{w: i for i, w in enumerate(SAYS) if i not in SPECIAL.values()}, **SPECIAL}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    core.add_special_tokens(list(SPECIAL))
    core.save(str(folder / "checkpoint" / "tokenizer.json"))
    return model, mg.build(mg.load(folder / "checkpoint"), folder / "built", threads=1)


def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.standard_normal(n).astype(np.float32) for n in (700, 2400, 3000)]


def expected(model: Any, sound: np.ndarray, prompt: list[int], count: int, never: list[int], first: list[int]) -> Any:
    """The likeliest token after each other."""
    ids, features = list(prompt), torch.from_numpy(HEAR(sound))[None]
    for step in range(count):
        with torch.no_grad():
            logits = model(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[never + (first if step == 0 else [])] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("language", "kind"), [("en", "transcribe"), ("fr", "translate")])
def test_each_sound_gets_what_it_gets_alone(served: tuple[Any, Any], language: str, kind: str) -> None:
    model, engine = served
    settings = {"language": language, "kind": kind, "max_new_tokens": 7, "eos": ()}
    found = transcribe(engine.session, engine.tokenizer, HEAR, sounds(), **settings)
    prompt = [3, SPECIAL[f"<|{language}|>"], SPECIAL[f"<|{kind}|>"], 8]
    for sound, got in zip(sounds(), found, strict=True):
        assert got.prompt == prompt
        assert got.ids == expected(model, sound, prompt, 7, [], [])


def test_suppressed_tokens_are_never_said(served: tuple[Any, Any]) -> None:
    model, engine = served
    plain = transcribe(engine.session, engine.tokenizer, HEAR, sounds()[:1], max_new_tokens=5, eos=())[0]
    first, never = plain.ids[:1], plain.ids[2:3]
    given = {"suppress": never, "suppress_first": first, "max_new_tokens": 5, "eos": ()}
    found = transcribe(engine.session, engine.tokenizer, HEAR, sounds()[:1], **given)[0]
    assert found.ids == expected(model, sounds()[0], plain.prompt, 5, never, first)
    assert found.ids[0] != first[0] and never[0] not in found.ids


def test_what_the_tokenizer_does_not_know_is_refused(served: tuple[Any, Any]) -> None:
    _, engine = served
    with pytest.raises(RuntimeInputError, match=r"the tokenizer has no token <\|xx\|>"):
        transcribe(engine.session, engine.tokenizer, HEAR, sounds(), language="xx")
    with pytest.raises(RuntimeInputError, match=r"kind is 'transcripe'.* did you mean 'transcribe'"):
        transcribe(engine.session, engine.tokenizer, HEAR, sounds(), kind="transcripe")
