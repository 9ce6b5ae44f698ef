"""The tensors of a checkpoint under the names of a graph; each is used, noted with the reason, or refused by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

import numpy as np

from ..ir import Graph
from ..ir.errors import WeightsError
from ..ir.safetensors import Unreadable
from ..ir.tensors import Tensor
from ..ir.types import f32
from ..ir.weights import Weights
from .buffers import EVERYWHERE
from .dsl import Config, Family
from .entries import Note

UNREAD = "transformers does not read either"


def modern(weights: Weights, family: Family) -> Weights:
    """Weights under the names of today."""
    old = family.checkpoint.old
    return weights.renamed(lambda k: next((k.removesuffix(a) + b for a, b in old.items() if k.endswith(a)), k))


def named(weights: Weights, graph: Graph, family: Family) -> Weights:
    """Weights in the layout and under the names of the graph, where they are in it.

    A checkpoint of a model with a head has `prefix.` before the names of the model inside it, or the reverse.
    """
    prefix, layout = family.checkpoint.prefix, family.checkpoint.layout
    weights = weights if layout is None else layout(weights)

    def name(k: str) -> str:
        choices = (k, k.removeprefix(f"{prefix}."), f"{prefix}.{k}") if prefix else (k,)
        return next((c for c in choices if c in graph.params), k)

    return weights.renamed(name)


def untied(config: Config, weights: Weights, family: Family) -> tuple[Config, Weights]:
    """The config of a model with an output layer of its own, if the file has one that differs from what it is said
    to equal, and the weights with all of it.

    As the reference implementation: config.json may say that they are tied, the file knows better.
    """
    names = family.checkpoint.tied
    if not names or not getattr(config, "tied", False):
        return config, weights
    weights = named(weights, family.graph(config, f32), family)
    stored = {own: twin for own, twin in names.items() if own in weights}
    alone = {own: twin for own, twin in stored.items() if twin not in weights}
    if alone:
        weights = weights.renamed(lambda k: alone.get(k, k))
    if all(own in alone or _equal(weights[own], weights[twin]) for own, twin in stored.items()):
        return config, weights
    return config.changed(tied=False), weights | {
        own: weights[own if own in weights else twin] for own, twin in names.items()
    }


def fitted(weights: Weights, graph: Graph, config: Config | None, family: Family) -> tuple[Weights, tuple[Note, ...]]:
    """(weights under the names of the graph and nothing else, why others of the file do not matter).

    Raises WeightsError listing all that is missing, of another shape, or there without a reason to leave it out.
    """
    weights = named(weights, graph, family)
    reasons: dict[str, str] = {}
    problems: list[str] = []
    for name in (k for k in weights if k not in graph.params):
        why, problem = _unused(name, weights, config, family)
        if problem:
            problems.append(f"unexpected: {name}: {weights[name].type}: {problem}")
        if why or problem:
            reasons[name] = why
    try:
        weights.check(graph, ignore=map(_exactly, reasons))
    except WeightsError as e:
        problems = [*e.details, *problems]
    if problems:
        what = f"weights do not fit graph {graph.name}: {len(problems)} differences"
        raise WeightsError(what, place=weights.place, details=problems)
    kept = Weights({k: weights[k] for k in graph.params}, weights.place, weights.metadata)
    return kept, tuple(_grouped({k: why for k, why in reasons.items() if why}, weights))


def _unused(name: str, weights: Weights, config: Config | None, family: Family) -> tuple[str, str]:
    """(why a tensor that the graph does not have is left out, why it cannot be): one of both, or neither."""
    stored, tensor = family.checkpoint, weights[name]
    tied = stored.tied if getattr(config, "tied", False) else dict[str, str]()
    twin = stored.copies.get(name) or tied.get(name)
    if twin is not None and twin in weights:
        same = _equal(tensor, weights[twin])
        return (f"it equals {twin}", "") if same else ("", f"it differs from {twin}, and the model has one for both")
    if matches(name, stored.heads):
        return "it belongs to another head than this one", ""
    for pattern, rule in {**EVERYWHERE, **stored.unused}.items():
        if not fnmatch.fnmatchcase(name, pattern):
            continue
        if isinstance(rule, str):
            return rule, ""
        if isinstance(tensor, Unreadable):
            return f"it is of type {tensor.stored_type}, and {UNREAD}", ""
        what = (rule.__doc__ or "").strip()
        return what if rule(config, tensor.numpy()) else f"{what}; these are others, which {UNREAD}", ""
    return "", ""


def _grouped(reasons: dict[str, str], weights: Weights) -> Iterable[Note]:
    """One note for the same tensor of all layers."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault((re.sub(r"\.\d+(?=\.)", ".*", name), why), []).append(name)
    for (pattern, why), members in groups.items():
        type = weights[members[0]].type
        value = str(type) if len(members) == 1 else f"{len(members)} tensors of {type}"
        yield Note(weights.place, members[0] if len(members) == 1 else pattern, value, why)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is of one of these shell patterns."""
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def _exactly(name: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", name)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.type == b.type and np.array_equal(a.numpy(), b.numpy())
