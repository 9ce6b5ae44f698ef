"""Speech as models take it: WAV files as samples, and samples as log-mel spectrograms."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..ir.errors import ConfigError, RuntimeInputError
from .huggingface import PREPROCESSOR
from .tokenizer import read_json

Array = np.ndarray[Any, Any]

_HIGHEST = 8000.0
_WIDTHS = {1: np.uint8, 2: np.dtype("<i2"), 4: np.dtype("<i4")}


def read_wav(path: str | Path | BinaryIO) -> tuple[Array, int]:
    """(samples f32 [N] in -1 to 1, samples per second) of a file or a path; several channels are averaged.

    Raises RuntimeInputError for a file that is no PCM WAV, naming its path.
    """
    place = str(path) if isinstance(path, (str, Path)) else ""
    try:
        with wave.open(str(path) if isinstance(path, (str, Path)) else path, "rb") as f:
            width, channels, rate = f.getsampwidth(), f.getnchannels(), f.getframerate()
            data = f.readframes(f.getnframes())
    except (wave.Error, EOFError, OSError, RuntimeError) as e:  # the last one for parts longer than the file
        what = str(e) or "it ends too early, or its parts are longer than it is"
        raise RuntimeInputError(f"cannot be read as a WAV file: {what}", place=place) from None
    if width not in _WIDTHS:
        raise RuntimeInputError(f"has samples of {8 * width} bits, expected 8, 16 or 32", place=place)
    whole = len(data) - len(data) % (width * channels)  # a file that was cut off may end within a sample
    numbers = np.frombuffer(data[:whole], _WIDTHS[width]).astype(np.float64)
    numbers = numbers / 128 - 1 if width == 1 else numbers / 2 ** (8 * width - 1)
    return numbers.reshape(-1, channels).mean(axis=1).astype(np.float32), rate


def resampled(samples: Array, rate: int, wanted: int) -> Array:
    """Samples [N] of `rate` per second at another rate, what is above half of it cut off."""
    if rate == wanted or not len(samples):
        return samples
    # Up to a whole number of periods of both rates, so that the result has a whole number of samples.
    period = Fraction(wanted, rate).denominator
    padded = np.pad(samples, (0, -len(samples) % period)).astype(np.float64)
    count = len(padded) * wanted // rate
    spectrum = np.fft.rfft(padded)
    kept = np.zeros(count // 2 + 1, spectrum.dtype)
    both = min(len(kept), len(spectrum))
    kept[:both] = spectrum[:both]
    whole: Array = np.fft.irfft(kept, count) * (count / len(padded))
    return whole[: -(-len(samples) * wanted // rate)].astype(np.float32)


@dataclass(frozen=True)
class LogMel:
    """How Whisper hears: the logarithm of the power in `mels` bands, of windows that overlap. (Radford et al. 2023)

    rate: samples per second. window, hop: samples in a window and from one to the next. seconds: of a spectrogram.
    """

    mels: int = 80
    rate: int = 16000
    window: int = 400
    hop: int = 160
    seconds: int = 30

    @staticmethod
    def read(folder: str | Path) -> LogMel:
        """What preprocessor_config.json of a checkpoint says. Raises ConfigError for another kind of front end."""
        place = Path(folder) / PREPROCESSOR
        said = read_json(place)
        if said.get("feature_extractor_type") != "WhisperFeatureExtractor":
            found = f"has {said.get('feature_extractor_type')!r}" if place.exists() else "is missing"
            raise ConfigError(f"{found}, expected the WhisperFeatureExtractor", place=str(place))
        for name, silent in (("padding_value", 0.0), ("dither", 0.0), ("do_normalize", False)):
            if said.get(name, silent) != silent:
                raise ConfigError(f"{name} is {said[name]!r}, only {silent!r} is supported", place=str(place))
        names = {"mels": "feature_size", "rate": "sampling_rate", "window": "n_fft"}
        names |= {"hop": "hop_length", "seconds": "chunk_length"}
        given = {own: said[k] for own, k in names.items() if k in said}
        if not all(isinstance(n, int) and n > 0 for n in given.values()):
            raise ConfigError(f"has {given}, expected numbers above 0", place=str(place))
        return LogMel(**given)

    @property
    def frames(self) -> int:
        return self.seconds * self.rate // self.hop

    def __call__(self, samples: Array) -> Array:
        """Samples [N], cut or followed by silence to the seconds of one spectrogram -> f32 [mels, frames]."""
        count = self.seconds * self.rate
        padded = np.pad(samples[:count].astype(np.float64), (0, max(count - len(samples), 0)))
        padded = np.pad(padded, self.window // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop][: self.frames]
        shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        power = np.abs(np.fft.rfft(windows * shape)) ** 2
        bands = np.log10(np.maximum(power @ mel_bands(self.window // 2 + 1, self.mels, self.rate), 1e-10))
        return ((np.maximum(bands, bands.max() - 8.0) + 4.0) / 4.0).T.astype(np.float32)


def mel_bands(bins: int, mels: int, rate: int) -> Array:
    """How much of each frequency [bins] belongs to each band [mels]: triangles of area one. (Slaney 1998)"""
    frequencies = np.linspace(0, rate // 2, bins)
    edges = _hertz(np.linspace(_mel(0.0), _mel(_HIGHEST), mels + 2))
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


_LINEAR, _STEP = 1000.0, np.log(6.4) / 27.0
"""Hertz up to which mels are linear, 200 / 3 Hz each, and the step of their logarithm beyond."""


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < _LINEAR else 15 + float(np.log(hertz / _LINEAR)) / _STEP


def _hertz(mel: Array) -> Array:
    return np.where(mel < 15, 200 * mel / 3, _LINEAR * np.exp(_STEP * (mel - 15)))
