"""Embeddings over HTTP, asked by OpenAI's own client: vectors equal offline, from texts and from token ids."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from monograph.inference.engine import Engine
from monograph.inference.server.run import Serving
from openai import AsyncOpenAI, OpenAI
from served import PROMPTS, tiny_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Engine]]:
    folder = tiny_encoder(tmp_path_factory.mktemp("vectors") / "vectors")
    with Serving(folder, threads=1) as running:
        yield running, Engine.open(folder, threads=1)


def test_embeddings(encoder: tuple[Serving, Engine]) -> None:
    server, offline = encoder
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    expected = offline.embed(list(PROMPTS))
    for form in ("float", "base64", None):
        more = {} if form is None else {"encoding_format": form}
        answer = client.embeddings.create(model="vectors", input=list(PROMPTS), **more)  # type: ignore[arg-type]
        given = [x.embedding for x in answer.data]
        if form == "base64":
            given = [np.frombuffer(base64.b64decode(x), "<f4") for x in given]  # type: ignore[arg-type]
        np.testing.assert_allclose(np.array(given), expected, atol=1e-6)
    assert offline.tokenizer is not None
    ids = [offline.tokenizer.encode(p) for p in PROMPTS]
    answer = client.embeddings.create(model="vectors", input=ids)
    np.testing.assert_allclose(np.array([x.embedding for x in answer.data]), expected, atol=1e-6)
    assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_embeddings_of_many_at_once(encoder: tuple[Serving, Engine]) -> None:
    server, offline = encoder

    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(client.embeddings.create(model="vectors", input=p) for p in [*PROMPTS] * 6))

    given = np.array([a.data[0].embedding for a in asyncio.run(ask())])
    np.testing.assert_allclose(given, np.tile(offline.embed(list(PROMPTS)), (6, 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ["a", [5]]}, "input"),
        ({"input": [""]}, "input"),
        ({"input": [[99999]]}, "input.0"),
        ({"input": "the log " * 100}, None),
        ({"input": [[5] * 65]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
    ],
)
def test_embeddings_refused(encoder: tuple[Serving, Engine], asked: dict[str, Any], param: str | None) -> None:
    client = OpenAI(base_url=f"{encoder[0].url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="vectors", **asked)
    assert refused.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="vectors", prompt="a")
