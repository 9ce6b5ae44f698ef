"""A small twin of a model shows what the passes of its build change; a pass that changes nothing gives no alarm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import monograph as mg
import pytest
from monograph.backends.onnxruntime import variants
from monograph.backends.onnxruntime.choices import chosen
from monograph.backends.target import Target
from monograph.frontends.dsl import Model, load_family
from monograph.ir.errors import PassError
from monograph.ir.graph import Graph
from monograph.passes.manager import FunctionPass, Pipeline
from monograph.twins import TwinCheck, check_passes, twin_of
from small_models import FAMILIES, small

CPU = chosen(Target.of("cpu"), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_twin_that_its_passes_keep(family: str) -> None:
    found = check_passes(small(family), CPU)
    assert not found.refused
    assert found.cases >= 1
    assert found.graphs


def llama(**settings: Any) -> Model:
    sizes = {"vocab": 32000, "dim": 4096, "ffn": 11008, "layers": 32, "heads": 32, "kv_heads": 8}
    return load_family("llama")(**{**sizes, **settings})


def test_a_twin_keeps_what_decides_and_nothing_of_the_size() -> None:
    said, graph = _twin(llama())
    assert said == "a twin (layers 2, vocab 64, ffn 64, heads 4, dim 512, kv_heads 1)"
    assert str(graph.params["model.layers.1.self_attn.k_proj.weight"].type) == "f32[128,512]"
    assert str(graph.params["lm_head.weight"].type) == "f32[64,512]"
    assert "model.layers.2.self_attn.k_proj.weight" not in graph.params


def test_a_twin_has_every_kind_of_layer() -> None:
    kinds = ("conv", "conv", "conv", "full_attention", "conv", "conv")
    model = small("lfm2")
    config: Any = dataclasses.replace(model.config, layers=6, layer_types=kinds)  # type: ignore[type-var]
    said, graph = _twin(dataclasses.replace(model, config=config))
    assert said.startswith("a twin (layers 4,")
    assert any("layers.3.self_attn" in name for name in graph.params)


def _twin(model: Model) -> tuple[str, Graph]:
    found = twin_of(model)
    assert not isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("settings", "attribute", "factor"),
    [({}, "eps", 1.01), ({}, "scale", 1.01), ({"window": 4096}, "window", 2)],
)
def test_a_pass_that_changes_a_number_is_caught(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], attribute: str, factor: float
) -> None:
    def wrong(graph: Graph) -> int:
        node = next(n for n in graph if n.attributes.get(attribute) is not None)
        new = {**node.attributes, attribute: type(node.attributes[attribute])(node.attributes[attribute] * factor)}
        with graph.at(node):
            made = graph.add(node.op, list(node.operands), new)
        for old, value in zip(node.outputs, made, strict=True):
            graph.replace(old, value)
        graph.erase(node)
        return 1

    own = variants.common
    monkeypatch.setattr(
        variants, "common",
        lambda *given: Pipeline("ort_common", [FunctionPass("wrong", wrong), *own(*given).passes]),
    )  # fmt: skip
    name = "mistral" if settings else "llama"
    model = load_family(name)(vocab=99, dim=64, ffn=96, layers=4, heads=8, kv_heads=2, **settings)
    with pytest.raises(PassError, match=rf"{name}: the passes of the build change what a twin of the model computes"):
        check_passes(model, CPU)


def test_a_model_that_is_a_graph_has_no_twin() -> None:
    graph = llama(dim=16, heads=2, kv_heads=1, layers=1, vocab=9, ffn=8).graph()
    model = Model(mg.frontends.dsl.Program("own", small("llama").task, graph))
    assert check_passes(model, CPU) == TwinCheck(refused="it is a graph without a config that could be made smaller")


def test_a_build_says_what_was_compared(tmp_path: Path) -> None:
    model = mg.init(small("llama"), 0)
    with mg.build(model, tmp_path / "a") as engine:
        assert engine.report is not None
        assert "model.onnx of a twin (layers 2," in engine.report.compared
        assert engine.report.compared.endswith("the same in f64")
    with mg.build(model, tmp_path / "b", twin=False) as engine:
        assert engine.report is not None
        assert engine.report.compared == ""
