"""The server as replicas of a Ray Serve deployment: on as many machines as a cluster has, each with its own model.

`serve.run(app(folder="DIR", replicas=2))`, or on the command line
`serve run monograph.inference.server.ray_serve:app folder=DIR replicas=2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from ...ir.errors import MonographError, RuntimeInputError
from .app import create_app
from .limits import Limits
from .run import service_of

HEALTH_SECONDS = 5.0
"""How often a replica is asked whether it can serve; one that cannot is replaced."""


class Replica:
    """One replica: a service, and the application over it. It takes requests once the model is there."""

    def __init__(
        self, folder: str, tokens: Sequence[str], limits: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.service = service_of(folder, limits=Limits(**limits), **settings)
        self.tokens = list(tokens)
        self.service.load()

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self.service, self.tokens)

    def check_health(self) -> None:
        """Called by Ray. Raises MonographError where the model is not served any more."""
        if self.service.state in ("failed", "closed"):
            raise MonographError(f"the server is {self.service.state}")


def deployment(
    folder: str,
    *,
    replicas: int | str = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    tokens: Sequence[str] = (),
    limits: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Application:
    """An application of Ray Serve that serves a built folder, which every machine must have at this path.

    replicas: how many, or "auto". cpus, gpus: of each. tokens: bearer tokens. limits: fields of `Limits`. settings:
    name and threads, and those of the scheduler (rows, queue, chunk, prefix_bytes). A replica is given as many
    requests at once as its rows and its queue hold; Ray holds back what is more.
    """
    held = int(settings.get("rows", 8)) + int(settings.get("queue", 256))
    api: Any = serve  # its signatures have parts of unknown types
    made = api.deployment(
        api.ingress()(Replica),
        name="monograph",
        num_replicas=replicas,
        max_ongoing_requests=held,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=(limits or {}).get("drain", Limits().drain),
    )
    return made.bind(folder, list(tokens), dict(limits or {}), settings)


def app(args: Mapping[str, Any]) -> Application:
    """What `serve run` calls, with its KEY=VALUE arguments: those of `deployment`, numbers written as text."""
    given = {k: _number(v) for k, v in args.items()}
    folder = given.pop("folder", None)
    if not isinstance(folder, str):
        raise RuntimeInputError("give the built folder: folder=DIR")
    if isinstance(tokens := given.pop("tokens", ()), str):
        given["tokens"] = tokens.split(",")
    return deployment(folder, **given)


def _number(value: Any) -> Any:
    """A whole number or a fraction that is written as text, else what was given."""
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            continue
    return value
