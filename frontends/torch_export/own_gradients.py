"""Finds what has other gradients than its parts: torch.export records a module's forward pass alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_TENSOR: Any = torch.Tensor
_RANDOM: Any = torch.random
_HOOKS = frozenset[Any]({_TENSOR.register_hook, _TENSOR.register_post_accumulate_grad_hook})
_BOUND, _LEAST = 1e-3, 1e-3
"""How far gradients may be apart, as a share of a parameter's largest, or of this share of the largest of all."""


class OwnGradients(TorchFunctionMode):
    """While a module is traced, notes hooks that change gradients, and autograd.Functions on the way to its outputs.

    `found` says them, each once. `outputs` is a forward hook of the module. What is computed in inference mode, which
    torch.export does not record, is detached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self.outside = torch.is_inference_mode_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HOOKS:
            self.found[f"Tensor.{func.__name__}: it changes gradients"] = None
        made = func(*args, **(kwargs or {}))
        # Branches of torch.cond are traced by another tracer, which does not let that be asked.
        if self.outside or torch.compiler.is_dynamo_compiling() or not torch.is_inference_mode_enabled():
            return made
        return pytree.tree_map_only(torch.Tensor, _detached, made)

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
                self.found[f"{own.__module__}.{own.__qualname__}: its backward pass is its own"] = None
            waiting += [before for before, _ in node.next_functions]


def differing(module: Any, traced: Any, args: Any, kwargs: Any) -> str:
    """Which parameter of a module gets another gradient than in what was traced of it, and by how much; "" if none.

    Both are run on the example inputs, with the same random numbers; .grad is left as it is.
    """
    found: list[dict[str, torch.Tensor]] = []
    for m in (module, traced):
        learning = {k: p for k, p in m.named_parameters() if p.requires_grad}
        with _RANDOM.fork_rng(), torch.enable_grad():
            _RANDOM.manual_seed(0)
            loss = _loss(m(*args, **kwargs))
            given: Any = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
        found.append(
            {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(learning.items(), given, strict=True)}
        )
    own, parts = found
    largest = max((float(g.abs().max()) for g in own.values() if g.numel()), default=0.0)
    for name, g in own.items():
        gap = float((g - parts[name]).abs().max()) if g.numel() else 0.0
        most = max(float(g.abs().max()) if g.numel() else 0.0, _LEAST * largest)
        if not gap <= _BOUND * most:
            return f"the gradient of {name} is off by {gap:.2g} of {most:.2g}"
    return ""


def _detached(x: torch.Tensor) -> torch.Tensor:
    return x.detach()


def _loss(outputs: Any) -> torch.Tensor:
    """A number that every element of every output changes, each in its own way."""
    leaves: list[Any] = pytree.tree_leaves(outputs)
    learned = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
    weights = (torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape) for x in learned)
    return torch.stack([(x * w).sum() for x, w in zip(learned, weights, strict=True)]).sum()
