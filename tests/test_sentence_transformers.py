"""Folders of sentence-transformers 4, 5 and 6: vectors as they gave them (golden/sentence_vectors.json).

Recorded by `python benchmarks/sentence_vectors.py --record FILE`; the model is made anew from known numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.frontends.huggingface import load_folder
from monograph.frontends.pooling import Pooling
from monograph.frontends.tokenizer import Tokenizer
from monograph.inference.embed import embed
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, RuntimeInputError
from monograph.ir.files import staged
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from sentence_base import TEXTS, WIDTH, dense_arrays, write_base

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "sentence_vectors.json").read_text())


class Reference:
    """A model without state, run by the NumPy reference."""

    def __init__(self, folder: Path) -> None:
        self.model = load_folder(folder)
        self.graph = self.model.graph()
        assert self.model.weights is not None
        self.params = {k: self.model.weights.numpy(k) for k in self.graph.params}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        ids = inputs["input_ids"]
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        given = {**inputs, "position_ids": positions, "token_type_ids": np.zeros_like(ids)}
        return interpret(self.graph, {k: given[k] for k in self.graph.inputs}, self.params)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """The recorded settings, and weights of dense layers as the benchmark drew them."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        if "Dense" in name:
            said = json.loads(text)
            arrays = dense_arrays(said["in_features"], said["out_features"], bias=said["bias"])
            save_file(arrays, path.parent / "model.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


def same(found: np.ndarray, want: Sequence[Sequence[float]]) -> None:
    np.testing.assert_allclose(found, want, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", RECORDED)
def test_vectors_are_those_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    write_base(tmp_path)
    write(tmp_path, RECORDED[name]["files"])
    pooling, session = Pooling.read(tmp_path), Reference(tmp_path)
    assert pooling is not None
    tokenizer = Tokenizer.open(tmp_path)
    for prompt, vectors in RECORDED[name]["vectors"].items():
        same(embed(session, tokenizer, list(TEXTS), pooling, batch=2, prompt_name=prompt or None), vectors)
    built = tmp_path / "built"
    with staged(built) as stage:
        pooling.write(stage)
    again = Pooling.read(built)
    assert again is not None
    assert replace(again, dense=()) == replace(pooling, dense=())
    same(embed(session, tokenizer, list(TEXTS), again), RECORDED[name]["vectors"][""])


MEAN = json.loads(json.dumps(RECORDED["mean, 6.2.0"]["files"]))
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a mode": ("1_Pooling/config.json", {"pooling_mode": "median"}, "key 'pooling_mode' = 'median': expected one or"),
    "a mode of several": (
        "1_Pooling/config.json",
        {"pooling_mode": ["mean", 5]},
        r"key 'pooling_mode' = \['mean', 5\]",
    ),
    "a length": ("sentence_bert_config.json", {"max_seq_length": 0}, "key 'max_seq_length' = 0: expected a number"),
    "letters": ("sentence_bert_config.json", {"do_lower_case": "yes"}, "key 'do_lower_case' = 'yes': expected true"),
    "a task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "key 'transformer_task' = 'fill-mask'"),
    "query expansion": ("sentence_bert_config.json", {"query_expansion": {"length": 4}}, "key 'query_expansion' = "),
    "another layer": (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
        "key 'modality_config' = .*expected the last hidden states",
    ),
    "a prompt": (
        "config_sentence_transformers.json",
        {"default_prompt_name": "x"},
        "key 'default_prompt_name' = 'x': known",
    ),
    "prompts": ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "key 'prompts' = .*expected texts by name"),
    "a reranker": (
        "config_sentence_transformers.json",
        {"model_type": "CrossEncoder"},
        "key 'model_type' = 'CrossEncoder'",
    ),
    "tokens made of length 1": (
        "2_Normalize/config.json",
        {"module_input_name": "token_embeddings"},
        "key 'module_input",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_entries_that_cannot_be_followed_are_named(name: str, tmp_path: Path) -> None:
    file, changes, message = BAD[name]
    write(tmp_path, MEAN)
    (tmp_path / file).write_text(json.dumps({**json.loads(MEAN[file]), **changes}))
    with pytest.raises(ConfigError, match=message) as e:
        Pooling.read(tmp_path)
    assert file in str(e.value)


def modules(*kinds: str) -> str:
    return json.dumps([{"type": f"sentence_transformers.models.{k}", "path": f"{i}_{k}"} for i, k in enumerate(kinds)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (modules("Transformer", "Poling"), "has a module 'Poling', did you mean 'Pooling'"),
        (modules("Transformer", "Pooling", "LSTM"), "has a module 'LSTM'"),
        (
            modules("Transformer", "Pooling", "Normalize", "Dense"),
            "has the modules Transformer, Pooling, Normalize, Dense",
        ),
        (modules("Pooling", "Transformer"), "has the modules Pooling, Transformer; expected"),
        (json.dumps([{"type": "x.Transformer", "path": "../other"}]), "names a module outside its folder"),
        ("[" * 5000, "is not a list of modules"),
        ("{}", "has the modules ; expected Transformer"),
    ],
)
def test_modules_that_are_not_understood(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Pooling.read(tmp_path)


def test_dense_layers_need_their_weights(tmp_path: Path) -> None:
    write(tmp_path, RECORDED["dense, 6.2.0"]["files"])
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"2_Dense: has no model.safetensors; pickles are never read"):
        Pooling.read(tmp_path)
    save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "2_Dense" / "model.safetensors")
    with pytest.raises(ConfigError, match="2_Dense: has the tensors"):
        Pooling.read(tmp_path)
    config = tmp_path / "2_Dense" / "config.json"
    config.write_text(config.read_text().replace("Tanh", "Mish"))
    with pytest.raises(ConfigError, match=r"key 'activation_function' = .*Mish': expected one of Identity, Tanh"):
        Pooling.read(tmp_path)


def test_entries_that_change_nothing_are_noted(tmp_path: Path) -> None:
    write(tmp_path, MEAN)
    pooling = Pooling.read(tmp_path)
    assert pooling is not None
    assert {n.key for n in pooling.notes} >= {"embedding_dimension", "similarity_fn_name", "__version__"}


def test_prompts_and_texts_that_cannot_be(base: Path) -> None:
    session, tokenizer, pooling = Reference(base), Tokenizer.open(base), Pooling(prompts={"query": "query : "})
    by_name = embed(session, tokenizer, "the cat", pooling, prompt_name="query")
    np.testing.assert_array_equal(embed(session, tokenizer, "the cat", pooling, prompt="query : "), by_name)
    np.testing.assert_array_equal(embed(session, tokenizer, "query : the cat", pooling), by_name)
    with pytest.raises(RuntimeInputError, match="no prompt is called 'quary', did you mean 'query'"):
        embed(session, tokenizer, "a", pooling, prompt_name="quary")
    with pytest.raises(RuntimeInputError, match="text 1 is int, expected a text"):
        embed(session, tokenizer, ["a", 5], pooling)  # type: ignore[list-item]
    assert by_name.shape == (WIDTH,)
