"""Writes frontends/reference_keys.json: which keys of config.json the reference implementation reads, per family.

A fact about the installed transformers: the fields of its config classes with their defaults, and the attributes of a
config that the source of a model reads, followed from the class of an architecture through all classes and functions
that it names, in its own file and in those that all models share. It reads too much rather than too little: a key that
is not in the list has no way into a number.

    python benchmarks/reference_keys.py frontends/reference_keys.json
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import transformers
from monograph.frontends.dsl import families_of, load_family
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SHARED = {f"transformers.{name}" for name in (
    "activations", "cache_utils", "masking_utils", "modeling_flash_attention_utils", "modeling_layers",
    "modeling_rope_utils", "modeling_utils", "pytorch_utils", "integrations.moe", "integrations.sdpa_attention",
    "loss.loss_utils",
)}  # fmt: skip
"""Modules that models of all families share, and that are followed; the others save, load, train or print."""
ROTARY = "transformers.modeling_rope_utils"
"""Followed for families that have rotary positions: the base class of all models names it."""
CONFIGS = {"config", "text_config", "decoder_config", "encoder_config", "layer_config", "_config", "model_config"}
"""What a config is called in the source of a model."""
OLD_ROTARY = {"rope_theta", "rope_scaling"}
"""What the base of all config classes moves into `rope_parameters`, which only those of rotary models have."""
HOOKS = {"PushToHubMixin", "HeterogeneousConfigMixin", "object"}
UNSAID = "(required)"

Item = tuple[str, str]
Reads = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Module:
    """The source of one module: what it defines at its top level, and where the names come from that it imports."""

    items: dict[str, list[ast.stmt]]
    imports: dict[str, Item]


@functools.cache
def module(name: str) -> Module:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, name
    package = name if spec.submodule_search_locations else name.rpartition(".")[0]
    items: dict[str, list[ast.stmt]] = {}
    imports: dict[str, Item] = {}
    for node in flat(ast.parse(Path(spec.origin).read_text()).body):
        match node:
            case ast.FunctionDef(name=own) | ast.ClassDef(name=own):
                items.setdefault(own, []).append(node)
            case ast.Assign(targets=[ast.Name(id=own)]) | ast.AnnAssign(target=ast.Name(id=own)):
                items.setdefault(own, []).append(node)
            case ast.ImportFrom(module=source, names=names, level=level):
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - level + 1], *([source] if source else [])]) if level else source
                imports |= {n.asname or n.name: (base or "", n.name) for n in names}
            case _:
                pass
    return Module(items, imports)


def flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at the top level, also those behind a condition."""
    for node in body:
        match node:
            case ast.If(body=first, orelse=second):
                yield from flat([*first, *second])
            case ast.Try(body=first):
                yield from flat(first)
            case _:
                yield node


def reachable(start: Item, own: str, shared: set[str]) -> set[Item]:
    """All items that an item names, directly or through others, in `own` package of a model and the shared modules."""
    found: set[Item] = set()
    todo = [start]
    while todo:
        place, name = todo.pop()
        if (place, name) in found or not (place in shared or place.startswith(own)):
            continue
        here = module(place)
        if name not in here.items:
            if name in here.imports:
                todo.append(here.imports[name])
            continue
        found.add((place, name))
        for node in (n for item in here.items[name] for n in ast.walk(item)):
            if isinstance(node, ast.Name):
                todo.append((place, node.id))
    return found


def config_reads(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """(attribute of a config, what stands for it where it is not there) that are read below a node."""
    for n in ast.walk(node):
        match n:
            case ast.Attribute(value=v, attr=name, ctx=ast.Load()) if is_config(v):
                yield name, UNSAID
            case ast.Call(func=ast.Name(id="getattr"), args=[v, ast.Constant(value=str() as name), *rest]):
                if is_config(v):
                    yield name, literal(rest[0]) if rest else UNSAID
            case ast.Call(func=ast.Name(id="hasattr"), args=[v, ast.Constant(value=str() as name)]):
                if is_config(v):
                    yield name, None
            case _:
                pass


def is_config(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in CONFIGS
        case _:
            return False


def literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNSAID


def class_reads(config: type[Any]) -> Iterator[tuple[str, Any]]:
    """What a config class reads of itself and of the keys that it was made from, but not to validate them."""
    rotary = any(f.name == "rope_parameters" for f in dataclasses.fields(config))
    for base in config.__mro__:
        if not base.__module__.startswith("transformers.") or base.__name__ in HOOKS:
            continue
        if base.__name__ == "RotaryEmbeddingConfigMixin" and not rotary:
            continue
        own = base is not transformers.PretrainedConfig
        for item in module(base.__module__).items[base.__name__]:
            methods = [m for m in ast.walk(item) if isinstance(m, ast.FunctionDef)]
            if not own:
                methods = [m for m in methods if m.name == "__post_init__"]
            for method in methods:
                if not method.name.startswith(("validate", "_validate", "_check")):
                    yield from (p for p in self_reads(method) if own or rotary or p[0] not in OLD_ROTARY)


def self_reads(method: ast.FunctionDef) -> Iterator[tuple[str, Any]]:
    for n in ast.walk(method):
        match n:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Load()):
                yield name, UNSAID
            case ast.Call(
                func=ast.Name(id="getattr"), args=[ast.Name(id="self"), ast.Constant(value=str() as name), *r]
            ):
                yield name, literal(r[0]) if r else UNSAID
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="kwargs"), attr="pop" | "get"),
                args=[ast.Constant(value=str() as name), *r],
            ):
                yield name, literal(r[0]) if r else None
            case _:
                pass


def plain(value: Any) -> Any:
    """A default as JSON has it; UNSAID where it is no plain value."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return UNSAID


def family_keys(model_type: str) -> dict[str, Any]:
    """defaults: fields of the config class. absent: other keys that are read, with what stands for them where they are
    absent. read: by architecture. renamed: other names of fields."""
    config = CONFIG_MAPPING[model_type]
    defaults = {f.name: plain(v) for f, v in field_defaults(config)}
    renamed = dict(config.attribute_map)
    own = set(names(class_reads(config)))
    absent: Reads = {}
    read: dict[str, list[str]] = {}
    shared = SHARED if "rope_parameters" in defaults else SHARED - {ROTARY}
    for architecture in dict.fromkeys(f.checkpoint.architecture for f in families_of(load_family(model_type))):
        place = getattr(transformers, architecture).__module__
        found = sorted(reachable((place, architecture), place.rpartition(".")[0], shared))
        pairs = [p for where, name in found for item in module(where).items[name] for p in config_reads(item)]
        pairs += class_reads(config)
        for key, value in pairs:
            if key not in defaults and key not in renamed and not hasattr(config, key):
                absent[key] = agreed(absent.get(key, UNSAID), value)
        mine = {renamed.get(k, k) for k, _ in pairs} | own
        read[architecture] = sorted(k for k in mine if k in defaults or k in absent)
    return {"defaults": defaults, "absent": dict(sorted(absent.items())), "renamed": renamed, "read": read}


def agreed(a: Any, b: Any) -> Any:
    """What stands for a key in two places that read it; one that does not say stands behind one that does."""
    if UNSAID in (a, b):
        return b if a == UNSAID else a
    return a if a == b else UNSAID


def names(pairs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    return (name for name, _ in pairs)


def field_defaults(config: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    for f in dataclasses.fields(config):
        if f.default_factory is not dataclasses.MISSING:
            yield f, f.default_factory()
        else:
            yield f, UNSAID if f.default is dataclasses.MISSING else f.default


def reference_keys() -> dict[str, Any]:
    """The whole table, for all families that the reference has, too."""
    folder = Path(__file__).resolve().parent.parent / "frontends" / "models"
    types = sorted(p.stem for p in folder.glob("[!_]*.py") if p.stem in CONFIG_MAPPING)
    return {"transformers": transformers.__version__, "families": {t: family_keys(t) for t in types}}


def written(table: dict[str, Any]) -> str:
    """The text of the file: one line for each part of a family."""
    lines = []
    for name, family in table["families"].items():
        parts = [f"   {json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in family.items()]
        lines.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(parts) + "\n  }")
    version = json.dumps(table["transformers"])
    return f'{{\n "transformers": {version},\n "families": {{\n' + ",\n".join(lines) + "\n }\n}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(written(reference_keys()))
