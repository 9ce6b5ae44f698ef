"""Generation: batches equal rows alone, padding moves nothing, stop strings and streams never take text back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.data.byte_level import train_tokenizer
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.tokenizer import Tokenizer
from monograph.inference.errors import GenerationError
from monograph.inference.generate import Generation, Settings, generate, stream
from monograph.inference.prompts import pad, rows_of
from monograph.inference.sampling import Array
from monograph.inference.text import StopText
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, RuntimeInputError
from monograph.ir.weights import Weights
from tokenizers import decoders, models

TEXT = "the cat sat on the mat. the dog sat on the log. where is the end of it? STOP. naïve café ☕ " * 4
LENGTHS = (5, 1, 9)


class ReferenceSession:
    """The session contract by the plainest means: all tokens of all rows through the NumPy reference, each time."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        graph = model.graph()
        weights = Weights.initialize(graph, seed)
        self.graph, self.params = graph, {k: 8 * weights.numpy(k) for k in graph.params}
        self.rows: list[list[int]] = []
        self.steps = 0
        self.owner: object = None

    @property
    def lengths(self) -> Array:
        return np.array([len(r) for r in self.rows], np.int64)

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        self.rows, self.owner = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)], object()
        return self.forward()

    def step(self, tokens: Array) -> Array:
        assert tokens.shape == (len(self.rows),)
        assert tokens.dtype == np.int64
        self.steps += 1
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self.forward()

    def forward(self) -> Array:
        tokens, lengths = pad(self.rows)
        columns = np.arange(tokens.shape[1])
        inputs = {
            "input_ids": tokens,
            "attention_mask": (columns < lengths[:, None]).astype(np.int64),
            "position_ids": np.broadcast_to(columns, tokens.shape),
        }
        logits = interpret(self.graph, inputs, self.params)["logits"]
        return logits[np.arange(len(lengths)), lengths - 1]


class ScriptedSession:
    """Says the given tokens, one list a row, then token 0 for ever."""

    def __init__(self, *scripts: list[int], vocab: int = 600) -> None:
        self.scripts, self.vocab, self.at, self.fed = scripts, vocab, 0, []
        self.lengths = np.zeros(0, np.int64)
        self.owner: object = None

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        self.at, self.fed, self.lengths, self.owner = 0, [], lengths, object()
        return self.say()

    def step(self, tokens: Array) -> Array:
        self.fed.append(tokens.tolist())
        return self.say()

    def say(self) -> Array:
        x = np.zeros((len(self.scripts), self.vocab), np.float32)
        for row, script in zip(x, self.scripts, strict=True):
            row[script[self.at] if self.at < len(script) else 0] = 1
        self.at += 1
        return x


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, 300)


@pytest.fixture(scope="module")
def session(tokenizer: Tokenizer) -> ReferenceSession:
    settings = {"vocab": tokenizer.size, "dim": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2}
    return ReferenceSession(load_family("llama")(**settings))


def prompts(vocab: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, vocab, n).tolist() for n in LENGTHS]


def ids(results: list[Generation]) -> list[list[int]]:
    return [r.ids for r in results]


# -- batches ---------------------------------------------------------------------------------------------------


def test_greedy_equals_argmax_of_the_full_forward(session: ReferenceSession) -> None:
    (prompt, *_) = prompts(300)
    (result,) = generate(session, None, prompt, max_new_tokens=6)
    row = list(prompt)
    for _ in range(6):
        session.rows = [row]
        row.append(int(session.forward()[0].argmax()))
    assert result.ids == row[len(prompt) :]
    assert (result.reason, result.prompt, result.text) == ("length", prompt, "")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.3}])
def test_batch_equals_rows_alone(session: ReferenceSession, sampling: dict[str, Any]) -> None:
    rows, seeds = prompts(300), [11, 12, 13]
    together = ids(generate(session, None, rows, max_new_tokens=7, seed=seeds, **sampling))
    for row, seed, got in zip(rows, seeds, together, strict=True):
        assert ids(generate(session, None, row, max_new_tokens=7, seed=seed, **sampling)) == [got]
    assert len(set(map(tuple, together))) == 3, "rows that all say the same show nothing"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_shifts_nothing(session: ReferenceSession, side: str) -> None:
    rows = prompts(300)
    width = max(LENGTHS) + 2
    tokens, mask = np.full((3, width), 7), np.zeros((3, width), np.int64)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, at], mask[i, at] = row, 1
    padded = generate(session, None, tokens, attention_mask=mask, max_new_tokens=5)
    assert ids(padded) == ids(generate(session, None, rows, max_new_tokens=5))


def test_rows_end_on_their_own() -> None:
    session = ScriptedSession([5, 6, 9, 7], [9, 5], [5, 5, 5, 5, 5, 9])
    results = generate(session, None, [[1], [1, 2], [3]], max_new_tokens=5, eos=9)
    assert ids(results) == [[5, 6], [], [5] * 5]
    assert [r.reason for r in results] == ["eos", "eos", "length"]
    assert session.fed == [[5, 9, 5], [6, 5, 5], [9, 0, 5], [7, 0, 5]], "rows that ended keep stepping"
    timing = results[0].timing
    assert (timing.prompt_tokens, timing.new_tokens, timing.decode_tokens) == (4, 7, 2 + 2 + 1 + 1)


def test_no_step_is_run_that_nobody_needs(session: ReferenceSession) -> None:
    session.steps = 0
    generate(session, None, [3, 4], max_new_tokens=1)
    assert session.steps == 0
    generate(session, None, [3, 4], max_new_tokens=4)
    assert session.steps == 3


def test_eos_of_the_tokenizer_is_the_default(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id == 0
    (default,) = generate(ScriptedSession([5, 0, 5]), tokenizer, [1], max_new_tokens=3)
    assert (default.ids, default.reason) == ([5], "eos")
    (ignored,) = generate(ScriptedSession([5, 0, 5]), tokenizer, [1], max_new_tokens=3, eos=())
    assert (ignored.ids, ignored.reason) == ([5, 0, 5], "length")
    (several,) = generate(ScriptedSession([5, 8, 5]), tokenizer, [1], max_new_tokens=3, eos=[7, 8])
    assert several.ids == [5]


# -- text ------------------------------------------------------------------------------------------------------


def said(tokenizer: Tokenizer, text: str) -> ScriptedSession:
    return ScriptedSession(tokenizer.encode(text))


def test_text_is_what_the_ids_decode_to(tokenizer: Tokenizer, session: ReferenceSession) -> None:
    pieces: list[tuple[int, str]] = []
    results = generate(
        session,
        tokenizer,
        ["the cat", "where"],
        max_new_tokens=20,
        on_text=lambda row, text: pieces.append((row, text)),
    )
    for i, result in enumerate(results):
        assert result.text == tokenizer.decode(result.ids)
        assert result.text == "".join(text for row, text in pieces if row == i)
    assert results[0].prompt == tokenizer.encode("the cat")


def test_stream_joins_to_generate(tokenizer: Tokenizer, session: ReferenceSession) -> None:
    sampling = {"temperature": 1.0, "seed": 4, "max_new_tokens": 16}
    pieces = list(stream(session, tokenizer, "the dog", **sampling))
    assert len(pieces) > 1
    assert "".join(pieces) == generate(session, tokenizer, "the dog", **sampling)[0].text


def test_characters_never_arrive_broken(tokenizer: Tokenizer) -> None:
    text = "a ☕ b 🧪🎉 naïve"
    pieces = list(stream(said(tokenizer, text), tokenizer, [1], max_new_tokens=100))
    assert "".join(pieces) == text
    assert len(tokenizer.encode("🧪")) > 1, "the case needs a character of several tokens"
    assert all("\ufffd" not in p for p in pieces)


def test_half_a_character_at_the_end_is_told(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a🧪")[:-1]
    (result,) = generate(ScriptedSession(tokens), tokenizer, [1], max_new_tokens=len(tokens))
    assert result.text == tokenizer.decode(tokens)
    assert result.text.startswith("a\ufffd")


@pytest.mark.parametrize("stop", ["STOP", "the end", ["zebra", " is the e"], "?"])
def test_stop_strings_cut_the_text(tokenizer: Tokenizer, stop: str | list[str]) -> None:
    text = "where is the end of it? STOP. the cat"
    first = min(text.find(s) for s in ([stop] if isinstance(stop, str) else stop) if s in text)
    (result,) = generate(said(tokenizer, text), tokenizer, [1], max_new_tokens=60, stop=stop)
    assert (result.text, result.reason) == (text[:first], "stop")
    assert len(result.ids) < len(tokenizer.encode(text)), "it stops as soon as the stop string is complete"
    pieces = list(stream(said(tokenizer, text), tokenizer, [1], max_new_tokens=60, stop=stop))
    assert "".join(pieces) == text[:first]


def test_a_stop_string_may_span_tokens(tokenizer: Tokenizer) -> None:
    stop = "mat. the d"
    assert len(tokenizer.encode(stop)) > 2
    (result,) = generate(said(tokenizer, "on the mat. the dog"), tokenizer, [1], max_new_tokens=60, stop=stop)
    assert (result.text, result.reason) == ("on the ", "stop")


def test_what_looked_like_a_stop_string_is_given_in_the_end(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("sat on the")
    results = generate(ScriptedSession([*tokens, 0]), tokenizer, [1], max_new_tokens=50, stop=["on the log", "they"])
    assert (results[0].text, results[0].reason) == ("sat on the", "eos")
    results = generate(ScriptedSession(tokens), tokenizer, [1], max_new_tokens=len(tokens), stop=["on the log"])
    assert (results[0].text, results[0].reason) == ("sat on the", "length")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_stop_text_however_it_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [(text.find(s) + len(s), -len(s)) for s in stops if s in text]
    expected = text if not ends else text[: sum(min(ends))]
    filter, given, rest = StopText(stops), "", text
    while rest:
        n = data.draw(st.integers(1, len(rest)))
        given += filter.push(rest[:n])
        rest = rest[n:]
        assert expected.startswith(given), "nothing given is taken back"
        held = text[len(given) : len(text) - len(rest)]
        assert filter.stopped or any(s.startswith(held) for s in stops), "nothing is held back without need"
    assert given + filter.flush() == expected
    assert (filter.stopped is not None) == bool(ends)


# -- prompts ---------------------------------------------------------------------------------------------------


def test_forms_of_prompts(tokenizer: Tokenizer) -> None:
    one, two = tokenizer.encode("the cat"), tokenizer.encode("a")
    assert rows_of("the cat", tokenizer) == [one]
    assert rows_of(["the cat", "a"], tokenizer) == [one, two]
    assert rows_of(one, None) == [one]
    assert rows_of(np.array(one, np.int32), None) == [one]
    assert rows_of([one, two], None) == [one, two]
    assert rows_of(["the cat", two], tokenizer) == [one, two]
    assert rows_of(np.array([[1, 2], [3, 4]]), None) == [[1, 2], [3, 4]]


def test_chat(tokenizer: Tokenizer) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    chatty = Tokenizer(tokenizer.core, {**tokenizer.settings, "chat_template": template})
    messages = [{"role": "system", "content": "be a cat"}, {"role": "user", "content": "sit"}]
    expected = chatty.encode("<system>be a cat<user>sit<a>")
    assert rows_of(messages, chatty, chat=True) == [expected]
    assert rows_of([messages, messages[1:]], chatty, chat=True) == [expected, chatty.encode("<user>sit<a>")]
    assert rows_of("sit", chatty, chat=True) == [chatty.encode("<user>sit<a>")]
    with pytest.raises(ConfigError, match="no chat template"):
        rows_of("sit", tokenizer, chat=True)


@pytest.mark.parametrize(
    ("given", "mask", "message"),
    [
        ([[1, 2, 3, 4]], [[1, 0, 1, 1]], "attention_mask of prompt 0 has a hole at 1, between tokens 0 and 3"),
        ([[1, 2, 3], [1, 2, 3]], [[1, 1, 1], [0, 0, 0]], "attention_mask of prompt 1 is all zeros"),
        ([[1, 2]], [[1, 2]], "attention_mask of prompt 0 has the value 2"),
        ([[1, 2]], [[1, 1, 1]], "attention_mask is [1, 3] but the ids are [1, 2]"),
        ([1, 2], [1, 1], "must be ids [B,S], not int64[2]"),
        ([[1.0, 2.0]], [[1, 1]], "must be ids [B,S], not float64[1, 2]"),
        ([], None, "there are no prompts"),
        ([[1], []], None, "prompt 1 has no tokens"),
        ([[1], "text"], None, "prompt 1 is text, but there is no tokenizer"),
        (5, None, "prompts are int, expected a text, ids, or a list of either"),
        ({"role": "user", "content": "sit"}, None, "prompts are dict, expected a text"),
        ([[1, 2], [3]], [[1, 1], [1]], "prompts has rows of different lengths"),
        ([[[1], [2, 3]]], None, "prompt 0 has rows of different lengths"),
        ([[1.5, 2.0]], None, "prompt 0 is list, expected a text or a list of ids"),
    ],
)
def test_prompts_that_cannot_be(given: Any, mask: Any, message: str) -> None:
    with pytest.raises(RuntimeInputError) as e:
        rows_of(given, None, attention_mask=mask)
    assert message in str(e.value)


# -- limits ----------------------------------------------------------------------------------------------------


def test_context_is_checked_before_the_model_runs() -> None:
    session = ScriptedSession([5], [5])
    with pytest.raises(RuntimeInputError) as e:
        generate(session, None, [[1] * 3, [1] * 10], max_new_tokens=7, context=16)
    assert "prompt 1 has 10 tokens; with 7 new ones that is 17, but the model has 16 positions" in str(e.value)
    assert session.at == 0
    assert len(generate(session, None, [[1] * 3, [1] * 10], max_new_tokens=6, context=16)) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": 3}, "there is no setting called 'max_tokens', did you mean 'max_new_tokens'?"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": "x"}, "stop strings ['x'] need a tokenizer"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5, expected a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"stop": [1]}, "stop holds 1, expected a text"),
        ({"stop": 5}, "stop holds 5, expected a text"),
        ({"stop": ["a", None]}, "stop holds None, expected a text"),
        ({"seed": "a"}, "seed is 'a', expected a whole number from 0"),
        ({"seed": [1, "b"]}, "seed is [1, 'b'], expected"),
        ({"seed": 1.5}, "seed is 1.5, expected"),
        ({"seed": -1}, "seed is -1, expected"),
        ({"eos": "</s>"}, "eos '</s>' needs a tokenizer"),
        ({"eos": [1.5]}, "eos holds 1.5, expected an id or the name of a token"),
        ({"eos": True}, "eos holds True, expected an id"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeInputError) as e:
        generate(ScriptedSession([1]), None, [1], **given)
    assert message in str(e.value)


def test_an_end_may_be_named_as_a_token(tokenizer: Tokenizer) -> None:
    end = tokenizer.core.id_to_token(5)
    assert generate(ScriptedSession([7, 5, 7]), tokenizer, [1], max_new_tokens=9, eos=end)[0].ids == [7]
    assert generate(ScriptedSession([7, 5, 7]), tokenizer, [1], max_new_tokens=9, eos=[end, 7])[0].ids == []
    with pytest.raises(RuntimeInputError, match="eos is '<nothing>', which is not a token of the vocabulary"):
        generate(ScriptedSession([7]), tokenizer, [1], eos="<nothing>")


class Plain:
    """A session with no more than a decoding needs."""

    lengths = np.zeros(1, np.int64)

    def __init__(self, script: list[int], vocab: int) -> None:
        self.script, self.vocab = iter(script), vocab

    def prefill(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.eye(self.vocab, dtype=np.float32)[[next(self.script)]]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self.prefill(tokens, tokens)


PIECES = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *"▁ ▁The ▁cat ▁sat s , at c".split()]


def pieces() -> Tokenizer:
    """A vocabulary as Llama 2 has it: a word begins with a mark, and the first space of a text goes."""
    core: Any = tokenizers.Tokenizer(
        models.BPE({w: i for i, w in enumerate(PIECES)}, [], unk_token="<unk>", byte_fallback=True)
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(core, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<s> ▁The", "▁cat ▁sat"),
        ("<s> ▁The", ", ▁cat"),
        ("<s> ▁The", "▁ s"),
        ("<s>", "▁The ▁cat"),
        ("<s> ▁The ▁", "▁cat"),
        ("<s> ▁The <s>", "▁cat"),
        ("▁", "▁cat ▁ ▁"),
        ("<s> ▁The <0xE6>", "<0x97> <0xA5> ▁cat"),
        ("<s>" + " ▁" * 20, "▁cat s"),
        ("<s>" + " ▁cat" * 30, "▁sat"),
        ("<s> s", "<0x20> <0x20> c at"),
    ],
)
def test_new_text_is_what_follows_the_prompt_in_the_whole(prompt: str, said: str) -> None:
    tokenizer = pieces()
    before, after = ([PIECES.index(w) for w in words.split()] for words in (prompt, said))
    whole, start = tokenizer.decode(before + after), tokenizer.decode(before).rstrip("\ufffd")
    script = [*after, PIECES.index("</s>")]
    found = generate(Plain(script, len(PIECES)), tokenizer, [before], max_new_tokens=9)[0]
    assert found.text == whole[len(start) :]
    assert "".join(stream(Plain(script, len(PIECES)), tokenizer, before, max_new_tokens=9)) == found.text


@pytest.mark.parametrize("stop", [" cat", "cat", " cat s", " sat", "at sat"])
def test_a_stop_string_that_begins_with_a_space_fires(stop: str) -> None:
    tokenizer = pieces()
    script = [PIECES.index(w) for w in ("▁cat", "▁sat", "▁sat")]
    found = generate(Plain(script, len(PIECES)), tokenizer, [[1, PIECES.index("▁The")]], max_new_tokens=3, stop=stop)[0]
    assert found.reason == "stop"
    assert found.text == " cat sat sat"[: " cat sat sat".index(stop)]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([2**63], "prompt 0 has the id 9223372036854775808, expected 0 to 2147483647"),
        ([2**200], "prompt 0 is list, expected a text or a list of ids"),
        ([-1], "prompt 0 has the id -1"),
        ({"a"}, "prompts are set"),
        (b"abc", "prompts are bytes"),
        (iter([1]), "prompts are list_iterator"),
    ],
)
def test_ids_and_prompts_that_cannot_be(prompts: Any, message: str) -> None:
    with pytest.raises(RuntimeInputError) as e:
        generate(ScriptedSession([1]), None, prompts)
    assert message in str(e.value)


def test_empty_stop_string_and_stream_of_a_batch(tokenizer: Tokenizer) -> None:
    with pytest.raises(RuntimeInputError, match="a stop string is empty"):
        generate(ScriptedSession([1]), tokenizer, [1], stop=["a", ""])
    with pytest.raises(RuntimeInputError, match="stream takes one prompt, not 2"):
        stream(ScriptedSession([1]), tokenizer, ["a", "b"])


def test_two_streams_on_one_session_are_refused(tokenizer: Tokenizer, session: ReferenceSession) -> None:
    first = stream(session, tokenizer, "the cat", max_new_tokens=8, eos=())
    next(first)
    second = stream(session, tokenizer, "the dog", max_new_tokens=8, eos=())
    next(second)
    with pytest.raises(RuntimeInputError, match="another generation has begun on this session"):
        list(first)
    assert len("".join(second)) > 0


def test_broken_logits_are_an_error(session: ReferenceSession) -> None:
    class Broken(ScriptedSession):
        def say(self) -> Array:
            return super().say() * (np.nan if self.at == 3 else 1)

    with pytest.raises(GenerationError, match="the largest logit of row 0 is nan"):
        generate(Broken([1, 2, 3, 4, 5]), None, [1], max_new_tokens=5)


def test_settings_reject_nothing_else() -> None:
    assert Settings.of({"stop": "a", "eos": 3}).stops == ("a",)
    assert Settings.of({"eos": 3}).ends(None) == Settings.of({"eos": np.int64(3)}).ends(None) == {3}
    assert Settings.of({"stop": None, "seed": np.int64(3)}).stops == ()
