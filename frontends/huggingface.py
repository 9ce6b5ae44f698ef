"""Hugging Face checkpoints: a folder or a hub id as a Model, and a Model as a folder. Pickles are never read."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..ir import DType
from ..ir.errors import ConfigError, WeightsError, did_you_mean
from ..ir.files import Stage, joined
from ..ir.types import f32
from ..ir.weights import Weights
from .dsl import Checkpoint, Config, Family, Model, families_of, head_of, load_family
from .fit import check_plausible
from .own import store
from .reference import located, other_names, read_config
from .stored import fitted, matches, modern, named, untied
from .tokenizer import Tokenizer, read_json
from .tokenizer_files import has_tokenizer

GENERATION, PREPROCESSOR = "generation_config.json", "preprocessor_config.json"
FILES = [
    "config.json",
    GENERATION,
    PREPROCESSOR,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
]
"""What is fetched from a hub repository; nothing else of it is needed."""

_DTYPES = {DType.f32: "float32", DType.f16: "float16", DType.bf16: "bfloat16", DType.f64: "float64"}


def load_folder(
    folder: str | Path, *, tokenizer: bool = True, family: Family | None = None, task: str | None = None
) -> Model:
    """Read config.json, the tokenizer and the headers of the weights; tensors are read when asked for.

    folder: a checkpoint, or a `models--*` folder of a hub cache. family: a model of your own, whose name config.json
    must give as model_type (None: the one in models/ of that name). task: which head, where there are several (None:
    what `architectures` in config.json says). Raises ConfigError or WeightsError naming the file.
    """
    folder = snapshot(Path(folder))
    place = folder / "config.json"
    settings = read_json(place)
    model_type = settings.get("model_type")
    if model_type is None and family is not None and place.exists():
        model_type = family.name  # The first files do not say it.
    if not isinstance(model_type, str):
        what = "is missing" if not place.exists() else f"has model_type {model_type!r}"
        raise ConfigError(what, place=str(place))
    if family is not None and model_type != family.name:
        raise ConfigError(f"has model_type {model_type!r}, not {family.name!r}", place=str(place))
    family = family or family_of(settings, task, str(place))
    config, notes = read_config(family, settings, str(place))
    weights = modern(Weights.open(folder), family)
    config = _as_stored(config, weights, family)
    check_plausible(config, weights)
    with located(place):
        config, weights = untied(config, weights, family)
        kept, left = fitted(weights, family.graph(config, f32), config, family)
    model = Model(family, config, kept, folder, notes=(*notes, *left))
    model.generation = read_json(folder / GENERATION)
    if tokenizer and has_tokenizer(folder):
        model.tokenizer = Tokenizer.open(folder)
        model.notes += model.tokenizer.fitted(getattr(config, "vocab", None), folder)
    return model


def _as_stored(config: Config, weights: Weights, family: Family) -> Config:
    """The config with what the names of tensors tell."""
    fields = {f.metadata.get("hf"): f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    told = {fields[k]: _any(weights, pattern) for k, pattern in family.checkpoint.from_weights.items()}
    return config.changed(**told) if told else config


def family_of(settings: Mapping[str, Any], task: str | None = None, place: str = "") -> Family:
    """The family that a config.json speaks of, under the head that its architecture has, or for another `task`.

    Raises ConfigError for a family, an architecture or a task that is not there.
    """
    name = settings["model_type"].replace("-", "_")
    family = load_family(name, task)
    heads = {a: f for f in families_of(family) for a in (f.checkpoint.architecture, *f.checkpoint.also)}
    said: list[Any] = settings.get("architectures") or []
    said = said if isinstance(said, list) else [said]  # pyright: ignore[reportUnnecessaryIsInstance] - of a file
    if task is not None or not said or not any(heads):
        return family
    found = next((heads[a] for a in said if isinstance(a, str) and a in heads), None)
    if found is None:
        what = f"has the architecture {', '.join(map(str, said))}, which {name} has no head for"
        hint = f"known: {', '.join(heads)}; give `task` to load it under another head all the same"
        raise ConfigError(f"{what}{did_you_mean(str(said[0]), heads)}", place=place, hint=hint)
    return found


def with_head(model: Model, task: str, *, seed: int = 0, **changes: Any) -> tuple[Model, list[str]]:
    """(the model's checkpoint under its family's head for `task`, the parameters that it lacks and are drawn anew).

    changes: fields of its config, such as `labels`. Raises ConfigError if the family has no such head, and
    WeightsError if anything is missing that does not belong to a head (`Checkpoint.heads`).
    """
    if model.family is None or model.config is None:
        raise ConfigError(f"model {model.name} is not one of a family, so it has no other head")
    family = head_of(model.family, task)
    made = dataclasses.replace(model, source=family, config=model.config.changed(**changes))
    if model.weights is None:
        return made, []
    graph, heads = made.graph(), family.checkpoint.heads
    found = named(model.weights, graph, family)
    if model.folder:
        # It may hold more than the model that was read from it (a pooler beside another head), or older weights.
        found = named(modern(Weights.open(model.folder), family), graph, family) | found
    drawn = [k for k in graph.params if k not in found and matches(k, heads)]
    fresh = Weights.initialize(graph, seed)
    made.weights, _ = fitted(found | Weights({k: fresh[k] for k in drawn}), graph, made.config, family)
    return made, drawn


def _any(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def snapshot(folder: Path) -> Path:
    """The newest revision inside a `models--*` folder of a hub cache; any other folder itself."""
    main = folder / "refs" / "main"
    if not (folder / "snapshots").is_dir():
        return folder
    if not main.is_file():
        raise ConfigError("is a hub cache without refs/main: give a folder inside snapshots", place=str(folder))
    found = folder / "snapshots" / main.read_text().strip()
    if not found.is_dir() or found.parent != folder / "snapshots":
        raise ConfigError(f"refs/main names revision {found.name!r}, which is not there", place=str(folder))
    return found


def download(repository: str, *, revision: str | None = None, cache: str | Path | None = None) -> Path:
    """Fetch the needed files of a hub repository (or find them in the cache) and give their folder.

    Raises ConfigError when the repository does not exist or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found: str = huggingface_hub.snapshot_download(  # pyright: ignore[reportUnknownMemberType]
            repository, revision=revision, cache_dir=cache, allow_patterns=FILES
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as e:
        first = str(e).strip().splitlines()[:1] or [""]
        what = f"cannot be fetched from the hub ({type(e).__name__}: {first[0]})"
        raise ConfigError(
            what,
            place=repository,
            hint="a local folder or .gguf file can be loaded by its path; there is none at this one",
        ) from None
    folder = Path(found)
    if not any(folder.glob("model*.safetensors*")):
        raise WeightsError("has no safetensors; pickles are never read", place=f"hub repository {repository}")
    return folder


def save_pretrained(
    model: Model,
    folder: str | Path,
    weights: Weights | None = None,
    *,
    dtype: DType | None = None,
    max_shard_bytes: int = 5_000_000_000,
    done: Callable[[str, int], None] | None = None,
) -> list[Path]:
    """Write `model` as a Hugging Face folder that transformers loads: config, safetensors, tokenizer; all or nothing.

    weights: by default those of the model. dtype: float type to store (default: as they are). Raises WeightsError if
    the weights do not fit the model.
    """
    weights = weights if weights is not None else model.weights
    if weights is None:
        raise WeightsError(f"model {model.name} has no weights to save")
    weights.check(model.graph())
    weights = weights if dtype is None else weights.cast(dtype)
    with joined(folder) as stage:
        weights.write(stage, max_shard_bytes, done)
        write_companions(stage, model, weights)
    return [Path(folder) / name for name in stage.names]


def write_companions(stage: Stage, model: Model, weights: Weights | None = None) -> None:
    """What clients expect beside a model: its config, how to generate with it, how its inputs are made."""
    before = read_json(model.folder / PREPROCESSOR) if model.folder else {}
    files = {"config.json": hf_config(model, weights), GENERATION: model.generation, PREPROCESSOR: before}
    for name, content in files.items():
        if content:
            with stage.open(name) as f:
                f.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    if model.tokenizer is not None:
        model.tokenizer.write(stage)
    if model.family is not None:
        store(stage, model.family.function, model.family.name, str(model.task))


def hf_config(model: Model, weights: Weights | None = None) -> dict[str, Any]:
    """config.json: what the checkpoint said, under what the model is now."""
    before = read_json(model.folder / "config.json") if model.folder else {}
    others = other_names(model.family) if model.family is not None else frozenset[str]()
    before = {k: v for k, v in before.items() if k not in others}  # They would count more than what is written here.
    said: dict[str, Any] = model.config.to_dict() if model.config is not None else {}
    config = {k: v for k, v in said.items() if v is not None or k in before}
    stored = model.family.checkpoint if model.family is not None else Checkpoint()
    if stored.architecture:
        config["architectures"] = [stored.architecture]  # The checkpoint may have had another head.
    if weights is not None:
        config |= {k: _any(weights, pattern) for k, pattern in stored.from_weights.items()}
    labels: dict[str, str] = config.get("id2label") or {}
    if labels:
        config["label2id"] = {name: int(i) for i, name in labels.items()}
    fixed: dict[str, Any] = {"model_type": before.get("model_type", model.name)}
    ids = {f"{k}_token_id": getattr(model.tokenizer, f"{k}_id", None) for k in ("bos", "eos", "pad")}
    if model.task.separated:
        fixed["is_encoder_decoder"] = True
        ids["decoder_start_token_id"] = getattr(model.tokenizer, "start_id", None)
    dtypes = {t.dtype for t in weights.values() if t.dtype.is_float} if weights else set[DType]()
    key = "dtype" if "dtype" in before else "torch_dtype"
    dtype = {key: _DTYPES[dtypes.pop()]} if len(dtypes) == 1 else {}
    return {**fixed, **{k: v for k, v in ids.items() if v is not None}, **before, **config, **dtype}
