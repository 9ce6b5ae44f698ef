"""Digests of the data of a run, by which a run that goes on knows that it is the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, TypeGuard, cast

import numpy as np

from ..data.tables import is_list
from ..frontends.tokenizer import Tokenizer
from ..ir.tensors import Array
from .settings import Settings
from .source import Source

_PLAIN = (str, int, float, type(None))
"""What JSON writes at once, as whole lists too."""


def fingerprint(source: Source, settings: Settings) -> str:
    """SHA-256 of the first batch: another text, tokenizer or order of the data gives another."""
    first, digest = next(source.batches(settings.batch, settings.length, settings.seed, 0)), hashlib.sha256()
    for name in sorted(first):
        digest.update(f"{name} {first[name].dtype} {first[name].shape}".encode())
        digest.update(np.ascontiguousarray(first[name]).tobytes())
    return digest.hexdigest()


def digest_of(source: Source) -> str:
    """SHA-256 of all the data of a source but its tokenizer, also of what later batches take; empty if it does not say.

    Arrays and rows of its fields are read; what has a `digest` of its own, such as shards, is not read again.
    """
    digest = hashlib.sha256()
    try:
        _read_into(digest, source)
    except TypeError:  # Something that only its own class can read.
        return ""
    return digest.hexdigest()


def _read_into(digest: Any, value: Any) -> None:
    if _is_array(value):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(getattr(value, "digest", None), str):
        digest.update(value.digest.encode())
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            field = getattr(value, f.name)
            # The ids tell of it; written out, a tokenizer is not the same text before and after a stay on the disk.
            if not isinstance(field, Tokenizer):
                digest.update(f.name.encode())
                _read_into(digest, field)
    elif isinstance(value, np.generic):
        _read_into(digest, np.asarray(cast(Any, value)))
    elif isinstance(value, dict):
        _read_into(digest, sorted(cast(dict[Any, Any], value).items()))
    elif is_list(value) and not all(isinstance(part, _PLAIN) for part in value):
        digest.update(f"{len(value)}".encode())
        for part in value:
            _read_into(digest, part)
    else:
        digest.update(json.dumps(value).encode())


def _is_array(value: Any) -> TypeGuard[Array]:
    return isinstance(value, np.ndarray)
