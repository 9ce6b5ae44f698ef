"""Finds what has other gradients than its parts: torch.export records a module's forward pass alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_TENSOR: Any = torch.Tensor
_HOOKS = frozenset[Any]({_TENSOR.register_hook, _TENSOR.register_post_accumulate_grad_hook})


class OwnGradients(TorchFunctionMode):
    """While a module is traced, notes hooks that change gradients, and autograd.Functions on the way to its outputs.

    `found` says them, each once. `outputs` is a forward hook of the module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HOOKS:
            self.found[f"Tensor.{func.__name__}: the hook is not called by what is made of the module"] = None
        return func(*args, **(kwargs or {}))

    def outputs(self, module: Any, args: Any, found: Any) -> None:
        leaves: list[Any] = pytree.tree_leaves(found)
        waiting = [x.grad_fn for x in leaves if isinstance(x, torch.Tensor)]
        seen: set[Any] = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            own: Any = getattr(node, "_forward_cls", None)
            # PyTorch's own, such as checkpoints, give what their parts give; ops of a library are no part of the IR.
            if isinstance(node, BackwardCFunction) and own.__module__.partition(".")[0] != "torch":
                self.found[f"{own.__module__}.{own.__qualname__}: its backward is not that of its forward"] = None
            waiting += [before for before, _ in node.next_functions]
