"""Recomputation: the plan is the smallest cut, holds what it says it holds, and changes no number."""

from __future__ import annotations

import contextlib
import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monograph.backends.torch import compiled, to_torch
from monograph.backends.torch.held import Held, held_bytes
from monograph.backends.torch.lower import prepare
from monograph.frontends.dsl import load_family
from monograph.ir import Graph, Init, building, ops, tensor
from monograph.ir.backward_reads import dense, viewed
from monograph.ir.errors import ConfigError, RuntimeInputError
from monograph.ir.types import f32, f64, i64
from monograph.passes.recompute import MemoryBudgetError, Network, Plan, blocks, recompute
from monograph.training.corpus import Corpus
from monograph.training.loop import train
from recompute_models import CONFIGS, batch, sizes_of, training_graph

pytestmark = pytest.mark.slow

SHARES = (0.9, 0.5, 0.25, 0.12)
SLACK = 4096
"""Bytes of scalars and the like."""


def least(graph: Graph) -> Plan:
    """The plan that keeps as little as any can."""
    with pytest.raises(MemoryBudgetError) as e:
        plan_of(graph, 1)
    return plan_of(graph, e.value.needed)


def plan_of(graph: Graph, memory: int) -> Plan:
    return recompute(prepare(graph), sizes_of(graph), memory)


def gradients(module: Any, inputs: dict[str, torch.Tensor], seed: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    module.zero_grad()
    loss = module(**inputs)["loss"]
    loss.backward()
    return loss.item(), {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}


# -- the plan ----------------------------------------------------------------------------------------------------


def chain() -> Graph:
    """x -> linear -> erf -> linear -> tanh -> loss, all in one block."""
    graph = Graph("chain")
    x = graph.input("x", tensor(f32, "B", 8))
    labels = graph.input("labels", tensor(i64, "B"))
    y = ops.erf(ops.linear(x, graph.param("up", tensor(f32, 32, 8), Init("normal", 0.1))))
    logits = ops.linear(y, graph.param("down", tensor(f32, 4, 32), Init("normal", 0.1)))
    with building(graph):
        graph.output("loss", ops.cross_entropy(ops.tanh(logits), labels))
    return graph


def test_a_chain_by_hand() -> None:
    """erf reads its input [B,32], the second linear its own; with erf made again only the first is kept."""
    graph = prepare(chain())
    wide, narrow = 4 * 10 * 32, 4 * 10 * 4
    always = 2 * narrow + 4  # The output of tanh, the log-probabilities of the loss, the loss.
    full = recompute(graph, {"B": 10}, 10**6)
    assert (full.bytes_before, full.bytes_after) == (2 * wide + always, 2 * wide + always)
    assert not full.recomputed
    plan = recompute(graph, {"B": 10}, full.bytes_before - 1)
    assert plan.bytes_after == wide + always
    nodes = list(graph)
    assert [nodes[i].op.name for i in plan.recomputed] == ["erf"]
    assert {(nodes[i].op.name, nodes[i].output.shape[-1]) for i, _ in plan.kept} == {("linear", 32), ("tanh", 4)}
    assert plan.share < 0.2
    assert "erf" in str(plan)


def random_graph(rng: np.random.Generator) -> Graph:
    """Layers, products, sums and functions of what came before, at random."""
    graph = Graph("random")
    values = [graph.input("x", tensor(f32, "B", 3))]
    for i in range(8):
        x = values[rng.integers(len(values))]
        like = [v for v in values if v.shape == x.shape]
        width = int(rng.integers(2, 9))
        weight = graph.param(f"w{i}", tensor(f32, width, x.shape[-1]), Init("normal", 0.1))
        kind = "linear" if i == 0 else rng.choice(["linear", "tanh", "gelu", "exp", "mul", "add", "concat"])
        match kind:
            case "linear":
                values.append(ops.linear(x, weight))
            case "mul" | "add":
                values.append(getattr(ops, kind)(x, like[rng.integers(len(like))]))
            case "concat":
                values.append(ops.concat(x, values[-1], axis=-1))
            case _:
                values.append(getattr(ops, kind)(x))
    graph.output("loss", ops.sum(values[-1]))
    return prepare(graph)


@pytest.mark.parametrize("seed", range(40))
def test_the_cut_is_the_smallest_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = Network(random_graph(rng), {"B": 5}, ())
    allowed = {n for n in network.nodes if n not in network.fixed and rng.random() < 0.7}
    values = [n.output for n in network.nodes]
    held = network.layout.outputs

    def enough(kept: set[Any]) -> bool:
        def there(v: Any) -> bool:
            node = v.producer
            return v in kept or (node in allowed and all(there(r) for r in network.roots(node.arguments)))

        return all(there(v) for v in network.needed)

    def size(kept: set[Any]) -> int:
        return sum(network.layout.bytes(v.type) for v in kept | held)

    choices = (set(chosen) for n in range(len(values) + 1) for chosen in itertools.combinations(values, n))
    assert network.plan(allowed).bytes_after == min(size(kept) for kept in choices if enough(kept))


def test_frozen_parameters_keep_nothing() -> None:
    """Only one layer in the middle is trained: what comes before it needs no gradient."""
    graph = training_graph("llama")
    frozen = [k for k in graph.params if "layers.1.mlp.up_proj" not in k]
    module = to_torch(graph, memory=10**12, sizes=sizes_of(graph), frozen=frozen)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    held, _ = held_bytes(module, batch(graph))
    assert abs(module.plan.bytes_before - held) <= 0.05 * held + SLACK
    assert held < 0.5 * plan_of(graph, 10**12).bytes_before


@pytest.mark.parametrize("family", CONFIGS)
def test_less_memory_costs_more_operations(family: str) -> None:
    graph = training_graph(family)
    full = plan_of(graph, 10**12)
    assert (full.bytes_before, full.recomputed, full.flops) == (full.bytes_after, frozenset(), 0)
    plans = [plan_of(graph, int(full.bytes_before * share)) for share in SHARES]
    for plan, share in zip(plans, SHARES, strict=True):
        assert plan.bytes_after <= share * full.bytes_before
        assert plan.bytes_before == full.bytes_before
    assert [p.flops for p in plans] == sorted(p.flops for p in plans)
    assert plans[0].share < 0.03, "cheap ops are enough for a tenth"
    heavy = {"linear", "scaled_dot_product_attention"}
    assert not heavy & {r.op for r in plans[0].rows}
    assert heavy <= {r.op for r in plans[-1].rows}
    assert plans[-1].share < 1


@pytest.mark.parametrize("family", CONFIGS)
def test_the_least_is_what_blocks_hand_on(family: str) -> None:
    """Of the layers one value each stays, [B,S,C]; and the error says how much that is."""
    graph = training_graph(family)
    plan, ready = least(graph), list(prepare(graph))
    kept = [ready[i].outputs[j] for i, j in plan.kept]
    wide = [v for v in kept if v.dtype == f32 and v.rank == 3]
    config = CONFIGS[family]
    layers = sum(v for k, v in config.items() if k.endswith("layers"))
    assert {v.shape[-1] for v in wide} == {32}
    assert layers - 1 <= len(wide) <= layers + 1
    message = f"MB are too few for the backward pass: at least {plan.bytes_after / 1e6:.1f} MB must be kept"
    with pytest.raises(MemoryBudgetError, match=message):
        to_torch(graph, memory=plan.bytes_after - 1, sizes=sizes_of(graph))


def test_blocks_follow_the_scopes_of_layers() -> None:
    ready = prepare(training_graph("llama"))
    numbers = blocks(ready)
    layers = [n for n in ready if n.op.name == "linear"]
    assert [numbers[n] for n in layers] == sorted(numbers[n] for n in layers)
    assert len({numbers[n] for n in layers}) == 3
    sums = [n for n in ready if n.op.name == "add" and n.output.rank == 3]
    assert [numbers[n] for n in sums] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("seed", range(30))
def test_views_are_told_from_copies_as_pytorch_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [int(n) for n in rng.choice([1, 2, 3, 4], 4)]
    x = torch.empty(shape).permute(*rng.permutation(4).tolist())
    if rng.random() < 0.5:
        x = x.narrow(3, 0, max(x.shape[3] // 2, 1))
    merged = [[x.numel()], [x.shape[0], -1], [x.shape[0] * x.shape[1], x.shape[2], x.shape[3]], [*x.shape[:2], -1]]
    for new in [*merged, [1, *x.shape], [x.shape[0], 1, *x.shape[1:]]]:
        y = x.reshape(new)
        is_view = y.data_ptr() == x.data_ptr() and y.untyped_storage()._cdata == x.untyped_storage()._cdata
        found = viewed(tuple(x.shape), x.stride(), tuple(y.shape))
        assert (found is not None) == is_view
        if found is not None:
            live = [(a, b) for a, b, n in zip(found, y.stride(), y.shape, strict=True) if n > 1]
            assert all(a == b for a, b in live)
    assert dense((2, 3, 4)) == (12, 4, 1)


# -- carried out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_are_the_same_bit_by_bit(family: str, dtype: Any) -> None:
    """Dropout on, padding in the batch; and what is held is what the plan says."""
    graph = training_graph(family, dtype)
    inputs, sizes = batch(graph), sizes_of(graph)
    plain = to_torch(graph)
    loss, expected = gradients(plain, inputs)
    full = plan_of(graph, 10**12).bytes_before
    held, _ = held_bytes(plain, inputs)
    assert abs(full - held) <= 0.05 * held + SLACK
    for share in SHARES[1::2]:
        module = to_torch(graph, memory=int(share * full), sizes=sizes)
        assert module.state_dict().keys() == plain.state_dict().keys()
        held, _ = held_bytes(module, inputs)
        assert held <= 1.05 * module.plan.bytes_after + SLACK
        found_loss, found = gradients(module, inputs)
        assert found_loss == loss
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), f"{name} at {share}"


def test_dropout_is_on_and_draws_the_same_numbers_again() -> None:
    """Other seeds give other gradients; the state after a step is that of the plain module."""
    graph = training_graph("gpt2", dropout=0.3, embedding_dropout=0.3)
    inputs, sizes = batch(graph), sizes_of(graph)
    module, plain = to_torch(graph, memory=least(graph).bytes_after, sizes=sizes), to_torch(graph)
    assert {r.op: r.count for r in module.plan.rows}["dropout"] == 7
    after = []
    for m in (plain, module):
        torch.manual_seed(4)
        m(**inputs)["loss"].backward()
        after.append(torch.get_rng_state())
    assert torch.equal(*after)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(plain.get_parameter(name).grad, module.get_parameter(name).grad)
    assert not torch.equal(gradients(module, inputs, 5)[1][name], gradients(module, inputs, 4)[1][name])


def test_two_passes_forward_before_one_backward() -> None:
    graph = training_graph("llama")
    inputs, sizes = batch(graph), sizes_of(graph)
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    results = []
    for memory in (None, least(graph).bytes_after):
        module = to_torch(graph, memory=memory, sizes=sizes)
        first, second = module(**inputs)["loss"], module(**other)["loss"]
        (first + 2 * second).backward()
        results.append({k: p.grad for k, p in module.named_parameters()})
    for name, gradient in results[0].items():
        assert torch.equal(results[1][name], gradient)


def test_nothing_stays_after_the_backward_pass() -> None:
    graph = training_graph("llama")
    inputs = batch(graph)
    module = to_torch(graph, memory=least(graph).bytes_after, sizes=sizes_of(graph))
    with Held() as held:
        module(**inputs)["loss"].backward()
        gradient = [p.grad for p in module.parameters() if p.grad is not None]
        assert held.bytes(*module.parameters(), *gradient, *module.buffers(), *inputs.values()) <= SLACK
    twice = copy.deepcopy(module)
    expected, found = gradients(module, inputs), gradients(twice, inputs)
    assert found[0] == expected[0] and all(torch.equal(found[1][k], g) for k, g in expected[1].items())
    assert module.plan is not None and twice.plan == module.plan


def test_without_gradients_and_in_evaluation_mode_values_are_the_same() -> None:
    graph = training_graph("gpt2")
    inputs, memory = batch(graph), least(graph).bytes_after
    plain, module = to_torch(graph).eval(), to_torch(graph, memory=memory, sizes=sizes_of(graph)).eval()
    with torch.no_grad():
        assert torch.equal(plain(**inputs)["loss"], module(**inputs)["loss"])
    expected, found = gradients(plain, inputs), gradients(module, inputs)
    assert expected[0] == found[0]
    assert all(torch.equal(found[1][k], v) for k, v in expected[1].items())


def test_gradients_of_gradients_are_refused() -> None:
    graph = training_graph("llama")
    module = to_torch(graph, memory=least(graph).bytes_after, sizes=sizes_of(graph))
    loss = module(**batch(graph))["loss"]
    with pytest.raises(RuntimeInputError, match="no gradients of gradients"):
        torch.autograd.grad(loss, module.get_parameter("model.norm.weight"), create_graph=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_under_autocast_casts_are_made_again_too(family: str) -> None:
    graph = training_graph(family)
    inputs = batch(graph)
    plain = to_torch(graph)
    module = to_torch(graph, memory=least(graph).bytes_after, sizes=sizes_of(graph))
    with torch.autocast("cpu", torch.bfloat16):
        held, _ = held_bytes(plain, inputs)
        less, _ = held_bytes(module, inputs)
    weights = sum(2 * p.numel() for p in plain.parameters())  # Autocast keeps narrow copies of weights.
    assert less <= module.plan.bytes_after + weights + SLACK
    assert less < 0.5 * held
    results = []
    for m in (plain, module):
        torch.manual_seed(0)
        m.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = m(**inputs)["loss"]
        loss.backward()
        results.append({k: p.grad for k, p in m.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=0, atol=0)


def test_compiles_without_a_graph_break_and_keeps_less() -> None:
    graph = training_graph("llama", layers=1)
    inputs, sizes = batch(graph), sizes_of(graph)
    plain = to_torch(graph)
    loss, expected = gradients(plain, inputs)
    full = plan_of(graph, 10**12).bytes_before
    module = to_torch(graph, memory=full // 3, sizes=sizes)
    again = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert again(**inputs)["loss"].item() == pytest.approx(loss, rel=1e-6)
    torch._dynamo.reset()
    forward = compiled(module, backend="aot_eager_decomp_partition", fullgraph=True)
    module.zero_grad()
    result = forward(**inputs)["loss"]
    given = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers(), *inputs.values()]}
    saved = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in result.grad_fn.saved_tensors}
    assert 0 < sum(n for k, n in saved.items() if k not in given) <= 1.01 * module.plan.bytes_after
    result.backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=1e-7)


# -- training ------------------------------------------------------------------------------------------------------

TEXT = "".join(f"Line {i}: the cat {'sat' if i % 3 else 'lay'} on mat {i % 7}.\n\n" for i in range(300))
SETTINGS: dict[str, Any] = {"batch": 16, "length": 32, "accumulate": 2, "device": "cpu"}


def small(family: str) -> Any:
    ffn = {"ffn": 64} if family == "llama" else {}
    return load_family(family)(vocab=300, dim=32, layers=2, heads=4, **ffn)


def losses(corpus: Corpus, family: str, **settings: Any) -> list[float]:
    found: list[float] = []
    train(small(family), corpus, progress=False, observe=lambda s: found.append(s.loss), **{**SETTINGS, **settings})
    return found


def test_a_run_with_less_memory_has_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropout is on; a run that is resumed goes on with the same numbers, and the log tells what was chosen."""
    monkeypatch.setattr("monograph.training.memory.MEGABYTE", 250_000)
    corpus = Corpus.of(TEXT, vocab=300)
    expected = losses(corpus, "gpt2", steps=5)
    assert losses(corpus, "gpt2", steps=5, memory=1) == expected
    assert losses(corpus, "gpt2", steps=5, memory=1, strategy="fsdp") == expected, "alone nothing is shared"
    halves = []
    for steps, resume in ((5, False), (5, True)):
        stop = StopAfter(3 if not resume else 99)
        with contextlib.suppress(Stopped):
            train(
                small("gpt2"), corpus, folder=tmp_path, resume=resume, steps=steps, memory=1, checkpoint_every=1,
                evaluate_every=5, observe=stop, progress=resume, **SETTINGS,
            )  # fmt: skip
        halves += stop.losses
    assert halves == expected
    assert "MB for the backward pass" in capsys.readouterr().err


class Stopped(Exception):
    """The run was cut off by the test."""


class StopAfter:
    def __init__(self, steps: int) -> None:
        self.steps, self.losses = steps, list[float]()

    def __call__(self, step: Any) -> None:
        self.losses.append(step.loss)
        if len(self.losses) == self.steps:
            raise Stopped


def test_settings_say_what_cannot_be() -> None:
    corpus = Corpus.of(TEXT, vocab=300)
    with pytest.raises(ConfigError, match="memory is 0, expected more than 0 megabytes"):
        losses(corpus, "llama", steps=1, memory=0)
    with pytest.raises(ConfigError, match=r"at least .* MB must be kept"):
        losses(corpus, "llama", steps=1, memory=1, batch=512, accumulate=1)
