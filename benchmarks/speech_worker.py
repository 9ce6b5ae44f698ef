"""Whisper by one engine for speech_speed.py: JSON lines in and out, run by the environment of that engine.

speech_worker.py ENGINE FOLDER THREADS. Requests: {"do": "transcribe", "features": FILE.npy, "samples": FILE.npy,
"prompt": [...], "beams": 1, "most": 100}: seconds and ids. Features are a spectrogram [1,80,3000].
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np


class Monograph:
    """A folder that `mg.build` wrote; its own front end is part of what is timed."""

    def __init__(self, folder: str, threads: int) -> None:
        import monograph as mg

        self.engine = mg.open(folder, threads=threads)

    def transcribe(self, asked: dict[str, Any]) -> list[int]:
        samples = np.load(asked["samples"])
        given = {"num_beams": asked["beams"]} if asked["beams"] > 1 else {}
        return self.engine.transcribe(samples, max_new_tokens=asked["most"], **given).ids


class Transformers:
    """The checkpoint in eager PyTorch."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.model: Any = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.extract = transformers.WhisperFeatureExtractor.from_pretrained(folder)

    def transcribe(self, asked: dict[str, Any]) -> list[int]:
        samples, prompt = np.load(asked["samples"]), asked["prompt"]
        features = self.extract(samples, sampling_rate=16_000, return_tensors="pt").input_features
        given = {"num_beams": asked["beams"], "max_new_tokens": asked["most"], "do_sample": False}
        with self.torch.no_grad():
            made = self.model.generate(features, decoder_input_ids=self.torch.tensor([prompt]), **given)[0].tolist()
        made = made[len(prompt) :] if made[: len(prompt)] == prompt else made
        return [i for i in made if i != self.model.config.eos_token_id]


class CTranslate2:
    """The checkpoint as CTranslate2 converted it: FOLDER:COMPUTE_TYPE. The spectrogram is given, and not timed."""

    def __init__(self, folder: str, threads: int) -> None:
        import ctranslate2  # pyright: ignore[reportMissingImports]

        path, _, kind = folder.rpartition(":")
        self.library = ctranslate2
        self.model = ctranslate2.models.Whisper(path, compute_type=kind, inter_threads=1, intra_threads=threads)

    def transcribe(self, asked: dict[str, Any]) -> list[int]:
        features = self.library.StorageView.from_array(np.ascontiguousarray(np.load(asked["features"])))
        found = self.model.generate(
            features, [asked["prompt"]], beam_size=asked["beams"], max_length=asked["most"] + len(asked["prompt"])
        )
        return list(found[0].sequences_ids[0])


def main() -> None:
    name, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print goes elsewhere.
    kinds: dict[str, Any] = {"monograph": Monograph, "transformers": Transformers, "ctranslate2": CTranslate2}
    engine = kinds[name](folder, threads)
    channel.write(json.dumps({"ready": name}) + "\n")
    for line in sys.stdin:
        start = time.perf_counter()
        ids = engine.transcribe(json.loads(line))
        channel.write(json.dumps({"seconds": time.perf_counter() - start, "ids": ids}) + "\n")


if __name__ == "__main__":
    main()
