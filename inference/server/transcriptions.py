"""POST /v1/audio/transcriptions and /v1/audio/translations: what is said in a WAV file."""

from __future__ import annotations

import email.parser
import email.policy
import io
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

from ...frontends.audio import LogMel, read_wav, resampled
from ...ir.errors import RuntimeInputError
from ..generate import Generation
from ..sampling import Array
from .answers import Answer
from .errors import HttpError
from .service import Service

RATES = (4_000, 192_000)
"""Samples a second that a file may have."""
REFUSED = ("prompt", "timestamp_granularities[]", "stream", "chunking_strategy", "include[]")
KNOWN = ("file", "model", "language", "response_format", "temperature")


@dataclass(frozen=True)
class Speech:
    """A request. text: whether the answer is bare text."""

    file: bytes
    model: str
    language: str
    temperature: float
    text: bool


def read_form(kind: str, body: bytes, *, translate: bool) -> Speech:
    """The fields of a form. Raises HttpError 400 or 415 for what is none, and for fields there are not."""
    if not kind.lower().startswith("multipart/form-data"):
        raise HttpError(415, f"the content type is {kind[:80]!r}, expected multipart/form-data")
    head = f"Content-Type: {' '.join(kind.split())}\r\n\r\n".encode("latin-1", "replace")
    # The standard library's parser of mail reads forms, too.
    whole = email.parser.BytesParser(EmailMessage, policy=email.policy.HTTP).parsebytes(head + body)
    fields: dict[str, bytes] = {}
    for part in whole.iter_parts() if whole.is_multipart() else ():
        name: Any = part.get_param("name", header="content-disposition")
        content: Any = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content
    for name in fields:
        if name in REFUSED:
            raise HttpError(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
        if name not in KNOWN or (translate and name == "language"):
            raise HttpError(
                400, f"unrecognized request argument: {name[:80]}", param=name[:80], code="unknown_parameter"
            )
    for name in ("file", "model"):
        if name not in fields:
            raise HttpError(400, f"you must give {name}", param=name, code="missing_required_parameter")
    form = _text(fields, "response_format", "json")
    if form not in ("json", "text"):
        raise HttpError(400, f"response_format is {form!r}, expected json or text", param="response_format")
    return Speech(
        fields["file"],
        _text(fields, "model", ""),
        _text(fields, "language", "en"),
        _temperature(fields),
        form == "text",
    )


def _text(fields: dict[str, bytes], name: str, default: str) -> str:
    return fields.get(name, default.encode())[:512].decode("utf-8", "replace").strip()


def _temperature(fields: dict[str, bytes]) -> float:
    try:
        found = float(_text(fields, "temperature", "0"))
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise HttpError(400, "temperature is not a number between 0 and 1", param="temperature")
    return found


async def transcribed(service: Service, kind: str, body: bytes, *, translate: bool) -> Answer | str:
    """The answer to one request. Raises HttpError."""
    service.check()
    if service.engine.task != "speech-to-text":
        raise HttpError(404, f"{service.name} does not transcribe", code="model_not_supported")
    asked = await service.thread(read_form, kind, body, translate=translate)
    service.model(asked.model)

    def work() -> Generation:
        engine = service.engine
        positions = service.positions or service.limits.tokens + 4
        return engine.transcribe(
            samples_of(asked.file, LogMel.read(engine.folder)),
            language=asked.language,
            kind="translate" if translate else "transcribe",
            temperature=asked.temperature,
            max_new_tokens=max(1, min(service.limits.tokens, positions - 4)),
        )

    found = await service.alone(work)
    text, count = found.text.strip(), len(found.ids)
    usage = {"type": "tokens", "input_tokens": 0, "output_tokens": count, "total_tokens": count}
    return text if asked.text else {"text": text, "usage": usage}


def samples_of(file: bytes, hear: LogMel) -> Array:
    """The samples of a WAV file at the rate of the model, no more of them than one spectrogram holds.

    Raises HttpError 400 for what is no such file.
    """
    try:
        samples, rate = read_wav(io.BytesIO(file))
    except (RuntimeInputError, ValueError) as e:
        what = e.what if isinstance(e, RuntimeInputError) else str(e)
        raise HttpError(400, f"file: {what}", param="file") from None
    if not RATES[0] <= rate <= RATES[1]:
        raise HttpError(400, f"file: has {rate} samples a second, expected {RATES[0]} to {RATES[1]}", param="file")
    if not len(samples):
        raise HttpError(400, "file: holds no sound", param="file")
    return resampled(samples[: rate * hear.seconds], rate, hear.rate)
