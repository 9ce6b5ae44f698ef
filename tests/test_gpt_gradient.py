"""A whole small GPT in float64: loss and every gradient against plain PyTorch, and against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monograph.backends.torch import to_torch
from monograph.frontends.dsl import load_family
from monograph.ir import Graph, building, interpret, ops, tensor
from monograph.ir.types import f64, i64
from monograph.ir.weights import Weights
from monograph.passes import pipelines

pytestmark = pytest.mark.slow

VOCAB, DIM, LAYERS, HEADS, EPS = 23, 16, 2, 4, 1e-5
TOLERANCE = 1e-6

Tensors = dict[str, torch.Tensor]


def gpt() -> Graph:
    """GPT-2 with a loss; labels are already shifted, -100 where there is nothing to predict."""
    config = {"vocab": VOCAB, "dim": DIM, "layers": LAYERS, "heads": HEADS, "max_positions": 12, "eps": EPS}
    graph = load_family("gpt2")(**config, embedding_dropout=0.0, dropout=0.0).graph(f64)
    with building(graph):
        labels = graph.input("labels", tensor(i64, "B", "S"))
        graph.output("loss", ops.cross_entropy(graph.outputs["logits"], labels))
    return graph


def weights() -> Weights:
    """Random everything: biases and norm weights too, so that each has a gradient worth comparing."""
    rng = np.random.default_rng(1)
    return Weights.of({k: rng.normal(0.0, 0.3, v.shape) + k.endswith("ln_f.weight") for k, v in gpt().params.items()})


def batch() -> Tensors:
    """Three rows: full, left-padded, right-padded."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCAB, (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :3], mask[2, -4:] = 0, 0
    labels = ids.roll(-1, 1).masked_fill(mask.roll(-1, 1) * mask == 0, -100)
    labels[:, -1] = -100
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}


def by_hand(p: Tensors, inputs: Tensors) -> torch.Tensor:
    """The loss of GPT-2, written out: no fused attention, no library layer but the elementary functions."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    rows, length = ids.shape

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return centred / (variance + EPS).sqrt() * p[f"transformer.{name}.weight"] + p[f"transformer.{name}.bias"]

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ p[f"transformer.{name}.weight"] + p[f"transformer.{name}.bias"]

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    keep = mask[:, None, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
    x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][inputs["position_ids"]]
    for i in range(LAYERS):
        qkv = dense(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (y.reshape(rows, length, HEADS, -1).transpose(1, 2) for y in qkv.split(DIM, -1))
        scores = (q @ k.transpose(2, 3) / (DIM / HEADS) ** 0.5).masked_fill(~keep, -1e300)
        attended = torch.where(keep, scores.softmax(-1), 0.0) @ v
        x = x + dense(attended.transpose(1, 2).reshape(rows, length, DIM), f"h.{i}.attn.c_proj")
        x = x + dense(gelu(dense(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    logits = norm(x, "ln_f") @ p["transformer.wte.weight"].T
    losses = logits.logsumexp(-1) - logits.gather(-1, inputs["labels"].clamp(min=0)[..., None])[..., 0]
    return losses[inputs["labels"] != -100].mean()


@pytest.fixture(scope="module", params=["plain", "train pipeline"])
def gradients(request: pytest.FixtureRequest) -> tuple[float, Tensors]:
    """Loss and gradients of the lowered graph, as it is and after the passes that training runs."""
    graph = gpt()
    if request.param == "train pipeline":
        graph = pipelines.train(graph)
    module = to_torch(graph, weights())
    loss = module(**batch())["loss"]
    loss.backward()
    return loss.item(), {k: p.grad for k, p in module.named_parameters() if p.grad is not None}


def test_loss_and_gradients_equal_those_of_plain_pytorch(gradients: tuple[float, Tensors]) -> None:
    loss, have = gradients
    parameters = {k: torch.tensor(t.numpy(), requires_grad=True) for k, t in weights().items()}
    expected = by_hand(parameters, batch())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert have.keys() == parameters.keys()
    for name, p in parameters.items():
        assert p.grad is not None
        error = (have[name] - p.grad).abs().max() / p.grad.abs().max()
        assert error <= TOLERANCE, f"{name}: relative error {error:.2e}"


def test_gradients_equal_differences_of_the_numpy_reference(gradients: tuple[float, Tensors]) -> None:
    """One random direction per parameter: the slope of the reference loss is gradient . direction."""
    graph, arrays = gpt(), {k: t.numpy() for k, t in weights().items()}
    inputs = {k: v.numpy() for k, v in batch().items()}
    rng, step = np.random.default_rng(2), 1e-5
    for name, gradient in gradients[1].items():
        direction = rng.normal(size=arrays[name].shape)
        sides = [
            interpret(graph, inputs, {**arrays, name: arrays[name] + s * direction})["loss"].item()
            for s in (step, -step)
        ]
        slope = float((gradient.numpy() * direction).sum())
        scale = float(np.linalg.norm(gradient.numpy()) * np.linalg.norm(direction))
        assert abs((sides[0] - sides[1]) / (2 * step) - slope) <= TOLERANCE * scale, name


def test_padding_does_not_reach_the_loss() -> None:
    """Other tokens under the padding give the same loss and the same gradients."""
    module, inputs = to_torch(gpt(), weights()), batch()
    results = []
    for filler in (0, VOCAB - 1):
        module.zero_grad()
        ids = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], filler)
        loss = module(**{**inputs, "input_ids": ids})["loss"]
        loss.backward()
        results.append((loss.item(), module.get_parameter("transformer.h.0.attn.c_attn.weight").grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)
    assert F.mse_loss(results[0][1], torch.zeros_like(results[0][1])) > 0
