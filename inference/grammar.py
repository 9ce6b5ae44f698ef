"""JSON schemas, regular expressions and grammars as constraints, by llguidance, which knows which tokens may come next.

A text comes from strangers where a server takes it: sizes, depth, and the work that a grammar may ask for are bounded.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..frontends.tokenizer import Tokenizer
from ..ir.missing import needed
from .constraint import Constraint
from .errors import GrammarError
from .sampling import Array

MOST_BYTES = {"schema": 64 << 10, "regex": 4 << 10, "grammar": 32 << 10}
MOST_DEPTH = 48
MOST_PLACES = 256
"""Parts of a schema that are looked at to say where it is wrong."""
KEPT = 64
"""Compiled grammars that are kept."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,24}"
_ANY_OBJECT = {"type": "object"}
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""For llguidance: a grammar is compiled in tens of milliseconds, and a token chosen in a few, or there is an error."""
_PARTS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SINGLE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


class Matched:
    """One text on its way through a grammar. ends: ids that end a text."""

    def __init__(self, matcher: Any, ends: frozenset[int], others: list[int]) -> None:
        self._matcher, self._ends, self._others = matcher, ends, others

    @property
    def done(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Array:
        """Raises GrammarError where the grammar asks for more work than is allowed."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, bitorder="little").view(np.bool_)
        mask[self._others] = False
        return mask

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the text cannot go on under its grammar: {_line(self._matcher.get_error())}")


class Grammars:
    """Grammars over the vocabulary of a tokenizer, each compiled once; may be asked by several threads."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        if tokenizer is None:
            raise GrammarError("a grammar needs a tokenizer, and there is none")
        with needed("A schema, regex or grammar"):
            import llguidance
        self._library: Any = llguidance
        self._tokenizer = tokenizer
        self._limits = self._library.LLParserLimits(**_LIMITS)
        self._vocabularies = dict[frozenset[int], Any]()
        self._compiled = dict[tuple[str, frozenset[int]], Any]()

    def constraint(self, asked: Asked, ends: frozenset[int]) -> Constraint:
        """A new text of what was asked for. ends: ids that end a text, of which some are allowed where it is complete.

        Raises GrammarError with the place for what is no grammar, or one that is too large.
        """
        grammar, known = asked.compiled(self._library.LLMatcher), frozenset(ends)
        vocabulary = self._vocabulary(known)
        matcher = self._compiled.get((grammar, known))
        if matcher is None:
            matcher = self._library.LLMatcher(vocabulary, grammar, log_level=0, limits=self._limits)
            if matcher.is_error():
                raise self._error(asked, vocabulary, matcher.get_error())
            while len(self._compiled) >= KEPT:
                self._compiled.pop(next(iter(self._compiled)), None)
            self._compiled[grammar, known] = matcher
        return Matched(matcher.deep_copy(), known, [i for i in vocabulary.eos_tokens if i not in known])

    def spelling(self, id: int, ends: frozenset[int]) -> bytes:
        """The bytes of a token, which may be a part of a character. Raises GrammarError where there is no such one."""
        vocabulary = self._vocabulary(ends)
        if not 0 <= id < vocabulary.vocab_size:
            raise GrammarError(f"is {id}, but there are {vocabulary.vocab_size} tokens", place="token")
        return vocabulary.decode_bytes([id])

    def _vocabulary(self, ends: frozenset[int]) -> Any:
        if ends not in self._vocabularies:
            given = sorted(ends) or list(self._tokenizer.eos_ids) or None
            try:
                made = self._library.LLTokenizer(self._tokenizer.core.to_str(), eos_token=given)
            except ValueError as e:
                what = f"llguidance does not take the tokenizer: {_line(str(e))}"
                raise GrammarError(what, hint="" if given else "give `eos`, an id that ends a text") from None
            while len(self._vocabularies) >= 4:
                self._vocabularies.pop(next(iter(self._vocabularies)), None)
            self._vocabularies[ends] = made
        return self._vocabularies[ends]

    def _error(self, asked: Asked, vocabulary: Any, said: str) -> GrammarError:
        """What is wrong, at the deepest part of a schema that is wrong by itself."""
        place, what = asked.kind, said
        if isinstance(asked.text, Mapping):
            matcher = self._library.LLMatcher
            for pointer, part in _inside(cast("Mapping[str, Any]", asked.text)):
                grammar = Asked("schema", part).compiled(matcher)
                wrong, lines = matcher.validate_grammar_with_warnings(grammar, vocabulary, limits=self._limits)
                if wrong:
                    place, what = f"{asked.kind}#{pointer}", lines[0]
        return GrammarError(_line(what), place=place)


@dataclass(frozen=True)
class Asked:
    """What a text has to look like. kind: schema, regex or grammar (Lark's notation); text: the schema, or a text."""

    kind: str
    text: Any

    @staticmethod
    def of(
        schema: Any = None, json: bool = False, regex: str | None = None, grammar: str | None = None
    ) -> Asked | None:
        """Raises GrammarError for more than one, or for one of a wrong type, size or depth."""
        found = [
            Asked(kind, text)
            for kind, text in (("schema", schema), ("regex", regex), ("grammar", grammar))
            if text is not None
        ]
        found += [Asked("schema", _ANY_OBJECT)] if json and schema is None else []
        if len(found) > 1:
            raise GrammarError(f"{' and '.join(a.kind for a in found)} were given, expected one of them")
        for asked in found:
            asked.check()
        return found[0] if found else None

    def check(self) -> None:
        text = self.text
        if self.kind == "schema":
            if isinstance(text, str):
                raise GrammarError("is a text, expected an object: read it with json.loads", place="schema")
            if not isinstance(text, dict):
                raise GrammarError(f"is {type(text).__name__}, expected an object", place="schema")
            if (depth := _depth(text)) > MOST_DEPTH:
                raise GrammarError(f"is nested more than {depth - 1} deep, at most {MOST_DEPTH}", place="schema")
            text = _dumped(text)
        elif not isinstance(text, str):
            raise GrammarError(f"is {type(text).__name__}, expected a text", place=self.kind)
        if (size := len(text.encode("utf-8", "surrogatepass"))) > MOST_BYTES[self.kind]:
            raise GrammarError(f"has {size:,} bytes, at most {MOST_BYTES[self.kind]:,}", place=self.kind)

    def compiled(self, matcher: Any) -> str:
        """The grammar as llguidance takes it; not checked yet."""
        if self.kind == "regex":
            return matcher.grammar_from_regex(self.text)
        if self.kind == "grammar":
            return matcher.grammar_from_lark(self.text)
        # The schema may not loosen what is set here: overrides come after its own options.
        options = {"whitespace_pattern": _WHITESPACE, "lenient": False}
        try:
            return matcher.grammar_from_json_schema(_dumped(self.text), overrides=options)
        except ValueError as e:
            raise GrammarError(_line(str(e)), place="schema") from None


def _dumped(schema: Any) -> str:
    try:
        return json_module.dumps(schema)
    except (TypeError, ValueError) as e:
        raise GrammarError(f"is not JSON: {e}", place="schema") from None


def _depth(x: Any) -> int:
    """How deep lists and objects are nested; MOST_DEPTH + 1 for anything deeper."""
    depth = 0
    level: list[Any] = [x]
    while level and depth <= MOST_DEPTH:
        inside = [cast("Any", v) for v in level if isinstance(v, (dict, list, tuple))]
        depth += bool(inside)
        level = [v for part in inside for v in (part.values() if hasattr(part, "values") else part)]
    return depth


def _inside(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(pointer, schema) of the parts of a schema, the outer ones first, with what they may refer to."""
    shared = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    queue: list[tuple[str, Any]] = [("", dict(schema))]
    for count, (pointer, part) in enumerate(queue):
        if not hasattr(part, "items") or len(queue) > MOST_PLACES:
            continue
        found = cast("dict[str, Any]", part)
        if count:
            yield pointer, shared | found
        for key in found:
            several: Any = found[key]
            mapped, listed = isinstance(found[key], dict), isinstance(found[key], list)
            if key in _SINGLE and mapped:
                queue.append((f"{pointer}/{key}", several))
            elif key in _PARTS and mapped:
                queue += [(f"{pointer}/{key}/{name}", x) for name, x in several.items()]
            elif key in _LISTS and listed:
                queue += [(f"{pointer}/{key}/{i}", x) for i, x in enumerate(several)]


def _line(text: str) -> str:
    """The beginning of a message as one line."""
    return " ".join(text.split())[:300] or "no reason given"
