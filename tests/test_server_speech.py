"""Transcription over HTTP: a tiny Whisper asked by OpenAI's client says what the engine says offline."""

from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import monograph as mg
import numpy as np
import openai
import pytest
import tokenizers
from family_parity import reference_model
from monograph.inference.server.run import Serving
from openai import OpenAI
from test_family_whisper import CASES
from test_speech import SAYS, SPECIAL

pytestmark = pytest.mark.slow
FRONT = {
    "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8, "sampling_rate": 8000, "n_fft": 400,
    "hop_length": 1000, "chunk_length": 3,
}  # fmt: skip


def wav(samples: Any, rate: int = 8000, channels: int = 1) -> bytes:
    """A file of 16-bit samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as f:
        f.setnchannels(channels)
        f.setsampwidth(2)
        f.setframerate(rate)
        f.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def noise(seed: int, count: int = 20_000) -> Any:
    return np.clip(np.random.default_rng(seed).standard_normal(count) / 4, -1, 1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Path]]:
    folder = tmp_path_factory.mktemp("speech")
    reference_model(CASES["whisper"]).save_pretrained(folder / "checkpoint")
    words = {**{w: i for i, w in enumerate(SAYS) if i not in SPECIAL.values()}, **SPECIAL}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    core.add_special_tokens(list(SPECIAL))
    core.save(str(folder / "checkpoint" / "tokenizer.json"))
    (folder / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(FRONT))
    said = json.loads((folder / "checkpoint" / "generation_config.json").read_text())
    said |= {"begin_suppress_tokens": [9], "suppress_tokens": [10]}  # the defaults are beyond a tiny vocabulary
    (folder / "checkpoint" / "generation_config.json").write_text(json.dumps(said))
    mg.build(mg.load(folder / "checkpoint"), folder / "ears", threads=1).close()
    with Serving(folder / "ears", threads=1) as running:
        yield running, folder


def test_transcripts_are_what_the_engine_says(served: tuple[Serving, Path]) -> None:
    server, folder = served
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    engine = mg.open(folder / "ears")
    most = engine.session.contract.positions - 4
    for seed in range(4):
        (folder / "one.wav").write_bytes(wav(noise(seed, 2000 * (seed + 1))))
        for language, kind in (("en", "transcribe"), ("fr", "transcribe"), ("en", "translate")):
            expected = engine.transcribe(folder / "one.wav", language=language, kind=kind, max_new_tokens=most).text
            with (folder / "one.wav").open("rb") as file:
                if kind == "translate":
                    found = client.audio.translations.create(model="ears", file=file).text
                else:
                    found = client.audio.transcriptions.create(model="ears", file=file, language=language).text
            assert found == expected.strip()
    with (folder / "one.wav").open("rb") as file:
        text: Any = client.audio.transcriptions.create(model="ears", file=file, response_format="text")
    assert text.strip() == engine.transcribe(folder / "one.wav", max_new_tokens=most).text.strip()


BAD: dict[str, tuple[dict[str, Any], bytes, int, str | None]] = {
    "no WAV": ({}, b"ID3 something", 400, "file"),
    "empty": ({}, b"", 400, "file"),
    "cut off": ({}, wav(noise(1))[:30], 400, "file"),
    "no sound": ({}, wav([]), 400, "file"),
    "one sample a second": ({}, wav(noise(1, 100), rate=1), 400, "file"),
    "a rate of zero": ({}, wav(noise(1, 100))[:24] + struct.pack("<I", 0) + wav(noise(1, 100))[28:], 400, "file"),
    "half a frame": ({}, wav(noise(1, 100)) + b"x", 200, None),
    "unknown language": ({"language": "xx"}, wav(noise(1)), 400, None),
    "unknown model": ({"model": "other"}, wav(noise(1)), 404, "model"),
    "a prompt": ({"prompt": "hello"}, wav(noise(1)), 400, "prompt"),
    "subtitles": ({"response_format": "srt"}, wav(noise(1)), 400, "response_format"),
    "a temperature that is none": ({"temperature": "hot"}, wav(noise(1)), 400, "temperature"),
    "an unknown field": ({"pitch": "1"}, wav(noise(1)), 400, "pitch"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_sounds(served: tuple[Serving, Path], kind: str) -> None:
    fields, file, status, param = BAD[kind]
    url = f"{served[0].url}/v1/audio/transcriptions"
    answer = httpx.post(url, data={"model": "ears", **fields}, files={"file": ("a.wav", file)}, timeout=30)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"]["param"] == param


def test_what_is_no_form(served: tuple[Serving, Path]) -> None:
    url = f"{served[0].url}/v1/audio/transcriptions"
    assert httpx.post(url, json={"model": "ears"}).status_code == 415
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = httpx.post(url, content=b"--y\r\n\r\nhello", headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    client = OpenAI(base_url=f"{served[0].url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="ears", prompt="a")
