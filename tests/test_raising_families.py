"""Every family, taken apart into primitives, comes back with as many layers, and the same numbers."""

from __future__ import annotations

import pytest
from monograph.ir import Graph, verify
from monograph.ir.ops.attention import Attention
from monograph.passes import pipelines
from monograph.passes.decompose import decompose
from monograph.passes.differential import difference
from monograph.passes.raising import raise_graph
from small_models import FAMILIES, small

LAYERS = ("attention", "rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "rope", "gelu", "silu", "embedding")


def layers(graph: Graph) -> dict[str, int]:
    counts = graph.counts()
    return {name: counts[name] for name in LAYERS if name in counts}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    graph = small(family).graph()
    flat = graph.copy()
    decompose(flat)
    before = flat.copy()
    report = raise_graph(flat)
    verify(flat)
    wanted = layers(pipelines.encode(graph))
    found = layers(flat)
    if family == "mamba2":  # Its norms behind a gate are written out in the model.
        assert found.pop("rms_norm") == 3 and wanted.pop("rms_norm") == 1
    assert found == wanted, str(report)
    assert not report.undone
    assert sum(1 for node in flat if node.op.name == "softmax") == len(report.left)
    assert difference(before, flat) is None
    _check_structure(graph, flat)


def _check_structure(graph: Graph, raised: Graph) -> None:
    """Masks came back as the structure that they were written in."""
    wanted, found = ([n for n in g if isinstance(n.op, Attention)] for g in (pipelines.encode(graph), raised))
    for a, b in zip(wanted, found, strict=True):
        for key in ("causal", "window"):
            assert a.attributes[key] == b.attributes[key]
        assert b.attributes["scale"] == pytest.approx(a.attributes["scale"])
        assert b.attributes["softcap"] == pytest.approx(a.attributes["softcap"])
        for name in ("mask", "bias", "lengths", "sinks"):
            assert (a[name] is None) == (b[name] is None), name
        assert a.value("k").shape == b.value("k").shape
