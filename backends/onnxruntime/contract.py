"""What a built folder promises: files, caches by layer, limits; checked again when it is opened."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.errors import ConfigError, RuntimeInputError

FILE = "monograph.json"
VERSION = 1


@dataclass(frozen=True)
class Contract:
    """Contents of monograph.json.

    kind: `decoder` (logits, with a cache or recurrent states) or `encoder` (one stateless call).
    lengths: file of the graph for prompts padded on the right, over shared buffers ("" if the model has none).
    masked: file of the graph for any mask. encoder: file of the graph that reads the source first ("" if none).
    layers: (key heads, key width, value width) of each cache. positions: most tokens a row may have; 0: any number.
    windowed: some attention forgets old keys. rows: logits are given for chosen positions, input `logits_rows`.
    """

    version: int
    kind: str
    family: str
    task: str
    provider: str
    dtype: str
    runtime: str
    masked: str
    lengths: str = ""
    encoder: str = ""
    layers: tuple[tuple[int, int, int], ...] = ()
    positions: int = 0
    windowed: bool = False
    rows: bool = False
    disabled_optimizers: tuple[str, ...] = ()

    @property
    def limit(self) -> int:
        """`positions` as a number that every length can be compared with."""
        return self.positions or sys.maxsize

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def read(folder: Path) -> Contract:
        """Raises ConfigError naming file, key and value for anything missing, unknown or of a wrong type."""
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(f"{folder} has no {FILE}: it is not a folder that `build` wrote", place=str(path))
        try:
            given = json.loads(path.read_text())
        except ValueError as e:
            raise ConfigError(f"is not JSON: {e}", place=str(path)) from None
        if not isinstance(given, dict) or given.get("version") != VERSION:
            found = given.get("version") if isinstance(given, dict) else type(given).__name__
            raise ConfigError(f"is of version {found}, expected {VERSION}: build the model again", place=str(path))
        problems = _problems(given)
        if problems:
            raise ConfigError("is not a contract", place=str(path), details=problems)
        lists = {
            "layers": tuple(map(tuple, given["layers"])),
            "disabled_optimizers": tuple(given["disabled_optimizers"]),
        }
        contract = Contract(**{**given, **lists})
        for name in filter(None, (contract.masked, contract.lengths, contract.encoder)):
            if Path(name).name != name or not (folder / name).is_file():
                raise ConfigError(f"names {name!r}, which is not a file beside it", place=str(path))
        return contract


def _problems(given: dict[str, Any]) -> list[str]:
    types = {"int": int, "str": str, "bool": bool}
    fields = {f.name: f for f in dataclasses.fields(Contract)}
    found = [f"unknown key {k!r}" for k in given if k not in fields]
    found += [f"key {k!r} is missing" for k in fields if k not in given]
    for k, f in fields.items():
        expected = types.get(str(f.type), list)
        if k in given and type(given[k]) is not expected:
            found.append(f"{k!r} is {given[k]!r}, expected {expected.__name__}")
    layers = given.get("layers")
    if isinstance(layers, list):
        for i, sizes in enumerate(layers):
            if not isinstance(sizes, list) or len(sizes) != 3 or not all(type(n) is int and n > 0 for n in sizes):
                found.append(f"layer {i} is {sizes!r}, expected [key heads, key width, value width]")
    return found


def check_layers(contract: Contract, inputs: dict[str, list[Any]], file: str) -> None:
    """Compare the caches the contract promises with the inputs of a graph. Raises RuntimeInputError."""
    expected = {
        f"past_key_values.{i}.{name}": (heads, width)
        for i, (heads, k, v) in enumerate(contract.layers)
        for name, width in (("key", k), ("value", v))
    }
    found = {k: (s[1], s[3]) for k, s in inputs.items() if k.startswith("past_key_values.") and len(s) == 4}
    wrong = [
        f"{k}: the contract has {expected.get(k, 'nothing')}, the graph has {found.get(k, 'nothing')}"
        for k in sorted({*expected, *found})
        if expected.get(k) != found.get(k)
    ]
    if wrong:
        raise RuntimeInputError("caches do not agree (heads, width)", place=file, details=wrong)
