"""Rotary settings as config.json says them, in their old and new forms, with the precedence of the reference."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from ..ir.errors import ConfigError, did_you_mean
from ..ir.ops.position import rope_settings_of
from .entries import Entries, Note


class RotaryConfig(Protocol):
    """What configs of models with rotary positions have."""

    @property
    def theta(self) -> float: ...
    @property
    def rope_scaling(self) -> dict[str, Any] | None: ...
    @property
    def rope_parameters(self) -> dict[str, Any] | None: ...
    @property
    def max_positions(self) -> int: ...


_NAMES = ("rope_type", "type", "rope_theta")
"""Settings of every type."""
_PART = "partial_rotary_factor"
_LENGTH = "original_max_position_embeddings"


def rope_settings(c: RotaryConfig, *, partial: float | None = None) -> dict[str, Any]:
    """The arguments theta, scaling and partial of `rotary`, with the precedence of the reference implementation.

    rope_scaling, the old name, wins over rope_parameters; what stands in either wins over keys beside it, such as the
    factor `partial`.
    """
    return rope_arguments(c.rope_scaling or c.rope_parameters or {}, c.theta, c.max_positions, partial)


def rope_arguments(
    given: Mapping[str, Any], theta: float, max_positions: int, partial: float | None = None
) -> dict[str, Any]:
    """The same of one set of settings; theta and partial are those beside them, which they win over.

    partial: None for a family that turns whole heads. Raises ConfigError where the settings want them turned in part,
    and for a type that is not known. Settings that the type does not have are left out, as the reference leaves them.
    """
    kind = rope_kind(given)
    found = {k: given[k] for k in ("rope_type", *rope_settings_of(kind)) if given.get(k) is not None}
    found = {k: v for k, v in found.items() if v or not k.startswith("mscale")} | {"rope_type": kind}
    said = given.get(_PART)
    if kind in ("llama3", "yarn"):
        found.setdefault(_LENGTH, max_positions)
    if partial is None and said not in (None, 1.0) and kind not in ("default", "proportional"):
        raise ConfigError(f"{_PART} = {said} is not supported with rope_scaling of type {kind!r}: whole heads turn")
    part = partial if said is None else said
    whole = partial is None or kind == "proportional"
    return {"theta": given.get("rope_theta", theta), "scaling": found, "partial": 1.0 if whole else part}


def rope_kind(given: Mapping[str, Any]) -> Any:
    """The type of rotary positions that a set of settings names."""
    return given.get("rope_type", given.get("type")) or "default"


def account_for_rope(entries: Entries, *, partial: bool, read: Collection[str] = ()) -> None:
    """Note, or refuse, what rotary settings say that the reference does not follow.

    entries: of config.json. partial: heads of the family can be turned in part, so a factor is followed.
    read: settings that the family reads itself, for every type but the default one.
    """
    said = [k for k in ("rope_scaling", "rope_parameters") if entries.entries.get(k)]
    sets = [found for k in said for found in _sets(k, entries.entries[k])]
    if len(said) == 2 and not any("." in where for where, _ in sets):
        entries.notes.append(Note(entries.place, said[1], entries.entries[said[1]], "rope_scaling counts"))
        sets = sets[:1]
    for where, given in sets:
        kind = rope_kind(given)
        try:
            known = (*_NAMES, *rope_settings_of(kind), *((_PART,) if partial or kind != "default" else ()))
            known += tuple(read) if kind != "default" else ()
        except ConfigError as e:
            entries.problems.append(f"{where}: {e.what}: {e.hint}")
            continue
        for k in (k for k in given if k not in known):
            why = f"rotary positions of type {kind!r} do not have it{did_you_mean(k, known)}"
            entries.notes.append(Note(entries.place, f"{where}.{k}", given[k], why))
    kinds = {str(rope_kind(given)) for _, given in sets} or {"default"}
    if _PART in entries.left and not partial:
        if kinds == {"default"} or entries.entries[_PART] in (None, 1.0):
            entries.note(_PART, "transformers turns whole heads of this family")
        else:
            entries.refuse(_PART, f"whole heads turn with rotary positions of type {', '.join(sorted(kinds))}")
    if _LENGTH in entries.left:
        inside = {given.get(_LENGTH) for _, given in sets}
        if not kinds & {"llama3", "yarn"} or inside == {entries.entries[_LENGTH]}:
            entries.note(_LENGTH, f"rotary positions of type {', '.join(sorted(kinds))} need no other one")
        else:
            entries.refuse(_LENGTH, "it is read inside the rotary settings only")


def _sets(name: str, given: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each set of settings with its name: one, or one for each kind of layer."""
    if not isinstance(given, dict):
        return
    inner = {k: v for k, v in given.items() if isinstance(v, dict)}  # pyright: ignore[reportUnknownVariableType]
    yield from ((f"{name}.{k}", v) for k, v in inner.items())  # pyright: ignore[reportUnknownVariableType]
    if not inner:
        yield name, given  # pyright: ignore[reportUnknownVariableType]
