"""What the reference implementation reads of config.json, as data with its version, and a config read by that rule.

The rule, for each key: the family's config uses it; or it is known to change nothing (`harmless`, `Config.noted`); or
the reference never reads it for this architecture; or it has the value that the reference takes where it is left out,
which is what is computed here; else it is refused by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.errors import ConfigError, did_you_mean
from .config import Config
from .dsl import Family
from .entries import Entries, Note
from .rope import account_for_rope

UNSAID = "(required)"
"""Stands in the data for a value that the reference does not have for an absent key."""


@dataclass(frozen=True)
class Reference:
    """The keys of one family. defaults: its fields, with what they are where config.json is silent. absent: other keys
    that are read, likewise. renamed: other names of fields. read: keys that are read, by architecture."""

    version: str
    family: str
    defaults: Mapping[str, Any]
    absent: Mapping[str, Any]
    renamed: Mapping[str, str]
    read: Mapping[str, frozenset[str]]

    def default(self, key: str) -> Any:
        """The value where the key is left out; UNSAID if there is none."""
        return self.defaults.get(key, self.absent.get(key, UNSAID))

    def reads(self, key: str, architecture: str) -> bool:
        """Whether a model of that architecture reads the key; of an unknown one, whether any does."""
        lists = [self.read[architecture]] if architecture in self.read else self.read.values()
        return any(key in found for found in lists)


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("reference_keys.json").read_text("utf-8"))


def reference_of(family: Family) -> Reference | None:
    """The reference's keys for a family of this package; None for one that it does not have, or one of a user."""
    found = _table()["families"].get(family.name)
    if found is None or not family.function.__module__.startswith(f"{__package__}.models."):
        return None
    read = {a: frozenset(keys) for a, keys in found["read"].items()}
    fields = {k: found[k] for k in ("defaults", "absent", "renamed")}
    return Reference(_table()["transformers"], family.name, **fields, read=read)


def other_names(family: Family) -> frozenset[str]:
    """Keys of config.json that mean a field of the family's config, and stand under another name there."""
    own = family.config_class.keys()
    fields = dataclasses.fields(family.config_class)  # type: ignore[arg-type]
    also = {name for f in fields for name in f.metadata.get("also", ())}
    reference = reference_of(family)
    renamed = {k for k, v in reference.renamed.items() if v in own} if reference else set[str]()
    return frozenset(k for k in also | renamed if k not in own)


def read_config(family: Family, settings: Mapping[str, Any], place: str = "") -> tuple[Config, tuple[Note, ...]]:
    """(the config that a config.json of the family says, what in it changes nothing). Raises ConfigError listing each
    key that is not understood, is missing, or has a value that is not computed here."""
    reference = reference_of(family)
    entries = Entries(settings, place)
    renamed, defaults = (reference.renamed, reference.defaults) if reference else (None, None)
    values = family.config_class.taken(entries, renamed, defaults)
    family.config_class.note_harmless(entries)
    if reference is not None:
        if "rope_parameters" in reference.defaults:
            partial = "rotary_pct" in reference.absent
            account_for_rope(entries, partial=partial, read=family.config_class.turning)
        _account(entries, reference, family)
    notes = entries.close(family.config_class.keys(), title=f"config of {family.name} is not understood")
    with located(place):
        return family.config_class(**values), notes


@contextlib.contextmanager
def located(place: str | Path) -> Generator[None, None, None]:
    """Name a file in each ConfigError that comes without a place."""
    try:
        yield
    except ConfigError as e:
        raise ConfigError(e.what, place=e.place or str(place), details=e.details, hint=e.hint) from None


def _off(value: Any) -> bool:
    """Whether a switch is off; 0 is a number."""
    return value is None or value is False


def _account(entries: Entries, reference: Reference, family: Family) -> None:
    """Account for what the family's config does not use. In an error, misspelled keys are named, too."""
    wrong = bool(entries.problems)
    for key in entries.left:
        value = entries.entries[key]
        name = reference.renamed.get(key, key)
        if not reference.reads(name, family.checkpoint.architecture):
            unread = f"transformers {reference.version} does not read it for {family.name}"
            hint = did_you_mean(key, family.config_class.keys())
            if lost := did_you_mean(key, [k for k in family.config_class.needed() if k not in entries.entries]):
                entries.refuse(key, f"{unread}{lost}, which is missing")
            elif wrong and hint:
                entries.refuse(key, f"{unread}{hint}")
            else:
                entries.note(key, f"{unread}{hint}")
        elif value == reference.default(name) or (_off(value) and _off(reference.default(name))):
            entries.note(key, "what transformers takes where it is left out, and the only value that is computed here")
        else:
            usual = reference.default(name)
            only = "it must be left out" if usual == UNSAID else f"only {usual!r} is computed here"
            entries.refuse(key, f"transformers reads it for {family.name}, {only}")
