"""Every activation that config.json can name, against that of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monograph.frontends.activations import activated, activation
from monograph.ir import Graph, building, interpret
from monograph.ir.errors import ConfigError
from monograph.ir.types import parse_type
from transformers.activations import ACT2CLS, ACT2FN

pytestmark = pytest.mark.slow

X = np.concatenate([np.linspace(-12, 12, 97), np.random.default_rng(0).standard_normal(31)]).astype(np.float32)
OTHERS = {"xielu", "prelu", "sqrtsoftplus"}
"""With parameters of their own, or without a gradient at 0 that any model here was trained with."""


@pytest.mark.parametrize("name", sorted({*ACT2CLS} - OTHERS))
def test_equals_that_of_transformers(name: str) -> None:
    graph = Graph("activation")
    x = graph.input("x", parse_type("f32[N]"))
    with building(graph):
        graph.output("y", activated(x, name))
    want = ACT2FN[name](torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(interpret(graph, {"x": X}, {})["y"], want, atol=2e-6, rtol=2e-6)


def test_unknown_ones_and_those_that_experts_do_not_have_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'quickgelu' is not supported, did you mean 'quick_gelu'"):
        activation("quickgelu")
    with pytest.raises(ConfigError, match="'relu2' is not supported inside experts"):
        activation("relu2")
