"""A model with the changes of an adapter file in its weights, computed when a weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..frontends.dsl import Model, families_of
from ..frontends.huggingface import with_head
from ..ir.errors import WeightsError, did_you_mean
from ..ir.graph import Graph
from ..ir.tensors import Array, Mapped, Tensor
from ..ir.types import TensorType
from ..ir.weights import Weights
from ..passes.lora import DOWN, UP, modules
from .peft_config import PeftConfig

UP_BIAS, MAGNITUDE = "lora_B.bias", "lora_magnitude_vector"
EMBEDDING_DOWN, EMBEDDING_UP = "lora_embedding_A", "lora_embedding_B"
ROWS = "token_adapter.trainable_tokens_delta"
BASE_WEIGHT, BASE_BIAS = "base_layer.weight", "base_layer.bias"
KINDS = (DOWN, UP, UP_BIAS, MAGNITUDE, EMBEDDING_DOWN, EMBEDDING_UP, ROWS, BASE_WEIGHT, BASE_BIAS, "weight", "bias")
_NAMES = re.compile(rf"(?P<module>.+?)\.(?P<kind>{'|'.join(map(re.escape, KINDS))})")
_WRAPPED = re.compile(r"\.(lora_[AB])\.[^.]+\.(weight|bias)$")
_BARE = re.compile(r"\.(lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta)(\.[^.]+)*$")


def clean_name(key: str) -> str:
    """A tensor's name without what PEFT puts around it: its prefixes, and the name of the adapter."""
    key = re.sub(r"^(base_model\.model\.)+", "", key)
    key = re.sub(r"\.modules_to_save\.[^.]+\.", ".", key)
    return _BARE.sub(r".\1", _WRAPPED.sub(r".\1.\2", key))


@dataclass
class Change:
    """The tensors of one module, by kind. module: its path in the model."""

    module: str
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def weight(self, w: Array, scale: float, transposed: bool, rows: tuple[int, ...]) -> Array:
        """The changed weight, as the file means it. transposed: w is [in, out]."""
        wide = w.astype(np.result_type(w.dtype, np.float32))
        if BASE_WEIGHT in self.tensors:
            wide = self.read(BASE_WEIGHT).astype(wide.dtype)
        delta = self._delta(wide.dtype)
        if delta is not None:
            columns = transposed or EMBEDDING_DOWN in self.tensors
            wide = self._magnified(wide, (delta.T if columns else delta) * scale, axis=0 if columns else 1)
        if ROWS in self.tensors:
            wide = wide.copy()
            wide[list(rows)] = self.read(ROWS)
        return wide.astype(w.dtype)

    def _delta(self, dtype: np.dtype) -> Array | None:
        """B @ A [out, in]."""
        for down, up in ((DOWN, UP), (EMBEDDING_DOWN, EMBEDDING_UP)):
            if down in self.tensors:
                return self.read(up).astype(dtype) @ self.read(down).astype(dtype)
        return None

    def _magnified(self, w: Array, delta: Array, axis: int) -> Array:
        """w + delta; of DoRA (Liu et al. 2024) with the length of each output's weights that was trained."""
        changed = w + delta
        if MAGNITUDE not in self.tensors:
            return changed
        length = np.linalg.norm(changed, axis=axis, keepdims=True)
        return changed * (np.expand_dims(self.read(MAGNITUDE).astype(w.dtype), axis) / length)

    def read(self, kind: str) -> Array:
        return self.tensors[kind].numpy()


def changes_of(weights: Weights) -> dict[str, Change]:
    """The tensors of an adapter file by module. Raises WeightsError listing names that are none of an adapter."""
    found: dict[str, Change] = {}
    strange: list[str] = []
    for key, tensor in weights.items():
        name = _NAMES.fullmatch(key)
        if name is None:
            strange.append(key)
        else:
            found.setdefault(name["module"], Change(name["module"])).tensors[name["kind"]] = tensor
    if strange:
        raise WeightsError(f"{len(strange)} tensors are not of a LoRA", place=weights.place, details=strange)
    return found


def merged(model: Model, weights: Weights, config: PeftConfig) -> Model:
    """The model with an adapter in its weights. Raises WeightsError listing every tensor that does not fit."""
    _weights_of(model)
    changes = changes_of(weights)
    model, drawn = _for_task(model, changes, config)
    base = _weights_of(model)
    graph, names = model.graph(), paths_of(model, changes)
    if any(_parts_ways(model, graph, names[m], c) for m, c in changes.items()):
        model, graph, base = _untied(model, base)
        names = paths_of(model, changes)
    linear = modules(graph)
    changed: dict[str, Tensor] = {}
    problems: list[str] = []
    for module, change in changes.items():
        path = names[module]
        transposed = path in linear and bool(linear[path][0].attributes["transposed"])
        wrong = _problems(change, path, graph, path in linear, transposed, config.rank_of(module))
        if config.dora and change.tensors.keys() & {DOWN, EMBEDDING_DOWN} and MAGNITUDE not in change.tensors:
            wrong.append(f"missing: {path}.{MAGNITUDE}: use_dora is true")
        if wrong:
            problems += wrong
            continue
        changed |= _changed(change, path, base, config, transposed)
    problems += [f"missing: {k}: neither the model nor the adapter has it" for k in drawn if k not in changed]
    if problems:
        what = f"the adapter does not fit {model.name}: {len(problems)} differences"
        raise WeightsError(what, place=weights.place, details=problems)
    return replace(model, weights=base | changed)


def _for_task(model: Model, changes: Mapping[str, Change], config: PeftConfig) -> tuple[Model, list[str]]:
    """(the model under the head that the adapter was trained with, what the adapter must bring of it)."""
    known = [] if model.family is None else [str(f.task) for f in families_of(model.family)]
    if config.task is None or config.task not in known or config.task == str(model.task):
        return model, []
    heads = [c.tensors["weight"].shape for c in changes.values() if "weight" in c.tensors]
    count = next((shape[0] for shape in heads if len(shape) == 2), 0)
    if count and hasattr(model.config, "labels"):
        return with_head(model, config.task, labels={str(i): f"LABEL_{i}" for i in range(count)})
    return with_head(model, config.task)


def _weights_of(model: Model) -> Weights:
    if model.weights is None:
        raise WeightsError(f"model {model.name} has no weights to fine-tune", hint="load a checkpoint")
    return model.weights


def _changed(change: Change, path: str, base: Weights, config: PeftConfig, transposed: bool) -> dict[str, Tensor]:
    """The new tensors of one module."""
    found: dict[str, Tensor] = {}
    scale, tensors = config.scale_of(change.module), change.tensors
    for kind, name in (("weight", "weight"), ("bias", "bias"), (BASE_BIAS, "bias")):
        if kind in tensors:
            found[f"{path}.{name}"] = tensors[kind].cast(base[f"{path}.{name}"].dtype)
    if tensors.keys() & {DOWN, EMBEDDING_DOWN, ROWS, BASE_WEIGHT}:
        w = base[f"{path}.weight"]
        rows = config.tokens if isinstance(config.tokens, tuple) else _rows(config.tokens, change.module)
        found[f"{path}.weight"] = Mapped(
            w, TensorType(w.dtype, w.shape), lambda x: change.weight(x, scale, transposed, rows)
        )
    if UP_BIAS in tensors:
        b = found.get(f"{path}.bias", base[f"{path}.bias"])
        found[f"{path}.bias"] = Mapped(b, b.type, lambda x: (x + scale * change.read(UP_BIAS)).astype(x.dtype))
    return found


def _rows(tokens: Mapping[str, tuple[int, ...]], module: str) -> tuple[int, ...]:
    return next((ids for name, ids in tokens.items() if module == name or module.endswith(f".{name}")), ())


def paths_of(model: Model, changes: Mapping[str, Change]) -> dict[str, str]:
    """Where each module of the file is in the model: a model with a head has a prefix before the one inside it."""
    graph = model.graph()
    prefix = model.family.checkpoint.prefix if model.family is not None else ""

    def path(module: str) -> str:
        choices = (module, module.removeprefix(f"{prefix}."), f"{prefix}.{module}") if prefix else (module,)
        return next((c for c in choices if f"{c}.weight" in graph.params or f"{c}.bias" in graph.params), module)

    return {m: path(m) for m in changes}


def _parts_ways(model: Model, graph: Graph, path: str, change: Change) -> bool:
    """Whether a change makes one of two tied weights different from the other."""
    if model.family is None or not getattr(model.config, "tied", False) or ROWS in change.tensors:
        return False  # PEFT changes the rows of both
    pairs = model.family.checkpoint.tied
    return f"{path}.weight" in {*pairs, *pairs.values()} and bool(change.tensors.keys() - {"bias", BASE_BIAS})


def _untied(model: Model, base: Weights) -> tuple[Model, Graph, Weights]:
    """The model with two weights where it had one for both."""
    assert model.family is not None and model.config is not None
    apart = replace(model, config=model.config.changed(tied=False))
    base |= {own: base[twin] for own, twin in model.family.checkpoint.tied.items() if own not in base}
    return apart, apart.graph(), base


def _problems(change: Change, path: str, graph: Graph, linear: bool, transposed: bool, rank: int) -> list[str]:
    """Why the tensors of one module do not fit the model."""
    tensors = change.tensors
    shapes = {k: graph.params[p].type.shape for k in ("weight", "bias") if (p := f"{path}.{k}") in graph.params}
    w = shapes.get("weight", ())
    rows, columns = (w[1], w[0]) if len(w) == 2 and transposed else (w[0] if w else 0, w[-1] if w else 0)
    low = linear or not tensors.keys() & {DOWN, UP}
    expected = {
        DOWN: (rank, columns), UP: (rows, rank), UP_BIAS: shapes.get("bias"), BASE_BIAS: shapes.get("bias"),
        MAGNITUDE: (columns if EMBEDDING_DOWN in tensors else rows,), EMBEDDING_DOWN: (rank, rows),
        EMBEDDING_UP: (columns, rank), BASE_WEIGHT: shapes.get("weight"), **shapes,
    }  # fmt: skip
    found = [
        f"missing: {path}.{b}: beside {path}.{a}"
        for a, b in ((DOWN, UP), (UP, DOWN), (EMBEDDING_DOWN, EMBEDDING_UP), (EMBEDDING_UP, EMBEDDING_DOWN))
        if a in tensors and b not in tensors
    ]
    for kind, tensor in tensors.items():
        want = expected.get(kind)
        if kind == ROWS:
            if len(w) != 2 or tensor.shape[1:] != w[1:]:
                found.append(f"unexpected: {path}.{kind}: {tensor.type}")
        elif not w or not low or want is None:
            found.append(f"unexpected: {path}.{kind}: {tensor.type}{_near(path, graph)}")
        elif tensor.shape != want:
            found.append(f"wrong: {path}.{kind} is {tensor.type}, expected {list(want)}")
    return found


def _near(path: str, graph: Graph) -> str:
    known = [k.removesuffix(".weight") for k in graph.params if k.endswith(".weight")]
    return "" if path in known else did_you_mean(path, known)
