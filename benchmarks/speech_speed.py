"""Whisper base on a CPU: seconds a second of speech, against CTranslate2 and transformers, greedy and with five beams.

    python benchmarks/speech_speed.py FOLDER --ctranslate2 FOLDER

FOLDER is a Hugging Face checkpoint of Whisper, and the same as CTranslate2 converts it. Needs espeak-ng. All hear the
same sentences, hold their models open and take turns.
"""

from __future__ import annotations

import sys
import venv
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph.console import working
from monograph.frontends.audio import LogMel
from monograph.machine import median
from report import Row, parser, publish
from serving_peers import PLACE, Worker, run, spread
from whisper_transcript import SENTENCES, speak

WORKER = Path(__file__).with_name("speech_worker.py")
PACKAGES = ["ctranslate2==4.8.5", "numpy"]
MOST = 100


def prepared(folder: Path, theirs: Path, threads: int) -> dict[str, list[str]]:
    """How to start each engine, by name."""
    here, work = sys.executable, PLACE / "speech"
    model = mg.load(folder)
    mg.build(model, work / "f32").close()
    mg.build(model, work / "int8", quantize="int8-dynamic").close()
    if not (PLACE / "ctranslate2" / "ready").exists():
        venv.create(PLACE / "ctranslate2", with_pip=True, clear=True)
        run([str(PLACE / "ctranslate2" / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES])
        (PLACE / "ctranslate2" / "ready").touch()
    other = str(PLACE / "ctranslate2" / "bin" / "python")
    return {
        name: [python, str(WORKER), kind, place, str(threads)]
        for name, python, kind, place in (
            ("Monograph fp32", here, "monograph", str(work / "f32")),
            ("Monograph int8", here, "monograph", str(work / "int8")),
            ("CTranslate2 4.8 fp32", other, "ctranslate2", f"{theirs}:float32"),
            ("CTranslate2 4.8 int8", other, "ctranslate2", f"{theirs}:int8"),
            ("transformers eager fp32", here, "transformers", str(folder)),
        )
    }


def sounds(folder: Path, place: Path) -> tuple[list[dict[str, Any]], float]:
    """(what each sentence is asked with, seconds of speech in all)."""
    hear = LogMel.read(folder)
    asked, length = list[dict[str, Any]](), 0.0
    for i, text in enumerate(SENTENCES):
        samples = speak(text, hear.rate, place / f"{i}.wav")
        np.save(place / f"{i}.samples.npy", samples)
        np.save(place / f"{i}.features.npy", hear(samples)[None].astype(np.float32))
        asked.append({"samples": str(place / f"{i}.samples.npy"), "features": str(place / f"{i}.features.npy")})
        length += len(samples) / hear.rate
    return asked, length


def main() -> int:
    options = parser(__doc__)
    options.add_argument("folder", type=Path, help="a checkpoint of Whisper")
    options.add_argument("--ctranslate2", type=Path, required=True, help="the same as CTranslate2 converts it")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    (PLACE / "speech").mkdir(parents=True, exist_ok=True)
    with working("models"):
        commands = prepared(given.folder, given.ctranslate2, given.threads)
        asked, length = sounds(given.folder, PLACE / "speech")
    tokenizer = mg.load(given.folder).tokenizer
    assert tokenizer is not None
    begin = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    prompt = [tokenizer.core.token_to_id(t) for t in begin]
    workers = {name: Worker(command) for name, command in commands.items()}
    seconds: dict[tuple[str, int], list[float]] = {(n, b): [] for n in workers for b in (1, 5)}
    heard: dict[tuple[str, int], list[str]] = {}
    with working(f"{given.rounds} rounds"):
        for number in range(given.rounds + 1):
            for beams in (1, 5):
                for name, worker in workers.items():
                    found = [worker.ask(**a, prompt=prompt, beams=beams, most=MOST) for a in asked]
                    heard[name, beams] = [tokenizer.decode(f["ids"]).strip() for f in found]
                    if number:  # The first round warms everybody up.
                        seconds[name, beams].append(sum(f["seconds"] for f in found))
    for worker in workers.values():
        worker.close()
    rows: list[Row] = []
    for beams in (1, 5):
        for name in workers:
            times, wanted = seconds[name, beams], heard["transformers eager fp32", beams]
            same = sum(a == b for a, b in zip(heard[name, beams], wanted, strict=True))
            rows.append({"search": "greedy" if beams == 1 else "5 beams", "engine": name,
                         "real-time factor": median(times) / length, "±": f"{100 * spread(times):.0f}%",
                         "transcripts as transformers'": f"{same} of {len(wanted)}"})  # fmt: skip
    note = (
        f"{length:.1f} s of speech in {len(asked)} pieces, {given.threads} threads, medians of {given.rounds} in turn."
    )
    publish(
        "speech_speed",
        rows,
        note=note,
        only_print=given.no_publish,
        heard={f"{n}, {b}": h for (n, b), h in heard.items()},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
