"""Schemas, regular expressions and grammars: what a random model says under them is what they describe."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import jsonschema
import monograph as mg
import numpy as np
import pytest
import tokenizers
import transformers
from monograph.frontends.huggingface import load_folder
from monograph.inference.constraint import restrict
from monograph.inference.engine import Engine
from monograph.inference.errors import GrammarError
from monograph.inference.generate import Settings
from monograph.inference.grammar import MOST_BYTES, MOST_DEPTH, Asked, Grammars
from monograph.ir import MonographError
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = ["the quick brown fox jumps over the lazy dog", '{"name": "value", "list": [1, 2]}', "true false null é 漢"] * 9
TEXT, SHORT = {"type": "string", "maxLength": 8}, {"type": "string", "minLength": 1, "maxLength": 3}
WHOLE = {"type": "integer"}
ID, NODE = {"$ref": "#/$defs/id"}, {"$ref": "#/$defs/node"}


def thing(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    closed = {"required": [*properties], "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed, **more}


SCHEMAS: list[dict[str, Any]] = [
    thing({"a": WHOLE}),
    thing({"a": TEXT, "b": {"type": "boolean"}}),
    thing({"n": {"type": "number"}, "z": {"type": "null"}}),
    thing({"x": WHOLE, "y": TEXT}, required=["x"]),
    {"type": "array", "items": WHOLE, "minItems": 1, "maxItems": 4},
    {"type": "array", "items": thing({"k": SHORT}), "maxItems": 2},
    {"type": "array", "prefixItems": [WHOLE, TEXT, {"type": "boolean"}], "items": False, "minItems": 3},
    {"enum": ["red", "green", "blue"]},
    {"enum": [1, "one", None, True, [1, 2]]},
    {"const": {"fixed": [1, {"deep": "yes"}]}},
    {"anyOf": [WHOLE, SHORT]},
    {"anyOf": [thing({"kind": {"const": "a"}, "v": WHOLE}), thing({"kind": {"const": "b"}, "w": SHORT})]},
    {"oneOf": [{"const": 1}, {"const": "two"}]},
    {"allOf": [{"type": "object", "properties": {"p": WHOLE}, "required": ["p"]}, thing({"p": {"minimum": 3}})]},
    {"type": "integer", "minimum": -5, "maximum": 120},
    {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "enum": ["a\"b", "c\\d", "é漢"]},
    {"type": ["integer", "null", "boolean"]},
    {"$defs": {"id": {"type": "integer", "minimum": 0, "maximum": 99}}, **thing({"from": ID, "to": ID})},
    {"$defs": {"node": thing({"v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, NODE]}})}, **NODE},
    {"type": "object", "properties": {"q": {"type": "boolean"}}, "required": ["q"], "additionalProperties": False},
    thing({"outer": thing({"inner": thing({"core": {"enum": [0, 1]}})})}),
    thing({f"p{i}": {"type": "boolean"} for i in range(12)}),
    thing({"a b": WHOLE, "\u00e9": {"type": "null"}, "quote\"": {"type": "boolean"}}),
    thing({"tool": {"const": "search"}, "arguments": thing({"query": SHORT, "count": {"enum": [1, 10]}})}),
]  # fmt: skip


def byte_level() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<end>"], initial_alphabet=alphabet)
    core.train_from_iterator(TEXTS, trainer)
    return core


def sentence_piece() -> tokenizers.Tokenizer:
    """Pieces with a mark for spaces, and bytes for what has no piece, as Llama 2 and Gemma have it."""
    names = ["<unk>", "<s>", "<end>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces = ["▁", *dict.fromkeys(c for text in TEXTS for c in text if c != " ")]
    vocabulary = {name: i for i, name in enumerate([*names, *pieces])}
    merges: list[tuple[str, str]] = []
    for pair in [("t", "h"), ("th", "e"), ("▁", "the"), ("t", "r"), ("u", "e"), ("tr", "ue"), ("1", "2"), ('"', ":")]:
        if all(part in vocabulary for part in pair):
            merges.append(pair)
            vocabulary.setdefault("".join(pair), len(vocabulary))
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    core.add_special_tokens([AddedToken(n, special=True) for n in names[:3]])
    return core


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {"bytes": byte_level, "pieces": sentence_piece}


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A tiny random model with a vocabulary of each kind."""
    folder, core = tmp_path_factory.mktemp("model"), KINDS[request.param]()
    end = core.token_to_id("<end>")
    config = transformers.LlamaConfig(
        vocab_size=core.get_vocab_size() + 7, hidden_size=64, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=512, eos_token_id=end, bos_token_id=end,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "hf")
    core.save(str(folder / "hf" / "tokenizer.json"))
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return mg.build(load_folder(folder / "hf"), folder / "built", threads=1)


RANDOM: dict[str, Any] = {"temperature": 2.0, "max_new_tokens": 400}


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:60])
def test_what_is_said_fits_the_schema(engine: Engine, schema: dict[str, Any]) -> None:
    jsonschema.validators.validator_for(schema).check_schema(schema)
    found = engine.generate(["go"] * 4, schema=schema, seed=[1, 2, 3, 4], **RANDOM)
    for one in found:
        assert one.reason == "eos", one.text
        jsonschema.validate(json.loads(one.text), schema, format_checker=jsonschema.FormatChecker())
    assert engine.generate("go", schema=schema, seed=[2], **RANDOM).text
    greedy = engine.generate("go", schema=schema, max_new_tokens=400)
    assert greedy.reason == "length" or jsonschema.validate(json.loads(greedy.text), schema) is None


def test_every_row_has_its_own(engine: Engine) -> None:
    rows = [SCHEMAS[0], None, SCHEMAS[8], SCHEMAS[17]]
    found = engine.generate(["go"] * 4, schema=rows, seed=3, temperature=2.0, max_new_tokens=120, eos=None)
    plain = engine.generate(["go"] * 4, seed=3, temperature=2.0, max_new_tokens=120)
    assert found[1].ids == plain[1].ids
    for i in (0, 2, 3):
        jsonschema.validate(json.loads(found[i].text), rows[i])
    with pytest.raises(MonographError, match="schema is a list of 2, but there are 4 rows"):
        engine.generate(["go"] * 4, schema=[SCHEMAS[0], None])


def test_any_object(engine: Engine) -> None:
    for seed in range(40):
        one = engine.generate("go", json=True, seed=seed, temperature=1.0, max_new_tokens=200)
        if one.reason == "eos":
            assert isinstance(json.loads(one.text), dict)
        assert one.text.lstrip().startswith("{")


REGEXES = ["(yes|no)", "[0-9]{3}-[0-9]{4}", "a+b", r"[a-f]{2,5}(\.[0-9]+)?", "[é漢]{2}", r"\d{1,2} ?(kg|g)"]


@pytest.mark.parametrize("regex", REGEXES)
def test_regular_expressions(engine: Engine, regex: str) -> None:
    for one in engine.generate(["go"] * 6, regex=regex, seed=1, **RANDOM):
        assert one.reason == "eos"
        assert re.fullmatch(regex, one.text), one.text


def test_grammars(engine: Engine) -> None:
    lark = 'start: sum\nsum: number (("+" | "-") number){1,3}\nnumber: /[1-9][0-9]{0,2}/\n'
    for one in engine.generate(["go"] * 8, grammar=lark, seed=1, **RANDOM):
        assert re.fullmatch(r"[1-9]\d{0,2}([+-][1-9]\d{0,2}){1,3}", one.text)


def test_an_end_comes_where_the_text_may_end_and_nowhere_else(engine: Engine) -> None:
    assert engine.tokenizer is not None
    end = engine.tokenizer.eos_ids[0]
    text = engine.grammars.constraint(Asked("regex", "ab?"), frozenset({end}))
    assert not text.allowed()[end]
    text.accept(engine.tokenizer.core.token_to_id("a"))
    assert text.allowed()[end]
    assert not text.done
    text.accept(engine.tokenizer.core.token_to_id("b"))
    assert text.done
    assert np.flatnonzero(text.allowed()).tolist() == [end]
    alone = engine.generate("go", regex="a{5}", eos=())
    assert (alone.text, alone.reason) == ("aaaaa", "eos")
    cut = engine.generate("go", regex="a{50}", max_new_tokens=5)
    assert (cut.text, cut.reason) == ("aaaaa", "length")


def test_with_guesses_and_penalties(engine: Engine) -> None:
    for schema in (SCHEMAS[3], SCHEMAS[11], SCHEMAS[27]):
        plain = engine.generate(["go", "say"], schema=schema, seed=4, **RANDOM)
        found = engine.generate(["go", "say"], schema=schema, seed=4, lookup=8, **RANDOM)
        assert [g.ids for g in found] == [g.ids for g in plain]
    drafted = engine.generate("go", schema=SCHEMAS[27], seed=4, draft=engine, **RANDOM)
    jsonschema.validate(json.loads(drafted.text), SCHEMAS[27])
    penalized = engine.generate("go", schema=SCHEMAS[27], seed=4, repetition_penalty=1.5, top_k=5, top_p=0.9, **RANDOM)
    jsonschema.validate(json.loads(penalized.text), SCHEMAS[27])


def test_in_the_scheduler(engine: Engine) -> None:
    assert engine.tokenizer is not None
    ends, prompt = frozenset(engine.tokenizer.eos_ids), engine.tokenizer.encode("go")
    with engine.scheduler(rows=4) as scheduler:
        requests = []
        for i, schema in enumerate(SCHEMAS):
            settings = Settings.of({**RANDOM, "seed": i})
            constraint = engine.grammars.constraint(Asked.of(schema), ends) if i % 4 else None
            requests.append((schema, constraint, scheduler.submit(prompt, settings, constraint=constraint)))
        for schema, constraint, request in requests:
            found = request.result(60)
            if constraint is not None:
                jsonschema.validate(json.loads(found.text), schema)


@pytest.mark.parametrize(("given", "place", "said"), [
    ({"schema": {"type": "strin"}}, "schema", "strin"),
    ({"schema": thing({"a": {"type": "array", "items": {"type": "numbr"}}})}, "schema#/properties/a/items", "numbr"),
    ({"schema": {"anyOf": [WHOLE, {"type": "string", "pattern": "(a"}]}}, "schema#/anyOf/1", "unclosed group"),
    ({"schema": thing({"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {"not": {}}}})}, "schema#/$defs/b", "not"),
    ({"schema": {"$ref": "https://example.org/schema.json"}}, "schema", "example.org"),
    ({"schema": {"$ref": "file:///etc/passwd"}}, "schema", "passwd"),
    ({"schema": "{}"}, "schema", "is a text"), ({"schema": 5}, "schema", "is int"),
    ({"schema": {"a": {1, 2}}}, "schema", "not JSON"),
    ({"schema": {"enum": ["x" * MOST_BYTES["schema"]]}}, "schema", "bytes, at most"),
    ({"regex": "(a"}, "regex", "unclosed group"), ({"regex": "a" * 5000}, "regex", "at most 4,096"),
    ({"regex": "(?=a)b"}, "regex", "look-around"), ({"regex": 5}, "regex", "is int"),
    ({"grammar": 'start: "a" other'}, "grammar", "unknown name"), ({"grammar": "x: 'a'"}, "grammar", ""),
    ({"grammar": "a" * 40000}, "grammar", "at most 32,768"),
    ({"regex": "a", "json": True}, "", "regex and schema were given"),
])  # fmt: skip
def test_what_is_none_is_told_with_its_place(engine: Engine, given: dict[str, Any], place: str, said: str) -> None:
    with pytest.raises(GrammarError) as caught:
        engine.generate("go", **given)
    assert caught.value.place == place
    assert said in caught.value.what


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    return schema


def test_what_a_stranger_may_ask_for_is_bounded(engine: Engine) -> None:
    """Each takes little time: it is refused, or goes on within its limits."""
    with pytest.raises(GrammarError, match=f"nested more than {MOST_DEPTH}"):
        engine.generate("go", schema=nested(5000))
    deep = engine.generate("go", schema=nested(MOST_DEPTH - 2), max_new_tokens=200).text
    assert "".join(deep.split()).startswith("[[[[")
    choices = [[{"type": "string", "pattern": f"[a-z]{{1,{j + 5}}}{i}"} for j in range(9)] for i in range(60)]
    wide = {f"p{i}": {"anyOf": some} for i, some in enumerate(choices)}
    hostile: list[dict[str, Any]] = [
        {"regex": "a{1,100000000}"}, {"regex": "(x+x+)+y" * 100}, {"regex": "((a{1,100}){1,100}){1,100}"},
        {"schema": {"type": "array", "items": WHOLE, "minItems": 10**6, "maxItems": 10**7}},
        {"schema": {"type": "string", "minLength": 10**9}}, {"schema": {"type": "object", "properties": wide}},
        {"grammar": "start: x{1,100000}\nx: y{1,100000}\ny: /[a-z]{1,100000}/"}, {"regex": "(.|.|.|.)*" * 40},
    ]  # fmt: skip
    for given in hostile:
        start = time.perf_counter()
        try:
            engine.generate("go", max_new_tokens=4, **given)
        except GrammarError as e:
            assert len(str(e)) < 1000
        assert time.perf_counter() - start < 5


def test_no_tokenizer_and_logits_beyond_the_vocabulary() -> None:
    with pytest.raises(GrammarError, match="needs a tokenizer"):
        Grammars(None)

    class Two:
        done = False

        def allowed(self) -> np.ndarray[Any, Any]:
            return np.array([True, False])

        def accept(self, token: int) -> None: ...

    logits = np.ones((2, 4), np.float32)
    found = restrict(logits, [Two(), None])
    assert found.tolist() == [[1, -np.inf, -np.inf, -np.inf], [1, 1, 1, 1]]
    assert restrict(logits, [None, None]) is logits
    assert np.isfinite(logits).all()
