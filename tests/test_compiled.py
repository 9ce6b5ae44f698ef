"""torch.compile of a module with a memory budget keeps to it however the module is wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monograph.backends.torch import compiled, to_torch
from monograph.backends.torch.lower import prepare
from monograph.passes.recompute import recompute
from recompute_models import batch, sizes_of, training_graph

pytestmark = pytest.mark.slow


def test_compiled_within_the_budget_inside_a_wrapper_too() -> None:
    """As DistributedDataParallel holds it."""

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **inputs: torch.Tensor) -> Any:
            return self.module(**inputs)

    graph = training_graph("llama", layers=1)
    module = to_torch(
        graph, memory=recompute(prepare(graph), sizes_of(graph), 10**12).bytes_before // 3, sizes=sizes_of(graph)
    )
    budgets: list[float] = []

    def backend(code: Any, inputs: Any) -> Any:
        budgets.append(torch._functorch.config.activation_memory_budget)
        return code

    torch._dynamo.reset()
    compiled(Wrapper(module), backend=backend)(**batch(graph))
    assert budgets == [module.plan.bytes_after / module.plan.bytes_before]
