"""The server, asked by OpenAI's own client: what it says is what the engine says offline, whoever else is asking."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from monograph.inference.batch import Batch
from monograph.inference.engine import Engine
from monograph.inference.server.limits import Limits
from monograph.inference.server.run import Serving
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families
from served import PROMPTS, TEMPLATE, tiny_decoder

pytestmark = pytest.mark.slow
IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("server") / "tiny")


@pytest.fixture(scope="module")
def offline(folder: Path) -> Engine:
    return Engine.open(folder, threads=1)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with Serving(folder, threads=1, rows=4, queue=64, chunk=16) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.01)


def slow(patch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """Make every step of a model take so long: a tiny one is through before anybody looks."""
    turn = Batch.turn

    def later(batch: Batch) -> bool:
        time.sleep(seconds)
        return turn(batch)

    patch.setattr(Batch, "turn", later)


def gauge(server: Serving, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(s.value for f in text_string_to_metric_families(text) for s in f.samples if s.name == name)


# -- completions ---------------------------------------------------------------------------------------------------


def test_completions_are_what_the_engine_gives(client: OpenAI, offline: Engine) -> None:
    answer = client.completions.create(
        model="tiny", prompt=list(PROMPTS), max_tokens=12, temperature=0, extra_body={**IDS, "ignore_eos": True}
    )
    for choice, expected in zip(
        answer.choices, offline.generate(list(PROMPTS), max_new_tokens=12, eos=()), strict=True
    ):
        assert choice.token_ids == expected.ids  # type: ignore[attr-defined]
        assert (choice.text, choice.finish_reason) == (expected.text, "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12 * len(PROMPTS)
    assert answer.usage.prompt_tokens == sum(len(offline.tokenizer.encode(p)) for p in PROMPTS)  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", [1, 2, 99])
def test_sampling_with_a_seed_is_what_the_engine_draws(client: OpenAI, offline: Engine, seed: int) -> None:
    settings: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9}
    more = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2, "ignore_eos": True, **IDS}
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS[0], max_tokens=10, seed=seed, n=3, extra_body=more, **settings
    )
    settings |= {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2}
    for i, choice in enumerate(answer.choices):
        expected = offline.generate(PROMPTS[0], max_new_tokens=10, seed=seed + i, eos=(), **settings)
        assert choice.token_ids == expected.ids  # type: ignore[attr-defined]


def test_ids_as_prompt(client: OpenAI, offline: Engine) -> None:
    one = client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=6, temperature=0, extra_body=IDS)
    two = client.completions.create(model="tiny", prompt=[[5, 6, 7], [9]], max_tokens=6, temperature=0, extra_body=IDS)
    assert one.choices[0].token_ids == two.choices[0].token_ids == offline.generate([5, 6, 7], max_new_tokens=6).ids  # type: ignore[attr-defined]


def test_stream_joins_to_the_whole(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPTS[1], "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_stop_strings_end_and_are_left_out(client: OpenAI, offline: Engine) -> None:
    free = offline.generate(PROMPTS[0], max_new_tokens=20, eos=()).text
    stop = free[6:8]
    for stream in (False, True):
        asked: dict[str, Any] = {
            "model": "tiny",
            "prompt": PROMPTS[0],
            "max_tokens": 20,
            "temperature": 0,
            "stop": stop,
        }
        answer = client.completions.create(**asked, stream=stream, extra_body={"ignore_eos": True})
        parts = list(answer) if stream else [answer]
        assert "".join(p.choices[0].text for p in parts) == free[: free.index(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_logprobs_and_echo(client: OpenAI, offline: Engine) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS[1], max_tokens=4, temperature=0, logprobs=3, echo=True, extra_body=IDS
    )
    choice = answer.choices[0]
    told, count = choice.logprobs, len(offline.tokenizer.encode(PROMPTS[1]))  # type: ignore[union-attr]
    assert told is not None and told.token_logprobs is not None and told.tokens is not None
    assert choice.text.startswith(PROMPTS[1])
    assert len(told.tokens) == count + len(choice.token_ids)  # type: ignore[attr-defined]
    assert told.token_logprobs[0] is None
    ids = [*offline.tokenizer.encode(PROMPTS[1]), *choice.token_ids]  # type: ignore[attr-defined, union-attr]
    session, logits = offline.session, []
    logits.append(session.prefill(np.array([ids[:1]]), np.array([1]))[0])
    logits += [session.step(np.array([i]))[0] for i in ids[1:-1]]
    for i, (row, value) in enumerate(zip(logits, told.token_logprobs[1:], strict=True)):
        wide = row.astype(np.float64)
        expected = wide[ids[i + 1]] - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
        assert value == pytest.approx(expected, abs=2e-4)


# -- chats ----------------------------------------------------------------------------------------------------------


def test_chat_is_the_template_and_the_engine(client: OpenAI, offline: Engine) -> None:
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the dog"}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=9, temperature=0, extra_body={**IDS, "ignore_eos": True}
    )
    expected = offline.generate(messages, chat=True, max_new_tokens=9, eos=())
    assert answer.choices[0].token_ids == expected.ids  # type: ignore[attr-defined]
    assert answer.choices[0].message.content == expected.text
    assert answer.prompt_token_ids == expected.prompt  # type: ignore[attr-defined]


def test_parts_of_text_and_developer_role(client: OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": "the dog"},
    ]
    plain: Any = [{"role": "system", "content": "be\nbrief"}, {"role": "user", "content": "the dog"}]
    given = [
        client.chat.completions.create(model="tiny", messages=m, max_tokens=6, temperature=0, extra_body=IDS)
        for m in (parts, plain)
    ]
    assert given[0].prompt_token_ids == given[1].prompt_token_ids  # type: ignore[attr-defined]


def test_chat_stream_with_logprobs(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 10, "temperature": 0,
        "logprobs": True, "top_logprobs": 4,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    assert "".join(c.delta.content or "" for c in chunks) == whole.message.content
    told = [x for c in chunks if c.logprobs for x in c.logprobs.content or ()]
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert [x.token for x in told] == [x.token for x in whole.logprobs.content]
    assert [x.logprob for x in told] == pytest.approx([x.logprob for x in whole.logprobs.content], abs=1e-4)
    assert all(len(x.top_logprobs) == 4 for x in told)
    assert all(x.top_logprobs[0].logprob >= x.logprob for x in told)


def test_tools_reach_the_template(client: OpenAI, offline: Engine) -> None:
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    messages: Any = [{"role": "user", "content": "the cat"}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, tools=tools, max_tokens=2, temperature=0, extra_body=IDS
    )
    tokenizer = offline.tokenizer
    assert tokenizer is not None and "tools" in TEMPLATE
    text = tokenizer.chat(messages, tools=tools)
    assert '"name": "look"' in text
    assert answer.prompt_token_ids == tokenizer.encode(text, add_special=False)  # type: ignore[attr-defined]


# -- many at once ---------------------------------------------------------------------------------------------------


def test_many_at_once_get_what_each_gets_alone(server: Serving, offline: Engine) -> None:
    prompts = [f"{p} {'the log ' * (i % 5)}" for i, p in enumerate(PROMPTS * 8)]
    expected = [offline.generate(p, max_new_tokens=4 + i % 9, eos=()).ids for i, p in enumerate(prompts)]

    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.completions.create(
                    model="tiny", prompt=p, max_tokens=4 + i % 9, temperature=0, extra_body={**IDS, "ignore_eos": True}
                )
                for i, p in enumerate(prompts)
            ]
            return await asyncio.gather(*asked)

    assert [a.choices[0].token_ids for a in asyncio.run(ask())] == expected


def test_async_streams_beside_each_other(server: Serving, offline: Engine) -> None:
    async def one(client: AsyncOpenAI, prompt: str) -> str:
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": prompt}], max_tokens=12, temperature=0, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, p) for p in PROMPTS * 2))

    expected = [offline.generate(p, chat=True, max_new_tokens=12).text for p in PROMPTS]
    assert asyncio.run(ask()) == expected * 2


def test_a_client_that_leaves_frees_its_row(server: Serving, client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    for stream in (True, False):
        asked = {
            "model": "tiny", "prompt": "the cat", "max_tokens": 500, "stream": stream, "ignore_eos": True,
            "n": 4,
        }  # fmt: skip
        if stream:
            with httpx.stream("POST", f"{server.url}/v1/completions", json=asked) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/completions", json=asked, timeout=0.15)
        until(lambda: server.service.gauges().running == 0, 5)
        assert server.service.gauges().queued == 0
    assert client.completions.create(model="tiny", prompt="a", max_tokens=2).usage is not None


# -- tokens, probes, metrics ------------------------------------------------------------------------------------------


def test_bearer_tokens(folder: Path) -> None:
    with Serving(folder, threads=1, tokens=["right-1", "right-2"]) as server:
        for key in ("right-1", "right-2"):
            client = OpenAI(base_url=f"{server.url}/v1", api_key=key)
            assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
        with pytest.raises(openai.AuthenticationError) as refused:
            OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()
        assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")
        for headers in (
            {},
            {"Authorization": "right-1"},
            {"Authorization": "Basic right-1"},
            {"Authorization": "Bearer"},
        ):
            answer = httpx.get(f"{server.url}/v1/models", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.post(f"{server.url}/drain").status_code == 401
        assert [httpx.get(f"{server.url}{p}").status_code for p in ("/health", "/ready", "/metrics")] == [200] * 3


def test_models(client: OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 512  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as refused:
        client.completions.create(model="other", prompt="a")
    assert refused.value.code == "model_not_found"


def test_metrics_are_read_by_the_parser_of_prometheus(server: Serving, client: OpenAI) -> None:
    before = gauge(server, "monograph_time_to_first_token_seconds_count")
    tokens = gauge(server, "vllm:generation_tokens_total")
    client.completions.create(model="tiny", prompt="a", max_tokens=3, extra_body={"ignore_eos": True})
    until(lambda: gauge(server, "monograph_time_to_first_token_seconds_count") == before + 1)
    assert gauge(server, "vllm:generation_tokens_total") == tokens + 3
    text = httpx.get(f"{server.url}/metrics").text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert families[name].type == "gauge"
        assert [s.labels for s in families[name].samples] == [{"model_name": "tiny"}]
    assert families["monograph_time_per_output_token_seconds"].type == "histogram"


def test_gauges_while_requests_run_and_wait(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 400, "ignore_eos": True, "n": 12}
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**asked, "stream": True}):
        until(lambda: gauge(server, "vllm:num_requests_running") == 4)
        assert gauge(server, "vllm:num_requests_waiting") == 8
    until(lambda: server.service.gauges().running == 0)


# -- drain ------------------------------------------------------------------------------------------------------------


def test_drain_lets_what_runs_end_and_takes_nothing_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    with Serving(folder, threads=1) as server:
        slow(monkeypatch)
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def ask() -> None:
            answer = client.completions.create(
                model="tiny", prompt="the cat", max_tokens=60, temperature=0, extra_body={"ignore_eos": True}
            )
            found.append(answer.choices[0].finish_reason)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: server.service.gauges().running == 1)
        assert httpx.post(f"{server.url}/drain").json() == {"status": "draining", "requests": 1}
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model="tiny", prompt="a")
        assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "5")
        thread.join()
        assert found == ["length"]


def test_an_end_waits_no_longer_than_it_may(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Serving(folder, threads=1, limits=Limits(drain=0.3)) as server:
        slow(monkeypatch)
        answer = httpx.Client().send(
            httpx.Request(
                "POST",
                f"{server.url}/v1/completions",
                json={"model": "tiny", "prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 16},
            ),
            stream=True,
        )
        lines = answer.iter_lines()
        next(lines)
        start = time.monotonic()
        server.server.stop()
        rest = list(lines)
    assert time.monotonic() - start < 10
    assert any('"code": "unavailable"' in line or '"code":"unavailable"' in line for line in rest)
