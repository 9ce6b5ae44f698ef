"""Folders of sentence-transformers, old layout and new: each entry is used, noted with a reason, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from ..ir.documents import parse_json, read_text
from ..ir.errors import ConfigError, did_you_mean
from ..ir.weights import Weights
from .entries import Entries, Note
from .json_file import read_json
from .pooling import ACTIVATIONS, MODES, Dense, Pooling

_MODULES = ("Transformer", "Pooling", "Dense", "Dropout", "Normalize")
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of before version 6, in the order in which the vectors of several modes are put one after another."""
_UNREAD = "sentence-transformers 6.2 does not read it"
_EMBEDDING = "sentence_embedding"


def read_modules(folder: Path) -> Pooling:
    """What modules.json and the files it names say. Raises ConfigError naming the file and all that is not followed."""
    modules = _modules(folder / "modules.json")
    kinds = [kind for kind, _ in modules]
    after = kinds[kinds.index("Pooling") + 1 :] if "Pooling" in kinds else kinds[1:]
    order = kinds[: len(kinds) - len(after)]
    if order not in (["Transformer"], ["Transformer", "Pooling"]) or "Normalize" in after[:-1]:
        what = f"has the modules {', '.join(kinds)}; expected Transformer, Pooling, Dense and Normalize, in this order"
        raise ConfigError(what, place=str(folder / "modules.json"))
    paths = dict(modules)
    mode, include, notes = _pooling(folder / paths["Pooling"]) if "Pooling" in paths else ("mean", True, ())
    length, lower, more = _transformer(folder)
    prompts, default, again = _prompts(folder)
    notes += (*more, *again)
    dense: list[Dense] = []
    for kind, path in modules:
        if kind == "Dense":
            layer, told = _dense(folder / path)
            dense.append(layer)
            notes += told
        elif kind == "Normalize":
            notes += _normalize(folder / path)
        elif kind == "Dropout":
            notes += _all_noted(folder / path, "dropout does nothing outside training")
    normalize = after[-1:] == ["Normalize"]
    return Pooling(mode, normalize, length, tuple(dense), prompts, default, include, lower, notes)


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module in order."""
    try:
        listed = parse_json(read_text(path))
        found = [(str(m["type"]).rpartition(".")[2], str(m.get("path", ""))) for m in listed]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise ConfigError(f"is not a list of modules: {e}", place=str(path)) from None
    unknown = [k for k, _ in found if k not in _MODULES]
    if unknown:
        known = ", ".join(_MODULES)
        raise ConfigError(
            f"has a module {unknown[0]!r}{did_you_mean(unknown[0], _MODULES)}; known: {known}", place=str(path)
        )
    for _, part in found:
        if Path(part).is_absolute() or ".." in Path(part).parts:
            raise ConfigError(f"names a module outside its folder: {part}", place=str(path))
    return found


def _pooling(folder: Path) -> tuple[str | tuple[str, ...], bool, tuple[Note, ...]]:
    """(mode, whether a prompt is pooled, too, notes)."""
    place = folder / "config.json"
    entries = Entries(read_json(place), place)
    flags = [mode for key, mode in _LEGACY.items() if entries.use(key)]
    said: Any = entries.use("pooling_mode")
    said = said if said is not None else flags or ["mean"]
    modes = [said] if isinstance(said, str) else said
    if not isinstance(modes, list) or not modes or any(m not in MODES for m in cast("list[Any]", modes)):
        entries.refuse("pooling_mode", f"expected one or more of {', '.join(MODES)}")
    include = entries.use("include_prompt", True)
    if not isinstance(include, bool):
        entries.refuse("include_prompt", "expected true or false")
    for key in ("embedding_dimension", "word_embedding_dimension"):
        entries.note(key, "the width of the vectors is that of the model")
    notes = _rest(entries)
    names = cast("list[str]", modes)
    return (names[0] if len(names) == 1 else tuple(names)), include, notes


def _transformer(folder: Path) -> tuple[int | None, bool, tuple[Note, ...]]:
    """(tokens after which a text is cut off, whether it is read in small letters, notes)."""
    place = folder / "sentence_bert_config.json"
    entries = Entries(read_json(place), place)
    length, lower = entries.use("max_seq_length"), entries.use("do_lower_case", False)
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        entries.refuse("max_seq_length", "expected a number of tokens")
    if not isinstance(lower, bool):
        entries.refuse("do_lower_case", "expected true or false")
    if entries.use("transformer_task", "feature-extraction") != "feature-extraction":
        entries.refuse("transformer_task", "expected feature-extraction")
    _check_modality(entries)
    for key in ("query_length", "document_length", "query_expansion", "processing_kwargs"):
        if entries.use(key):
            entries.refuse(key, "it is not supported")
    entries.note("unpad_inputs", "rows are padded, with a mask")
    for key in ("model_args", "config_args", "tokenizer_args", "processor_args"):
        entries.note(key, "an argument of a loader")
    notes = _rest(entries)
    if length is None:
        config, tokenizer = read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")
        said = (config.get("max_position_embeddings"), tokenizer.get("model_max_length"))
        length = min((int(n) for n in said if isinstance(n, (int, float)) and n > 0), default=None)
    return length, lower, notes


def _check_modality(entries: Entries) -> None:
    """The vectors that are pooled must be those of the tokens of a text, from the last layer."""
    said: Any = entries.use("modality_config") or {}
    text: Any = cast("Any", said).get("text", {}) if isinstance(said, dict) else None
    usual = {"method": "forward", "method_output_name": "last_hidden_state"}
    if not isinstance(text, dict) or any(cast("Any", text).get(k, v) != v for k, v in usual.items()):
        entries.refuse("modality_config", "expected the last hidden states of a text")
    if entries.use("module_output_name", "token_embeddings") != "token_embeddings":
        entries.refuse("module_output_name", "expected token_embeddings")


def _prompts(folder: Path) -> tuple[dict[str, str], str | None, tuple[Note, ...]]:
    """(prompts by name, the name of the usual one, notes)."""
    place = folder / "config_sentence_transformers.json"
    entries = Entries(read_json(place), place)
    prompts: Any = entries.use("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(v, str) for v in cast("dict[str, Any]", prompts).values()):
        entries.refuse("prompts", "expected texts by name")
        prompts = {}
    default = entries.use("default_prompt_name")
    named = cast("dict[str, str]", prompts)
    if default is not None and default not in named:
        entries.refuse("default_prompt_name", f"known prompts: {', '.join(named) or 'none'}")
    if entries.use("model_type", "SentenceTransformer") != "SentenceTransformer":
        entries.refuse("model_type", "expected SentenceTransformer")
    if entries.use("truncate_dim") is not None:
        entries.refuse("truncate_dim", "it is not supported")
    entries.note("similarity_fn_name", "vectors are given, not compared")
    entries.note("__version__", "says what wrote the files")
    return named, default, _rest(entries)


def _dense(folder: Path) -> tuple[Dense, tuple[Note, ...]]:
    place = folder / "config.json"
    entries = Entries(read_json(place), place)
    name = str(entries.use("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS:
        entries.refuse("activation_function", f"expected one of {', '.join(ACTIVATIONS)}")
    residual = bool(entries.use("use_residual"))
    _check_names(entries)
    for key in ("in_features", "out_features", "bias"):
        entries.note(key, "the tensors of the module say it")
    notes = _rest(entries)
    if not (folder / "model.safetensors").is_file():
        raise ConfigError("has no model.safetensors; pickles are never read", place=str(folder))
    stored = Weights.open(folder / "model.safetensors")
    arrays = {k: stored.numpy(k) for k in stored}
    shapes = {k: x.shape for k, x in arrays.items()}
    known = {"linear.weight", "linear.bias", "residual.weight"}
    if "linear.weight" not in shapes or shapes.keys() - known or np.ndim(arrays["linear.weight"]) != 2:
        raise ConfigError(f"has the tensors {shapes}, expected those of a linear layer", place=str(folder))
    return Dense.of(name, residual, arrays), notes


def _normalize(folder: Path) -> tuple[Note, ...]:
    place = folder / "config.json"
    entries = Entries(read_json(place), place)
    _check_names(entries)
    return _rest(entries)


def _check_names(entries: Entries) -> None:
    for key in ("module_input_name", "module_output_name"):
        if entries.use(key) not in (None, _EMBEDDING):
            entries.refuse(key, f"expected {_EMBEDDING}")


def _all_noted(folder: Path, why: str) -> tuple[Note, ...]:
    entries = Entries(read_json(folder / "config.json"), folder / "config.json")
    for key in entries.left:
        entries.note(key, why)
    return entries.close()


def _rest(entries: Entries) -> tuple[Note, ...]:
    """Close entries, of which the reference drops those that it does not know."""
    for key in entries.left:
        entries.note(key, _UNREAD)
    return entries.close()
