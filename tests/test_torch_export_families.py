"""Models of transformers through torch.export: the same outputs, gradients and training step, also on ONNX Runtime."""

from __future__ import annotations

import monograph as mg
import numpy as np
import pytest
import torch
from torch import nn
from torch_zoo import BY_HAND, NAMES, outputs_of, subject

STEP = 0.05


def loss_of(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A number that every element of every output of floats changes, each in its own way."""
    total = torch.zeros(())
    for x in outputs.values():
        if x.is_floating_point():
            total = total + (x * torch.linspace(-1, 1, x.numel()).reshape(x.shape)).sum()
    return total


@pytest.mark.parametrize("name", [*NAMES, *BY_HAND])
def test_a_model_is_the_same_here(name: str) -> None:
    given = subject(name)
    model = mg.load(given.module, given.traced, dynamic_shapes=given.varies)
    ours = mg.to_torch(model)
    want, found = outputs_of(given.module, given.compared), ours(**given.compared)
    assert found.keys() == want.keys()
    for k, x in want.items():
        torch.testing.assert_close(found[k], x, atol=1e-5, rtol=1e-5)

    names = dict(given.module.named_parameters())
    own = dict(ours.named_parameters())
    assert own.keys() == names.keys()
    loss_of(want).backward()
    loss_of(found).backward()
    for path, p in names.items():
        theirs = torch.zeros_like(p) if p.grad is None else p.grad
        gradient = own[path].grad if own[path].grad is not None else torch.zeros_like(p)
        torch.testing.assert_close(gradient, theirs, atol=2e-5 * float(theirs.abs().max() + 1), rtol=1e-3)
    before = {k: v.detach().numpy() for k, v in want.items()}
    with mg.build(model) as engine:
        served = engine.run({k: v.numpy() for k, v in given.compared.items()})
    for k, x in before.items():
        np.testing.assert_allclose(served[k], x, atol=2e-5, rtol=1e-4)

    for module in (given.module, ours):
        torch.optim.SGD(module.parameters(), STEP / max(1.0, _largest(names))).step()
    for path, p in names.items():
        torch.testing.assert_close(own[path], p, atol=1e-5, rtol=1e-4)


def _largest(parameters: dict[str, nn.Parameter]) -> float:
    return max(float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None)


def test_a_lora_is_trained_beside_a_module_and_goes_out_merged(tmp_path) -> None:
    given = subject("llama")
    model = mg.load(given.module, given.traced, dynamic_shapes=given.varies)
    rows = np.random.default_rng(0).integers(3, 50, (32, 7))
    data = mg.Arrays.of({"input_ids": rows, "attention_mask": np.ones_like(rows), "labels": rows})
    lora = mg.Lora(rank=2, targets=("q_proj", "v_proj"))
    settings = {"steps": 3, "batch": 8, "learning_rate": 1e-2, "progress": False}
    tuned = mg.finetune(model, data, lora=lora, folder=tmp_path / "adapter", **settings)
    trained = mg.to_torch(tuned.model)(**given.compared)["logits"].detach()
    assert float((trained - given.module(**given.compared).logits).detach().abs().max()) > 0.01
    merged = mg.Adapter.load(tmp_path / "adapter").merged(model)
    torch.testing.assert_close(mg.to_torch(merged)(**given.compared)["logits"].detach(), trained)
    with mg.build(tuned.model, tmp_path / "built") as engine:
        served = engine.run({k: v.numpy() for k, v in given.compared.items()})["logits"]
    np.testing.assert_allclose(served, trained.numpy(), atol=1e-5)
    assert (mg.export(tuned.model, tmp_path / "out") / "model.onnx").is_file()


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_the_parity_table_holds(name: str) -> None:
    given = subject(name)
    assert mg.verify(mg.load(given.module, given.traced, dynamic_shapes=given.varies)).passed


def test_exports_in_words_of_the_task() -> None:
    given = subject("bert")
    model = mg.load(given.module, given.traced, dynamic_shapes=given.varies, task="feature-extraction")
    assert model.task == "feature-extraction"
    assert model.task.inputs["input_ids"] == "i64[B,S]"
    assert model.task.by_column
    with pytest.raises(mg.MonographError, match="cannot be given a cache: attention reads all tokens"):
        mg.load(given.module, given.traced, dynamic_shapes=given.varies, task="causal-lm")
