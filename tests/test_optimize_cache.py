"""Decoders in ONNX files with a past of their own: the contract kept, with one op for attention, or our cache given."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tokenizers
import torch
from cached_exports import (
    KEY_HEADS,
    LAYERS,
    WIDTH,
    as_optimum,
    grouped,
    halved,
    one_token,
    renamed,
    tiny,
    with_past,
)
from command_line import call
from monograph.frontends.onnx.file import open_onnx
from monograph.frontends.onnx.load import read_graph
from monograph.hard_inputs import Trial, hard_inputs
from monograph.ir.errors import LoweringError, PassError
from monograph.passes.past_inputs import past_symbols, total_symbols
from torch import nn

PROMPTS = [[5, 6, 7, 8, 9], [11, 3], [20, 21, 22, 23, 24, 25, 26, 27]]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_past(model, tmp_path_factory.mktemp("past"))


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kinds(folder: Path) -> list[str]:
    return [n.op_type for n in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    found = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            found.append(int(model(input_ids=torch.tensor([found]), use_cache=False).logits[0, -1].argmax()))
    return found[len(prompt) :]


@pytest.mark.parametrize("change", [None, renamed, one_token])
def test_a_past_keeps_its_contract_and_goes_into_attention(change: Any, file: Path, tmp_path: Path) -> None:
    source = file if change is None else change(file)
    report = mg.optimize(source, tmp_path / "fast", strict=True)
    assert report.layers["attention"] == LAYERS
    assert report.trials == 7
    assert not report.refused
    assert kinds(tmp_path / "fast").count("Attention") == LAYERS
    assert "Softmax" not in kinds(tmp_path / "fast")
    old, new = session(source), session(tmp_path / "fast" / "model.onnx")
    assert [(i.name, i.type) for i in old.get_inputs()] == [(i.name, i.type) for i in new.get_inputs()]
    assert [o.name for o in old.get_outputs()] == [o.name for o in new.get_outputs()]
    rng, count = np.random.default_rng(1), 1 if change is one_token else 3
    feeds: dict[str, np.ndarray] = {
        "input_ids": rng.integers(1, 40, (2, count)),
        "attention_mask": np.array([[0, 0] + [1] * (4 + count), [1] * (6 + count)]),
        "position_ids": np.array([4, 6])[:, None] + np.arange(count),
    }
    for i in old.get_inputs():
        if i.name not in feeds:
            feeds[i.name] = rng.standard_normal((2, KEY_HEADS, 6, WIDTH)).astype(np.float32)
    for a, b in zip(old.run(None, feeds), new.run(None, feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * np.abs(a).max())


def test_pasts_are_known_by_what_becomes_of_them(file: Path) -> None:
    graph, _, _ = read_graph(open_onnx(renamed(file)))
    assert {v.name for v in past_symbols(graph)} == {n for n in graph.inputs if n.startswith("input.cache")}
    assert total_symbols(graph) == {"columns_of_mask"}
    hard = hard_inputs(graph, Trial("left-padded", 3, 4))
    assert hard is not None
    assert hard.feeds["input.cache.layers.0.keys"].shape == (3, KEY_HEADS, 5, WIDTH)
    assert hard.feeds["attention_mask"].shape == (3, 9)
    assert hard.feeds["position_ids"].shape == (3, 4)


@pytest.mark.parametrize("change", [None, renamed, as_optimum, halved])
def test_given_a_cache_it_says_what_the_module_says(change: Any, model: Any, file: Path, tmp_path: Path) -> None:
    report = mg.optimize(file if change is None else change(file), tmp_path / "ours", cache=True)
    assert report.error <= report.bound
    assert report.counts["GroupQueryAttention"] == LAYERS
    assert not report.unfused
    with mg.open(tmp_path / "ours", threads=1) as engine:
        for prompt in PROMPTS:
            assert engine.generate(prompt, max_new_tokens=12).ids == greedy(model, prompt, 12)
        together = engine.generate(PROMPTS, max_new_tokens=12)
        assert [x.ids for x in together] == [greedy(model, p, 12) for p in PROMPTS]
    assert len({t for p in PROMPTS for t in greedy(model, p, 12)}) > 3  # Not one token again and again.


class Placed(nn.Module):
    """A decoder that is told its positions, of a table with fewer rows than there are tokens, or by angles."""

    def __init__(self, *, angles: bool, last: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.angles, self.last = angles, last
        self.embed, self.places, self.qkv = nn.Embedding(40, 16), nn.Embedding(30, 16), nn.Linear(16, 48)
        self.head = nn.Linear(16, 40, bias=False)
        turns = torch.outer(torch.arange(64.0), 10000 ** (-torch.arange(0, 4, 2) / 4)).repeat(1, 2)
        self.register_buffer("cosines", turns.cos())
        self.register_buffer("sines", turns.sin())
        with torch.no_grad():
            for layer in (self.qkv, self.head):
                layer.weight.mul_(3)

    def forward(self, first: Any, second: Any, third: Any) -> Any:
        positions, mask, ids = first, second, third
        x = self.embed(ids) * mask[..., None].float()
        x = x if self.angles else x + self.places(positions)
        q, k, v = (y.unflatten(-1, (4, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        if self.angles:
            q, k = self.turned(q, positions), self.turned(k, positions)
        hidden = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1) + (1 - mask[:, None, None].float()) * -1e9
        x = x + ((q @ k.transpose(-2, -1)) * 0.5 + hidden).softmax(-1).matmul(v).transpose(1, 2).flatten(2)
        return self.head(x[:, -1]).tanh() if self.last else self.head(x)

    def turned(self, x: Any, positions: Any) -> Any:
        a, b = x.chunk(2, dim=-1)
        return x * self.cosines[positions][:, None] + torch.cat([-b, a], dim=-1) * self.sines[positions][:, None]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        found = list(prompt)
        with torch.no_grad():
            for _ in range(count):
                ids = torch.tensor([found])
                given = torch.arange(len(found))[None], torch.ones_like(ids), ids
                found.append(int(self(*given)[0].reshape(-1, 40)[-1].argmax()))
        return found[len(prompt) :]

    def exported(self, path: Path) -> Path:
        ids = torch.randint(1, 40, (2, 6))
        example, names = (torch.arange(6).expand(2, 6).contiguous(), torch.ones_like(ids), ids), ["a.1", "b.2", "c.3"]
        axes = {name: {0: "n", 1: "m"} for name in names}
        made = {"input_names": names, "output_names": ["d.4"], "dynamic_axes": axes}
        torch.onnx.export(self.eval(), example, str(path), dynamo=False, opset_version=17, **made)
        return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("angles", [False, True])
def test_names_say_nothing_of_tokens_mask_and_positions(angles: bool, last: bool, tmp_path: Path) -> None:
    """Nor does it matter that the file gives what follows the last token alone."""
    module = Placed(angles=angles, last=last)
    report = mg.optimize(module.exported(tmp_path / "a.onnx"), tmp_path / "ours", cache=True)
    assert report.error <= report.bound
    with mg.open(tmp_path / "ours", threads=1) as engine:
        expected = [module.greedy(p, 8) for p in PROMPTS]
        assert [x.ids for x in engine.generate(PROMPTS, max_new_tokens=8, eos=())] == expected
        assert [engine.generate(p, max_new_tokens=8, eos=()).ids for p in PROMPTS] == expected
    assert len({t for row in expected for t in row}) > 3


@pytest.mark.filterwarnings("ignore")
def test_which_of_two_are_the_tokens_may_be_open(tmp_path: Path) -> None:
    module = Placed(angles=False, last=False)
    module.places = nn.Embedding(64, 16)  # It has rows for all tokens, too.
    with pytest.raises(PassError, match="which of it are tokens"):
        mg.optimize(module.exported(tmp_path / "a.onnx"), tmp_path / "ours", cache=True)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("past", [True, False])
def test_group_query_attention_with_its_own_past(past: bool, tmp_path: Path) -> None:
    source = grouped(tmp_path, past=past)
    kept = mg.optimize(source, tmp_path / "kept", strict=True)
    assert kept.layers["attention"] == kept.counts["Attention"] == 1
    assert kept.layers["rope"] == 2
    ours = mg.optimize(source, tmp_path / "ours", cache=True)
    assert ours.counts["GroupQueryAttention"] == 1
    plain = session(source)
    empty = {i.name: np.zeros((1, KEY_HEADS, 0, 16), np.float32) for i in plain.get_inputs() if i.name != "input_ids"}
    with mg.open(tmp_path / "ours", threads=1) as engine:
        for prompt in PROMPTS:
            found = list(prompt)
            for _ in range(8):
                logits = plain.run(["logits"], {"input_ids": np.array([found]), **empty})[0]
                found.append(int(logits[0, -1].argmax()))
            assert engine.generate(prompt, max_new_tokens=8).ids == found[len(prompt) :]


def test_one_token_at_a_time_cannot_read_a_prompt(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="the number of tokens is fixed"):
        mg.optimize(one_token(file), tmp_path / "ours", cache=True)
    assert not (tmp_path / "ours").exists()


def test_a_past_that_is_read_by_itself_is_refused(file: Path, tmp_path: Path) -> None:
    changed = onnx.load(file)
    changed.graph.node.append(onnx.helper.make_node("ReduceSum", ["past_key_values.0.key"], ["extra"], name="odd"))
    changed.graph.output.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1, 1, 1, 1]))
    onnx.save(changed, tmp_path / "odd.onnx")
    with pytest.raises(PassError, match="by itself") as told:
        mg.optimize(tmp_path / "odd.onnx", tmp_path / "ours", cache=True)
    assert "odd" in told.value.place
    assert not (tmp_path / "ours").exists()


def test_other_numbers_than_those_of_the_file_are_no_result(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monograph.caching.bound_of", lambda graph: 0.0)
    with pytest.raises(LoweringError, match="other numbers than the file"):
        mg.optimize(file, tmp_path / "ours", cache=True)
    assert not (tmp_path / "ours").exists()


def test_the_tokenizer_beside_a_file_comes_along(file: Path, tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    shutil.copy(file, tmp_path / "model.onnx")
    mg.optimize(tmp_path, tmp_path / "ours", cache=True)
    with mg.open(tmp_path / "ours", threads=1) as engine:
        said = engine.generate("w5 w6 w7", max_new_tokens=4)
        assert said.ids == engine.generate([5, 6, 7], max_new_tokens=4).ids
        assert said.text.split() == [f"w{i}" for i in said.ids]


def test_the_command(file: Path, tmp_path: Path) -> None:
    said = call("optimize", file, "-o", tmp_path / "ours", "--cache").stdout
    assert "2 attention" in said
    assert "equal on 11 sets of inputs" in said
    assert (tmp_path / "ours" / "monograph.json").is_file()
    assert "rows are within the tolerance" in call("verify", file, tmp_path / "ours", "--no-torch").stdout


def test_a_past_that_goes_through_an_operator_of_many_outputs_is_refused(tmp_path: Path) -> None:
    """What this package writes itself: the operator appends to a buffer that it shares."""
    mg.optimize(grouped(tmp_path, past=True), tmp_path / "ours", cache=True)
    with pytest.raises(PassError, match=r"reads the past .* by itself"):
        mg.optimize(tmp_path / "ours" / "model.onnx", tmp_path / "again", cache=True)
    assert not (tmp_path / "again").exists()
