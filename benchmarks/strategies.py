"""What guesses, beams, grammars and adapters by row gain or cost on SmolLM2-135M, each against plain greedy decoding.

Loads: `code` asks for a function of this project once more, `quote` for a paragraph that stands in the prompt,
`ordinary` is the beginning of a text that repeats nothing. Guesses come from the text (at most 8 tokens) or from a
draft: the same weights in 4 bits (at most 4), which is what one has who has no smaller model of the same vocabulary.
Beams: 5, against one. Schema: an object with two fields, against no schema, per token. Adapters: 8 rows, two for each
of three adapters of rank 8 and two for the base, in one batch of one engine, against a merged engine for each that
takes its two rows alone. All take turns, round by round; ids are those of plain greedy decoding wherever the text says
so, or the command fails.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph.console import working
from monograph.frontends.dsl import Model
from monograph.inference import sampling
from monograph.inference.engine import Engine
from monograph.inference.speculative import Speculated
from monograph.ir.weights import Weights
from monograph.machine import median
from monograph.training.adapters import Adapter, Lora
from report import WORK, Row, parser, publish
from serving_peers import floats

PLACE = WORK / "strategies"
CODE = inspect.getsource(sampling.keep_top_p)
QUOTE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it "
    "was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair."
)
LOADS = {
    "code": f"A function:\n```python\n{CODE}```\nThe same function with its name changed:\n```python\n{CODE[:60]}",
    "quote": f"{QUOTE}\n\nThe passage once more, word for word:\n\nIt was the best of times,",
    "ordinary": "In the spring of that year the harbour of the small town was",
}
LORA = Lora(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))
NAMES = ("first", "second", "third")
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "year": {"type": "integer"}},
    "required": ["title", "year"],
    "additionalProperties": False,
}


def adapter(model: Model, seed: int) -> Adapter:
    """A LoRA of random numbers, large enough to change what is said."""
    graph, rng = model.graph(), np.random.default_rng(seed)
    LORA.insert(graph)
    shapes = {k: v.type.shape for k, v in graph.params.items() if ".lora_" in k}
    arrays = {k: rng.normal(0, 0.06, tuple(map(int, map(str, s)))).astype(np.float32) for k, s in shapes.items()}
    return Adapter(LORA, Weights.of(arrays))


def built(name: str, model: Model, threads: int, **settings: Any) -> Engine:
    return mg.build(model, PLACE / name, threads=threads, **settings)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


class Bench:
    """What is measured, in turn: for each name the seconds of every round and what the last one gave."""

    def __init__(self, rounds: int) -> None:
        self.rounds, self.seconds, self.found = rounds, dict[str, list[float]](), dict[str, Any]()

    def run(self, what: dict[str, Callable[[], Any]]) -> None:
        for number in range(self.rounds + 1):
            for name, call in what.items():
                seconds, self.found[name] = timed(call)
                if number:  # The first round warms up.
                    self.seconds.setdefault(name, []).append(seconds)

    def ratios(self, name: str, base: str) -> list[float]:
        """How many times as fast as the base, by round."""
        return [b / a for a, b in zip(self.seconds[name], self.seconds[base], strict=True)]

    def row(self, load: str, name: str, base: str, tokens: int, **more: Any) -> Row:
        ratios = self.ratios(name, base)
        return {
            "load": load,
            "how": name,
            "tokens/s": tokens / median(self.seconds[name]),
            "times plain": median(ratios),
            "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
            "accepted a call": more.get("accepted"),
            "ids of greedy": more.get("same"),
        }


def check(same: bool, what: str) -> str:
    """Stops the benchmark where ids differ."""
    if not same:
        sys.exit(f"{what}: other ids than plain greedy decoding")
    return "yes"


def guesses(engine: Engine, draft: Engine, load: str, new: int, rounds: int) -> list[Row]:
    bench, prompt = Bench(rounds), LOADS[load]
    common: dict[str, Any] = {"max_new_tokens": new, "eos": ()}
    bench.run({
        "plain": lambda: engine.generate(prompt, **common),
        "look-up": lambda: engine.generate(prompt, **common, lookup=8),
        "draft": lambda: engine.generate(prompt, **common, draft=draft, draft_tokens=4),
    })  # fmt: skip
    rows: list[Row] = []
    for name, one in bench.found.items():
        accepted = one.accepted_per_call if isinstance(one, Speculated) else None
        same = check(one.ids == bench.found["plain"].ids, f"{name} on {load}")
        rows.append(bench.row(load, name, "plain", new, accepted=accepted, same=same))
    return rows


def beams_and_grammar(engine: Engine, new: int, rounds: int) -> list[Row]:
    prompt, common = LOADS["ordinary"], {"max_new_tokens": new, "eos": ()}
    bench = Bench(rounds)
    bench.run({
        "plain": lambda: engine.generate(prompt, **common),
        "5 rows": lambda: engine.generate([prompt] * 5, **common),
        "5 beams": lambda: engine.generate(prompt, **common, num_beams=5),
        "schema": lambda: engine.generate(prompt, max_new_tokens=new, schema=SCHEMA),
    })  # fmt: skip
    said = max(1, len(bench.found["schema"].ids))
    bench.seconds["schema"] = [s * new / said for s in bench.seconds["schema"]]
    return [bench.row("ordinary", name, "plain", new) for name in ("5 rows", "5 beams", "schema")]


def adapters(model: Model, base: Engine, threads: int, new: int, rounds: int) -> list[Row]:
    made = {name: adapter(model, seed) for seed, name in enumerate(NAMES)}
    by_row = built("by-row", model, threads, adapters=made)
    apart: dict[str | None, Engine] = {None: base}
    apart |= {name: built(name, one.merged(model), threads) for name, one in made.items()}
    prompts, common = list(LOADS.values())[1:], {"max_new_tokens": new, "eos": ()}
    names = [name for name in apart for _ in prompts]
    bench = Bench(rounds)
    bench.run({
        "one engine each": lambda: [g for e in apart.values() for g in e.generate(prompts, **common)],
        "adapters by row": lambda: by_row.generate(prompts * len(apart), **common, adapter=names),
        "base alone": lambda: by_row.generate(prompts * len(apart), **common),
    })  # fmt: skip
    ids = {k: [g.ids for g in found] for k, found in bench.found.items()}
    same = check(ids["adapters by row"] == ids["one engine each"], "adapters by row")
    said = [ids["one engine each"][i : i + len(prompts)] for i in range(0, len(names), len(prompts))]
    if any(one == said[0] for one in said[1:]):
        sys.exit("an adapter changes nothing")
    tokens = new * len(names)
    load = f"{len(names)} rows, {len(apart)} models"
    return [
        bench.row(load, name, "one engine each", tokens, same=same if name == "adapters by row" else None)
        for name in bench.found
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, help="a folder of float weights (None: SmolLM2's)")
    options.add_argument("--new", type=int, default=128)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    model = mg.load(given.model or floats())
    with working("builds"):
        engine, draft = built("wide", model, given.threads), built("int4", model, given.threads, quantize="int4")
    with working(f"guesses, {given.rounds} rounds"):
        rows = [row for load in LOADS for row in guesses(engine, draft, load, given.new, given.rounds)]
    with working("beams and a schema"):
        rows += beams_and_grammar(engine, given.new // 2, given.rounds)
    draft.close()
    with working("adapters"):
        rows += adapters(model, engine, given.threads, given.new // 2, given.rounds)
    note = (
        f"float32, {given.threads} threads, {given.new} new tokens (half as many for beams, schema and adapters), "
        f"medians of {given.rounds} rounds in turn. Draft: the same weights in 4 bits. Times of `5 rows` and `5 beams` "
        "are those of one text; of adapters, times what one merged engine for each takes one after the other."
    )
    publish("strategies", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
