"""Define a model once: a function over a parameter scope, a small config, and the graph they give."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, dataclass_transform

from ..ir import DType, Graph, Init, TensorType, Value, building, ops
from ..ir.errors import ConfigError, MonographError, did_you_mean
from ..ir.types import DimLike, f32, parse_type
from ..ir.weights import Weights

INPUTS = {
    "input_ids": "i64[B,S]",
    "attention_mask": "i64[B,S]",
    "position_ids": "i64[B,S]",
    "token_type_ids": "i64[B,S]",
    "decoder_input_ids": "i64[B,U]",
    "decoder_attention_mask": "i64[B,U]",
    "decoder_position_ids": "i64[B,U]",
}
"""Inputs a model function may name as parameters; B batch, S (source) length, U target length."""

TASKS = {
    "causal-lm": "logits",
    "masked-lm": "logits",
    "seq2seq-lm": "logits",
    "feature-extraction": "last_hidden_state",
    "sequence-classification": "logits",
    "token-classification": "logits",
}
"""Name of the output for a model function that returns one value."""

_GENERIC_KEYS = frozenset(
    "architectures model_type torch_dtype dtype transformers_version use_cache bos_token_id eos_token_id pad_token_id "
    "sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id initializer_range initializer_factor "
    "_name_or_path output_attentions output_hidden_states return_dict is_decoder is_encoder_decoder id2label label2id "
    "num_labels problem_type task_specific_params keys_to_ignore_at_inference gradient_checkpointing finetuning_task "
    "chunk_size_feed_forward _attn_implementation attn_implementation torchscript pretraining_tp".split()
)
"""Keys of a Hugging Face config.json that do not change what the model computes."""


def key(hf: str, default: Any = dataclasses.MISSING, *, gguf: str | None = None) -> Any:
    """A config field read from `hf` in config.json, or from `<architecture>.<gguf>` in a GGUF file."""
    return field(default=default, metadata={"hf": hf, "gguf": gguf})


@dataclass_transform(frozen_default=True, field_specifiers=(key, field))
class Config:
    """Base of a family's configuration; subclasses are frozen dataclasses with only their own fields."""

    ignored: ClassVar[frozenset[str]] = frozenset()
    """Keys of config.json that this family does not need because they only matter in training."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], place: str = "") -> Self:
        """Read config.json. Raises ConfigError listing every unknown key, missing key and wrong type."""
        fields = {f.metadata.get("hf", f.name): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        known = {*fields, *_GENERIC_KEYS, *cls.ignored}
        problems = [
            f"unknown key {k!r} = {v!r}{did_you_mean(k, fields)}"
            for k, v in settings.items()
            if k not in known and v not in (None, False)
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

    def to_dict(self) -> dict[str, Any]:
        """The fields under their config.json keys."""
        return {f.metadata.get("hf", f.name): getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


def _fits(value: Any, hint: Any) -> bool:
    options = typing.get_args(hint) or (hint,)
    for option in options:
        plain = typing.get_origin(option) or option
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            return True
        if isinstance(plain, type) and isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
            return True
    return hint is Any


class Scope:
    """A place in the parameter tree: `scope / "name"` goes down, and layers made here get checkpoint paths."""

    def __init__(self, graph: Graph, path: str, dtype: DType, std: float) -> None:
        self.graph, self.path, self.dtype, self.std = graph, path, dtype, std

    def __truediv__(self, name: str | int) -> Scope:
        return Scope(self.graph, f"{self.path}.{name}" if self.path else str(name), self.dtype, self.std)

    def layers(self, name: str, count: int) -> Iterator[Scope]:
        """`name.0`, `name.1`, ...; nodes made inside carry that scope in messages and dumps."""
        outer = self.graph.scope
        for i in range(count):
            layer = self / name / i
            self.graph.scope = layer.path
            yield layer
        self.graph.scope = outer

    def param(self, name: str, *shape: DimLike, init: Init | None = None) -> Value:
        """A parameter of this scope; the same path twice is one tied parameter."""
        kind = init or Init("normal", self.std)
        return self.graph.param((self / name).path, TensorType(self.dtype, shape), kind)

    def linear(
        self, name: str, x: Value, out: int, *, bias: bool = False, tie: str | None = None, transposed: bool = False
    ) -> Value:
        """x [..., in] -> [..., out]. `tie`: full path of the module whose `weight` is used instead of an own one."""
        width = x.shape[-1]
        shape = (width, out) if transposed else (out, width)
        if tie is not None:
            w = self.graph.param(f"{tie}.weight", TensorType(self.dtype, shape), Init("normal", self.std))
        else:
            w = (self / name).param("weight", *shape)
        b = (self / name).param("bias", out, init=Init("zeros")) if bias else None
        return ops.linear(x, w, b, transposed=transposed)

    def embed(self, name: str, ids: Value, vocab: int, dim: int) -> Value:
        """Integer ids [...] -> [..., dim]."""
        return ops.embedding(ids, (self / name).param("weight", vocab, dim))

    def rms_norm(self, name: str, x: Value, eps: float) -> Value:
        return ops.rms_norm(x, (self / name).param("weight", x.shape[-1], init=Init("ones")), eps=eps)

    def layer_norm(self, name: str, x: Value, eps: float, *, bias: bool = True) -> Value:
        w = (self / name).param("weight", x.shape[-1], init=Init("ones"))
        b = (self / name).param("bias", x.shape[-1], init=Init("zeros")) if bias else None
        return ops.layer_norm(x, w, b, eps=eps)

    def rope(
        self,
        x: Value,
        positions: Value,
        *,
        theta: float,
        dim: int | None = None,
        scaling: Mapping[str, Any] | None = None,
        interleaved: bool = False,
    ) -> Value:
        """Rotate x [B,S,H,D] by positions [B,S]; `dim` channels (default all), frequencies in at least f32."""
        width = dim or x.shape[-1]
        assert isinstance(width, int)
        frequencies, factor = ops.rope_frequencies(width, theta, scaling)
        dtype = x.dtype if x.dtype.bits == 64 else f32
        table = ops.constant(value=tuple(float(dtype.numpy.type(v)) for v in frequencies), dtype=dtype)
        return ops.rope(x, positions, table, interleaved=interleaved, rotary_dim=width, scale=factor)


def key_mask(attention_mask: Value) -> Value:
    """A 0/1 mask [B,T] over keys in the form attention takes: bool [B,1,1,T], True = may attend."""
    batch, keys = attention_mask.shape
    return attention_mask.cast(DType.bool_).reshape(batch, 1, 1, keys)


@dataclass(frozen=True)
class Family:
    """A model definition: the function, its config class and its task. Call it with a config to get a Model."""

    name: str
    function: Callable[..., Any]
    config_class: type[Config]
    task: str
    std: float

    def __call__(self, config: Config | None = None, weights: Weights | None = None, **settings: Any) -> Model:
        return Model(self, config or self.config_class(**settings), weights)


def model(
    function: Callable[..., Any] | None = None, *, task: str = "causal-lm", std: float = 0.02, name: str | None = None
) -> Any:  # Family, or a decorator that gives one
    """Turn `def family(m: Scope, c: ItsConfig, input_ids, ...)` into a Family.

    Parameters after `c` are inputs, by their names in INPUTS. It returns the main output, or a dict of outputs.
    std: standard deviation of initial weights. name: of the family, where it is not the function's.
    Raises MonographError for an unknown task or input.
    """
    if function is None:
        return lambda f: model(f, task=task, std=std, name=name)
    if task not in TASKS:
        raise MonographError(f"no task is called {task!r}{did_you_mean(task, TASKS)}")
    parameters = list(inspect.signature(function).parameters)
    for given in parameters[2:]:
        if given not in INPUTS:
            raise MonographError(f"{function.__name__}: no input is called {given!r}{did_you_mean(given, INPUTS)}")
    hints = typing.get_type_hints(function)
    config_class = hints.get(parameters[1])
    if not (isinstance(config_class, type) and issubclass(config_class, Config)):
        raise MonographError(f"{function.__name__}: annotate {parameters[1]!r} with a subclass of Config")
    return Family(name or function.__name__, function, config_class, task, std)


@dataclass
class Model:
    """A family with a config, and weights once it has been loaded or trained.

    folder: where tokenizer and other files of the checkpoint lie, if it came from one.
    """

    family: Family
    config: Config
    weights: Weights | None = None
    folder: Path | None = None
    tokenizer: Any = None
    generation: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def task(self) -> str:
        return self.family.task

    def graph(self, dtype: DType = f32) -> Graph:
        """The plain graph of the model in `dtype`: no cache, no fusion, no target."""
        function, graph = self.family.function, Graph(self.family.name)
        names = list(inspect.signature(function).parameters)[2:]
        inputs = [graph.input(name, parse_type(INPUTS[name])) for name in names]
        with building(graph):
            result = function(Scope(graph, "", dtype, self.family.std), self.config, *inputs)
        outputs = result if isinstance(result, dict) else {TASKS[self.task]: result}
        for name, value in outputs.items():
            graph.output(name, value)
        return graph


def load_family(model_type: str, task: str | None = None) -> Family:
    """The family defined in models/<model_type>.py, for one of its tasks (None: that of the function of this name).

    The heads for other tasks are in the file's table TASKS. Raises ConfigError if there is none, naming the known ones.
    """
    known = sorted(p.stem for p in (Path(__file__).parent / "models").glob("[!_]*.py"))
    if model_type not in known:
        what = f"model_type {model_type!r} is not supported{did_you_mean(model_type, known)}"
        raise ConfigError(what, hint=f"known: {', '.join(known)}; others can be written with @model")
    module = importlib.import_module(f".models.{model_type}", __package__)
    family = getattr(module, model_type)
    assert isinstance(family, Family)
    families = {family.task: family, **getattr(module, "TASKS", {})}
    if task is not None and task not in families:
        what = f"{model_type} has no head for {task!r}{did_you_mean(task, families)}"
        raise ConfigError(what, hint=f"known: {', '.join(families)}")
    return family if task is None else families[task]
