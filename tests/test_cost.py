"""The cost model against counts done by hand."""

from __future__ import annotations

import pytest
from monograph.frontends.dsl import load_family
from monograph.ir import Dim, DType, Graph, ops, tensor
from monograph.ir.graph import Node

B, S, T = map(Dim.symbol, "BST")
f32 = DType.f32


def one(node: Node) -> tuple[object, object]:
    return node.op.cost(*node.operands, **node.attributes)


def test_linear_counts_two_flops_per_weight_and_row() -> None:
    g = Graph("g")
    y = ops.linear(g.input("x", tensor(f32, B, S, 64)), g.param("w", tensor(f32, 128, 64)))
    assert one(y.producer) == (2 * 64 * 128 * B * S, 4 * (B * S * 64 + 128 * 64 + B * S * 128))


def test_attention_is_dominated_by_its_two_products() -> None:
    g = Graph("g")
    q = g.input("q", tensor(f32, 2, 10, 8, 16))
    k, v = (g.input(n, tensor(f32, 2, 30, 4, 16)) for n in "kv")
    flops, moved = one(ops.attention(q, k, v).producer)
    products = 2 * (2 * 2 * 8 * 10 * 30 * 16)
    softmax_and_scale = 2 * 8 * 10 * 30 * 5 + 2 * 10 * 8 * 16
    assert flops == products + softmax_and_scale
    assert moved == 4 * (2 * 2 * 10 * 8 * 16 + 2 * 2 * 30 * 4 * 16), "keys and values are read once, not per head"


def test_rms_norm_moves_its_operands_once() -> None:
    g = Graph("g")
    y = ops.rms_norm(g.input("x", tensor(f32, 3, 5, 8)), g.param("w", tensor(f32, 8)))
    flops, moved = one(y.producer)
    assert moved == 4 * (120 + 8 + 120)
    assert flops == 120 + 120 + 15 + 15 + 120 + 120, "square, mean, + eps, rsqrt, two products"


@pytest.mark.parametrize("layers", [1, 3])
def test_a_decoder_costs_about_two_flops_per_parameter_and_token(layers: int) -> None:
    model = load_family("llama")(vocab=1000, dim=256, ffn=512, layers=layers, heads=8, kv_heads=2)
    graph = model.graph()
    total = sum(one(n)[0] for n in graph)
    at = total.substitute({"B": 1, "S": 1})
    weights = sum(v.type.elements for k, v in graph.params.items() if "embed_tokens" not in k)
    assert 1.0 < at / (2 * weights) < 1.05
