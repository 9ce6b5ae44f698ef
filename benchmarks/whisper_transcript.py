"""Whisper from its checkpoint: the transcript of synthesised sentences, ours on ONNX Runtime against transformers'.

    python benchmarks/whisper_transcript.py FOLDER

FOLDER is a Hugging Face checkpoint of Whisper with tokenizer and preprocessor_config.json. Needs espeak-ng.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import torch
import transformers
from monograph.frontends.audio import LogMel, read_wav, resampled
from monograph.inference.speech import transcribe
from report import WORK, parser, publish

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and then it runs into the deep green forest.",
    "In the year nineteen sixty nine, two men walked on the surface of the moon.",
    "Please write down my telephone number and call me back before the end of the week.",
)
MOST = 60


def speak(text: str, rate: int, file: Path) -> Any:
    """Samples of a synthesised sentence. Ends the benchmark if espeak-ng is not there."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not installed: it speaks the sentences")
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "140", "-w", str(file), text], check=True)
    samples, given = read_wav(file)
    return resampled(samples, given, rate)


def theirs(folder: Path, speech: list[Any], hear: LogMel, prompt: list[int]) -> tuple[list[list[int]], Any]:
    """(ids that transformers generates, its logits after the prompt), each piece alone, through its own front end."""
    model: Any = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extract = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    ids, logits = [], []
    for samples in speech:
        features = extract(samples, sampling_rate=hear.rate, return_tensors="pt").input_features
        begin = torch.tensor([prompt])
        with torch.no_grad():
            logits.append(model(features, decoder_input_ids=begin).logits[0, -1].numpy())
            made = model.generate(features, decoder_input_ids=begin, max_new_tokens=MOST, do_sample=False, num_beams=1)
        ids.append([i for i in made[0].tolist() if i != model.config.eos_token_id])
    return ids, np.stack(logits)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("folder", type=Path, help="a checkpoint of Whisper")
    given = options.parse_args()
    hear, work = LogMel.read(given.folder), WORK / "whisper"
    work.mkdir(parents=True, exist_ok=True)
    speech = [speak(text, hear.rate, work / f"{i}.wav") for i, text in enumerate(SENTENCES)]
    model = mg.load(given.folder)
    engine = mg.build(model, work / "built")
    assert engine.tokenizer is not None
    # Greedy, all sentences as one batch; transformers reads them one by one.
    silent = {"suppress": "suppress_tokens", "suppress_first": "begin_suppress_tokens"}
    never: dict[str, Any] = {k: model.generation.get(name) or () for k, name in silent.items()}
    ours = transcribe(engine.session, engine.tokenizer, hear, speech, max_new_tokens=MOST, **never)
    prompt = ours[0].prompt
    ids, want = theirs(given.folder, speech, hear, prompt)
    engine.session.encode({"input_features": np.stack([hear(s) for s in speech])})
    got = engine.session.prefill(np.tile(prompt, (len(speech), 1)), np.full(len(speech), len(prompt)))
    errors = np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)
    rows = [
        {
            "said": said,
            "heard": engine.tokenizer.decode(mine.ids).strip(),
            "tokens": len(mine.ids),
            "as transformers": mine.ids == theirs,
            "error of a logit": float(e),
        }
        for said, mine, theirs, e in zip(SENTENCES, ours, ids, errors, strict=True)
    ]
    note = "The error is relative to the largest logit after the prompt, spectrogram included."
    publish("whisper_transcript", rows, note=note, only_print=given.no_publish)
    return 0 if all(row["as transformers"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
