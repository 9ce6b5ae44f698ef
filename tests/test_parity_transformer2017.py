"""The transformer of 2017 against torch.nn.Transformer with the same weights."""

import math

import numpy as np
import pytest
import torch
from monograph.backends.torch import to_torch
from monograph.frontends.dsl import load_family
from monograph.ir import Init, interpret
from monograph.ir.types import DType
from monograph.ir.weights import Weights

pytestmark = pytest.mark.slow

VOCAB, DIM, HEADS, FFN, LAYERS = 37, 16, 2, 24, 2
SOURCE = {
    "all-ones": np.ones((3, 6), np.int64),
    "right-padded": np.array([[1] * n + [0] * (6 - n) for n in (6, 3, 1)]),
    "left-padded": np.array([[0] * (6 - n) + [1] * n for n in (6, 3, 1)]),
    "holed": np.array([[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]]),
}
TARGET = {k: np.roll(v[:, :5], 1, axis=0) for k, v in SOURCE.items()} | {
    "right-padded": np.array([[1] * n + [0] * (5 - n) for n in (2, 5, 1)]),
    "left-padded": np.array([[0] * (5 - n) + [1] * n for n in (2, 5, 1)]),
}


def copy_from_torch(theirs, graph):
    """Our weights by name from theirs: names are equal but for the packed q, k, v of torch's attention."""
    state = {k: v.detach() for k, v in theirs.state_dict().items()}
    found = {}
    for path in graph.params:
        if path == "embedding.weight":
            continue
        owner, part, suffix = ([*path.rsplit(".", 2), ""])[:3]
        if part in ("q_proj", "k_proj", "v_proj"):
            packed = state[f"{owner}.in_proj_{suffix}"]
            found[path] = packed.chunk(3)[("q_proj", "k_proj", "v_proj").index(part)].numpy()
        else:
            found[path] = state[path].numpy()
    return found


def sinusoids(positions):
    table = np.zeros((*positions.shape, DIM))
    for i in range(0, DIM, 2):
        angle = positions / 10000.0 ** (i / DIM)
        table[..., i], table[..., i + 1] = np.sin(angle), np.cos(angle)
    return torch.from_numpy(table)


def torch_transformer(dtype):
    torch.manual_seed(0)
    shape = {"d_model": DIM, "nhead": HEADS, "dim_feedforward": FFN, "dropout": 0.0, "batch_first": True}
    theirs = torch.nn.Transformer(
        custom_encoder=torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(**shape), LAYERS, enable_nested_tensor=False
        ),
        custom_decoder=torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(**shape), LAYERS),
        **shape,
    )
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    return theirs.to(dtype).eval()


def positions_of(mask):
    return np.maximum(mask.cumsum(-1) - 1, 0)


@pytest.mark.parametrize("mask", SOURCE)
@pytest.mark.parametrize("dtype", [DType.f32, DType.f64])
def test_equals_torch_nn_transformer(mask, dtype):
    exact = torch.float64 if dtype == DType.f64 else torch.float32
    theirs = torch_transformer(exact)
    ours = load_family("transformer2017")(
        vocab=VOCAB, dim=DIM, heads=HEADS, ffn=FFN, layers=LAYERS, decoder_layers=LAYERS, dropout=0.1
    )
    graph = ours.graph(dtype)
    table = np.random.default_rng(0).normal(size=(VOCAB, DIM)).astype(dtype.numpy)
    weights = Weights.of({"embedding.weight": table, **copy_from_torch(theirs, graph)})
    weights.check(graph)
    source, target, rng = SOURCE[mask], TARGET[mask], np.random.default_rng(1)
    inputs = {
        "input_ids": rng.integers(0, VOCAB, source.shape),
        "attention_mask": source,
        "position_ids": positions_of(source),
        "decoder_input_ids": rng.integers(0, VOCAB, target.shape),
        "decoder_attention_mask": target,
        "decoder_position_ids": positions_of(target),
    }

    def embed(ids, positions):
        return torch.from_numpy(table[inputs[ids]]) * math.sqrt(DIM) + sinusoids(inputs[positions]).to(exact)

    def hidden(keep):
        # Finite, so that a row without any key gives no NaN that would spread to the rows that are compared.
        return torch.where(torch.from_numpy(keep).bool(), 0.0, -1e30).to(exact)

    with torch.no_grad():
        y = theirs(
            embed("input_ids", "position_ids"),
            embed("decoder_input_ids", "decoder_position_ids"),
            tgt_mask=hidden(np.tril(np.ones((5, 5)))),
            src_key_padding_mask=hidden(source),
            memory_key_padding_mask=hidden(source),
            tgt_key_padding_mask=hidden(target),
        )
        expected = (y @ torch.from_numpy(table).T).numpy()[target == 1]
    tolerance = 1e-10 if dtype == DType.f64 else 1e-5
    found = interpret(graph, inputs, weights.numpy)["logits"][target == 1]
    # Logits are sums of 16 products of normal numbers, about 4 in size: compare by their scale.
    np.testing.assert_allclose(found, expected, atol=tolerance * abs(expected).max())
    module = to_torch(graph, weights).eval()
    with torch.no_grad():
        trained = module(**{k: torch.from_numpy(v) for k, v in inputs.items()})["logits"].numpy()[target == 1]
    np.testing.assert_allclose(trained, expected, atol=tolerance * abs(expected).max())


def test_it_starts_as_the_paper_says():
    graph = load_family("transformer2017")(vocab=VOCAB, dim=DIM, heads=HEADS, ffn=FFN).graph()
    assert graph.params["embedding.weight"].init == Init("normal", DIM**-0.5)
    assert [k for k in graph.params if "embedding" in k or "lm_head" in k] == ["embedding.weight"]
    untied = load_family("transformer2017")(vocab=VOCAB, dim=DIM, heads=HEADS, ffn=FFN, tied=False).graph()
    assert "lm_head.weight" in untied.params
    assert graph.counts()["dropout"] == 2 + 6 * 3 + 6 * 4
