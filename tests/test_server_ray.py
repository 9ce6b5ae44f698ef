"""Replicas on a local Ray cluster: answers equal offline, and one replica killed under its streams."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import ray.data
from monograph.inference.engine import Engine
from monograph.inference.server.client import stream_text
from monograph.inference.server.ray_data import Embedder, Generator
from monograph.inference.server.ray_serve import app, deployment
from monograph.ir.errors import RuntimeInputError
from openai import OpenAI
from ray import serve
from served import PROMPTS, tiny_decoder, tiny_encoder

pytestmark = pytest.mark.slow
URL = "http://127.0.0.1:8765"
LONG: dict[str, Any] = {
    "model": "tiny", "prompt": "the cat", "max_tokens": 2500, "temperature": 0, "extra_body": {"ignore_eos": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("ray") / "tiny", positions=4096)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[OpenAI]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 8765})
    serve.run(deployment(str(folder), replicas=2, threads=1, rows=16), route_prefix="/")
    yield OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
    serve.shutdown()
    ray.shutdown()


def replicas() -> list[str]:
    """Names of the actors of replicas."""
    names = [str(x["name"]) for x in ray.util.list_named_actors(all_namespaces=True)]
    return [n for n in names if n.startswith("SERVE_REPLICA")]


def test_answers_equal_offline(cluster: OpenAI, folder: Path) -> None:
    offline = Engine.open(folder, threads=1).generate(list(PROMPTS), max_new_tokens=12, eos=())
    more = {"return_token_ids": True, "ignore_eos": True}

    def ask(prompt: str) -> Any:
        return cluster.completions.create(model="tiny", prompt=prompt, max_tokens=12, temperature=0, extra_body=more)

    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(ask, PROMPTS * 3)]
    assert [a.choices[0].token_ids for a in answers] == [x.ids for x in offline] * 3
    assert [httpx.get(f"{URL}{path}").status_code for path in ("/health", "/ready", "/metrics")] == [200] * 3
    assert (
        httpx.post(f"{URL}/v1/completions", json={"model": "x", "prompt": "a"}).json()["error"]["code"]
        == "model_not_found"
    )


def test_one_of_two_replicas_is_killed_under_its_streams(cluster: OpenAI, folder: Path) -> None:
    expected = Engine.open(folder, threads=1).generate("the cat", max_new_tokens=2500, eos=()).text
    before = replicas()
    assert len(before) == 2

    begun: list[int] = []

    def plain(index: int) -> str:
        text = ""
        try:
            for chunk in cluster.completions.create(**LONG, stream=True):
                text += chunk.choices[0].text
                begun.append(index)
                if chunk.choices[0].finish_reason:
                    return text
        except Exception as e:  # whatever a client sees of a dead server
            return f"broken: {type(e).__name__}"
        return "broken: it ended"

    with ThreadPoolExecutor(16) as pool:
        watched = [pool.submit(plain, i) for i in range(8)]
        again = [pool.submit(lambda: "".join(stream_text(cluster, **LONG))) for _ in range(4)]
        while len({*begun}) < 8:
            time.sleep(0.01)
        ray.kill(ray.get_actor(before[0], namespace="serve"))
        found = [w.result() for w in watched]
        restarted = [a.result() for a in again]
    broken = [f for f in found if f.startswith("broken")]
    assert [f for f in found if f not in broken] == [expected] * (len(found) - len(broken))
    assert 0 < len(broken) < len(found)
    assert restarted == [expected] * 4
    assert "".join(stream_text(cluster, **LONG)) == expected
    end = time.monotonic() + 60
    while len(now := set(replicas()) - {before[0]}) < 2:
        assert time.monotonic() < end, now
        time.sleep(0.2)


def test_what_a_restarted_stream_cannot_be() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key="none")
    with pytest.raises(RuntimeInputError, match="needs temperature=0 or a seed"):
        next(stream_text(client, model="tiny", prompt="a"))
    with pytest.raises(RuntimeInputError, match="has one choice"):
        next(stream_text(client, model="tiny", prompt="a", seed=1, n=2))


def test_arguments_of_the_command(folder: Path) -> None:
    assert app({"folder": str(folder), "replicas": "2", "rows": "4"}) is not None
    with pytest.raises(RuntimeInputError, match="folder=DIR"):
        app({})


# -- ray.data ---------------------------------------------------------------------------------------------------------


def test_generation_over_a_data_set(cluster: OpenAI, folder: Path) -> None:
    texts = [f"{p} {'the log ' * (i % 3)}" for i, p in enumerate(PROMPTS * 5)]
    made = ray.data.from_items([{"id": i, "text": t, "seed": i} for i, t in enumerate(texts)])
    settings: dict[str, Any] = {"max_new_tokens": 7, "temperature": 1.1, "eos": ()}
    found = made.map_batches(
        Generator,
        fn_constructor_args=(str(folder),),
        fn_constructor_kwargs={"ids": True, "threads": 1, "seed_column": "seed", **settings},
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(size=1),
    ).take_all()
    offline = Engine.open(folder, threads=1)
    for row in found:
        expected = offline.generate(texts[row["id"]], seed=row["seed"], **settings)
        assert (list(row["generated_ids"]), row["generated"]) == (expected.ids, expected.text)


def test_embeddings_over_a_data_set(cluster: OpenAI, tmp_path: Path) -> None:
    encoder = tiny_encoder(tmp_path / "vectors")
    made = ray.data.from_items([{"text": t} for t in PROMPTS * 3])
    found = made.map_batches(
        Embedder, fn_constructor_args=(str(encoder),), fn_constructor_kwargs={"threads": 1},
        batch_size=4, compute=ray.data.ActorPoolStrategy(size=1),
    ).take_all()  # fmt: skip
    expected = Engine.open(encoder, threads=1).embed(list(PROMPTS))
    by_text = {row["text"]: row["embedding"] for row in found}
    np.testing.assert_allclose(np.stack([by_text[p] for p in PROMPTS]), expected, atol=1e-5)


def test_callables_travel_and_say_what_is_wrong(folder: Path) -> None:
    made = Generator(folder, max_new_tokens=3, eos=(), threads=1)
    batch = {"text": np.array(["the cat", "a"], object)}
    first = made(batch)
    copy = pickle.loads(pickle.dumps(made))
    assert copy(batch)["generated"].tolist() == first["generated"].tolist()
    with pytest.raises(RuntimeInputError, match="no column 'text', did you mean 'texts'"):
        made({"texts": ["a"]})
    with pytest.raises(RuntimeInputError, match="row 0 is float"):
        made({"text": [0.5]})
    with pytest.raises(RuntimeInputError, match="no setting called 'max_tokens'"):
        Generator(folder, max_tokens=3)
    made.close()
    copy.close()
