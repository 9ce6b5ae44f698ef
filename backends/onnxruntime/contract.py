"""What a built folder promises: files, what they take in, what is remembered, limits; checked again when opened."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from ...frontends.task import LOGITS, TOKEN_TYPES
from ...ir.documents import parse_json, read_text
from ...ir.errors import ConfigError, MonographError, unreadable
from ...ir.slots import Growth, Slot, Stream
from ...ir.types import TensorType, parse_type
from ..onnx.metadata import slot_json, stream_json
from .choices import Choices

FILE = "monograph.json"
VERSION = 5
HOW = "monograph build MODEL FOLDER writes one, and monograph optimize FILE.onnx -o FOLDER --cache of an ONNX file"
"""How to come by a folder that is opened."""

Types = Mapping[str, TensorType]


@dataclass(frozen=True)
class Contract:
    """Contents of monograph.json.

    kind: `decoder` (remembers what it has read) or `encoder` (one call without state).
    masked: file of the graph for any mask. lengths: file of the graph for prompts padded on the right, over buffers
    ("" if the model has none). encoder: file of the graph that reads the source first ("" if none).
    slots: what is remembered. stream: the tokens that are read (None: the model reads none).
    alone: why rows of different lengths are not run together by the masked graph ("": they are).
    inputs: names and types by file. output: the one that `prefill` and `step` give.
    positions: most tokens a row may have; 0: any number. rows: that output is given for chosen positions only.
    zeros: inputs along the tokens that are 0 where they are left out. unread: inputs of the model that change nothing.
    bounds: for an integer input that is an index, how many rows its table has.
    adapters: names of those that the input `adapter` chooses from, the first of which is number 1.
    choices: which of several legal ops and session settings the build took. why: what decided each, in words.
    prompts: file of the graph for many tokens at once, in place of `lengths` ("": the same one). mapped: files whose
    weights are read where the data is mapped, without copies in an order of kernels.
    cache: what is known about keys and values in 8 bits ("": they are numbers).
    uncaptured: why steps cannot be captured as CUDA graphs, by node; nothing where they can.
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
    slots: tuple[Slot, ...] = ()
    stream: Stream | None = None
    alone: str = ""
    inputs: Mapping[str, Types] = field(default_factory=dict[str, Types])
    output: str = LOGITS
    positions: int = 0
    rows: bool = False
    zeros: tuple[str, ...] = (TOKEN_TYPES,)
    unread: tuple[str, ...] = ()
    bounds: Mapping[str, int] = field(default_factory=dict[str, int])
    disabled_optimizers: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    choices: Choices = field(default_factory=Choices)
    why: tuple[str, ...] = ()
    cache: str = ""
    prompts: str = ""
    mapped: tuple[str, ...] = ()
    uncaptured: tuple[str, ...] = ()

    @property
    def limit(self) -> int:
        """`positions` as a number that every length can be compared with."""
        return self.positions or sys.maxsize

    @property
    def windows(self) -> tuple[int, ...]:
        """The windows that slots have, each once."""
        return tuple(dict.fromkeys(s.window for s in self.slots if s.growth is Growth.window))

    @property
    def uncut(self) -> str:
        """Why rows cannot be cut after a few more tokens, naming the slot; "" where they can."""
        for slot in self.slots:
            if slot.growth is Growth.replace:
                return f"{slot.input} is one state and no past"
            if slot.growth is Growth.window and not self.lengths:
                return f"{slot.input} holds no more than the newest {slot.window - 1} tokens"
        return ""

    def to_json(self) -> str:
        said: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        said["slots"] = [slot_json(s) for s in self.slots]
        said["stream"] = None if self.stream is None else stream_json(self.stream)
        said["inputs"] = {file: {k: str(t) for k, t in types.items()} for file, types in self.inputs.items()}
        said["bounds"] = dict(self.bounds)
        said["choices"] = self.choices.said()
        return json.dumps(said, indent=2) + "\n"

    @staticmethod
    def read(folder: Path) -> Contract:
        """Raises ConfigError naming file, key and value for anything missing, unknown or of a wrong type."""
        path = folder / FILE
        if not path.is_file():
            what = f"has no {FILE}: it is not a folder that `build` wrote"
            raise ConfigError(what, place=str(folder), hint=HOW)
        try:
            said: Any = parse_json(read_text(path))
        except OSError as e:
            raise ConfigError(unreadable(e), place=str(path)) from None
        except ValueError as e:
            raise ConfigError(f"is not JSON: {e}", place=str(path)) from None
        given = cast("dict[str, Any]", said) if isinstance(said, dict) else {"version": type(said).__name__}
        if given.get("version") != VERSION:
            what = f"is of version {given.get('version')}, expected {VERSION}: build the model again"
            raise ConfigError(what, place=str(path))
        reader = _Reader()
        contract = reader.contract(given)
        if contract is None or reader.problems:
            raise ConfigError("is not a contract", place=str(path), details=reader.problems)
        for name in (contract.masked, *filter(None, (contract.lengths, contract.encoder, contract.prompts))):
            if Path(name).name != name or not (folder / name).is_file():
                raise ConfigError(f"names {name!r}, which is not a file beside it", place=str(path))
            if name not in contract.inputs:
                raise ConfigError(f"does not say what inputs {name!r} has", place=str(path))
        return contract


def slots_of(text: str, place: str = "") -> tuple[Slot, ...]:
    """Slots from the JSON list of a contract, or of an exported file. Raises ConfigError listing what is wrong."""
    reader = _Reader()
    try:
        given = parse_json(text)
    except ValueError as e:
        raise ConfigError(f"slots are not JSON: {e}", place=place) from None
    if not isinstance(given, list):
        raise ConfigError(f"slots are {given!r}, expected a list", place=place)
    slots = [reader.slot(s, f"slot {i}") for i, s in enumerate(cast("list[Any]", given))]
    if reader.problems:
        raise ConfigError("slots are damaged", place=place, details=reader.problems)
    return tuple(s for s in slots if s is not None)


def stream_of(text: str, place: str = "") -> Stream:
    """A stream from the JSON object of an exported file. Raises ConfigError listing what is wrong."""
    reader = _Reader()
    try:
        given = parse_json(text)
    except ValueError as e:
        raise ConfigError(f"the stream is not JSON: {e}", place=place) from None
    if not reader.fits(given, Stream, "stream: "):
        raise ConfigError("the stream is damaged", place=place, details=reader.problems)
    return Stream(**given)


_JSON: dict[Any, tuple[type, ...]] = {
    Growth: (str,),
    TensorType: (str,),
    Stream: (dict,),
    Choices: (dict,),
    tuple: (list,),
    Mapping: (dict,),
}
"""What JSON has for the types of fields that are not JSON's own."""


def _kinds(of: Any) -> tuple[type, ...]:
    """What JSON may have for a field of a type."""
    origin = get_origin(of) or of
    if origin in (Union, UnionType):
        return tuple(kind for part in get_args(of) for kind in _kinds(part))
    return _JSON.get(origin, (origin,))


class _Reader:
    """Turns JSON into a contract; everything that is wrong with it is noted, not only the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def contract(self, given: dict[str, Any]) -> Contract | None:
        if not self.fits(given, Contract, ""):
            return None
        slots = [self.slot(s, f"slot {i}") for i, s in enumerate(given["slots"])]
        said = given["stream"]
        stream = Stream(**said) if said is not None and self.fits(said, Stream, "stream: ") else None
        inputs = {file: self.types(types, file) for file, types in given["inputs"].items()}
        for name, n in given["bounds"].items():
            if type(n) is not int or n < 1:
                self.problems.append(f"'bounds' says {n!r} of {name!r}, expected a whole number")
        names = ("zeros", "unread", "disabled_optimizers", "why", "uncaptured", "adapters", "mapped")
        names = {k: tuple(given[k]) for k in names}
        for k, found in names.items():
            if not all(isinstance(n, str) for n in found):
                self.problems.append(f"{k!r} is {list(found)!r}, expected names")
        whole = tuple(s for s in slots if s is not None)
        parts: dict[str, Any] = {"slots": whole, "stream": stream, "inputs": inputs, **names}
        try:
            parts["choices"] = Choices.of(given["choices"])
        except ConfigError as e:
            self.problems += e.details
            return None
        return Contract(**{**given, **parts})

    def fits(self, given: Any, of: type, lead: str) -> bool:
        """Whether an object has the fields of a class, each of the right kind."""
        before = len(self.problems)
        if not isinstance(given, dict):
            self.problems.append(f"{lead}is {given!r}, expected an object")
            return False
        given = cast("dict[str, Any]", given)
        hints = get_type_hints(of)
        known = {f.name: _kinds(hints[f.name]) for f in fields(of)}
        self.problems += [f"{lead}unknown key {k!r}" for k in given if k not in known]
        self.problems += [f"{lead}key {k!r} is missing" for k in known if k not in given]
        for k, kinds in known.items():
            if k in given and type(given[k]) not in kinds:
                names = " or ".join("null" if t is type(None) else t.__name__ for t in kinds)
                self.problems.append(f"{lead}{k!r} is {given[k]!r}, expected {names}")
        return len(self.problems) == before

    def slot(self, given: Any, lead: str) -> Slot | None:
        if not self.fits(given, Slot, f"{lead}: "):
            return None
        type_ = self.type(given["type"], lead)
        growths = [g.value for g in Growth]
        if given["growth"] not in growths:
            self.problems.append(f"{lead}: growth is {given['growth']!r}, expected one of {', '.join(growths)}")
        elif type_ is not None:
            parts: dict[str, Any] = {**given, "growth": Growth(given["growth"]), "type": type_}
            slot = Slot(**parts)
            self.problems += [f"{lead}: {slot.input}: {p}" for p in _slot_problems(slot)]
            return slot
        return None

    def types(self, given: Any, file: str) -> dict[str, TensorType]:
        if not isinstance(given, dict):
            self.problems.append(f"inputs of {file} are {given!r}, expected an object")
            return {}
        found = {k: self.type(t, f"{file}: {k}") for k, t in cast("dict[str, Any]", given).items()}
        return {k: t for k, t in found.items() if t is not None}

    def type(self, text: Any, lead: str) -> TensorType | None:
        try:
            return parse_type(text)
        except (MonographError, TypeError):
            self.problems.append(f"{lead}: {text!r} is not a type such as f32[B,S,64]")
            return None


def _slot_problems(slot: Slot) -> list[str]:
    grows = slot.growth in (Growth.append, Growth.window)
    found: list[str] = []
    if grows and (slot.axis is None or not 0 < slot.axis < slot.type.rank):
        found.append(f"axis is {slot.axis}, expected one of {slot.type} behind the first")
    if (slot.growth is Growth.window) != (slot.window > 0):
        found.append(f"growth {slot.growth.value} with window {slot.window}")
    if (slot.growth is Growth.once) != (slot.output == ""):
        found.append(f"growth {slot.growth.value} with output {slot.output!r}")
    if slot.type.rank < 1:
        found.append(f"type {slot.type} has no axis of rows")
    return found
