"""A model that only gives logits: the teacher of a distillation, the reference of a preference."""

from __future__ import annotations

import torch

from ..backends.torch import to_torch
from ..frontends.dsl import Model
from ..passes import pipelines
from .adapters import base_weights
from .learner import Learner
from .source import Source, plain_graph


def frozen_module(model: Model, source: Source, learner: Learner) -> torch.nn.Module:
    """The module of `model` for batches of `source`, on the device of the learner, without dropout and gradients."""
    graph = pipelines.encode(plain_graph(model, source))
    module = to_torch(graph, base_weights(model), static=learner.static).to(learner.settings.on)
    return module.eval().requires_grad_(False)
