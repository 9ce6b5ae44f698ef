"""The trainable module: parameters under their checkpoint names, input checks, checkpoints in and out."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ...ir.bounds import bounds_of
from ...ir.dims import bind_dims
from ...ir.encoded import Encoded
from ...ir.errors import LoweringError, RuntimeInputError, WeightsError, did_you_mean
from ...ir.graph import Graph, Value
from ...ir.tensors import Array, Tensor, held
from ...ir.types import TensorType
from ...ir.weights import Weights, fits
from ...passes.recompute import Plan, recompute
from . import collectives as collectives
from .blocks import into_blocks
from .lower import CONSTANTS, Lowering
from .products import transformed
from .recompute import RECOMPUTE
from .tensors import ModuleTensor, dtype_of, to_tensor


def to_torch(
    graph: Graph,
    weights: Mapping[str, Tensor] | None = None,
    *,
    seed: int = 0,
    memory: int | None = None,
    sizes: Mapping[str, int] | None = None,
    frozen: Collection[str] = (),
    blocks: bool = False,
    static: bool = False,
) -> fx.GraphModule:
    """A PyTorch module that computes the graph and trains.

    Called with the graph's inputs by name, it gives a dict of outputs by name. `named_parameters()` are the
    checkpoint paths. weights: by checkpoint path, converted to the graph's float width; None: drawn by each
    parameter's `Init` from `seed`.

    memory: bytes that may be kept for the backward pass when the dimensions of the graph have these `sizes` and the
    parameters named by `frozen` are not trained; the rest is computed again (see passes/recompute.py), with the same
    gradients. The module's `plan` says what. blocks: every layer is a submodule of its own, with a `forward`, at its
    path; not together with `memory`. static: the module will be called with inputs of one shape, or a few, so that
    what is prepared for a shape pays off.

    Raises WeightsError listing every missing or misshapen tensor, LoweringError for a node PyTorch cannot express,
    and MemoryBudgetError if `memory` is less than is needed at least.
    """
    if blocks and memory is not None:
        raise LoweringError("a plan of what is computed again does not reach across blocks", place=graph.name)
    given = Weights.initialize(graph, seed) if weights is None else weights
    _check_weights({k: v.type for k, v in graph.params.items()}, given, graph.name)
    lowering = Lowering(graph)
    lowering.static = static
    if memory is not None:
        lowering.plan = recompute(lowering.graph, sizes or {}, memory, frozen)
    code = lowering.run()
    root = nn.Module()
    for path, v in graph.params.items():
        array = held(given[path], v.type, path)
        _register(root, path, to_tensor(array), is_parameter(v), v.init is None or v.init.trains)
    if lowering.constants:
        root.add_module(CONSTANTS, Constants(lowering.constants))
    if lowering.plan is not None:
        root.add_module(RECOMPUTE, lowering.recomputation)
    module = Trainable(root, code, class_name="Monograph")
    if blocks:
        into_blocks(module)
    encoded = {path: v.type for path, v in graph.params.items() if v.type.encoding is not None}
    return module.completed(InputCheck(graph), lowering.plan, encoded)


class Trainable(fx.GraphModule):
    """A copy of it, made by `copy.deepcopy`, has what the copy of another GraphModule loses: input checks and `plan`.

    plan: of what is computed again, or None. encoded: types of the parameters whose bytes are held, by path.
    """

    check: InputCheck
    plan: Plan | None
    encoded: Mapping[str, TensorType]

    def completed(self, check: InputCheck, plan: Plan | None, encoded: Mapping[str, TensorType]) -> Trainable:
        self.check, self.plan, self.encoded = check, plan, encoded
        self.register_forward_pre_hook(check, with_kwargs=True)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Trainable:
        return super().__deepcopy__(memo).completed(self.check, self.plan, self.encoded)  # type: ignore[attr-defined]


def is_parameter(v: Value) -> bool:
    """Whether a parameter of the graph is one of the module, too; else it is a buffer there."""
    return v.dtype.is_float and v.type.encoding is None and not (v.init is not None and v.init.fixed)


def _register(module: nn.Module, path: str, tensor: torch.Tensor, parameter: bool, trains: bool) -> None:
    """Put a tensor at a dotted path, making the modules on the way. Raises LoweringError if the path is taken."""
    *owners, name = path.split(".")
    if taken := next(filter(keyword.iskeyword, path.split(".")), None):
        what = f"{path} cannot be the name of a parameter in PyTorch: {taken!r} is a keyword of Python"
        raise LoweringError(what, hint=f"call the layer otherwise, such as {taken}_proj")
    try:
        for part in owners:
            if not isinstance(getattr(module, part, None), nn.Module):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if parameter:
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=trains))
        else:
            module.register_buffer(name, tensor)
    except (KeyError, AttributeError) as e:
        raise LoweringError(f"{path} cannot be the name of a parameter in PyTorch: {e}") from None


class Constants(nn.Module):
    """Constant tensors of the graph: they follow the device, keep their dtype, and are not in the checkpoint."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__()
        self.arrays = dict(arrays)
        for name, array in self.arrays.items():
            self.register_buffer(name, to_tensor(array), persistent=False)

    def forward(self, name: str) -> torch.Tensor:
        return getattr(self, name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Constants:
        # Rotary frequencies in bfloat16 would be wrong by whole turns, so `module.bfloat16()` must not reach them;
        # and made anew they are right also after a stay on the meta device.
        for name, array in self.arrays.items():
            self._buffers[name] = to_tensor(array).to(fn(self._buffers[name]).device)  # type: ignore[arg-type]
        return self


class InputCheck:
    """Forward pre-hook: inputs have the names, dtypes and shapes of the contract, or RuntimeInputError.

    PyTorch itself would broadcast a wrong batch silently. Compiled code skips the check: it guards shapes itself.
    """

    def __init__(self, graph: Graph) -> None:
        self.types = {k: v.type for k, v in graph.inputs.items()}
        self.bounds = bounds_of(graph)
        self.names = f"the inputs are {', '.join(graph.inputs)}"

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if args:
            raise RuntimeInputError(f"{len(args)} inputs are given by position: give all by name", hint=self.names)
        for name in kwargs:
            if name not in self.types:
                raise RuntimeInputError(f"there is no input called {name!r}{did_you_mean(name, self.types)}")
        for name, t in self.types.items():
            if name not in kwargs:
                raise RuntimeInputError(f"input {name}: {t} is missing")
            dtype = dtype_of(kwargs[name].dtype)
            # Autocast and `module.bfloat16()` change the width of floats on purpose.
            if dtype != t.dtype and not (dtype.is_float and t.dtype.is_float):
                raise RuntimeInputError(f"input {name} is {dtype}, expected {t}")
        bind_dims(self.types, {k: tuple(kwargs[k].shape) for k in self.types})
        for name, rows in self.bounds.items():
            _check_rows(name, kwargs[name], rows)


def _check_rows(name: str, x: torch.Tensor, rows: int) -> None:
    """Raises RuntimeInputError for a number outside the table that an input chooses from; on the CPU, where looking
    costs nothing beside the rest: a GPU would have to be waited for."""
    if type(x) is not torch.Tensor or x.device.type != "cpu" or x.numel() == 0 or transformed(x):
        return
    low, high = (int(n) for n in torch.aminmax(x))
    if low < 0 or high >= rows:
        raise RuntimeInputError(f"{name} holds {low if low < 0 else high}, but the model has {rows}, 0 to {rows - 1}")


def _check_weights(types: Mapping[str, TensorType], given: Mapping[str, Tensor], place: str) -> None:
    lines = [f"missing: {k}: {t}{did_you_mean(k, given)}" for k, t in types.items() if k not in given]
    for k, t in types.items():
        if k in given and not fits(given[k].type, t):
            lines.append(f"wrong: {k} is {given[k].type}, expected {t}")
    if lines:
        raise WeightsError(f"weights do not fit: {len(lines)} differences", place=place, details=lines)


def state_of(module: nn.Module) -> Weights:
    """The parameters of a module under their checkpoint names, read from their device when asked for."""
    encoded = _encoded(module)
    tensors = {k: ModuleTensor(t) for k, t in _state(module).items()}
    return Weights({k: Encoded(t, encoded[k]) if k in encoded else t for k, t in tensors.items()})


def _unwrapped(module: nn.Module) -> nn.Module:
    for wrapper in ("_orig_mod", "module"):
        module = getattr(module, wrapper, module)
    return module


def _encoded(module: nn.Module) -> Mapping[str, TensorType]:
    return getattr(_unwrapped(module), "encoded", {})


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, not their copies, also of a module that was compiled or wrapped for many devices."""
    return _unwrapped(module).state_dict(keep_vars=True)


def save_state(
    module: nn.Module,
    folder: str | Path,
    max_shard_bytes: int = 5_000_000_000,
    done: Callable[[str, int], None] | None = None,
) -> list[Path]:
    """Write the parameters as safetensors that Hugging Face libraries read; tied weights once. See Weights.save."""
    return state_of(module).save(folder, max_shard_bytes, done)


def load_state(module: nn.Module, weights: Mapping[str, Tensor] | str | Path) -> None:
    """Copy a checkpoint into a module, tensor by tensor, converted to the module's dtype and device.

    weights: a mapping, or a file or folder for `Weights.open`. Nothing is changed before all names and shapes have
    been checked. Raises WeightsError listing every missing or misshapen tensor.
    """
    given = Weights.open(weights) if isinstance(weights, (str, Path)) else weights
    state = _state(module)
    types = {k: TensorType(dtype_of(t.dtype), tuple(t.shape)) for k, t in state.items()} | dict(_encoded(module))
    _check_weights(types, given, given.place if isinstance(given, Weights) else "")
    with torch.no_grad():
        for name, target in state.items():
            target.copy_(to_tensor(held(given[name], types[name], name)))


def to_inputs(arrays: Mapping[str, Array], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """NumPy inputs as tensors on a device."""
    return {k: to_tensor(a).to(device) for k, a in arrays.items()}
