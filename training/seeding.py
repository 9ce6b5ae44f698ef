"""Random numbers of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import numpy as np

from ..backends.torch.untyped import fork_generators, seed_generators
from .settings import Settings
from .world import World


@contextlib.contextmanager
def seeded(settings: Settings, step: int, world: World) -> Generator[None]:
    """Randomness that depends on the seed and the step only, so that a resumed run goes on exactly.

    Processes that share layers draw the same numbers, those that have other rows draw others.
    """
    devices = [world.device] if settings.kind == "cuda" else []
    numbers = [settings.seed, step, *([world.data_rank] if world.data_rank else [])]
    with fork_generators(devices):
        seed_generators(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        yield
