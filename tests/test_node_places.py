"""Places of nodes of an ONNX file: their names, behind the paths of modules that an exporter wrote beside them."""

from __future__ import annotations

import pytest
from monograph.explaining import layer_of
from monograph.frontends.onnx.places import SCOPES, written_at
from onnx import helper

NESTED = "['', 'model', 'model.layers.3', 'model.layers.3.attn', 'softmax_1']"


@pytest.mark.parametrize(
    ("name", "scopes", "place", "layer"),
    [
        ("node_softmax_1", NESTED, "model.layers.3.attn/node_softmax_1", "model.layers.3"),
        ("node_add_108", "", "node_add_108", ""),
        ("node_add_108", "['', 'add_108']", "node_add_108", ""),
        ("node_x", "not a list", "node_x", ""),
        ("node_x", "[" * 100_000, "node_x", ""),
        ("/layers.0/Softmax", "", "/layers.0/Softmax", "layers.0"),
        ("/model/layers.3/S", "['', 'model.layers.3', 's']", "/model/layers.3/S", "model.layers.3"),
    ],
)  # fmt: skip
def test_a_node_stands_where_its_module_does(name: str, scopes: str, place: str, layer: str) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], name=name)
    if scopes:
        node.metadata_props.add(key=SCOPES, value=scopes)
    found = written_at(node, "model.onnx")
    assert found.scope == place
    assert layer_of(found) == layer
