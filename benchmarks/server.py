"""The server on SmolLM2: 16 at once against one at a time, what it refuses, its memory, and the loss of a replica.

    python benchmarks/server.py [--requests 200] [--bad 1000] [--soak 2000] [--threads 2]

Requests have prompts of 8 to 400 tokens and 8 to 96 new ones, drawn with a seed; ids are compared with the engine's
own, asked one at a time without a server. Load and single requests alternate in four parts, as speeds drift.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import monograph as mg
from monograph.assets import fetch
from monograph.console import working
from monograph.inference.engine import Engine
from monograph.inference.server.client import stream_text
from monograph.training.corpus import python_topics
from openai import AsyncOpenAI, OpenAI
from report import WORK, parser, publish
from server_bad import KINDS, ask

PARTS, AT_ONCE, NAME = 4, 16, "smollm2"
FOLDER = WORK / "smollm2-server"


@dataclass(frozen=True)
class Asked:
    """A prompt, and how many tokens are wanted after it."""

    prompt: list[int]
    new: int


@dataclass
class Times:
    """Seconds to the first token of each request, between later ones, and what came."""

    first: list[float] = field(default_factory=list[float])
    token: list[float] = field(default_factory=list[float])
    ids: list[list[int]] = field(default_factory=list[list[int]])
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        return sum(map(len, self.ids)) / self.seconds


def load(count: int, ids: Sequence[int]) -> list[Asked]:
    """Requests of mixed lengths."""
    r, found = random.Random(7), list[Asked]()
    for _ in range(count):
        length, start = r.choice((8, 24, 60, 120, 200, 400)), r.randrange(len(ids) - 400)
        found.append(Asked([*ids[start : start + length]], r.choice((8, 16, 32, 64, 96))))
    return found


@contextlib.contextmanager
def running(threads: int) -> Iterator[tuple[str, int]]:
    """(address, pid) of a server process."""
    command = [sys.executable, "-m", "monograph", "serve", str(FOLDER), "--name", NAME, "--port", "0", "--json"]
    options = ["--rows", str(AT_ONCE), "--threads", str(threads)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server has not started")
            said += line
        try:
            yield json.loads(said)["url"], process.pid
        finally:
            process.terminate()


async def one(client: AsyncOpenAI, asked: Asked, times: Times, index: int) -> None:
    start = last = time.perf_counter()
    stream = await client.completions.create(
        model=NAME, prompt=asked.prompt, max_tokens=asked.new, temperature=0, stream=True,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip
    first = True
    async for chunk in stream:
        now, choice = time.perf_counter(), chunk.choices[0]
        ids: list[int] = choice.token_ids  # type: ignore[attr-defined]  # pyright: ignore
        if ids:
            (times.first if first else times.token).append(now - (start if first else last))
            first, last = False, now
            times.ids[index] += ids


async def concurrent(url: str, requests: Sequence[Asked], at_once: int) -> Times:
    """All requests, so many at a time."""
    times, gate = Times(ids=[[] for _ in requests]), asyncio.Semaphore(at_once)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:

        async def guarded(i: int, asked: Asked) -> None:
            async with gate:
                await one(client, asked, times, i)

        start = time.perf_counter()
        await asyncio.gather(*(guarded(i, a) for i, a in enumerate(requests)))
        times.seconds = time.perf_counter() - start
    return times


def percentile(values: Sequence[float], p: int) -> float:
    return 1000 * statistics.quantiles(values, n=100)[p - 1]


def loads(url: str, requests: Sequence[Asked]) -> tuple[list[dict[str, Any]], float]:
    """(a row for one at a time and for AT_ONCE, how many times as fast the second is). Raises where ids differ."""
    found: dict[int, list[Times]] = {1: [], AT_ONCE: []}
    asyncio.run(concurrent(url, requests[:AT_ONCE], AT_ONCE))
    for part in range(PARTS):
        chosen = requests[part::PARTS]
        for at_once in (1, AT_ONCE) if part % 2 == 0 else (AT_ONCE, 1):
            found[at_once].append(asyncio.run(concurrent(url, chosen, at_once)))
    with Engine.open(FOLDER) as engine:
        for part in range(PARTS):
            for i, asked in enumerate(requests[part::PARTS]):
                expected = engine.generate(asked.prompt, max_new_tokens=asked.new, eos=()).ids
                for at_once, parts in found.items():
                    if parts[part].ids[i] != expected:
                        raise SystemExit(f"{at_once} at once: request {i} of part {part} has other ids than offline")
    rows = []
    for at_once, parts in found.items():
        first, token = [x for t in parts for x in t.first], [x for t in parts for x in t.token]
        speeds = sorted(t.speed for t in parts)
        rows.append({
            "at once": at_once, "requests": len(requests), "tokens/s": statistics.median(speeds),
            "least": speeds[0], "most": speeds[-1],
            "first token p50 (ms)": percentile(first, 50), "p95 (ms)": percentile(first, 95),
            "per token p50 (ms)": percentile(token, 50), "per token p95 (ms)": percentile(token, 95),
            "ids equal offline": "all",
        })  # fmt: skip
    ratios = [b.speed / a.speed for a, b in zip(found[1], found[AT_ONCE], strict=True)]
    return rows, statistics.median(ratios)


def refusals(url: str, count: int) -> dict[str, Any]:
    """What bad requests of every kind got, with a good one after each 50. Raises where one got another status."""
    r, found = random.Random(3), Counter[int]()
    good = {"model": NAME, "prompt": "Hello", "max_tokens": 2}
    kinds = [*KINDS]
    for i in range(count):
        kind = kinds[i % len(kinds)]
        data, expected = KINDS[kind](r, NAME)
        status = ask(url, data, leave=expected == 0)
        if status != expected:
            raise SystemExit(f"bad request {i} ({kind}) got {status}, expected {expected}: {data[:200]!r}")
        found[status] += 1
        if i % 50 == 49 and httpx.post(f"{url}/v1/completions", json=good, timeout=60).status_code != 200:
            raise SystemExit(f"after bad request {i} a good one is not answered")
    return {"requests": count, "kinds": len(kinds), "by status": {str(k): v for k, v in sorted(found.items())}}


def memory(pid: int) -> float:
    """MB of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024


def soak(url: str, pid: int, ids: Sequence[int], count: int) -> dict[str, Any]:
    """Memory of the server after a warm-up and after `count` requests."""
    r = random.Random(5)

    def requests(n: int) -> list[Asked]:
        return [Asked([*ids[(s := r.randrange(len(ids) - 64)) : s + r.randrange(4, 64)]], 4) for _ in range(n)]

    asyncio.run(concurrent(url, requests(200), AT_ONCE))
    before = memory(pid)
    asyncio.run(concurrent(url, requests(count), AT_ONCE))
    after = memory(pid)
    return {"requests": count, "before (MB)": before, "after (MB)": after, "grown (MB)": after - before}


def lost_replica(threads: int) -> dict[str, Any]:
    """Two replicas on a local cluster, one killed under 16 streams; half of those are asked for again if they break."""
    import ray
    from monograph.inference.server.ray_serve import deployment
    from ray import serve

    url = "http://127.0.0.1:8790"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 8790})
    serve.run(deployment(str(FOLDER), replicas=2, threads=threads, rows=16, name=NAME), route_prefix="/")
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    asked: dict[str, Any] = {
        "model": NAME, "prompt": "Once upon a time", "max_tokens": 120, "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    with Engine.open(FOLDER) as engine:
        expected = engine.generate("Once upon a time", max_new_tokens=120, eos=()).text
    begun = set[int]()

    def plain(index: int) -> str:
        text = ""
        try:
            for chunk in client.completions.create(**asked, stream=True):
                text += chunk.choices[0].text
                begun.add(index)
                if chunk.choices[0].finish_reason:
                    return "whole" if text == expected else "other text"
        except Exception:  # whatever a client sees of a dead server
            return "broken"
        return "broken"

    def again(_: int) -> str:
        return "whole" if "".join(stream_text(client, **asked)) == expected else "other text"

    def replicas() -> set[str]:
        actors: Any = ray.util.list_named_actors(all_namespaces=True)
        return {x["name"] for x in actors if x["name"].startswith("SERVE_REPLICA")}

    before = replicas()
    with ThreadPoolExecutor(16) as pool:
        watched, restarted = [pool.submit(plain, i) for i in range(8)], [pool.submit(again, i) for i in range(8)]
        while len(begun) < 8:
            time.sleep(0.05)
        ray.kill(ray.get_actor(min(before), namespace="serve"))
        killed = time.perf_counter()
        outcomes = Counter(w.result() for w in watched)
        repeated = Counter(w.result() for w in restarted)
    while len(replicas() - {min(before)}) < 2:
        time.sleep(0.1)
    back = time.perf_counter() - killed
    serve.shutdown()
    ray.shutdown()
    return {"streams": dict(outcomes), "streams asked for again": dict(repeated), "two replicas again (s)": back}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--bad", type=int, default=1000)
    options.add_argument("--soak", type=int, default=2000)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    model = mg.load(fetch("smollm2"))
    ids = model.tokenizer.encode(python_topics()[:200_000])
    if not (FOLDER / "monograph.json").exists():
        with working("building"):
            mg.build(model, FOLDER).close()
    with running(given.threads) as (url, pid):
        rows, ratio = loads(url, load(given.requests, ids))
        print(f"{AT_ONCE} at once: {ratio:.2f} times the tokens per second of one at a time")
        refused = refusals(url, given.bad)
        print(refused)
        kept = soak(url, pid, ids, given.soak)
        print(kept)
    lost = lost_replica(1)
    print(lost)
    note = (
        f"{ratio:.2f} times the tokens per second of one at a time (median of {PARTS} parts, alternating). "
        f"{refused['requests']} bad requests of {refused['kinds']} kinds each got their status; the server went on. "
        f"Memory grew by {kept['grown (MB)']:.1f} MB from {kept['before (MB)']:.0f} over {kept['requests']} requests. "
        f"One of two replicas killed under 8 streams: {said(lost['streams'])}; of 8 that are asked for again: "
        f"{said(lost['streams asked for again'])}."
    )
    publish(
        "server", rows, note=note, only_print=given.no_publish,
        ratio=ratio, refused=refused, memory=kept, lost_replica=lost,
    )  # fmt: skip


def said(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{v} {k}" for k, v in sorted(outcomes.items()))


if __name__ == "__main__":
    main()
