"""Quality of built folders, and budgets, on a tiny model that has learned its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from command_line import call
from monograph.backends.onnxruntime import open as open_session
from monograph.data.byte_level import train_tokenizer
from monograph.fidelity import Quality
from monograph.frontends.dsl import Model, load_family
from monograph.ir.errors import ConfigError
from monograph.ir.manifest import check
from monograph.samples import Reader

TEXT = mg.python_topics()[:40_000]
HELD = mg.python_topics()[60_000:80_000]
FEW: dict[str, Any] = {"tokens": 600, "window": 64, "prompts": 3, "new": 8}


@pytest.fixture(scope="module")
def model() -> Model:
    """A llama of 64 channels after 120 steps, with one channel that is larger than the others."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXT, 300)
    sizes = {"dim": 64, "ffn": 128, "layers": 2, "heads": 4, "kv_heads": 2, "max_positions": 128}
    made = mg.init(load_family("llama")(vocab=tokenizer.size, **sizes))
    made.tokenizer = tokenizer
    module = mg.to_torch(made)
    ids = torch.tensor(tokenizer.encode(TEXT, add_special=False))
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    for _ in range(120):
        rows = ids[torch.randint(len(ids) - 65, (16, 1)) + torch.arange(65)]
        given = {"input_ids": rows[:, :-1], "attention_mask": torch.ones(16, 64, dtype=torch.int64),
                 "position_ids": torch.arange(64).expand(16, -1)}  # fmt: skip
        logits = module(**given)["logits"]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.weights = mg.Weights.of({k: v.detach().numpy() for k, v in module.named_parameters()})
    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "topics.txt"
    file.write_text(HELD)
    return file


def by_torch(model: Model, rows: list[list[int]]) -> list[Any]:
    module = mg.to_torch(model).eval()
    with torch.no_grad():
        return [
            module(
                input_ids=torch.tensor([row]),
                attention_mask=torch.ones(1, len(row), dtype=torch.int64),
                position_ids=torch.arange(len(row))[None],
            )["logits"][0]
            for row in rows
        ]


def test_perplexity_is_that_of_torch(model: Model, text: Path, tmp_path: Path) -> None:
    mg.build(model, tmp_path / "wide")
    found = mg.quality(tmp_path / "wide", text, against=model, **FEW)
    rows = Reader.of_model(model).first(text, 600, 64)
    wide = by_torch(model, rows)
    losses = [torch.nn.functional.cross_entropy(y[:-1], torch.tensor(row[1:]), reduction="sum")
              for y, row in zip(wide, rows, strict=True)]  # fmt: skip
    expected = float(torch.exp(sum(losses) / sum(len(row) - 1 for row in rows)))  # type: ignore[arg-type]
    assert found.before == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(expected, rel=1e-4)
    assert (found.agreement, found.greedy) == (1.0, 1.0)
    assert found.divergence == pytest.approx(0, abs=1e-6)
    assert (found.tokens, found.window, found.prompts, found.new, found.text) == (600, 64, 3, 8, "topics.txt")
    alone = mg.quality(tmp_path / "wide", text, **FEW)
    assert alone.perplexity == pytest.approx(found.perplexity)
    assert (alone.before, alone.rise, alone.agreement, alone.greedy) == (None,) * 4


def test_divergence_and_agreement_are_those_of_torch(model: Model, text: Path, tmp_path: Path) -> None:
    mg.build(model, tmp_path / "q", quantize=mg.Quantization("int4", "rtn"))
    found = mg.quality(tmp_path / "q", text, against=model, **FEW)
    rows = Reader.of_model(model).first(text, 600, 64)
    wide = torch.cat([torch.log_softmax(y.double(), -1) for y in by_torch(model, rows)])
    session = open_session(tmp_path / "q")
    given = [torch.from_numpy(session.run({"input_ids": np.array([row])})["logits"][0]) for row in rows]
    narrow = torch.cat([torch.log_softmax(y.double(), -1) for y in given])
    divergence = torch.nn.functional.kl_div(narrow, wide, reduction="batchmean", log_target=True)
    assert found.divergence == pytest.approx(float(divergence), rel=1e-3)
    assert found.agreement == pytest.approx(float((wide.argmax(-1) == narrow.argmax(-1)).double().mean()))
    assert found.bytes < 0.4 * found.bytes_before


@pytest.fixture(scope="module")
def built(model: Model, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model by each method, calibrated on the text that it was trained on."""
    asked = {
        "rtn": mg.Quantization("int4", "rtn", symmetric=True),
        "gptq": mg.Quantization("int4", "gptq", symmetric=True, calibrate=TEXT),
        "awq": mg.Quantization("int4", "awq", symmetric=True, calibrate=TEXT),
        "smoothquant": mg.Quantization("int8-dynamic", "smoothquant", calibrate=TEXT),
    }
    place = tmp_path_factory.mktemp("built")
    for name, quantization in asked.items():
        mg.build(model, place / name, quantize=quantization)
    return {name: place / name for name in asked}


def test_methods_that_read_text_are_better(model: Model, text: Path, built: dict[str, Path]) -> None:
    found = {
        k: mg.quality(folder, text, against=model, tokens=2000, window=64, prompts=1) for k, folder in built.items()
    }
    divergence = {k: q.divergence or 0 for k, q in found.items()}
    assert divergence["gptq"] < 0.8 * divergence["rtn"], divergence
    assert divergence["awq"] < 0.95 * divergence["rtn"], divergence
    assert divergence["smoothquant"] < 0.02, divergence


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant"])
def test_the_folder_says_its_quality(built: dict[str, Path], method: str) -> None:
    said = json.loads((built[method] / "quality.json").read_text())
    assert said["perplexity"] > said["before"] * 0.9
    assert said["tokens"] == 4000
    assert {"rise", "agreement", "divergence", "greedy", "bytes"} <= said.keys()
    check(built[method], every_byte=True)
    assert "quality.json" in json.loads((built[method] / "checksums.json").read_text())["files"]
    assert not (built["rtn"] / "quality.json").exists()


def test_a_folder_is_built_again(model: Model, tmp_path: Path) -> None:
    """What was measured goes with the build that it was measured on."""
    text = HELD[:3000]
    for symmetric in (True, False):
        asked = mg.Quantization("int4", "rtn", symmetric=symmetric, calibrate=text)
        mg.build(model, tmp_path / "q", quantize=asked)
        assert (tmp_path / "q" / "quality.json").exists()
    mg.build(model, tmp_path / "q", quantize="int4")
    assert not (tmp_path / "q" / "quality.json").exists()


def test_size_budget(model: Model, tmp_path: Path) -> None:
    """Between all narrow and all wide: as large as allowed, more bits where more is lost."""
    ends = {}
    for form in ("int4", "int8"):
        report = mg.build(model, tmp_path / form, quantize=mg.Quantization(form, "rtn")).report
        assert report is not None and report.quantization is not None
        ends[form] = report.quantization.after
    budget = (ends["int4"] + ends["int8"]) // 2
    report = mg.build(model, tmp_path / "mixed", quantize=mg.Quantization("int4", "rtn", size=budget)).report
    assert report is not None and report.quantization is not None
    mixed = report.quantization
    assert 0.9 * budget < mixed.after <= budget
    told = [x for x in mixed.layers if "more bits" in x.why]
    assert told and all("int8" in x.encoding and "off by" in x.why for x in told)
    together = {x.name.rpartition("self_attn.")[0]: set[str]() for x in mixed.layers if "self_attn" in x.name}
    for x in mixed.layers:
        if any(f"self_attn.{p}_proj" in x.name for p in "qkv"):
            together[x.name.rpartition("self_attn.")[0]].add(x.encoding)
    assert all(len(kinds) == 1 for kinds in together.values())
    with pytest.raises(ConfigError, match=r"size is 10\.0 kB, but with every weight in int4"):
        mg.build(model, tmp_path / "none", quantize=mg.Quantization("int4", "rtn", size=10_000))


@pytest.mark.parametrize("quality", [0.03])
def test_quality_budget(model: Model, text: Path, tmp_path: Path, quality: float) -> None:
    asked = mg.Quantization("int4", "rtn", quality=quality, calibrate=text)
    report = mg.build(model, tmp_path / "q", quantize=asked).report
    assert report is not None and report.quantization is not None
    found = mg.quality(tmp_path / "q", text, against=model, tokens=2000)
    assert found.rise is not None and found.rise <= quality + 2e-3
    assert any("int4" in x.encoding for x in report.quantization.layers)


def test_budgets_that_exclude_each_other(model: Model, text: Path, tmp_path: Path) -> None:
    report = mg.build(model, tmp_path / "small", quantize=mg.Quantization("int2", "rtn")).report
    assert report is not None and report.quantization is not None
    asked = mg.Quantization("int2", "rtn", quality=0.001, size=report.quantization.after + 500, calibrate=text)
    with pytest.raises(ConfigError, match=r"quality is 0\.10%, but perplexity rises by [\d.]+% with .* all that size"):
        mg.build(model, tmp_path / "none", quantize=asked)


def test_command(model: Model, text: Path, built: dict[str, Path]) -> None:
    result = call("quality", built["gptq"], "--text", text, "--tokens", 300, "--window", 64, "--json")
    said = json.loads(result.stdout)
    assert said["tokens"] == 300 and said["perplexity"] > 1 and said["before"] is None
    shown = call("quality", built["gptq"], "--text", text, "--tokens", 300).stdout
    assert "perplexity" in shown and "topics.txt" in shown


def test_errors(model: Model, text: Path, built: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no text to read"):
        mg.quality(built["rtn"], "  \n ")
    with pytest.raises(ConfigError, match="window is 3, expected at least 8"):
        mg.quality(built["rtn"], text, window=3)
    with pytest.raises(ConfigError, match="needs text: calibrate is None"):
        mg.Quantization("int4", quality=0.01)


def test_table() -> None:
    shown = str(Quality("a.txt", 100, 64, 12.0, 10.0, 0.9, 0.01, 0.8, 2, 8, bytes=1000, bytes_before=4000))
    assert "12.000, before 10.000 (+20.00 %)" in shown
    assert "90.00 %" in shown
