"""Metrics in the form of Prometheus: our own names, and the gauges of vLLM that routers of requests read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...ir.errors import MonographError
from ..request import Request
from .service import Service

PATHS = frozenset({
    "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/health", "/ready", "/drain", "/metrics",
})  # fmt: skip
"""Paths that have a label of their own; a client cannot make others."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The registry of one server."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.model = service.name

        def histogram(name: str, what: str, *labels: str) -> Histogram:
            return Histogram(f"monograph_{name}", what, labels, buckets=SECONDS, registry=self.registry)

        self.requests = Counter(
            "monograph_http_requests", "answers by path and status", ("path", "status"), registry=self.registry
        )
        self.seconds = histogram("http_request_seconds", "from the first byte of a request to the last one", "path")
        self.first = histogram("time_to_first_token_seconds", "from submission to the first token", "model")
        self.token = histogram("time_per_output_token_seconds", "mean time of a token after the first", "model")
        self.whole = histogram("generation_seconds", "from submission to the last token", "model")
        self.registry.register(_Gauges(service))

    def answered(self, scope: Any, status: int, seconds: float) -> None:
        """Count an answer."""
        path = scope["path"] if scope["path"] in PATHS else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def generated(self, requests: Iterable[Request]) -> None:
        """Count the times of requests that have ended; cancelled ones without a token are left out."""
        for request in requests:
            if request.first_token is None or request.ended is None:
                continue
            self.first.labels(self.model).observe(request.first_token - request.submitted)
            self.whole.labels(self.model).observe(request.ended - request.submitted)
            with suppress(MonographError):  # one that ended with an error has no mean time of a token
                count = len(request.result(0).ids) - 1
                if count > 0:
                    self.token.labels(self.model).observe((request.ended - request.first_token) / count)

    def text(self) -> bytes:
        """All of them, in the text format of Prometheus."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What the scheduler says at the moment it is asked."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def describe(self) -> list[Metric]:
        """Nothing: the names are known when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges and counts of this moment."""
        now, name = self.service.gauges(), self.service.name
        gauges = {
            "monograph_requests_running": ("requests that have a row", now.running),
            "monograph_requests_waiting": ("requests in the queue", now.queued),
            "monograph_rows": ("most requests at once", now.rows),
            "monograph_cache_used_ratio": ("share of the places for tokens that are taken", now.cache_used),
            "monograph_prefix_cache_bytes": ("states kept for shared prefixes", now.prefix_bytes),
            "monograph_ready": ("1 if new requests are taken", float(self.service.ready)),
            "vllm:num_requests_running": ("requests that have a row", now.running),
            "vllm:num_requests_waiting": ("requests in the queue", now.queued),
            "vllm:kv_cache_usage_perc": ("share of the places for tokens that are taken, 0 to 1", now.cache_used),
        }
        for key, (what, value) in gauges.items():
            family = GaugeMetricFamily(key, what, labels=["model_name"])
            family.add_metric([name], float(value))
            yield family
        counts = {
            "monograph_prompt_tokens": ("prompt tokens read", now.tokens_in),
            "monograph_generation_tokens": ("tokens chosen", now.tokens_out),
            "monograph_prefix_hits": ("prompts that began with a known prefix", now.prefix_hits),
            "monograph_prefix_misses": ("prompts that did not", now.prefix_misses),
            "monograph_prefix_tokens": ("tokens that were not read again", now.prefix_tokens),
            "vllm:prompt_tokens": ("prompt tokens read", now.tokens_in),
            "vllm:generation_tokens": ("tokens chosen", now.tokens_out),
        }
        for key, (what, value) in counts.items():
            counter = CounterMetricFamily(key, what, labels=["model_name"])
            counter.add_metric([name], float(value))
            yield counter
        ended = CounterMetricFamily("monograph_requests_ended", "by reason or error", labels=["model_name", "reason"])
        for reason, value in now.ended.items():
            ended.add_metric([name, reason], float(value))
        yield ended
