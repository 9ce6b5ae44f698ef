"""Spectrograms against those of transformers, and WAV files."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from monograph.frontends.audio import LogMel, read_wav, resampled
from monograph.ir.errors import ConfigError, RuntimeInputError


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    """A tone that rises, over noise, and silence at its end."""
    rng, t = np.random.default_rng(0), np.arange(int(seconds * rate)) / rate
    y = 0.4 * np.sin(2 * np.pi * (300 + 900 * t) * t) + 0.05 * rng.standard_normal(len(t))
    y[-len(t) // 4 :] = 0
    return y.astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "seconds"), [({}, 3.3), ({}, 31.0), ({"feature_size": 128, "chunk_length": 5}, 5.0)]
)
def test_spectrogram_equals_that_of_transformers(settings: dict[str, Any], seconds: float, tmp_path: Path) -> None:
    theirs = transformers.WhisperFeatureExtractor(**settings)
    theirs.save_pretrained(tmp_path)
    ours, samples = LogMel.read(tmp_path), tone(seconds)
    want = theirs(samples, sampling_rate=16000, return_tensors="np").input_features[0]
    got = ours(samples)
    assert got.shape == want.shape == (ours.mels, ours.frames)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_another_front_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config.json: is missing"):
        LogMel.read(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": "Other"}))
    with pytest.raises(ConfigError, match="has 'Other', expected the WhisperFeatureExtractor"):
        LogMel.read(tmp_path)
    known = {"feature_extractor_type": "WhisperFeatureExtractor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**known, "dither": 0.1}))
    with pytest.raises(ConfigError, match=r"dither is 0.1, only 0.0 is supported"):
        LogMel.read(tmp_path)


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_wav_files_are_read(width: int, channels: int, tmp_path: Path) -> None:
    samples = tone(0.05)
    scaled = np.round(samples.astype(np.float64) * (2 ** (8 * width - 1) - 1) + (128 if width == 1 else 0))
    data = np.repeat(scaled.astype({1: np.uint8, 2: "<i2", 4: "<i4"}[width]), channels)
    with wave.open(str(tmp_path / "a.wav"), "wb") as f:
        f.setnchannels(channels)
        f.setsampwidth(width)
        f.setframerate(16000)
        f.writeframes(data.tobytes())
    got, rate = read_wav(tmp_path / "a.wav")
    assert rate == 16000
    np.testing.assert_allclose(got, samples, atol=0.01 if width == 1 else 1e-4)
    (tmp_path / "a.wav").write_bytes(b"RIFFabc")
    with pytest.raises(RuntimeInputError, match=r"a.wav: cannot be read as a WAV file"):
        read_wav(tmp_path / "a.wav")


@pytest.mark.parametrize(("rate", "wanted"), [(22050, 16000), (8000, 16000), (16000, 16000)])
def test_a_tone_keeps_its_pitch_at_another_rate(rate: int, wanted: int) -> None:
    def note(rate: int) -> np.ndarray:
        t = np.arange(rate // 2) / rate
        return (np.sin(2 * np.pi * 440 * t) * np.hanning(len(t))).astype(np.float32)

    got = resampled(note(rate), rate, wanted)
    assert len(got) == wanted // 2
    np.testing.assert_allclose(got, note(wanted), atol=2e-3)
