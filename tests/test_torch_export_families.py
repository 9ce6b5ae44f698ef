"""Models of transformers through torch.export: the same outputs, gradients and training step, also on ONNX Runtime."""

from __future__ import annotations

import monograph as mg
import numpy as np
import pytest
import torch
from exported_models import distinct, made, written
from onnxruntime import InferenceSession
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


@pytest.mark.parametrize("name", ["llama", "writer"])
def test_out_again_as_a_file_it_is_fused(name: str, tmp_path) -> None:
    """The file has a table that the exporter calls `constant`, beside constants of the file that is made of it."""
    given = subject(name)
    model = mg.load(given.module, given.traced, dynamic_shapes=given.varies)
    mg.export(model, tmp_path / "out")
    report = mg.optimize(tmp_path / "out" / "model.onnx", tmp_path / "fast", strict=True)
    assert report.layers["attention"] == report.counts["Attention"] == (2 if name == "writer" else 1)
    with torch.no_grad():
        wanted = given.module(**given.compared)["logits"].numpy()
    session = InferenceSession(tmp_path / "fast" / "model.onnx")
    (found,) = session.run(["logits"], {k: v.numpy() for k, v in given.compared.items()})
    np.testing.assert_allclose(found[:, :-3], wanted[:, :-3], atol=2e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_file_is_trained_as_the_module_it_came_from(kind: str, tmp_path) -> None:
    """Parameters are found by their numbers: the exporter turns some, and writes tied ones twice."""
    module = distinct(made(kind))
    model = mg.load(str(written(module, tmp_path)))
    ours = mg.to_torch(model)
    ids, mask = torch.randint(1, 40, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    (found,) = ours(input_ids=ids, attention_mask=mask).values()
    loss_of({"": module(ids, mask)}).backward()
    loss_of({"": found}).backward()
    left = {k for k, p in ours.named_parameters() if p.requires_grad}
    largest = max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)
    for p in (p for p in module.parameters() if p.grad is not None):
        total = torch.zeros_like(p)
        for k, q in ours.named_parameters():
            turned = q.dim() == 2 and not torch.equal(q, p) and torch.equal(q.T, p)
            if torch.equal(q, p) or turned:
                total += q.grad.T if turned else q.grad
                left.discard(k)
        torch.testing.assert_close(total, p.grad, atol=1e-6 * largest, rtol=1e-4)
    assert not left, "constants of the file would be trained"
    again = mg.init(model, 1)
    kinds = {k: v.init.kind for k, v in model.graph().params.items()}
    assert all(
        (again.weights.numpy(k) == (kind == "ones")).all() for k, kind in kinds.items() if kind in ("ones", "zeros")
    )
    assert sum(kind == "ones" for kind in kinds.values()) == 5
