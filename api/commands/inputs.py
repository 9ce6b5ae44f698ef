"""Arrays on the command line: what `monograph run --input` reads, and what comes out of a model that takes them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..console import out, print_json, table
from ..inference.engine import Engine
from ..inference.predict import softmax
from ..ir.documents import parse_json
from ..ir.errors import ConfigError, RuntimeInputError, unreadable
from ..ir.files import staged
from ..ir.tensors import Array

_SHOWN = 8


def read_inputs(given: Sequence[str]) -> dict[str, Any]:
    """Inputs by name from texts: NAME=FILE.npy, NAME=FILE.json, NAME=[1, 2], FILE.npz or FILE.json with several.

    Raises ConfigError for a text or a file that gives none, and for a name that is given twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, source = text.partition("=")
        values = {name: _one(name, source)} if equals and name.isidentifier() else _several(Path(text))
        for key, value in values.items():
            if key in found:
                raise ConfigError(f"--input gives {key} twice")
            found[key] = _numbers(key, value)
    return found


def _one(name: str, source: str) -> Any:
    path = Path(source)
    if path.suffix == ".npz":
        arrays = _several(path)
        if name not in arrays:
            raise ConfigError(f"has no array {name!r}, only {', '.join(arrays)}", place=source)
        return arrays[name]
    if path.suffix == ".npy":
        return _loaded(path)
    if path.suffix == ".json":
        return _json(_text(path), source)
    return _json(source, f"--input {name}")


def _several(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        file = _loaded(path)
        return {name: file[name] for name in file.files}
    if path.suffix == ".json":
        values = _json(_text(path), str(path))
        if isinstance(values, dict):
            return cast("dict[str, Any]", values)
        raise ConfigError("is no JSON object with inputs by name", place=str(path))
    raise ConfigError(f"--input is {str(path)!r}, expected NAME=FILE.npy, NAME=[...], FILE.npz or FILE.json")


def _loaded(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise ConfigError(f"cannot be read as {path.suffix}: {e}", place=str(path)) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(unreadable(e), place=str(path)) from None


def _json(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as e:
        raise ConfigError(f"is not JSON: {e}", place=place) from None


def _numbers(name: str, value: Any) -> Array:
    try:
        found = np.asarray(value)
    except ValueError:
        raise ConfigError(f"--input {name} has rows of different lengths") from None
    if found.dtype.kind not in "iubf":
        raise ConfigError(f"--input {name} is {found.dtype}, expected numbers")
    # Numbers written as text have the widest type; which one a model takes is its contract's to say.
    return found if found.dtype.kind != "f" or not isinstance(value, (list, float)) else found.astype(np.float32)


def tell_outputs(engine: Engine, inputs: Mapping[str, Any], json_output: bool, save: Path | None) -> None:
    """Run a model once on arrays, and print or save what it gives."""
    given = {k: _typed(engine, k, v) for k, v in inputs.items()}
    found = engine.run(given)
    if save is not None:
        with staged(save.parent) as stage, stage.open(save.name) as file:
            np.savez(file, **cast("Any", found))
    if json_output:
        print_json({"saved": save} if save is not None else {k: v.tolist() for k, v in found.items()})
        return
    rows = [{"output": k, "type": f"{v.dtype}{list(v.shape)}", "first values": _first(v)} for k, v in found.items()]
    out().print(table(f"{engine.session.contract.family} ({engine.task})", rows))
    for line in _labels(engine, found):
        out().print(line, markup=False)
    if save is not None:
        out().print(f"wrote {save}", markup=False)


def _typed(engine: Engine, name: str, value: Array) -> Array:
    """Whole numbers that were written for floats are floats."""
    contract = engine.session.contract
    type = next((types[name] for types in contract.inputs.values() if name in types), None)
    if type is not None and type.dtype.is_float and value.dtype.kind in "iu":
        return value.astype(type.dtype.numpy)
    return value


def _first(values: Array) -> str:
    flat = values.reshape(-1)
    shown = ", ".join(f"{v:.4g}" for v in flat[:_SHOWN].tolist())
    return f"{shown}, ..." if flat.size > _SHOWN else shown


def _labels(engine: Engine, found: Mapping[str, Array]) -> list[str]:
    """The likeliest label of each row, for a model that tells labels apart and says their names."""
    logits, names = found.get(engine.session.contract.output), engine.config.get("id2label")
    if not isinstance(names, dict) or logits is None or logits.ndim != 2 or not engine.task.endswith("classification"):
        return []
    said = cast("dict[str, Any]", names)
    return [f"{said.get(str(int(p.argmax())), int(p.argmax()))}  ({p.max():.4f})" for p in softmax(logits)]


def check_given(engine: Engine, texts: Sequence[str], inputs: Mapping[str, Any]) -> None:
    """Raises RuntimeInputError if there is nothing to run on, naming the inputs that there are."""
    if texts or inputs:
        return
    contract = engine.session.contract
    kinds = {k: str(t) for types in contract.inputs.values() for k, t in types.items()}
    own = [f"{k} {t}" for k, t in kinds.items() if not any(k == s.input for s in contract.slots)]
    hint = f"give a text, or --input NAME=FILE for each of: {', '.join(own)}"
    raise RuntimeInputError("there is nothing to run on", hint=hint)
