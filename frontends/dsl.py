"""Define a model once: a function over a parameter scope, a small config, and the graph they give."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, overload

from ..ir import DType, Graph, Init, TensorType, Value, building, ops
from ..ir.builder import enter_scope
from ..ir.display import Shown, Table
from ..ir.errors import ConfigError, MonographError, did_you_mean
from ..ir.ops.position import rope_table
from ..ir.types import DimLike, f32
from ..ir.weights import Weights
from ..passes.encode import keep_encodings
from .config import Config as Config
from .config import key as key
from .entries import Note as Note
from .floats import floats_of, main_float
from .formats import GGUF as GGUF
from .formats import Checkpoint as Checkpoint
from .losses import check_loss
from .mistakes import ModelFileError, in_function, line_of
from .own import beside
from .shown import family_table, model_table
from .task import Task, task_of


class Scope:
    """A place in the parameter tree: `scope / "name"` goes down, and layers made here get checkpoint paths."""

    def __init__(self, graph: Graph, path: str, dtype: DType, std: float) -> None:
        self.graph, self.path, self.dtype, self.std = graph, path, dtype, std

    def __truediv__(self, name: str | int) -> Scope:
        return Scope(self.graph, f"{self.path}.{name}" if self.path else str(name), self.dtype, self.std)

    def layers(self, name: str, count: int) -> Iterator[Scope]:
        """`name.0`, `name.1`, ...; nodes made inside carry that scope in messages and dumps."""
        for i in range(count):
            layer = self / name / i
            before = enter_scope(self.graph, layer.path)
            yield layer
            enter_scope(self.graph, before)

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
        """x [..., C] by its root mean square, times a weight [C] that begins at one."""
        return ops.rms_norm(x, (self / name).param("weight", x.shape[-1], init=Init("ones")), eps=eps)

    def layer_norm(self, name: str, x: Value, eps: float, *, bias: bool = True) -> Value:
        """x [..., C] with mean 0 and variance 1, times a weight [C], plus a bias [C] unless there is none."""
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
        """Rotate x [B,S,H,D] by positions [B,S]; `dim` channels (default all), frequencies in at least f32.

        An odd `dim` turns one channel more, see `ops.rope_frequencies`.
        """
        width = x.shape[-1] if dim is None else dim
        assert isinstance(width, int)
        if width == 0:
            return x
        frequencies, factor = ops.rope_frequencies(width, theta, scaling)
        dtype = x.dtype if x.dtype.bits == 64 else f32
        table = ops.constant(value=rope_table(width, theta, scaling, dtype), dtype=dtype)
        return ops.rope(x, positions, table, interleaved=interleaved, rotary_dim=2 * len(frequencies), scale=factor)


def key_mask(attention_mask: Value) -> Value:
    """A 0/1 mask [B,T] over keys in the form attention takes: bool [B,1,1,T], True = may attend."""
    batch, keys = attention_mask.shape
    return attention_mask.cast(DType.bool_).reshape(batch, 1, 1, keys)


class Source(Protocol):
    """What makes the graph of a model."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    def graph(self, config: Any, dtype: DType) -> Graph:
        """The plain graph of the model in `dtype`: no cache, no fusion, no target."""
        ...


@dataclass(frozen=True, repr=False)
class Family(Shown):
    """A model definition: the function, its config class and its task. Call it with a config to get a Model.

    std: standard deviation of initial weights. checkpoint, gguf: how it is stored (gguf None: it cannot be read from
    GGUF). loss: the function of outputs and inputs that training minimizes (None: the loss of its task).
    """

    name: str
    function: Callable[..., Any]
    config_class: type[Config]
    task: Task
    std: float = 0.02
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    gguf: GGUF | None = None
    loss: Callable[..., Any] | None = None

    def table(self) -> Table:
        """Task, inputs, fields of the config with their defaults, and file and line of the function."""
        return family_table(self)

    def __call__(self, config: Config | None = None, weights: Weights | None = None, **settings: Any) -> Model:
        """A model with `config`, or with these values for fields of one. Raises ConfigError for what does not fit."""
        if config is None:
            return Model(self, self.config_class.of(**settings), weights)
        if not isinstance(config, self.config_class):  # pyright: ignore[reportUnnecessaryIsInstance]
            hint = f"settings are given by name: {self.name}(field=value)"
            raise ConfigError(f"config of {self.name} is {config!r}, expected {self.config_class.__name__}", hint=hint)
        return Model(self, config.changed(**settings) if settings else config, weights)

    def graph(self, config: Config, dtype: DType) -> Graph:
        """See Source. Raises MonographError if the function does not give the main output of its task, and
        ModelFileError with file and line for an exception of Python in it.
        """
        graph = Graph(self.name)
        names = list(inspect.signature(self.function).parameters)[2:]
        inputs = [graph.input(name, self.input_type(name, config, dtype)) for name in names]
        with building(graph), beside(self.function), in_function(self.function):
            result: object = self.function(Scope(graph, "", dtype, self.std), config, *inputs)
        for name, value in self._outputs(result, graph).items():
            graph.output(name, value)
        stream = self.task.stream
        read = stream is not None and stream.ids in graph.inputs
        graph.stream = stream if read and self.task.generates else None
        return graph

    def _outputs(self, result: object, graph: Graph) -> dict[str, Value]:
        """What the function returned, by name. Raises MonographError for anything but values of the graph."""
        outputs = cast("dict[Any, Any]", result if isinstance(result, dict) else {self.task.output: result})
        for name, value in outputs.items():
            if not isinstance(value, Value):
                kind = "nothing" if value is None else f"a {type(value).__name__}"
                hint = "return a value of the graph, or a dict of values by name"
                hint = f"{hint}: is a `return` missing?" if value is None else hint
                raise self._mistake(f"returns {kind} as {name}", hint)
            if value.graph is not graph:
                raise self._mistake(f"returns a value of the graph {value.graph.name} as {name}")
            if not isinstance(name, str):
                raise self._mistake(f"returns a value named {name!r}, expected a text")
        if self.task.output not in outputs:
            what = f"gives {', '.join(outputs) or 'nothing'}, but the output of its task is {self.task.output!r}"
            raise self._mistake(f"{what}{did_you_mean(self.task.output, outputs)}")
        return outputs

    def _mistake(self, what: str, hint: str = "") -> MonographError:
        place, line = line_of(self.function)
        return ModelFileError(f"{self.name} {what}", place=place, details=line, hint=hint)

    def input_type(self, name: str, config: object, dtype: DType) -> TensorType:
        """The type of an input of the task in a model with this config."""
        type = self.task.type_of(name, config)
        return TensorType(dtype, type.shape) if type.dtype.is_float else type


@dataclass(frozen=True)
class Program:
    """A model that is a graph already, or a function of the dtype that makes one. loss: as of a Family."""

    name: str
    task: Task
    make: Graph | Callable[[DType], Graph]
    loss: Callable[..., Any] | None = None

    def graph(self, config: object, dtype: DType) -> Graph:
        """See Source. Raises MonographError for another dtype than the graph has; of several each gives all of it."""
        if not isinstance(self.make, Graph):
            return self.make(dtype)
        floats = floats_of(self.make)
        if floats and dtype not in floats:
            has = ", ".join(sorted(map(str, floats)))
            raise MonographError(f"{self.name} is a graph in {has}, which cannot be made in {dtype}")
        return self.make.copy()

    def input_type(self, name: str, config: object, dtype: DType) -> TensorType:
        """The type of an input, as of a Family; but floats have the type that the task says."""
        return self.task.type_of(name, config)

    def in_type(self, dtype: DType) -> bool:
        """Whether it is a graph whose floats are all of this type."""
        return isinstance(self.make, Graph) and not floats_of(self.make) - {dtype}


@overload
def model(
    function: Callable[..., Any],
    /,
    *,
    task: str | Task = "causal-lm",
    std: float = 0.02,
    name: str | None = None,
    checkpoint: Checkpoint | None = None,
    gguf: GGUF | None = None,
) -> Family: ...
@overload
def model(
    function: None = None,
    /,
    *,
    task: str | Task = "causal-lm",
    std: float = 0.02,
    name: str | None = None,
    checkpoint: Checkpoint | None = None,
    gguf: GGUF | None = None,
    loss: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Family]: ...
def model(
    function: Callable[..., Any] | None = None,
    /,
    *,
    task: str | Task = "causal-lm",
    std: float = 0.02,
    name: str | None = None,
    checkpoint: Checkpoint | None = None,
    gguf: GGUF | None = None,
    loss: Callable[..., Any] | None = None,
) -> Family | Callable[[Callable[..., Any]], Family]:
    """Turn `def family(m: Scope, c: ItsConfig, input_ids, ...)` into a Family.

    Parameters after `c` are inputs, by their names in the task. It returns the main output, or a dict of outputs.
    std: standard deviation of initial weights. name: of the family, where it is not the function's. checkpoint, gguf:
    how its weights are stored. loss: `def loss(outputs, target, ...)` gives what training minimizes (of several
    numbers the mean), from the dict of outputs and from inputs of the task by name, which the model itself need not
    take, or `labels`. Raises MonographError for an unknown task or input.
    """
    contract, stored = task_of(task), checkpoint or Checkpoint()

    def family(f: Callable[..., Any]) -> Family:
        return Family(name or f.__name__, f, _config_of(f, contract), contract, std, stored, gguf, loss)

    if loss is not None:
        check_loss(loss, contract)
    return family if function is None else family(function)


def _config_of(function: Callable[..., Any], task: Task) -> type[Config]:
    """The class of a model function's config. Raises ModelFileError for parameters that do not fit the task."""
    place, line = line_of(function)

    def mistake(what: str, hint: str = "") -> MonographError:
        return ModelFileError(f"{function.__name__}: {what}", place=place, details=line, hint=hint)

    parameters = list(inspect.signature(function).parameters)
    if len(parameters) < 3:
        raise mistake(
            f"takes {len(parameters)} parameters, expected a scope, a config and the inputs",
            f"write it as def {function.__name__}(m: mg.Scope, c: ItsConfig, {next(iter(task.inputs), 'input')}, ...)",
        )
    for given in parameters[2:]:
        if given not in task.inputs:
            what = f"no input is called {given!r}{did_you_mean(given, task.inputs)}"
            raise mistake(what, f"inputs of {task}: {', '.join(task.inputs)}")
    try:
        found = typing.get_type_hints(function).get(parameters[1])
    except (NameError, AttributeError, TypeError, SyntaxError) as e:
        hint = "annotations are looked up among the names of the file: define the config there"
        raise mistake(f"its annotations cannot be read: {type(e).__name__}: {e}", hint) from None
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise mistake(f"annotate {parameters[1]!r} with a subclass of Config", "class ItsConfig(mg.Config): ...")
    return found


@dataclass(repr=False)
class Model(Shown):
    """A family or program with a config, and with weights once it has been loaded, trained or initialized.

    source: the family or program that makes the graph. folder: of the checkpoint it came from, with the tokenizer and
    other files. notes: entries of these files that change nothing here, each with the reason.
    """

    source: Source
    config: Config | None = None
    weights: Weights | None = None
    folder: Path | None = None
    tokenizer: Any = None
    generation: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[Note, ...] = ()

    def table(self) -> Table:
        """Config, parameters, tokenizer and where it comes from; no weights are read."""
        return model_table(self)

    @property
    def name(self) -> str:
        """The name of the family or program."""
        return self.source.name

    @property
    def task(self) -> Task:
        """The task of the model: names and types of its inputs and outputs."""
        return self.source.task

    @property
    def family(self) -> Family | None:
        """The family, if the model is one of a family."""
        return self.source if isinstance(self.source, Family) else None

    @property
    def dtype(self) -> DType:
        """The type its graph is made in if nobody says: f32, or that of the program it came from."""
        made = self.source.make if isinstance(self.source, Program) else None
        return main_float(made) if isinstance(made, Graph) else f32

    def graph(self, dtype: DType | None = None, *, encoded: bool = False) -> Graph:
        """The plain graph of the model in `dtype` (None: its own): no cache, no fusion, no target.

        encoded: weights that are stored in blocks are parameters with an encoding, read through `dequantize`.
        """
        graph = self.source.graph(self.config, self.dtype if dtype is None else dtype)
        if encoded and self.weights is not None:
            graph = graph.copy()
            keep_encodings(graph, self.weights)
        return graph


def plain_graph(model: Model, dtype: DType) -> Graph:
    """The graph from which one in `dtype` is made: f32 for what is narrower, unless the model is a graph already; which
    values are narrow is decided later, by what is known of the weights. Raises as `Model.graph`."""
    source = model.source
    if dtype.bits >= f32.bits or (isinstance(source, Program) and source.in_type(dtype)):
        return model.graph(dtype)
    return model.graph(f32)


def families_of(family: Family) -> list[Family]:
    """All families of that name in the file where one is defined: the same model under its heads."""
    found = [v for v in family.function.__globals__.values() if isinstance(v, Family)]
    return [f for f in found if f.name == family.name] or [family]


def head_of(family: Family, task: str | Task) -> Family:
    """A family under its head for another task. Raises ConfigError if there is none, naming the known ones."""
    heads = {str(f.task): f for f in families_of(family)}
    if str(task) not in heads:
        what = f"{family.name} has no head for {str(task)!r}{did_you_mean(str(task), heads)}"
        raise ConfigError(what, hint=f"known: {', '.join(heads)}")
    return heads[str(task)]


def load_family(model_type: str, task: str | Task | None = None) -> Family:
    """The family defined in models/<model_type>.py, for one of its tasks (None: that of the function of this name).

    Raises ConfigError if there is none, naming the known ones.
    """
    known = sorted(p.stem for p in (Path(__file__).parent / "models").glob("[!_]*.py"))
    if model_type not in known:
        what = f"model_type {model_type!r} is not supported{did_you_mean(model_type, known)}"
        raise ConfigError(
            what, hint=f"known: {', '.join(known)}; one of your own: --family FILE.py, or load(..., family=it)"
        )
    module = importlib.import_module(f".models.{model_type}", __package__)
    family = getattr(module, model_type)
    assert isinstance(family, Family)
    return family if task is None else head_of(family, task)
