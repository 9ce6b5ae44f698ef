"""Recurrent models against torch.nn and ONNX Runtime: same names, same numbers, same gradients, any mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from monograph.backends.onnx import export, lower
from monograph.backends.torch import to_inputs, to_torch
from monograph.frontends.dsl import Model, load_family
from monograph.ir import DType, Graph, interpret, ops, tensor
from monograph.ir.interpret import Array
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.differential import attention_mask, random_params
from monograph.training.loss import with_loss
from torch import nn

pytestmark = pytest.mark.slow

LAYERS = {"rnn_lm": nn.RNN, "lstm_lm": nn.LSTM, "gru_lm": nn.GRU}
MASKS = ["all-ones", "right-padded", "left-padded", "holed"]
VOCAB, DIM = 20, 8


class LanguageModel(nn.Module):
    """The plain PyTorch module that the models say they are; it knows no masks."""

    def __init__(self, layer: type[nn.Module], tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, DIM)
        self.rnn = layer(DIM, DIM, num_layers=2, batch_first=True)
        self.lm_head = nn.Linear(DIM, VOCAB, bias=not tied)
        if tied:
            self.lm_head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.rnn(self.embedding(ids))[0])


def pair(family: str, tied: bool, dtype: DType) -> tuple[nn.Module, nn.Module]:
    """(our module with a loss, PyTorch's with the same weights)."""
    torch.manual_seed(0)
    theirs = LanguageModel(LAYERS[family], tied).to(torch.float64 if dtype == DType.f64 else torch.float32)
    model = load_family(family)(vocab=VOCAB, dim=DIM, layers=2, tied=tied)
    weights = {k: p.detach().numpy() for k, p in theirs.named_parameters()}
    graph = with_loss(pipelines.train(model.graph(dtype)), keep_logits=True)
    return to_torch(graph, Weights.of(weights)), theirs


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(DType.f32, 1e-5), (DType.f64, 1e-10)], ids=str)
@pytest.mark.parametrize("family", LAYERS)
def test_same_logits_loss_and_gradients_as_torch(family: str, dtype: DType, tolerance: float, tied: bool) -> None:
    ours, theirs = pair(family, tied, dtype)
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    ids = torch.randint(VOCAB, (3, 12))
    got = ours(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids.roll(-1, 1))
    logits = theirs(ids)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten())
    assert (got["logits"] - logits).abs().max() <= tolerance * logits.abs().max()
    assert abs(got["loss"] - loss) <= tolerance * loss
    got["loss"].backward()
    loss.backward()
    wanted = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        error = (p.grad - wanted[name].grad).abs().max() / wanted[name].grad.abs().max()
        assert error <= (1e-9 if dtype == DType.f64 else 1e-5), name


@pytest.mark.parametrize("kind", MASKS[1:])
@pytest.mark.parametrize("family", LAYERS)
def test_hidden_tokens_change_no_logit_and_no_gradient(family: str, kind: str) -> None:
    """A padded batch against each row alone in PyTorch's own module, gradients added up."""
    ours, theirs = pair(family, False, DType.f64)
    rng = np.random.default_rng(1)
    ids, mask = rng.integers(0, VOCAB, (3, 7)), attention_mask(kind, 3, 7)
    assert mask.min() == 0
    wanted = rng.integers(0, VOCAB, (3, 7))
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask == 1, wanted, -100)}
    got = ours(**to_inputs(inputs))
    got["loss"].backward()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        kept = torch.from_numpy(mask[row] == 1)
        alone = theirs(torch.from_numpy(ids[row])[kept][None])[0]
        assert (got["logits"][row, kept] - alone).abs().max() < 1e-10
        total = total + nn.functional.cross_entropy(alone, torch.from_numpy(wanted[row])[kept], reduction="sum")
    (total / int(mask.sum())).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-10 * q.grad.abs().max(), name


def one_layer(kind: str, length: int, dtype: DType = DType.f32) -> Graph:
    """One op with states and lengths, all of them inputs; `length` steps."""
    graph, gates = Graph(kind), {"rnn": 1, "lstm": 4, "gru": 3}[kind]
    x = graph.input("x", tensor(dtype, 3, length, 4))
    weights = [graph.param(f"w{i}", tensor(dtype, gates * 6, *s)) for i, s in enumerate(((4,), (6,), (), ()))]
    states = [graph.input(n, tensor(dtype, 3, 6)) for n in ("h", "c")[: 1 + (kind == "lstm")]]
    outputs = getattr(ops, kind)(x, *weights, *states, graph.input("lengths", tensor(DType.i32, 3)))
    for name, v in zip(("y", "last_h", "last_c"), outputs, strict=False):
        graph.output(name, v)
    return graph


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_right_padding_leaves_the_last_state_bit_for_bit(kind: str, backend: str) -> None:
    """Ten more steps of anything change no bit of y, h and c; f32, in which gates could leak."""
    rng = np.random.default_rng(2)
    short, long = one_layer(kind, 5), one_layer(kind, 15)
    params = random_params(short)
    inputs = {
        k: rng.standard_normal(tuple(v.shape)).astype(np.float32) for k, v in short.inputs.items() if k != "lengths"
    }
    inputs["lengths"] = np.array([5, 3, 1], np.int32)
    padded = inputs | {"x": np.concatenate([inputs["x"], 50 * rng.standard_normal((3, 10, 4))], 1, dtype=np.float32)}
    first, second = run(short, inputs, params, backend), run(long, padded, params, backend)
    reference = interpret(short, inputs, params)
    for name in first:
        same = second[name][:, :5] if name == "y" else second[name]
        assert np.array_equal(first[name], same), name
        np.testing.assert_allclose(first[name], reference[name], atol=1e-5)
    assert not second["y"][:, 5:].any()


def run(graph: Graph, inputs: dict[str, Array], params: dict[str, Array], backend: str) -> dict[str, Array]:
    if backend == "torch":
        with torch.no_grad():
            return {k: v.numpy() for k, v in to_torch(graph, Weights.of(params))(**to_inputs(inputs)).items()}
    return run_onnx(onnx_bytes(graph, Weights.of(params)), inputs)


def onnx_bytes(graph: Graph, weights: Weights) -> bytes:
    import onnx_ir

    proto = onnx_ir.to_proto(lower(graph, weights))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def run_onnx(model: bytes | str, inputs: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_padding_gets_no_gradient() -> None:
    graph = one_layer("lstm", 6, DType.f64)
    rng = np.random.default_rng(5)
    inputs = {k: rng.standard_normal(tuple(v.shape)) for k, v in graph.inputs.items() if k != "lengths"}
    tensors = to_inputs(inputs | {"lengths": np.array([6, 2, 0], np.int32)})
    for k in inputs:
        tensors[k].requires_grad_()
    out = to_torch(graph, Weights.of(random_params(graph)))(**tensors)
    (out["last_h"].sum() + 2 * out["last_c"].sum() + out["y"].sum()).backward()
    reached = tensors["x"].grad.abs().sum(2) > 0
    assert reached.tolist() == [[True] * 6, [True] * 2 + [False] * 4, [False] * 6]
    assert tensors["h"].grad[2].tolist() == [1.0] * 6 and tensors["c"].grad[2].tolist() == [2.0] * 6


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("family", LAYERS)
def test_exported_model_decodes_step_by_step_in_onnx_runtime(family: str, kind: str, tmp_path: Path) -> None:
    model: Model = load_family(family)(vocab=VOCAB, dim=DIM, layers=2)
    plain, decode = model.graph(), pipelines.decode(model.graph())
    weights = Weights.of(random_params(plain))
    export(decode, weights, tmp_path / "model.onnx")
    ids, mask = np.random.default_rng(6).integers(0, VOCAB, (3, 7)), attention_mask(kind, 3, 7)
    full = interpret(plain, {"input_ids": ids, "attention_mask": mask}, lambda name: weights.numpy(name))["logits"]
    past = {k: np.zeros((3, DIM), np.float32) for k in decode.inputs if k.startswith("past_")}
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        step = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]} | past
        out = run_onnx(str(tmp_path / "model.onnx"), step)
        valid = mask[:, start:stop] == 1
        np.testing.assert_allclose(out["logits"][valid], full[:, start:stop][valid], atol=1e-5)
        past = {k.replace("present", "past"): v for k, v in out.items() if k != "logits"}


@pytest.mark.parametrize(("family", "op_type"), [("rnn_lm", "RNN"), ("lstm_lm", "LSTM"), ("gru_lm", "GRU")])
def test_gates_are_reordered_before_the_model_is_written(family: str, op_type: str) -> None:
    graph = pipelines.decode(load_family(family)(vocab=VOCAB, dim=DIM, layers=2).graph())
    proto = onnx.load_from_string(onnx_bytes(graph, Weights.initialize(graph)))
    stored = {t.name: list(t.dims) for t in proto.graph.initializer}
    nodes = [n for n in proto.graph.node if n.op_type == op_type]
    rows = {"RNN": 1, "LSTM": 4, "GRU": 3}[op_type] * DIM
    assert len(nodes) == 2
    for n in nodes:
        assert [stored[name] for name in n.input[1:4]] == [[1, rows, DIM], [1, rows, DIM], [1, 2 * rows]]


def test_compiles_without_graph_breaks() -> None:
    ours, _ = pair("gru_lm", True, DType.f32)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    inputs = {"input_ids": torch.randint(VOCAB, (2, 3)), "attention_mask": mask, "labels": torch.ones_like(mask)}
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    plain, fast = ours(**inputs)["loss"], compiled(**inputs)["loss"]
    assert abs(plain - fast) < 1e-6
    plain.backward()
    wanted = {k: p.grad.clone() for k, p in ours.named_parameters()}
    ours.zero_grad()
    fast.backward()
    for k, p in ours.named_parameters():
        assert (p.grad - wanted[k]).abs().max() < 1e-6, k


@pytest.mark.parametrize("family", LAYERS)
def test_autocast_keeps_the_loss_and_the_direction_of_the_gradient(family: str) -> None:
    ours, _ = pair(family, True, DType.f32)
    mask = torch.from_numpy(attention_mask("left-padded", 3, 7))
    inputs = {"input_ids": torch.randint(VOCAB, (3, 7)), "attention_mask": mask, "labels": torch.ones_like(mask)}
    found = []
    for narrow in (False, True):
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = ours(**inputs)["loss"]
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in ours.parameters()])))
    (wide, g), (narrow, h) = found
    assert narrow == pytest.approx(wide, rel=0.02) and torch.cosine_similarity(g, h, 0) > 0.99


class Luong(nn.Module):
    """The encoder-decoder of Luong et al. 2015 in plain PyTorch, one sentence pair at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, DIM)
        self.encoder = nn.LSTM(DIM, DIM, num_layers=2, batch_first=True)
        self.decoder = nn.LSTM(DIM, DIM, num_layers=2, batch_first=True)
        self.attention = nn.Linear(DIM, DIM, bias=False)
        self.combine = nn.Linear(2 * DIM, DIM, bias=False)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, state = self.encoder(self.embedding(source)[None])
        h, _ = self.decoder(self.embedding(target)[None], state)
        weights = torch.softmax(h[0] @ self.attention(memory[0]).T, -1)
        return torch.tanh(self.combine(torch.cat([weights @ memory[0], h[0]], -1))) @ self.embedding.weight.T


@pytest.mark.parametrize("kind", MASKS)
def test_encoder_decoder_equals_luong_in_torch_row_by_row(kind: str) -> None:
    torch.manual_seed(0)
    theirs = Luong().double()
    graph = load_family("lstm_seq2seq")(vocab=VOCAB, dim=DIM).graph(DType.f64)
    weights = {k: p.detach().numpy() for k, p in theirs.named_parameters()}
    assert set(weights) == set(graph.params)
    rng, mask = np.random.default_rng(7), attention_mask(kind, 3, 7)
    ids = {k: rng.integers(0, VOCAB, (3, 7)) for k in ("input_ids", "decoder_input_ids")}
    masks = {"attention_mask": mask, "decoder_attention_mask": mask[::-1].copy()}
    got = to_torch(pipelines.train(graph), Weights.of(weights))(**to_inputs(ids | masks))["logits"].detach().numpy()
    for row in range(3):
        kept = [m[row] == 1 for m in masks.values()]
        pair_of = [torch.from_numpy(v[row, k]) for v, k in zip(ids.values(), kept, strict=True)]
        np.testing.assert_allclose(got[row, kept[1]], theirs(*pair_of).detach().numpy(), rtol=0, atol=1e-10)


def test_encoder_decoder_in_onnx_runtime() -> None:
    graph = load_family("lstm_seq2seq")(vocab=VOCAB, dim=DIM).graph()
    params, mask = random_params(graph), attention_mask("left-padded", 3, 7)
    inputs = {k: np.random.default_rng(8).integers(0, VOCAB, (3, 7)) for k in graph.inputs if k.endswith("ids")}
    inputs |= {k: mask for k in graph.inputs if k.endswith("mask")}
    got = run_onnx(onnx_bytes(pipelines.encode(graph), Weights.of(params)), inputs)["logits"]
    wanted = interpret(graph, inputs, params)["logits"]
    np.testing.assert_allclose(got[mask == 1], wanted[mask == 1], atol=1e-5)


def test_encoder_decoder_learns_to_turn_sequences_around() -> None:
    """Sources of 3 to 6 tokens in one padded batch, targets backwards: wrong masks or states would not get there."""
    torch.manual_seed(0)
    rng = np.random.default_rng(9)
    graph = with_loss(
        pipelines.train(load_family("lstm_seq2seq")(vocab=12, dim=32, layers=1).graph()), keep_logits=True
    )
    module = to_torch(graph)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(250):
        batch = reversal(rng, 32)
        optimizer.zero_grad()
        module(**to_inputs(batch))["loss"].backward()
        optimizer.step()
    test = reversal(rng, 200)
    with torch.no_grad():
        best = module(**to_inputs(test))["logits"].argmax(-1).numpy()
    counted = test["labels"] >= 0
    assert (best == test["labels"])[counted].mean() > 0.97


def reversal(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    """Random sources, left-padded, and their reversals with a start token 1 before; 0 pads."""
    lengths = rng.integers(3, 7, rows)
    ids = {k: np.zeros((rows, 6), np.int64) for k in ("input_ids", "decoder_input_ids")}
    labels = np.full((rows, 6), -100)
    for i, n in enumerate(lengths):
        source = rng.integers(2, 12, n)
        ids["input_ids"][i, 6 - n :] = source
        labels[i, :n] = source[::-1]
        ids["decoder_input_ids"][i, :n] = [1, *source[:0:-1]]
    masks = {"attention_mask": ids["input_ids"] > 0, "decoder_attention_mask": ids["decoder_input_ids"] > 0}
    return {**ids, **{k: v.astype(np.int64) for k, v in masks.items()}, "labels": labels}
