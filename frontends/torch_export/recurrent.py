"""Recurrent layers: kept whole while a module is traced, then one op of the IR for each layer and direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

from ...ir import Value, ops
from ...ir.types import DimLike, i64
from .call import Call, Table
from .errors import UnknownFormError

_TAIL = "Tensor[] weights, bool biased, int layers, float dropout, bool train, bool both, bool batch_first"
_STATES = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}
"""Calls of PyTorch and how many states a layer has."""


class Whole(TorchFunctionMode):
    """While a module is traced, records a recurrent layer as one call, for any number of steps.

    PyTorch itself records its steps one by one, as many as the example has, and refuses a length that varies. Layers
    over packed sequences are left to it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kept = _KEPT.get(func)
        if kept is None or kwargs or len(args) != 9 or isinstance(args[3], (list, tuple)):
            return func(*args, **(kwargs or {}))
        x, states, *rest = args
        return kept(x, [*cast("list[Any]", states)] if isinstance(states, (list, tuple)) else [states], *rest)


def _kept(name: str, count: int) -> Any:
    """An op of PyTorch that stands for a call of a recurrent layer while it is traced."""
    function = getattr(torch, name)
    results = ", ".join(["Tensor"] * (count + 1))

    def run(x: Any, states: Any, *rest: Any) -> Any:
        return function(x, states if count > 1 else states[0], *rest)

    made: Any = torch.library.custom_op(
        f"monograph::{name}", run, mutates_args=(), schema=(f"(Tensor x, Tensor[] states, {_TAIL}) -> ({results})")
    )

    def shaped(
        x: Any, states: Any, weights: Any, biased: bool, layers: int, p: float, train: bool, both: bool, first: bool
    ) -> Any:
        y = x.new_empty((*x.shape[:-1], states[0].shape[-1] * (2 if both else 1)))
        return (y, *(torch.empty_like(s) for s in states))

    made.register_fake(shaped)
    return made


_KEPT: dict[Any, Any] = {getattr(torch, name): _kept(name, count) for name, count in _STATES.items()}


def _recurrent(function: Callable[..., Any], count: int, **attributes: Any) -> Callable[..., Any]:
    """A stack of layers, in one direction or both. Initial and last states are [layers * directions, B, H]."""

    def handler(
        c: Call,
        x: Value,
        states: Any,
        weights: Any,
        biased: bool,
        layers: int,
        dropout: float,
        train: bool,
        both: bool,
        batch_first: bool = False,
    ) -> Any:
        if not isinstance(weights, list):
            raise UnknownFormError("a recurrent layer over packed sequences", hint="pad them, and mask what is padded")
        firsts = cast("list[Value]", states if isinstance(states, list) else [states])
        weights = cast("list[Value]", weights)
        each = 4 if biased else 2
        if len(weights) != each * layers * (2 if both else 1):
            raise UnknownFormError("a recurrent layer whose outputs are projected (proj_size)")
        single = x.rank == 2
        if single:
            x, firsts = c.reshaped(x, (1, *x.shape)), [c.reshaped(s, (s.shape[0], 1, s.shape[1])) for s in firsts]
        elif not batch_first:
            x = ops.transpose(x, permutation=(1, 0, 2))
        lasts: list[list[Value]] = [[] for _ in firsts]
        for layer in range(layers):
            if layer and dropout and train:
                x = ops.dropout(x, p=dropout)
            made: list[Value] = []
            for back in range(2 if both else 1):
                at = layer * (2 if both else 1) + back
                own = [*weights[each * at : each * (at + 1)], *[None] * (4 - each)]
                given = [_at(c, s, at) for s in firsts]
                y, *ends = function(_backwards(c, x) if back else x, *own, *given, **attributes)
                made.append(_backwards(c, y) if back else y)
                for found, end in zip(lasts, ends, strict=True):
                    found.append(c.reshaped(end, (1, *end.shape)))
            x = made[0] if len(made) == 1 else ops.concat(*made, axis=2)
        ends = [f[0] if len(f) == 1 else ops.concat(*f, axis=0) for f in lasts]
        if single:
            x, ends = c.reshaped(x, x.shape[1:]), [c.reshaped(e, (e.shape[0], e.shape[2])) for e in ends]
        elif not batch_first:
            x = ops.transpose(x, permutation=(1, 0, 2))
        return (x, *ends)

    return handler


def _at(c: Call, states: Value, at: int) -> Value:
    """One state [B,H] of [layers * directions, B, H]."""
    return c.reshaped(ops.slice_(states, axis=0, start=at, length=1), states.shape[1:])


def _backwards(c: Call, x: Value) -> Value:
    """x [B,S,C] from the last step to the first."""
    steps: DimLike = x.shape[1]
    return ops.gather(x, c.value(steps, i64) - 1 - ops.iota(start=0, length=steps), axis=1)


_HANDLERS = {
    "lstm": _recurrent(ops.lstm, 2),
    "gru": _recurrent(ops.gru, 1),
    "rnn_tanh": _recurrent(ops.rnn, 1, activation="tanh"),
    "rnn_relu": _recurrent(ops.rnn, 1, activation="relu"),
}
RECURRENT: Table = {
    **{f"aten.{name}.input": handler for name, handler in _HANDLERS.items()},
    **{f"monograph.{name}.default": handler for name, handler in _HANDLERS.items()},
}
"""Handlers of the ops of this file."""
