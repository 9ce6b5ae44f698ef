"""A built model with its tokenizer: text in, text or vectors out."""

from __future__ import annotations

import functools
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast, overload

import numpy as np

from ..backends.onnxruntime import BuildReport, Session
from ..backends.onnxruntime import open as open_session
from ..frontends.audio import LogMel, read_wav, resampled
from ..frontends.huggingface import GENERATION
from ..frontends.pooling import Pooling
from ..frontends.task import TASKS
from ..frontends.tokenizer import Tokenizer, read_json, said_ends
from ..ir.display import Shown, Table, size
from ..ir.errors import RuntimeInputError
from ..ir.silent import silent
from ..ir.slots import TOKENS
from ..passes.adapters import ADAPTER
from .beams import BeamSearch
from .embed import embed
from .extract import Answer, answer, tag
from .generate import Decoding, Generation, Settings
from .grammar import Grammars
from .predict import classify, fill
from .prompt_logprobs import prompt_logprobs
from .prompts import is_batch, mask_of, pad, rows_of
from .sampling import Array
from .scheduler import Scheduler
from .sessions import Sessions
from .speech import transcribe
from .strategies import Strategy


class Engine(Shown):
    """Generation, embeddings, labels, masked tokens and plain runs over one session.

    report: what the build did, if this is the engine of one. owned: a folder that goes when the engine is closed or
    nobody holds it any more. An engine is a context manager. Several threads may use it at once: what generates
    meanwhile has a state of its own over the same weights. `scheduler` serves many of them together.
    """

    def __init__(
        self,
        session: Session | Callable[[], Session],
        tokenizer: Tokenizer | None = None,
        pooling: Pooling | None = None,
        *,
        folder: Path | None = None,
        report: BuildReport | None = None,
        owned: Path | None = None,
    ) -> None:
        self.tokenizer, self.pooling, self.report = tokenizer, pooling or Pooling(), report
        self._sessions = Sessions(session)
        self._folder = folder
        self._removal = None if owned is None else weakref.finalize(self, shutil.rmtree, owned, ignore_errors=True)

    @classmethod
    def open(
        cls, folder: str | Path, *, threads: int | None = None, tune: bool = False, every_byte: bool = False
    ) -> Self:
        """An engine for a folder that `build` wrote. Settings: see the session. Errors name the file."""
        folder = Path(folder)
        return cls(open_session(folder, threads=threads, tune=tune, every_byte=every_byte), *_beside(folder))

    @classmethod
    def built(cls, report: BuildReport, *, threads: int | None = None, owned: bool = False) -> Self:
        """The engine of what was just built, which is opened when it is first used. owned: the folder is its own."""
        folder = report.folder
        opener = functools.partial(open_session, folder, threads=threads)
        return cls(opener, *_beside(folder), folder=folder, report=report, owned=folder if owned else None)

    @property
    def session(self) -> Session:
        """Raises what opening the folder raises, and RuntimeInputError once the engine is closed."""
        return self._sessions.own

    def close(self) -> None:
        """Let go of the session, and remove the folder if the engine owns it. Doing it again changes nothing."""
        self._sessions.close()
        if self._removal is not None:
            self._removal()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def table(self) -> Table:
        """What it serves and where; a session that is not open yet is not opened."""
        opened = self._sessions.opened
        rows = [("folder", str(self._folder or (opened.folder if opened else "none")))]
        contract = self.report.contract if self.report else opened.contract if opened else None
        if contract is not None:
            slots = f", {len(contract.slots)} slots of state" if contract.slots else ""
            rows += [("model", f"{contract.family}, {contract.task}{slots}")]
            rows += [("target", f"{contract.provider}, {contract.dtype}, ONNX Runtime {contract.runtime}")]
        if self.report is not None:
            kinds = ", ".join(f"{name} {n}" for name, n in self.report.attentions.items()) or "none"
            rows += [("attentions", kinds), ("weights", size(self.report.bytes))]
        tokens = "none" if self.tokenizer is None else f"{self.tokenizer.core.get_vocab_size():,} tokens"
        return Table("engine", [*rows, ("tokenizer", tokens), ("session", self._sessions.said)])

    @property
    def folder(self) -> Path:
        """The built folder that the engine serves."""
        return self._folder or self.session.folder

    @property
    def config(self) -> dict[str, Any]:
        """Contents of config.json."""
        return self.session.config

    @property
    def task(self) -> str:
        """The name of the task of the model."""
        return self.session.contract.task

    @overload
    def generate(
        self,
        prompts: str,
        *,
        chat: bool = False,
        on_text: Callable[[int, str], None] | None = None,
        **settings: Any,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompts: Any = None,
        *,
        attention_mask: Any = None,
        chat: bool = False,
        inputs: Mapping[str, Any] | None = None,
        on_text: Callable[[int, str], None] | None = None,
        **settings: Any,
    ) -> Any: ...
    def generate(
        self,
        prompts: Any = None,
        *,
        attention_mask: Any = None,
        chat: bool = False,
        inputs: Mapping[str, Any] | None = None,
        on_text: Callable[[int, str], None] | None = None,
        **settings: Any,
    ) -> Any:  # Generation for one prompt, a list of them for several
        """Continue a prompt, or each of several; for an encoder-decoder, what follows from each source.

        prompts: a text, ids, or a list of either (ids [B,S] with attention_mask [B,S]: padding left or right); with
        `chat` what the user says, or a conversation. inputs: arrays by name: the whole source of an encoder-decoder
        (sounds, pictures, ids), whose prompts then are what its decoder begins with (None: its start token), and what
        a model takes beside tokens. on_text: called with (row, text) as text becomes certain.
        settings: the fields of `Settings`: max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty,
        stop, seed, eos, context; and those of `Strategy`: draft, lookup, num_beams, schema, regex, adapter and others.
        Gives a Generation, or a list of them for several prompts. Raises RuntimeInputError for prompts, settings or
        lengths that cannot be.
        """
        if prompts is None:
            rows, several = self._starts(inputs or {}), True
        else:
            rows = rows_of(prompts, self.tokenizer, attention_mask=attention_mask, chat=chat)
            several = attention_mask is not None or is_batch(prompts, chat=chat)
        session = self._sessions.take()
        try:
            decoding = self._decoding(session, rows, settings, inputs)
            for row, text in decoding:
                (on_text or silent)(row, text)
        finally:
            self._sessions.give(session)
        results = decoding.results()
        if (top := decoding.settings.prompt_logprobs) is not None:
            said = prompt_logprobs(self.session, rows, inputs, top)
            results = [replace(r, prompt_logprobs=told) for r, told in zip(results, said, strict=True)]
        return results if several else results[0]

    def stream(self, prompt: Any, *, chat: bool = False, **settings: Any) -> Iterator[str]:
        """The text after one prompt, piece by piece as it becomes certain. Settings as for `generate`."""
        if self.tokenizer is None:
            raise RuntimeInputError("there is no tokenizer to make text with", place=str(self.folder))
        rows = rows_of(prompt, self.tokenizer, chat=chat)
        if len(rows) != 1:
            raise RuntimeInputError(f"stream takes one prompt, not {len(rows)}")
        self._decoding(self.session, rows, settings)  # Raises for settings that cannot be, before anybody iterates.

        def pieces() -> Iterator[str]:
            session = self._sessions.take()
            try:
                for _, text in self._decoding(session, rows, settings):
                    yield text
            finally:
                self._sessions.give(session)

        return pieces()

    def scheduler(self, **settings: Any) -> Scheduler:
        """One that serves many requests at once over the engine's session. settings: see `Scheduler`."""
        return Scheduler(self.session, self.tokenizer, **settings)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """One forward without state: outputs by name. See `Session.run`."""
        return self.session.run(inputs)

    def embed(
        self, texts: str | Sequence[str], *, batch: int = 32, prompt: str | None = None, prompt_name: str | None = None
    ) -> Array:
        """One vector a text from an encoder, f32 [len(texts), C] ([C] for one text), pooled as the checkpoint says.

        prompt: put before each text (None: the one of the checkpoint called `prompt_name`, or its usual one).
        """
        if self.tokenizer is None:
            raise RuntimeInputError("there is no tokenizer to read text with", place=str(self.folder))
        positions = self.session.contract.positions or None
        return embed(
            self.session,
            self.tokenizer,
            texts,
            self.pooling,
            batch=batch,
            positions=positions,
            prompt=prompt,
            prompt_name=prompt_name,
        )

    def classify(self, texts: str | Sequence[str]) -> Any:  # Label for one text, a list of them for several
        """The likeliest label of a text, or of each of several, with the probabilities of all labels.

        Raises RuntimeInputError for a model of another task, or a text that is too long.
        """
        tokenizer, positions = self._for_task("sequence-classification")
        several = [texts] if isinstance(texts, str) else list(texts)
        found = classify(self.session, tokenizer, several, self.config, positions)
        return found[0] if isinstance(texts, str) else found

    def fill(self, texts: str | Sequence[str], *, top: int = 5) -> Any:
        """For each mask in a text the `top` likeliest tokens: [masks][Guess]; for several texts a list of that.

        Raises RuntimeInputError for a model of another task, and for a text without a mask, or that is too long.
        """
        tokenizer, positions = self._for_task("masked-lm")
        found = fill(self.session, tokenizer, [texts] if isinstance(texts, str) else list(texts), positions, top)
        return found[0] if isinstance(texts, str) else found

    def tag(self, texts: str | Sequence[str]) -> Any:  # list[Tagged] for one text, a list of them for several
        """The label of each token of a text, or of each of several, with where it stands.

        Raises RuntimeInputError for a model of another task, or a text that is too long.
        """
        tokenizer, positions = self._for_task("token-classification")
        several = [texts] if isinstance(texts, str) else list(texts)
        found = tag(self.session, tokenizer, several, self.config, positions)
        return found[0] if isinstance(texts, str) else found

    def answer(self, question: str, text: str, *, longest: int = 30) -> Answer:
        """The piece of `text` that most likely answers the question, of at most `longest` tokens.

        Raises RuntimeInputError for a model of another task, or texts that are too long.
        """
        tokenizer, positions = self._for_task("question-answering")
        return answer(self.session, tokenizer, question, text, positions, longest=longest)

    def transcribe(
        self, speech: Any, *, language: str = "en", kind: str = "transcribe", **settings: Any
    ) -> Any:  # Generation for one piece, a list of them for several
        """What is said in a piece of speech, or in each of several, or (kind="translate") its English translation.

        speech: the path of a WAV file, or samples f32 [N] at the rate of the model, or a list of either. language: of
        the speech, as a code. settings: as for `generate`. What the model's generation_config.json suppresses is never
        given. Raises RuntimeInputError for a model of another task, and for what cannot be read.
        """
        tokenizer, positions = self._for_task("speech-to-text")
        several = isinstance(speech, (list, tuple))
        pieces = cast("list[Any]", speech) if several else [speech]
        hear, said = LogMel.read(self.folder), read_json(self.folder / GENERATION)
        given = {"context": positions, "eos": self.ends, **settings}
        session = self._sessions.take()
        try:
            found = transcribe(
                session,
                tokenizer,
                hear,
                [_samples(piece, hear) for piece in pieces],
                language=language,
                kind=kind,
                suppress=said.get("suppress_tokens") or (),
                suppress_first=said.get("begin_suppress_tokens") or (),
                **given,
            )
        finally:
            self._sessions.give(session)
        return found if several else found[0]

    def _for_task(self, task: str) -> tuple[Tokenizer, int | None]:
        """(tokenizer, positions), for a model of this task."""
        if self.task != task:
            raise RuntimeInputError(f"{self.session.contract.family} is a {self.task} model, not {task}")
        if self.tokenizer is None:
            raise RuntimeInputError("there is no tokenizer to read text with", place=str(self.folder))
        return self.tokenizer, self.session.contract.positions or None

    def _decoding(
        self,
        session: Session,
        rows: list[list[int]],
        given: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
    ) -> Decoding | BeamSearch:
        contract = session.contract
        if contract.kind != "decoder":
            hint = 'a decoder from elsewhere does: mg.load(..., task="causal-lm")' if self.task not in TASKS else ""
            raise RuntimeInputError(f"{contract.family} is a {self.task} model: it does not generate", hint=hint)
        known = {"context": contract.positions or None, "eos": self.ends}
        strategy, rest = Strategy.of(given)
        settings = Settings.of({**known, **{k: v for k, v in rest.items() if v is not None}})
        source = dict(inputs or {})
        if contract.encoder and inputs is None:
            source, rows = self._source(rows), [[self._start()] for _ in rows]
        chosen = strategy.adapters(contract.adapters, len(rows))
        beside = {} if chosen is None else {ADAPTER: chosen}
        return strategy.decoding(
            session, self.tokenizer, rows, settings, self.reader({**source, **beside}, session),
            grammars=lambda: self.grammars, source=source,
        )  # fmt: skip

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Schemas, regular expressions and grammars over the vocabulary of this model."""
        return Grammars(self.tokenizer)

    def reader(self, source: Mapping[str, Any], session: Session) -> Callable[[Array, Array], Array]:
        """What reads prompts as `Session.prefill` does, with a source and inputs beside the tokens."""
        contract = session.contract

        def read(tokens: Array, lengths: Array) -> Array:
            first = {*contract.inputs.get(contract.encoder, {})}
            if contract.encoder:
                first |= {TOKENS.mask, *contract.unread} - {*contract.inputs[contract.masked]}
                session.encode({k: v for k, v in source.items() if k in first})
            return session.prefill(tokens, lengths, {k: v for k, v in source.items() if k not in first})

        return read

    def _source(self, rows: list[list[int]]) -> dict[str, Array]:
        """The texts that an encoder reads, padded on the right."""
        tokens, lengths = pad(rows)
        mask = mask_of(lengths, tokens.shape[1])
        return {TOKENS.ids: tokens} if mask.all() else {TOKENS.ids: tokens, TOKENS.mask: mask}

    def _starts(self, inputs: Mapping[str, Any]) -> list[list[int]]:
        """What the decoder begins with, for each row of a source."""
        if not inputs or not self.session.contract.encoder:
            raise RuntimeInputError("there are no prompts")
        return [[self._start()] for _ in range(len(next(iter(inputs.values()))))]

    @property
    def ends(self) -> tuple[int, ...]:
        """Every id that ends a text, by the tokenizer, generation_config.json and config.json."""
        own = self.tokenizer.eos_ids if self.tokenizer is not None else ()
        return tuple(dict.fromkeys([*own, *said_ends(self.folder, self.config)]))

    def _start(self) -> int:
        """The token that a decoder begins with."""
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(self.config.get(name), int):
                return self.config[name]
        raise RuntimeInputError(
            "config.json has neither decoder_start_token_id nor bos_token_id", place=str(self.folder)
        )


def _samples(piece: Any, hear: LogMel) -> Array:
    """The samples of a WAV file at the rate of the model, or those that were given."""
    if isinstance(piece, (str, Path)):
        samples, rate = read_wav(piece)
        return resampled(samples, rate, hear.rate)
    samples = np.asarray(piece)
    if samples.ndim != 1 or samples.dtype.kind not in "iuf":
        raise RuntimeInputError(f"speech is {samples.dtype}{list(samples.shape)}, expected samples f32 [N]")
    return samples.astype(np.float32)


def _beside(folder: Path) -> tuple[Tokenizer | None, Pooling | None]:
    """What stands beside a built model."""
    return Tokenizer.open(folder) if (folder / "tokenizer.json").exists() else None, Pooling.read(folder)
