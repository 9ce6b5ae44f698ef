"""Tokenizers: GGUF kinds against a slow reference, streams that never break a character, chats in a sandbox."""

import json
from itertools import pairwise

import pytest
import regex
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monograph.frontends.gguf_tokenizer import gguf_tokenizer
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir.errors import ConfigError, RuntimeInputError
from real_weights import real_weights
from tokenizers import AddedToken, models, pre_tokenizers, trainers

CORPUS = [
    "The year 1984 had 366 days, didn't it? It's what THEY'VE said: x=3+4; (a<b) && 'quoted'...",
    "  indented\tcode\n\n\n    return x12345678 # naïve café 日本語 \U0001d518\U0001d52b 😀😀 \r\n",
    "we'll see, I'm sure you'd have done it 1234567 times; 3.14159 and 2,718,281",
] * 3
TEXTS = st.text(st.sampled_from("aehnt THEYVE'srdml0123456789.,;=+<>()#\n\r\t é日本😀\u2581\u00a0"), max_size=40)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA3 += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = {
    "gpt-2": lambda t: regex.findall(GPT2, t),
    "smollm": lambda t: [p for part in regex.split(r"(\p{N})", t) for p in regex.findall(GPT2, part)],
    "llama-bpe": lambda t: regex.findall(LLAMA3, t),
    "qwen2": lambda t: regex.findall(LLAMA3.replace("{1,3}", ""), t),
}


def byte_letters():
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others follow 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


LETTERS = byte_letters()


def byte_level_metadata(pre, **changes):
    """What a GGUF file of a small byte-level BPE trained on CORPUS holds."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    state = json.loads(core.to_str())["model"]
    tokens = ["<|end|>", "<|start|>", *sorted(state["vocab"], key=state["vocab"].get), "<tool>"]
    return {
        "general.architecture": "llama",
        "llama.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * len(state["vocab"]), 4],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in state["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        **changes,
    }


def slow_bpe(piece, ranks, vocabulary, whole_words):
    symbols = [LETTERS[b] for b in piece.encode()]
    if whole_words and "".join(symbols) in vocabulary:
        return ["".join(symbols)]
    while len(symbols) > 1:
        best = min(range(len(symbols) - 1), key=lambda i: ranks.get((symbols[i], symbols[i + 1]), 10**9))
        if (symbols[best], symbols[best + 1]) not in ranks:
            break
        symbols[best : best + 2] = ["".join(symbols[best : best + 2])]
    return symbols


@pytest.mark.parametrize("pre", PIECES)
@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
def test_byte_level_kinds_split_and_merge_like_the_reference(pre, text):
    metadata = METADATA[pre] if pre in METADATA else METADATA.setdefault(pre, byte_level_metadata(pre))
    t = BUILT[pre] if pre in BUILT else BUILT.setdefault(pre, gguf_tokenizer(metadata))
    tokens = metadata["tokenizer.ggml.tokens"]
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(metadata["tokenizer.ggml.merges"])}
    pieces = [s for p in PIECES[pre](text) for s in slow_bpe(p, ranks, set(tokens), pre == "llama-bpe")]
    assert [tokens[i] for i in t.encode(text, add_special=False)] == pieces
    assert t.decode(t.encode(text, add_special=False)) == text


METADATA, BUILT = {}, {}


def test_digits_are_split_one_by_one_only_where_the_file_says_so():
    for pre, expected in (("smollm", ["1", "9", "8", "4"]), ("llama-bpe", ["198", "4"]), ("gpt-2", ["1984"])):
        metadata = byte_level_metadata(pre)
        words = [t for t in metadata["tokenizer.ggml.tokens"] if not t.isdigit() or len(t) == 1]
        metadata["tokenizer.ggml.tokens"] = [*words, "19", "84", "198", "1984"]
        metadata["tokenizer.ggml.token_type"] = [3, 3, *[1] * (len(words) + 2)]
        metadata["tokenizer.ggml.merges"] = ["1 9", "8 4", "19 8", "19 84"]
        t = gguf_tokenizer(metadata)
        assert [t.core.id_to_token(i) for i in t.encode("1984", add_special=False)] == expected


# -- SentencePiece -------------------------------------------------------------------------------------------------


def sentencepiece_metadata(**changes):
    words = [
        "\u2581",
        "a",
        "b",
        "c",
        "h",
        "e",
        "l",
        "o",
        "\u2581a",
        "he",
        "ll",
        "lo",
        "hell",
        "llo",
        "hello",
        "ab",
        "ba",
    ]
    words += ["\u2581he", "\u2581hello", "bab", "abc", "ca", "aa", "bb", "\u2581b"]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *words, "  ", "\n\n"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float((7 * i) % 25) - 1 for i in range(len(words))] + [-1000.0] * 2,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words), 4, 4],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **changes,
    }


def slow_sentencepiece(text, metadata):
    """Merge the adjacent pair whose result scores best, leftmost first, until no pair makes a token."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = {t: s for t, s, k in zip(tokens, metadata["tokenizer.ggml.scores"], kinds, strict=True) if k == 1}
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    found = []
    for s in symbols:
        found += [s] if s in scores else [f"<0x{b:02X}>" for b in s.encode()]
    return found


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abchelo é日😀"), max_size=20))
def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(text):
    assume("  " not in text)
    metadata = sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": False})
    t = BUILT["plain"] if "plain" in BUILT else BUILT.setdefault("plain", gguf_tokenizer(metadata))
    ids = t.encode(text)
    assert ids[0] == 1
    assert [t.core.id_to_token(i) for i in ids[1:]] == slow_sentencepiece(text, metadata)
    assert t.decode(ids) == text


def test_sentencepiece_prefix_and_user_symbols():
    t = gguf_tokenizer(sentencepiece_metadata())
    names = [t.core.id_to_token(i) for i in t.encode("hello")]
    assert names == ["<s>", "\u2581hello"]
    assert t.decode(t.encode("hello")) == "hello"
    assert t.decode(t.encode(" hello a")) == " hello a"
    plain = gguf_tokenizer(sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": False}))
    runs = plain.encode("a  b\n\nc", add_special=False)
    assert [plain.decode([i]) for i in runs] == ["a", "  ", "b", "\n\n", "c"]
    # As in llama.cpp: a mark for a space that stands in the text is no part of a run of spaces.
    mixed = plain.encode("\u2581 a", add_special=False)
    assert [plain.core.id_to_token(i) for i in mixed] == ["\u2581", "\u2581a"]


def test_special_tokens_are_whole_and_put_where_the_file_says():
    t = gguf_tokenizer(byte_level_metadata("gpt-2", **{"tokenizer.ggml.add_bos_token": True}))
    inside = t.encode("a<|end|>b<tool>c")
    assert inside[0] == 1
    assert inside[2] == 0
    assert t.decode(inside) == "ab<tool>c"
    assert t.decode(inside, skip_special=False) == "<|start|>a<|end|>b<tool>c"
    assert t.encode("a", add_special=False) == inside[1:2]
    both = gguf_tokenizer(
        byte_level_metadata("smollm", **{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    )
    assert (both.encode("a")[0], both.encode("a")[-1]) == (1, 0)
    assert gguf_tokenizer(byte_level_metadata("llama-bpe")).encode("a")[0] == 1
    assert len(gguf_tokenizer(byte_level_metadata("smollm")).encode("a")) == 1
    turn = gguf_tokenizer(byte_level_metadata("gpt-2", **{"tokenizer.ggml.eot_token_id": 5}))
    assert (turn.bos_id, turn.eos_id, turn.eos_ids) == (1, 0, (0, 5))
    assert turn.settings["model_max_length"] == 128


BROKEN = {
    "splits text by the rule 'smolm', did you mean 'smollm'": {"tokenizer.ggml.pre": "smolm"},
    "is of kind 't5'": {"tokenizer.ggml.model": "t5"},
    "has 0 tokens": {"tokenizer.ggml.tokens": []},
    r"has \d+ tokens and 2 token types": {"tokenizer.ggml.token_type": [1, 1]},
    "has tokens = 'x', expected list": {"tokenizer.ggml.tokens": "x"},
    "has the token 'a' twice": {"tokenizer.ggml.tokens": ["a", "b", "a"], "tokenizer.ggml.token_type": [1, 1, 1]},
    r"has merge 1 = 'a zzz', which is not of two tokens": {"tokenizer.ggml.merges": ["\u0120 \u0120", "a zzz"]},
    r"has merge 0 = 'a', which is not of two tokens": {"tokenizer.ggml.merges": ["a"]},
    r"has bos_token_id 999999, but \d+ tokens": {"tokenizer.ggml.bos_token_id": 999999},
    r"has \d+ tokens and 0 scores": {"tokenizer.ggml.model": "llama"},
}


@pytest.mark.parametrize("message", BROKEN)
def test_metadata_that_is_not_understood_is_named(message):
    with pytest.raises(ConfigError, match=message) as e:
        gguf_tokenizer(byte_level_metadata("smollm", **BROKEN[message]), "m.gguf")
    assert str(e.value).startswith("m.gguf: the tokenizer of this file ")


# -- streams -------------------------------------------------------------------------------------------------------


STREAMED = {"bytes": lambda: byte_level_metadata("gpt-2"), "scores": sentencepiece_metadata}


@pytest.mark.parametrize("kind", STREAMED)
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_a_stream_never_breaks_a_character(kind, text):
    assume("\ufffd" not in text)
    t = BUILT[kind] if kind in BUILT else BUILT.setdefault(kind, gguf_tokenizer(STREAMED[kind]()))
    ids = t.encode(text)
    stream, given_out = t.stream(), ""
    for i in ids:
        new = stream.push(i)
        assert "\ufffd" not in new
        given_out += new
        assert t.decode(ids).startswith(given_out)
    assert given_out + stream.flush() == t.decode(ids)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=40))
def test_a_stream_of_any_ids_gives_what_decoding_them_gives(ids):
    t = BUILT["any"] if "any" in BUILT else BUILT.setdefault("any", gguf_tokenizer(byte_level_metadata("gpt-2")))
    stream = t.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == t.decode(ids)


@pytest.mark.parametrize("text", ["a \udcff", "\ud83d", 3])
def test_what_is_no_text_is_named(text):
    with pytest.raises(RuntimeInputError, match="is not a text of Unicode characters"):
        Tokenizer(tokenizers.Tokenizer(models.BPE())).encode(text)


def test_a_stream_waits_for_the_end_of_a_character_but_not_forever():
    t = gguf_tokenizer(byte_level_metadata("gpt-2", **{"tokenizer.ggml.merges": []}))
    stream = t.stream()
    assert [stream.push(i) for i in t.encode("é😀!")] == ["", "é", "", "", "", "😀", "!"]
    assert stream.flush() == ""
    start_of_two = t.encode("é")[0]
    stream = t.stream()
    assert "".join(stream.push(start_of_two) for _ in range(40)) == "\ufffd" * 32
    assert stream.flush() == "\ufffd" * 8
    stream = t.stream()
    assert stream.push(start_of_two) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(t.encode("a")[0]) == "a"


def test_a_stream_keeps_the_space_after_a_special_token():
    t = gguf_tokenizer(sentencepiece_metadata())
    ids = [*t.encode("hello"), 2, *t.encode("hello", add_special=False)]
    stream = t.stream()
    assert [stream.push(i) for i in ids] == ["", "hello", "", " hello"]


# -- chats ---------------------------------------------------------------------------------------------------------


def chatting(template):
    return gguf_tokenizer(byte_level_metadata("gpt-2", **{"tokenizer.chat_template": template}))


HI = [{"role": "user", "content": "hi <b>"}]


def test_templates_see_messages_special_tokens_and_variables():
    t = chatting(
        "{{ bos_token }}{% for m in messages %}\n"
        "    {% if m.role == 'user' %}\n"
        "[{{ m['content'] }}]{{ eos_token }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}>{% endif %}{{ mood }}"
    )
    assert t.chat(HI, mood="!") == "<|start|>[hi <b>]<|end|>\n>!"
    assert t.chat(HI, add_generation_prompt=False) == "<|start|>[hi <b>]<|end|>\n"


def test_template_extras_of_the_hub_work():
    t = chatting(
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ {'a': '<é>'} | tojson }}{{ strftime_now('%Y') | length }}{{ tools is none }}"
    )
    assert t.chat(HI * 2) == 'hi <b>{"a": "<é>"}4True'


@pytest.mark.parametrize(
    ("template", "kind", "message"),
    [
        ("{{ raise_exception('no system role') }}", RuntimeInputError, "refuses these messages: no system role"),
        ("{{ ''.__class__.__mro__ }}", RuntimeInputError, "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", RuntimeInputError, "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ messages[0].nothing.deeper }}", RuntimeInputError, "has no attribute 'nothing'"),
        ("{% for m in messages %}\n\n{% endif %}", ConfigError, "the chat template is broken in line 3"),
        (None, ConfigError, "this tokenizer has no chat template"),
    ],
)
def test_templates_that_fail_or_reach_out_are_refused(template, kind, message):
    with pytest.raises(kind, match=message):
        chatting(template).chat(HI)


# -- folders -------------------------------------------------------------------------------------------------------


def save_word_level(folder, **settings_):
    core = tokenizers.Tokenizer(
        models.WordLevel({"<pad>": 0, "a": 1, "b": 2, "</s>": 3, "<end>": 4}, unk_token="<pad>")
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<end>", special=True)])
    core.enable_truncation(2)
    core.enable_padding(length=8)
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return folder


def test_a_folder_gives_ids_that_no_padding_or_truncation_touched(tmp_path):
    save_word_level(tmp_path, eos_token={"content": "</s>"}, pad_token="<pad>")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 3]}')
    t = Tokenizer.open(tmp_path)
    assert t.encode("a b a b") == [1, 2, 1, 2]
    assert (t.pad_id, t.bos_id, t.eos_ids, t.size) == (0, None, (3, 4), 5)
    assert t.types("a b", "a") == [0, 0, 1]


def test_templates_come_from_a_file_of_their_own_or_by_name(tmp_path):
    named = [{"name": "default", "template": "d"}, {"name": "tool", "template": "t"}]
    t = Tokenizer.open(save_word_level(tmp_path, chat_template=named))
    assert (t.chat(HI), t.chat(HI, template="tool")) == ("d", "t")
    with pytest.raises(ConfigError, match="no chat template is called 'tols', did you mean 'tool'"):
        t.chat(HI, template="tols")
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.open(tmp_path).chat(HI) == "from the file"


def test_a_saved_tokenizer_is_the_same_when_opened(tmp_path):
    for t in (chatting("{{ messages[0].content }}"), gguf_tokenizer(sentencepiece_metadata())):
        t.save(tmp_path / "out")
        back = Tokenizer.open(tmp_path / "out")
        text = "hello, 1984 é日本😀  <|end|>"
        assert back.encode(text) == t.encode(text)
        assert back.decode(back.encode(text)) == t.decode(t.encode(text))
        assert (back.bos_id, back.eos_ids) == (t.bos_id, t.eos_ids)
        assert back.settings.get("chat_template") == t.settings.get("chat_template")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{}", r"tokenizer\.json: is not understood by tokenizers"),
        ("tokenizer.json", b"\xff", r"tokenizer\.json: cannot be read"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json: is not JSON"),
        ("tokenizer_config.json", b"[1]", r"tokenizer_config\.json: is a JSON list, not an object"),
        ("tokenizer.json", None, "has no tokenizer.json"),
    ],
)
def test_damaged_folders_name_the_file(tmp_path, file, content, message):
    save_word_level(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Tokenizer.open(tmp_path)


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_gives_the_ids_of_llama_cpp():
    from monograph.frontends.load import load

    t = load(real_weights("smollm2")).tokenizer
    known = {
        "Hello, we can use": [19556, 28, 392, 416, 722],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
        "\n": [198],
    }
    assert {text: t.encode(text) for text in known} == known
    assert (t.bos_id, t.eos_id, t.pad_id, t.size) == (1, 2, 2, 49152)
    prompt = t.chat([{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert t.encode(prompt, add_special=False)[0] == 1
    assert t.decode(t.encode(prompt), skip_special=False) == prompt
