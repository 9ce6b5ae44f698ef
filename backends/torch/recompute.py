"""Runs a graph by a recomputation plan: values that are not kept are made again when the backward pass asks for them.

Each op keeps its own autograd node; only the tensors it saves are exchanged, by `saved_tensors_hooks`, for a note of
how to make them again. So gradients are those of the plain module bit by bit, nothing runs again that is not read
again, and random ops draw the numbers they drew before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_iter, tree_map

from ...ir.errors import LoweringError, RuntimeInputError
from .untyped import library, storage_key

RECOMPUTE = "monograph_recompute"
"""Name of the submodule through which the calls of a plan go."""


NOT_AGAIN = (getattr, "size")
"""Calls that make no tensor."""


@dataclass(frozen=True)
class Step:
    """One call. again: it may run twice. kept: its outputs stay. random: it draws numbers. narrow: autocast runs it in
    its own dtype.
    """

    function: Callable[..., Any]
    again: bool
    kept: bool
    random: bool = False
    narrow: bool = False


_CAST = Step(torch.Tensor.to, again=True, kept=False)


class Recomputation(nn.Module):
    """The calls of a plan by number, and which tensors of the forward pass now running can be made again."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._known: dict[int, tuple[Any, Call, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Recomputation:
        new = Recomputation()
        new.steps = list(self.steps)
        return new

    def add(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def forward(self, number: int, *args: Any, **kwargs: Any) -> Any:
        """Call step `number`; -1, the first and the last call of a pass, forgets the tensors of the pass before."""
        if number < 0:
            self._forget()
            return None
        step = self.steps[number]
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return step.function(*args, **kwargs)
        if step.narrow:
            args, kwargs = tree_map(self._narrowed, (args, kwargs))
        return self._run(step, args, kwargs)

    def _narrowed(self, x: Any) -> Any:
        """What autocast would cast inside the op and keep there, cast by a call that can be made again."""
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or self._find(x) is None:
            return x
        if not torch.is_autocast_enabled(x.device.type):
            return x
        return self._run(_CAST, (x, torch.get_autocast_dtype(x.device.type)), {})

    def _forget(self) -> None:
        if not torch.compiler.is_compiling():
            self._known.clear()

    def _run(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {_key(x) for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        packing = Packing(self._find, given, step.again)
        call = None
        if step.again:
            noted, options = tree_map(self._note, (args, kwargs))
            call = Call(step, noted, options, _random_state(args) if step.random else None)
        with saved_tensors_hooks(packing, unpack):
            result = step.function(*args, **kwargs)
        outputs = [x for x in tree_iter(result) if isinstance(x, torch.Tensor)]
        packing.settle(call, {_key(x) for x in outputs} if step.kept else set())
        if call is not None and not step.kept:
            for i, x in enumerate(outputs):
                if _key(x) not in given:
                    self._known[_key(x)] = (StorageWeakRef(x.untyped_storage()), call, i)
        return result

    def _find(self, t: torch.Tensor) -> tuple[Call, int] | None:
        """How to make the memory of a tensor again. A weak reference keeps its address from being given anew."""
        known = self._known.get(_key(t))
        return None if known is None or known[0].expired() else known[1:]

    def _note(self, x: Any) -> Any:
        """An argument as a call remembers it: by how it is made if it is not kept."""
        if not isinstance(x, torch.Tensor):
            return x
        known = self._find(x)
        return Kept(x) if known is None else View(*known, x)


class Call:
    """A call that can be made again; what it gives stays until nobody needs it any more."""

    def __init__(self, step: Step, args: Any, kwargs: dict[str, Any], random: Any) -> None:
        self.step, self.args, self.kwargs, self.random = step, args, kwargs, random
        self.autocast = _autocast_state(args)
        self.wanted: set[int] = set()
        self.outputs: list[torch.Tensor] | None = None
        self.saved: dict[int, torch.Tensor] = {}

    def run(self) -> None:
        """Make outputs and saved tensors once more. Raises LoweringError if the call saves others than before."""
        if self.outputs is not None:
            return
        args, kwargs = tree_map(_again, (self.args, self.kwargs))
        count = 0

        def pack(t: torch.Tensor) -> None:
            nonlocal count
            if count in self.wanted:
                self.saved[count] = t.detach()
            count += 1

        def unpack(_: None) -> torch.Tensor:
            raise AssertionError("the second run has no backward pass")

        enabled = torch.autocast(*self.autocast)
        with torch.enable_grad(), _drawing(self.random), enabled, saved_tensors_hooks(pack, unpack):
            result = self.step.function(*args, **kwargs)
        missing = self.wanted - self.saved.keys()
        if missing:
            raise LoweringError(f"{self.step.function} saved {count} tensors when it ran again, fewer than before")
        self.outputs = [x.detach() for x in tree_iter(result) if isinstance(x, torch.Tensor)]
        self.args, self.kwargs, self.random = (), {}, None


class Kept:
    """A tensor that stays."""

    def __init__(self, t: torch.Tensor) -> None:
        self.tensor, self.learns = t.detach(), t.requires_grad

    def again(self) -> torch.Tensor:
        return self.tensor.detach().requires_grad_(self.learns)


def _again(x: Any) -> Any:
    return x.again() if isinstance(x, Kept) else x


class View(Kept):
    """A tensor in the memory of output `index` of a call."""

    def __init__(self, call: Call, index: int, t: torch.Tensor) -> None:
        self.call, self.index, self.learns = call, index, t.requires_grad
        self.place = tuple(t.shape), t.stride(), t.storage_offset()

    def again(self) -> torch.Tensor:
        return self.get().requires_grad_(self.learns)

    def get(self) -> torch.Tensor:
        self.call.run()
        assert self.call.outputs is not None
        return self.call.outputs[self.index].as_strided(*self.place)


class Made:
    """Tensor number `ordinal` that an op saved, made by it for its own backward pass."""

    def __init__(self, ordinal: int, t: torch.Tensor) -> None:
        self.ordinal = ordinal
        self.tensor: torch.Tensor | None = t
        self.call: Call | None = None

    def get(self) -> torch.Tensor:
        if self.call is None:
            assert self.tensor is not None
            return self.tensor
        self.call.run()
        return self.call.saved[self.ordinal]


class Packing:
    """The pack hook of one call. Autograd holds it as long as the saved tensors, so it lets go of everything."""

    def __init__(self, find: Callable[[torch.Tensor], tuple[Call, int] | None], given: set[int], again: bool) -> None:
        self.find, self.given, self.again = find, given, again
        self.count = 0
        self.made: list[Made] = []

    def __call__(self, t: torch.Tensor) -> Any:
        ordinal = self.count
        self.count += 1
        known = self.find(t)
        if known is not None:
            return View(*known, t)
        if self.again and _key(t) not in self.given:
            self.made.append(Made(ordinal, t))
            return self.made[-1]
        return t

    def settle(self, call: Call | None, stays: set[int]) -> None:
        """Let go of what `call` can make again, unless it lies in memory that stays."""
        for m in self.made:
            assert m.tensor is not None
            if call is not None and _key(m.tensor) not in stays:
                call.wanted.add(m.ordinal)
                m.call, m.tensor = call, None
        self.made = []


def unpack(x: Any) -> torch.Tensor:
    """What a saved tensor stands for. Raises RuntimeInputError when the backward pass is itself differentiated."""
    if isinstance(x, torch.Tensor):
        return x
    if torch.is_grad_enabled():
        raise RuntimeInputError("a module that computes values again has no gradients of gradients: leave out `memory`")
    return x.get()


def _key(t: torch.Tensor) -> int:
    return storage_key(t)


def _device(args: Any) -> torch.device:
    for x in tree_iter(args):
        if isinstance(x, torch.Tensor):
            return x.device
        if isinstance(x, View):
            return _device(x.call.args)
        if isinstance(x, Kept):
            return x.tensor.device
    return torch.device("cpu")


def _autocast_state(args: Any) -> tuple[str, torch.dtype, bool]:
    kind = _device(args).type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)


def _random_state(args: Any) -> tuple[torch.device, torch.Tensor]:
    device = _device(args)
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return device, state


@contextlib.contextmanager
def _drawing(random: tuple[torch.device, torch.Tensor] | None) -> Generator[None]:
    """Random numbers as they were drawn before."""
    if random is None:
        yield
        return
    device, state = random
    cuda = device.type == "cuda"
    with library.random.fork_rng([device] if cuda else []):
        torch.cuda.set_rng_state(state, device) if cuda else torch.set_rng_state(state)
        yield


def compiled(module: nn.Module, **options: Any) -> Callable[..., Any]:
    """torch.compile(module, **options), which keeps to the plan of the module.

    The compiler cuts its own joint graph of forward and backward pass and knows what fusing saves, so it is given the
    share of the memory that the plan keeps, not the values.
    """
    inner = getattr(module, "module", module)  # What DistributedDataParallel wraps.
    forward, plan = library.compile(module, **options), getattr(inner, "plan", None)
    settings: dict[str, Any] = {}
    if plan is not None and plan.recomputed:
        settings["activation_memory_budget"] = plan.bytes_after / plan.bytes_before
    elif all(p.device.type == "cpu" for p in inner.parameters()):
        # An activation is made again also where a product reads it, as the uncompiled module does.
        settings["ban_recompute_materialized_backward"] = False

    def within(*args: Any, **kwargs: Any) -> Any:
        with library._functorch.config.patch(**settings):
            return forward(*args, **kwargs)

    return within if settings else forward
