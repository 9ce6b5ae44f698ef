"""`monograph serve` as a process: signals, tokens from files, and errors before it listens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from served import tiny_decoder

pytestmark = pytest.mark.slow
ASKED: dict[str, Any] = {"model": "tiny", "prompt": "the cat", "max_tokens": 3000, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("command") / "tiny", positions=4096)


@contextmanager
def running(folder: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address."""
    command = [sys.executable, "-m", "monograph", "serve", str(folder), "--port", "0", "--threads", "1", "--json"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.stdout is not None
    said = ""
    try:
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            said += line
        yield process, json.loads(said)["url"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask(url: str, found: list[Any]) -> threading.Thread:
    """Ask for a long answer in a thread; the parts of its stream go into `found`."""

    def work() -> None:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        try:
            stream = client.completions.create(**ASKED, stream=True, extra_body={"ignore_eos": True})
            for part in stream:
                found.append(part.choices[0].finish_reason or part.choices[0].text)
        except Exception as e:  # what the client raises is what the test looks at
            found.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    while not found:
        time.sleep(0.01)
    return thread


def test_sigterm_lets_a_stream_end_and_then_the_server(folder: Path) -> None:
    found: list[Any] = []
    with running(folder) as (process, url):
        thread = ask(url, found)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.post(f"{url}/v1/completions", json=ASKED).status_code == 503
        thread.join()
        assert found[-1] == "length"
        assert process.wait(20) == 0


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    found: list[Any] = []
    with running(folder) as (process, url):
        thread = ask(url, found)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert time.monotonic() - start < 5
        thread.join()
        assert found[-1] != "length"


def test_tokens_of_a_file_and_a_variable(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# of the team\nfrom-file\n\n")
    options = ("--token-file", str(tmp_path / "tokens"), "--token-env", "SERVER_TOKEN", "--name", "cat")
    with running(folder, *options, SERVER_TOKEN="from-env") as (_, url):
        for token, expected in (("from-file", 200), ("from-env", 200), ("# of the team", 401), ("from", 401)):
            answer = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == expected
        good = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer from-env"}).json()
        assert [m["id"] for m in good["data"]] == ["cat"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "there is no token"),
        (["--token-env", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN is not set"),
        (["--token-file", "/nowhere/tokens"], "cannot be read"),
        (["--port", "70000"], "--port is 70000"),
        (["--rows", "0"], "--rows is 0"),
    ],
)
def test_errors_before_it_listens(folder: Path, options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "monograph", "serve", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monograph", "serve", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "monograph.json" in done.stderr) == (1, True)
