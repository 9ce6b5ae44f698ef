"""Beam search against transformers: ids and scores, decoders alone and behind encoders, batches with padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
import transformers
from monograph.frontends.huggingface import load_folder
from monograph.inference.beams import Beams, Group, Scored, largest
from monograph.inference.engine import Engine
from monograph.ir import MonographError

VOCAB, END = 40, 7
PROMPTS = [[5, 9, 13, 2], [3], [1, 8, 30, 31, 21, 6]]
Made = tuple[Any, Engine]


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.3,
        )
    )  # fmt: skip


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
            initializer_range=0.3,
        )
    )  # fmt: skip


def bloom() -> Any:
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    )


def gemma3() -> Any:
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, sliding_window=4, max_position_embeddings=64, initializer_range=0.3,
            layer_types=["sliding_attention", "full_attention"],
        )
    )  # fmt: skip


def lfm2() -> Any:
    return transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, conv_L_cache=3,
            layer_types=["conv", "full_attention"],
        )
    )  # fmt: skip


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=1.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=END, tie_word_embeddings=False,
        )
    )  # fmt: skip


def whisper() -> Any:
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=VOCAB, num_mel_bins=5, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
            max_source_positions=8, max_target_positions=32, init_std=0.3, decoder_start_token_id=1, pad_token_id=0,
            bos_token_id=0, eos_token_id=END, suppress_tokens=None, begin_suppress_tokens=None,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama, "gpt2": gpt2, "bloom": bloom, "gemma3": gemma3, "lfm2": lfm2, "t5": t5, "whisper": whisper,
}  # fmt: skip
SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": -1.5, "early_stopping": "never"},
    {"num_beams": 2, "length_penalty": 0.0},
    {"num_beams": 5, "num_return_sequences": 5, "min_new_tokens": 6},
    {"num_beams": 3, "max_new_tokens": 1, "num_return_sequences": 3},
    {"num_beams": 4, "eos": ()},
    {"num_beams": 3, "eos": (END, 11, 12), "num_return_sequences": 2},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in known:
            torch.manual_seed(3)
            model, folder = MODELS[name]().eval(), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder / "model")
            known[name] = model, mg.build(load_folder(folder / "model"), folder / "built", threads=1)
        return known[name]

    return get


def reference(model: Any, inputs: dict[str, Any], start: int, given: dict[str, Any]) -> list[list[tuple[Any, ...]]]:
    """(ids without the end, score) of each sequence of each row."""
    given = {"max_new_tokens": 12, "eos": (END,), **given}
    ends, count = list(given.pop("eos")), given.get("num_return_sequences", 1)
    with torch.no_grad():
        out = model.generate(
            **inputs, **given, do_sample=False, return_dict_in_generate=True, output_scores=True,
            eos_token_id=ends or None, pad_token_id=0,
        )  # fmt: skip
    found = []
    for row, score in zip(out.sequences[:, start:].tolist(), out.sequences_scores.tolist(), strict=True):
        ended = next((i for i, t in enumerate(row) if t in ends), len(row))
        found.append((row[:ended], score))
    return [found[i : i + count] for i in range(0, len(found), count)]


def compare(got: list[Any], wanted: list[list[tuple[Any, ...]]]) -> None:
    for some, known in zip(got, wanted, strict=True):
        several = some if isinstance(some, list) else [some]
        assert [g.ids for g in several] == [ids for ids, _ in known]
        np.testing.assert_allclose([g.score for g in several], [score for _, score in known], rtol=1e-5, atol=1e-4)
        assert all(isinstance(g, Scored) for g in several)


@pytest.mark.parametrize("given", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3", "lfm2"])
def test_decoders(made: Callable[[str], Made], name: str, given: dict[str, Any]) -> None:
    model, engine = made(name)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    wanted = reference(model, {"input_ids": ids, "attention_mask": mask}, width, dict(given))
    common = {"max_new_tokens": 12, "eos": (END,), **given}
    compare(engine.generate(PROMPTS, **common), wanted)
    compare([engine.generate(PROMPTS[2], **common)], wanted[2:])


@pytest.mark.parametrize("penalty", [1.3, 0.7])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_repetition_penalty(made: Callable[[str], Made], name: str, penalty: float) -> None:
    model, engine = made(name)
    given = {"num_beams": 4, "repetition_penalty": penalty, "num_return_sequences": 4}
    for prompt in PROMPTS:
        wanted = reference(model, {"input_ids": torch.tensor([prompt])}, len(prompt), dict(given))
        compare([engine.generate(prompt, max_new_tokens=12, eos=(END,), **given)], wanted)


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_t5(made: Callable[[str], Made], given: dict[str, Any]) -> None:
    model, engine = made("t5")
    width = max(map(len, PROMPTS))
    ids = torch.tensor([p + [0] * (width - len(p)) for p in PROMPTS])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in PROMPTS])
    wanted = reference(model, {"input_ids": ids, "attention_mask": mask}, 1, dict(given))
    common = {"max_new_tokens": 12, "eos": (END,), **given}
    compare(engine.generate(PROMPTS, **common), wanted)


@pytest.mark.parametrize("given", [SETTINGS[0], SETTINGS[1], SETTINGS[5]], ids=str)
def test_whisper(made: Callable[[str], Made], given: dict[str, Any]) -> None:
    model, engine = made("whisper")
    features = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    starts = [[1, 4, 9]] * 3
    # What Whisper's own generate adds is not asked for: the plain one of transformers.
    plain = transformers.generation.GenerationMixin.generate
    given = {"max_new_tokens": 12, "eos": (END,), **given}
    ends, count = list(given["eos"]), given.get("num_return_sequences", 1)
    named = {k: v for k, v in given.items() if k != "eos"}
    with torch.no_grad():
        out = plain(
            model, input_features=features, decoder_input_ids=torch.tensor(starts), **named, do_sample=False,
            return_dict_in_generate=True, output_scores=True, eos_token_id=ends, pad_token_id=0,
        )  # fmt: skip
    rows = [(r[: r.index(END)] if END in r else r) for r in out.sequences[:, 3:].tolist()]
    found = list(zip(rows, out.sequences_scores.tolist(), strict=True))
    wanted = [found[i : i + count] for i in range(0, len(found), count)]
    compare(engine.generate(starts, inputs={"input_features": features.numpy()}, **given), wanted)


def test_one_beam_is_greedy_and_best_is_no_worse(made: Callable[[str], Made]) -> None:
    _, engine = made("llama")
    plain = engine.generate(PROMPTS, max_new_tokens=10, eos=())
    assert [g.ids for g in engine.generate(PROMPTS, max_new_tokens=10, eos=(), num_beams=1)] == [g.ids for g in plain]
    several = engine.generate(PROMPTS, max_new_tokens=10, eos=(), num_beams=6, num_return_sequences=6)
    for some in several:
        scores = [g.score for g in some]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(g.ids) for g in some}) == 6


def test_rows_that_go_on_are_not_copied() -> None:
    """A row with a child stays where it is; one that dies becomes a copy from its first different token on."""
    group = Group([1, 2], Beams(3), 10)
    group.tokens = np.array([[5, 6, 7], [5, 6, 8], [9, 9, 9]])
    group.before, group.parents = group.tokens, np.array([1, 1, 0])
    rows, common = group.moves()
    assert rows.tolist() == [0, 1, 1]
    assert common.tolist() == [5, 5, 2]
    assert group.places.tolist() == [1, 2, 0]


def test_the_largest_come_first_and_the_earlier_of_equals() -> None:
    assert largest(np.array([1.0, 5.0, 5.0, -np.inf, 2.0]), 3).tolist() == [1, 2, 4]
    assert largest(np.array([1.0, 2.0]), 2).tolist() == [1, 0]


@pytest.mark.parametrize(("given", "said"), [
    ({"num_beams": 0}, "num_beams is 0"), ({"num_beams": 2, "num_return_sequences": 3}, "there are 2 beams"),
    ({"num_beams": 2, "temperature": 1.0}, "beams are not drawn"), ({"num_return_sequences": 2}, "2, but there are 1"),
    ({"num_beams": 2, "early_stopping": "no"}, "early_stopping is 'no'"), ({"early_stopping": True}, "for beams only"),
    ({"num_beams": 2, "length_penalty": "x"}, "length_penalty is 'x'"), ({"num_beams": True}, "num_beams is True"),
    ({"num_beams": 1_000_000}, "num_beams is 1000000, expected at most 1024"),
    ({"num_beams": 2, "stop": "x"}, "stop strings"), ({"num_beams": 2, "regex": "a"}, "do not follow a schema"),
])  # fmt: skip
def test_settings_that_cannot_be(made: Callable[[str], Made], given: dict[str, Any], said: str) -> None:
    _, engine = made("llama")
    with pytest.raises(MonographError, match=said):
        engine.generate([1, 2], max_new_tokens=3, **given)
