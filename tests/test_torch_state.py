"""The PyTorch module: checkpoints in and out, and inputs and weights that do not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from monograph.backends.torch import load_state, save_state, state_of, to_torch
from monograph.ir import Graph, Init, tensor
from monograph.ir.errors import LoweringError, RuntimeInputError, WeightsError
from monograph.ir.types import DType, bf16, f32, f64, i64
from monograph.ir.weights import Weights
from torch_graphs import WIDTH, batch, small

pytestmark = pytest.mark.slow

# -- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, bf16, f64], ids=str)
def test_state_goes_to_safetensors_and_back(tmp_path: Path, dtype: DType) -> None:
    first, inputs = to_torch(small(dtype), seed=3), batch(2, 5)
    files = save_state(first, tmp_path)
    assert [f.name for f in files] == ["model.safetensors"]
    from safetensors.torch import load_file  # What other libraries would read.

    loaded = load_file(files[0])
    assert loaded.keys() == first.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in first.state_dict().items())
    second = to_torch(small(dtype), seed=4)
    load_state(second, tmp_path)
    assert torch.equal(first(**inputs)["logits"], second(**inputs)["logits"])
    third = to_torch(small(dtype), Weights.open(tmp_path))
    assert torch.equal(first(**inputs)["logits"], third(**inputs)["logits"])


def test_the_state_of_a_compiled_module_has_the_same_names() -> None:
    module = to_torch(small())
    compiled = torch.compile(module, backend="aot_eager")
    assert list(state_of(compiled)) == list(state_of(module)) == list(module.state_dict())
    load_state(compiled, state_of(to_torch(small(), seed=9)))
    assert torch.equal(module.get_parameter("model.embed.weight"), to_torch(small(), seed=9).model.embed.weight)


def test_a_state_is_loaded_into_another_width_and_does_not_alias(tmp_path: Path) -> None:
    source = to_torch(small(f64))
    target = to_torch(small(f32), state_of(source))
    assert target.get_parameter("model.embed.weight").dtype == torch.float32
    with torch.no_grad():
        source.get_parameter("model.embed.weight").zero_()
    assert target.get_parameter("model.embed.weight").abs().max() > 0


def test_parameters_that_nothing_reads_stay_in_the_checkpoint() -> None:
    graph = small()
    graph.param("pooler.weight", tensor(f32, 3), Init("ones"))
    module = to_torch(graph)
    assert torch.equal(copy.deepcopy(module).state_dict()["pooler.weight"], torch.ones(3))


def test_integer_parameters_are_buffers() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(i64, "N"))
    graph.output("y", x + graph.param("offset", tensor(i64, 1)))
    module = to_torch(graph, Weights.of({"offset": np.array([5])}))
    assert list(module.parameters()) == []
    assert module(x=torch.tensor([1, 2]))["y"].tolist() == [6, 7]


# -- errors ------------------------------------------------------------------------------------------------------


def test_missing_and_misshapen_weights_are_all_listed() -> None:
    graph = small()
    arrays = {k: t.numpy() for k, t in Weights.initialize(graph).items()}
    arrays["model.embed.weights"] = arrays.pop("model.embed.weight")
    arrays["model.layers.0.norm1.weight"] = np.ones(3, np.float32)
    arrays["model.layers.1.norm1.weight"] = np.ones(WIDTH, np.int64)
    with pytest.raises(WeightsError) as caught:
        to_torch(graph, Weights.of(arrays))
    text = str(caught.value)
    assert "3 differences" in text
    assert "missing: model.embed.weight: f32[11,16], did you mean 'model.embed.weights'?" in text
    assert "wrong: model.layers.0.norm1.weight is f32[3], expected f32[16]" in text
    assert "wrong: model.layers.1.norm1.weight is i64[16], expected f32[16]" in text


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    module = to_torch(small())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    arrays = {k: np.zeros(v.shape, np.float32) for k, v in before.items()}
    arrays["model.layers.1.down_proj.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(WeightsError, match=r"down_proj.weight is f32\[2,2\], expected f32\[16,24\]"):
        load_state(module, Weights.of(arrays))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": None}, r"input attention_mask: i64\[B,S\] is missing"),
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, r"axis 0 of attention_mask is 1, expected B = 2"),
        ({"attention_mask": torch.ones(2, 5)}, r"input attention_mask is f32, expected i64\[B,S\]"),
        ({"input_ids": torch.ones(5, dtype=torch.long)}, r"input_ids has shape \[5\], expected i64\[B,S\]"),
        ({"labels": torch.ones(2, 5, dtype=torch.long)}, r"there is no input called 'labels'"),
    ],
)
def test_inputs_that_break_the_contract(change: dict[str, torch.Tensor | None], message: str) -> None:
    inputs = {k: v for k, v in {**batch(2, 5), **change}.items() if v is not None}
    with pytest.raises(RuntimeInputError, match=message):
        to_torch(small())(**inputs)


def test_inputs_by_position_are_refused() -> None:
    with pytest.raises(RuntimeInputError, match="the inputs are input_ids, attention_mask"):
        to_torch(small())(*batch(2, 5).values())


def test_parameter_paths_that_collide() -> None:
    graph = Graph("g")
    a, b = graph.param("a", tensor(f32, 2), Init("ones")), graph.param("a.b", tensor(f32, 2), Init("ones"))
    graph.output("y", a + b)
    with pytest.raises(LoweringError, match=r"a.b cannot be the name of a parameter"):
        to_torch(graph)


def test_four_bit_tensors_are_refused() -> None:
    graph = Graph("g")
    graph.output("y", graph.input("x", tensor(f32, 2)).cast(DType.i4))
    with pytest.raises(LoweringError, match="PyTorch has no tensors of i4"):
        to_torch(graph)
