"""A server while it loads, with a model that cannot be opened, without a template, and under a session that fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from monograph.inference.batch import Batch
from monograph.inference.engine import Engine
from monograph.inference.server.run import Server, Serving, server_of
from monograph.inference.server.service import Service
from monograph.ir.errors import ConfigError
from served import tiny_decoder
from test_server import until

pytestmark = pytest.mark.slow
ASKED: dict[str, Any] = {"model": "tiny", "prompt": "the cat", "max_tokens": 4, "temperature": 0}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("states") / "tiny")


@contextmanager
def started(service: Service) -> Iterator[Server]:
    """A server that need not have its model yet."""
    server = server_of(service, port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield server
    finally:
        server.stop()
        thread.join()


def test_it_listens_while_it_loads(folder: Path) -> None:
    gate = threading.Event()

    def slowly() -> Engine:
        gate.wait(20)
        return Engine.open(folder, threads=1)

    with started(Service(slowly, "tiny")) as server:
        assert httpx.get(f"{server.url}/health").json() == {"status": "loading"}
        for path in ("/ready", "/v1/models/tiny"):
            answer = httpx.get(f"{server.url}{path}")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert httpx.post(f"{server.url}/v1/completions", json=ASKED).status_code == 503
        assert 'monograph_ready{model_name="tiny"} 0.0' in httpx.get(f"{server.url}/metrics").text
        gate.set()
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 200)
        assert httpx.post(f"{server.url}/v1/completions", json=ASKED).status_code == 200


def test_a_model_that_cannot_be_opened_ends_the_server() -> None:
    def broken() -> Engine:
        raise ConfigError("is broken")

    service = Service(broken, "tiny")
    with started(service) as server:
        until(lambda: server.should_exit)
    assert isinstance(service.failure, ConfigError)


def test_a_model_without_a_template_does_not_chat(tmp_path: Path) -> None:
    with Serving(tiny_decoder(tmp_path / "tiny", template=None), threads=1) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": HELLO})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_supported")


def test_a_template_that_refuses_is_told(tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with Serving(tiny_decoder(tmp_path / "tiny", template=template), threads=1) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": HELLO})
        assert answer.status_code == 400
        assert "roles must alternate" in answer.json()["error"]["message"]


def test_a_template_without_an_end_is_stopped(tmp_path: Path) -> None:
    template = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    with Serving(tiny_decoder(tmp_path / "tiny", template=template), threads=1) as server:
        server.service.tokenizer.renderer.seconds = 0.5
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": HELLO}, timeout=30)
        assert answer.status_code == 400
        assert httpx.post(f"{server.url}/v1/completions", json=ASKED).status_code == 200


def test_a_session_that_fails_is_500_without_its_inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Serving(folder, threads=1) as server:
        with monkeypatch.context() as patch:

            def broken(batch: Batch, *given: Any) -> None:
                raise RuntimeError("/secret/path is broken")

            for name in ("step", "step_greedy"):
                patch.setattr(type(server.service.scheduler._batch.rows), name, broken)
            answer = httpx.post(f"{server.url}/v1/completions", json=ASKED, timeout=30)
            assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
            assert "secret" not in answer.text
            text = httpx.post(f"{server.url}/v1/completions", json={**ASKED, "stream": True}, timeout=30).text
            assert "server_error" in text
            assert "secret" not in text
        until(lambda: server.service.gauges().running == 0)
        assert httpx.post(f"{server.url}/v1/completions", json=ASKED).status_code == 200
