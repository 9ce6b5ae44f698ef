"""The configuration of a family: typed fields under their keys in config.json and GGUF, and what else may be there."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, dataclass_transform

from ..ir.errors import ConfigError, did_you_mean

_NOTES = frozenset(
    "architectures model_type torch_dtype dtype transformers_version _name_or_path tokenizer_class _commit_hash "
    "name_or_path auto_map transformers.js_config unsloth_version unsloth_fixed is_llama_config quantization_source "
    "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id "
    "decoder_start_token_id forced_bos_token_id forced_eos_token_id id2label label2id num_labels problem_type "
    "task_specific_params finetuning_task is_decoder is_encoder_decoder".split()
)
"""Keys of config.json that say what a model is called, where it comes from, or which ids mean what."""
_TRAINING = frozenset(
    "initializer_range initializer_factor gradient_checkpointing tf_legacy_loss use_bfloat16 torchscript "
    "pretraining_tp chunk_size_feed_forward _attn_implementation attn_implementation".split()
)
"""Keys that matter where weights begin, or how the reference implementation computes the same numbers."""
_OUTPUTS = frozenset(
    "use_cache cache_implementation return_dict output_attentions output_hidden_states keys_to_ignore_at_inference "
    "output_past output_scores return_dict_in_generate".split()
)
"""Keys that say what the reference implementation gives back beside the result."""
_GENERATION = frozenset(
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
    "bad_words_ids num_return_sequences remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens prefix".split()
)
"""Settings of generation that old files keep in config.json; the reference reads generation_config.json."""
IGNORED = _NOTES | _TRAINING | _OUTPUTS | _GENERATION

ONLY: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "is_causal": (True,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "tie_encoder_decoder": (False,),
}
"""Keys that change what a model computes, with the values that it is computed by here (None always is one)."""


def key(hf: str, default: Any = dataclasses.MISSING, *, gguf: str | None = None, also: tuple[str, ...] = ()) -> Any:
    """A config field read from `hf` in config.json, or from `<architecture>.<gguf>` in a GGUF file.

    also: other names in config.json for the same thing.
    """
    return field(default=default, metadata={"hf": hf, "gguf": gguf, "also": also})


@dataclass_transform(frozen_default=True, field_specifiers=(key, field))
class Config:
    """Base of a family's configuration; subclasses are frozen dataclasses with only their own fields."""

    ignored: ClassVar[frozenset[str]] = frozenset()
    """Keys of config.json that this family does not need: the reference never reads them, or only in training."""
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Keys of which this family computes only these values (None always is one)."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], place: str = "") -> Self:
        """Read config.json. Raises ConfigError listing every unknown key, missing key and wrong type."""
        fields = {f.metadata.get("hf", f.name): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        only = {**ONLY, **cls.only}
        settings, problems = _one_name(settings, fields)
        problems += [
            _refused(k, v, only, fields)
            for k, v in settings.items()
            if v is not None and k not in fields and k not in IGNORED and k not in cls.ignored
            if v not in only.get(k, ())
        ]
        problems += [
            f"key {k!r} is missing"
            for k, f in fields.items()
            if k not in settings and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        values = {f.name: settings[k] for k, f in fields.items() if k in settings}
        hints = typing.get_type_hints(cls)
        problems += [
            f"{k!r} is {settings[k]!r}, expected {f.type}"
            for k, f in fields.items()
            if k in settings and not _fits(settings[k], hints[f.name])
        ]
        if problems:
            raise ConfigError(f"config of {cls.__name__.lower()} is not understood", place=place, details=problems)
        return cls(**values)

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """The config with these values for its fields. Raises ConfigError as `from_dict` does."""
        return cls(**cls._checked(settings))

    def changed(self, **changes: Any) -> Self:
        """The same with other values for some of its fields. Raises ConfigError for a field or a type that is not."""
        self._checked({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes})  # type: ignore[arg-type]
        return dataclasses.replace(self, **changes)  # type: ignore[type-var] # pyright: ignore[reportArgumentType]

    @classmethod
    def _checked(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Values by the names of fields, as they are. Raises ConfigError naming every one that does not fit."""
        fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)  # type: ignore[arg-type]
        problems = [f"no field is called {k!r}{did_you_mean(k, fields)}" for k in settings if k not in fields]
        problems += [
            f"{k} is missing"
            for k, f in fields.items()
            if k not in settings and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        problems += [
            f"{k} is {v!r}, expected {fields[k].type}"
            for k, v in settings.items()
            if k in fields and not _fits(v, hints[k])
        ]
        if problems:
            raise ConfigError(f"{cls.__name__} cannot be made", details=problems)
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The fields under their config.json keys."""
        return {f.metadata.get("hf", f.name): getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


def _one_name(
    settings: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]]
) -> tuple[dict[str, Any], list[str]]:
    """(settings under the first name that each field has, what is said twice and differs)."""
    found, problems = dict(settings), list[str]()
    for name, f in fields.items():
        for other in f.metadata.get("also", ()):
            value = found.pop(other, None)
            if value is not None and found.setdefault(name, value) != value:
                problems.append(f"{other!r} is {value!r}, but {name!r} is {found[name]!r}: they mean the same")
    return found, problems


def _refused(key: str, value: Any, only: Mapping[str, tuple[Any, ...]], fields: Mapping[str, Any]) -> str:
    if key in only:
        allowed = " or ".join(map(repr, only[key])) or "none"
        return f"key {key!r} = {value!r} is not supported, only {allowed}"
    return f"unknown key {key!r} = {value!r}{did_you_mean(key, fields)}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as classes tell; numbers without a fraction are floats, too."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    for option in typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,):
        plain = typing.get_origin(option) or option
        if plain is typing.Any or not isinstance(plain, type):
            return True
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            return True
        if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
            return True
    return False
