"""Adapters as models of their own: requests for each of them at once, against PEFT with that adapter alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import monograph as mg
import pytest
from monograph.inference.server.run import Serving
from openai import AsyncOpenAI, NotFoundError, OpenAI
from test_adapters_by_row import PROMPTS, SETTINGS, Adapted, llama

pytestmark = pytest.mark.slow


def test_each_request_is_answered_by_its_adapter(tmp_path: Path) -> None:
    adapted = Adapted(tmp_path, llama(), SETTINGS)
    mg.build(mg.load(tmp_path / "base"), tmp_path / "lora", adapters=adapted.folders(), threads=1).close()
    asked = [(name, prompt) for name in ("lora", *adapted.names) for prompt in PROMPTS]
    expected = [adapted.ids(None if name == "lora" else name, prompt, 6) for name, prompt in asked]
    with Serving(tmp_path / "lora", threads=1, rows=6) as server:

        async def ask() -> list[Any]:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
                more = {"return_token_ids": True, "ignore_eos": True}
                return await asyncio.gather(*(
                    client.completions.create(model=name, prompt=prompt, max_tokens=6, temperature=0, extra_body=more)
                    for name, prompt in asked
                ))  # fmt: skip

        assert [a.choices[0].token_ids for a in asyncio.run(ask())] == expected
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert [m.id for m in client.models.list()] == ["lora", *adapted.names]
        assert client.models.retrieve("a").parent == "lora"  # type: ignore[attr-defined]
        with pytest.raises(NotFoundError):
            client.completions.create(model="d", prompt=[5])
