"""The engine for Ray Serve LLM under its own LLMServer.

Ray Serve LLM takes the shapes of requests and answers from vLLM or SGLang, which are not installed here: a package of
the name and with the classes that it imports, open to any field, stands in for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import tiny_decoder

pytestmark = pytest.mark.slow

NAMES = (
    "ChatCompletionRequest", "ChatCompletionResponse", "ChatCompletionStreamResponse", "CompletionRequest",
    "CompletionResponse", "CompletionStreamResponse", "DetokenizeRequest", "DetokenizeResponse", "EmbeddingRequest",
    "EmbeddingResponse", "ScoringRequest", "ScoringResponse", "TokenizeRequest", "TokenizeResponse",
)  # fmt: skip
STAND_IN = "from pydantic import BaseModel, ConfigDict\n" + "".join(
    f"class {name}(BaseModel):\n    model_config = ConfigDict(extra='allow')\n" for name in NAMES
)

JOB = """
import asyncio, json, sys
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, CompletionRequest, ErrorResponse
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.serve.llm import LLMConfig
from monograph.inference.engine import Engine
from monograph.inference.server.ray_llm import MonographEngine
from monograph.ir.errors import MonographError

folder = sys.argv[1]

def config(**more):
    return LLMConfig(model_loading_config={"model_id": "cat", "model_source": folder}, engine_kwargs={"threads": 1, **more})

async def main():
    server = LLMServer.sync_init(config(rows=4))
    assert server._engine_cls is MonographEngine
    server.engine = MonographEngine(config(rows=4))
    await server.engine.start()
    offline = Engine.open(folder, threads=1)
    messages = [{"role": "user", "content": "the cat"}]
    expected = offline.generate(messages, chat=True, max_new_tokens=9)
    asked = ChatCompletionRequest(model="cat", messages=messages, max_tokens=9, temperature=0)
    (whole,) = [x async for x in await server.chat(asked)]
    assert whole.choices[0]["message"]["content"] == expected.text, whole
    asked = ChatCompletionRequest(model="cat", messages=messages, max_tokens=9, temperature=0, stream=True)
    events = [line for part in [x async for x in await server.chat(asked)] for line in (part if isinstance(part, list) else [part])]
    lines = [e.removeprefix("data: ").strip() for part in events for e in part.split("\\n\\n") if e.strip()]
    assert lines[-1] == "[DONE]", lines[-1]
    text = "".join(c["delta"].get("content") or "" for x in lines[:-1] for c in json.loads(x)["choices"])
    assert text == expected.text
    asked = CompletionRequest(model="cat", prompt="the dog", max_tokens=5, temperature=0)
    (whole,) = [x async for x in await server.completions(asked)]
    assert whole.choices[0]["text"] == offline.generate("the dog", max_new_tokens=5).text
    (error,) = [x async for x in await server.completions(CompletionRequest(model="cat", prompt="a", suffix="b"))]
    assert isinstance(error, ErrorResponse) and error.error.code == 400 and error.error.param == "suffix", error
    (error,) = [x async for x in await server.completions(CompletionRequest(model="dog", prompt="a"))]
    assert error.error.code == 404
    await server.check_health()
    assert server.engine.routing_stats() == {"running": 0, "waiting": 0, "cache_used": server.engine.service.gauges().cache_used}
    assert type(await server.engine.build_asgi_app()).__name__ == "FastAPI"
    try:
        MonographEngine(config(tensor_parallel_size=2))
    except MonographError as e:
        assert "tensor_parallel_size" in str(e)
    else:
        raise AssertionError("an unknown setting was taken")
    await server.engine.shutdown()
    try:
        await server.engine.check_health()
    except MonographError:
        print("all held")

asyncio.run(main())
"""  # noqa: E501


def test_under_the_server_of_ray(tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "tiny")
    module = tmp_path / "stand_in" / "sglang" / "srt" / "entrypoints" / "openai"
    module.mkdir(parents=True)
    (module / "protocol.py").write_text(STAND_IN)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "stand_in"),
        "RAYLLM_VLLM_ENGINE_CLS": "monograph.inference.server.ray_llm.MonographEngine",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JOB, str(folder)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "all held"
