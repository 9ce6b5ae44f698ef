"""Decoders exported without a cache get ours: ids and logits are those of the original module, which has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
import transformers
from monograph.inference.engine import Engine
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 96, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 96,
    "ffn_dim": 24, "word_embed_proj_dim": 16, "head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 5,
    "pad_token_id": 0, "eos_token_id": None,
}  # fmt: skip
WINDOWS = {"mistral": ["sliding_attention"] * 2, "gemma2": ["sliding_attention", "full_attention"]}
LONGEST = 90


class Logits(nn.Module):
    """The logits of a model of transformers, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.m = model

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        return self.m(input_ids=input_ids, use_cache=False, **mask)[0]


def tiny(kind: str, attention: str) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind)
    for name, value in SIZES.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = WINDOWS.get(kind, ["full_attention"] * 2)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.ndim > 1 else 1)  # So that the best token is best by far.
    return Logits(model).eval()


def sizes() -> dict[int, Any]:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=2, max=LONGEST)}


def traced(module: nn.Module, *, mask: bool) -> mg.Model:
    """Through torch.export."""
    example = {"input_ids": torch.randint(1, 40, (2, 6))}
    example |= {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])} if mask else {}
    return mg.load(module, example, dynamic_shapes=dict.fromkeys(example, sizes()), task="causal-lm")


def scripted(module: nn.Module, folder: Path) -> mg.Model:
    """Through the TorchScript exporter and an ONNX file, whose output and sizes are called otherwise."""
    path, names = folder / "model.onnx", ["input_ids", "attention_mask"]
    example = torch.randint(1, 40, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    axes = {name: {0: "rows", 1: "length"} for name in names}
    torch.onnx.export(module, example, str(path), dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes)
    return mg.load(path, task="causal-lm")


def logits(module: nn.Module, row: np.ndarray) -> np.ndarray:
    """One forward over one row, without padding or a cache."""
    with torch.no_grad():
        return module(torch.from_numpy(row[None]))[0].numpy()


def greedy(module: nn.Module, prompt: list[int], count: int) -> list[int]:
    row = list(prompt)
    for _ in range(count):
        row.append(int(logits(module, np.array(row))[-1].argmax()))
    return row[len(prompt) :]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-3)


def says_the_same(engine: Engine, module: nn.Module) -> None:
    """Greedy ids of a batch, 64 steps behind a prompt, rows padded on the left, a prompt in chunks."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(1, 40, n).tolist() for n in (11, 4, 1)]
    for prompt, result in zip(prompts, engine.generate(prompts, max_new_tokens=8, eos=()), strict=True):
        assert result.ids == greedy(module, prompt, 8)

    ids = rng.integers(1, 40, (1, 76))
    expected, session = logits(module, ids[0]), engine.session
    close(session.prefill(ids[:, :12], [12])[0], expected[11])
    for i in range(12, 76):
        close(session.step(ids[:, i])[0], expected[i])

    session.reset()
    lengths = [9, 6]
    rows = rng.integers(1, 40, (2, 14))
    whole = [logits(module, np.concatenate([row[:n], row[9:]])) for row, n in zip(rows, lengths, strict=True)]
    close(session.prefill(rows[:, :9], lengths), np.stack([w[n - 1] for w, n in zip(whole, lengths, strict=True)]))
    for begin, end in ((9, 12), (12, 14)):
        found = session.append(rows[:, begin:end], every=True)
        close(found, np.stack([w[n + begin - 9 : n + end - 9] for w, n in zip(whole, lengths, strict=True)]))


class Handwritten(nn.Module):
    """A decoder as people write them: what it knows of positions comes from shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.places = nn.Embedding(40, 16), nn.Embedding(96, 16)
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 40, bias=False)
        with torch.no_grad():
            for layer in (self.qkv, self.out, self.head):
                layer.weight.mul_(3)
        self.register_buffer("triangle", torch.tril(torch.ones(96, 96)).view(1, 1, 96, 96))
        angles = torch.outer(torch.arange(96.0), 10000 ** (-torch.arange(0, 4, 2) / 4)).repeat(1, 2)
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())

    def heads(self, x: Any) -> Any:
        return (y.unflatten(-1, (4, 4)).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, dim=-1))

    def mixed(self, x: Any) -> Any:
        raise NotImplementedError

    def forward(self, idx: Any) -> Any:
        x = self.begin(idx)
        return self.head(x + self.out(self.mixed(x).transpose(1, 2).flatten(2)))

    def begin(self, idx: Any) -> Any:
        return self.embed(idx)


class Learned(Handwritten):
    """Learned positions by arange, and a stored triangle cut to the length."""

    def begin(self, idx: Any) -> Any:
        return self.embed(idx) + self.places(torch.arange(idx.shape[1]))

    def mixed(self, x: Any) -> Any:
        q, k, v = self.heads(x)
        n = x.shape[1]
        scores = (q @ k.transpose(-2, -1)) * 0.5
        return scores.masked_fill(self.triangle[:, :, :n, :n] == 0, float("-inf")).softmax(-1) @ v


class Sliced(Handwritten):
    """The first rows of a table of learned positions, with no look-up."""

    def begin(self, idx: Any) -> Any:
        return self.embed(idx) + self.places.weight[: idx.shape[1]]

    def mixed(self, x: Any) -> Any:
        return nn.functional.scaled_dot_product_attention(*self.heads(x), is_causal=True)


class Turned(Handwritten):
    """Rotary positions from stored tables, cut to the length, and a triangle made on the way."""

    def turned(self, x: Any) -> Any:
        n = x.shape[2]
        a, b = x.chunk(2, dim=-1)
        return x * self.cosines[:n] + torch.cat([-b, a], dim=-1) * self.sines[:n]

    def mixed(self, x: Any) -> Any:
        q, k, v = self.heads(x)
        n = x.shape[1]
        mask = torch.full((n, n), float("-inf")).triu(1)
        return ((self.turned(q) @ self.turned(k).transpose(-2, -1)) * 0.5 + mask).softmax(-1) @ v


class Experts(Learned):
    """Two of four experts for each token, which TorchScript gathers for all tokens of a batch in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.wide = nn.Parameter(torch.randn(4, 16, 16))
        self.biases = nn.Parameter(torch.randn(4, 16))

    def mixed(self, x: Any) -> Any:
        y = super().mixed(x).transpose(1, 2).flatten(2)
        rows = y.reshape(-1, 16)
        weights, chosen = self.router(rows).softmax(-1).topk(2, dim=-1)
        pairs, which = rows.unsqueeze(1).repeat_interleave(2, dim=1).flatten(0, 1), chosen.reshape(-1)
        found = (pairs.unsqueeze(1) @ self.wide[which]).squeeze(1) + self.biases[which]
        found = (found * weights.reshape(-1, 1)).reshape(-1, 2, 16).sum(1)
        return found.view_as(y).unflatten(-1, (4, 4)).transpose(1, 2)


class Both(Handwritten):
    """No triangle: every token sees all."""

    def mixed(self, x: Any) -> Any:
        return nn.functional.scaled_dot_product_attention(*self.heads(x))


class Averaged(Handwritten):
    """Attention and the mean over all tokens."""

    def mixed(self, x: Any) -> Any:
        return nn.functional.scaled_dot_product_attention(*self.heads(x), is_causal=True) + x.mean()


class WithPast(Turned):
    """Keys and values of a past come in and go out."""

    def forward(self, input_ids: Any, key: Any, value: Any) -> Any:  # type: ignore[override]
        x = self.embed(input_ids)
        q, k, v = self.heads(x)
        k, v = torch.cat([key, k], dim=2), torch.cat([value, v], dim=2)
        here = torch.arange(x.shape[1])[:, None] + key.shape[2]
        hidden = torch.arange(k.shape[2])[None] > here
        y = ((q @ k.transpose(-2, -1)) * 0.5).masked_fill(hidden, float("-inf")).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).flatten(2))), k, v


class WithoutPast(Handwritten):
    """The same with none."""

    def mixed(self, x: Any) -> Any:
        return nn.functional.scaled_dot_product_attention(*self.heads(x), is_causal=True)


def loaded(module: nn.Module) -> mg.Model:
    example = {"idx": torch.randint(1, 40, (2, 6))}
    return mg.load(module.eval(), example, dynamic_shapes={"idx": sizes()}, task="causal-lm")


@pytest.mark.parametrize("kind", [Learned, Sliced, Turned])
def test_a_module_of_ones_own(kind: type[nn.Module], tmp_path: Path) -> None:
    module = kind().eval()
    with mg.build(loaded(module), tmp_path / "built", threads=1) as engine:
        says_the_same(engine, module)


@pytest.mark.filterwarnings("ignore")
def test_experts_that_are_gathered_for_all_tokens_of_a_batch(tmp_path: Path) -> None:
    module, path = Experts().eval(), tmp_path / "model.onnx"
    example, axes = torch.randint(1, 40, (2, 6)), {"idx": {0: "rows", 1: "length"}}
    torch.onnx.export(module, (example,), str(path), dynamo=False, input_names=["idx"], dynamic_axes=axes)
    with mg.build(mg.load(path, task="causal-lm"), tmp_path / "built", threads=1) as engine:
        says_the_same(engine, module)


def test_a_past_of_its_own_gives_way_to_ours(tmp_path: Path) -> None:
    past = {0: sizes()[0], 2: torch.export.Dim("past", min=2, max=64)}
    example = {
        "input_ids": torch.randint(1, 40, (2, 6)),
        "key": torch.zeros(2, 4, 3, 4),
        "value": torch.zeros(2, 4, 3, 4),
    }
    shapes = {"input_ids": sizes(), "key": past, "value": past}
    model = mg.load(WithPast().eval(), example, dynamic_shapes=shapes, task="causal-lm")
    assert list(model.graph().inputs) == ["input_ids", "attention_mask"]
    with mg.build(model, tmp_path / "built", threads=1) as engine:
        says_the_same(engine, WithoutPast().eval())


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Both, "attention reads all tokens"), (Averaged, "mean")],
)
def test_what_cannot_have_a_cache_is_said_with_its_node(kind: type[nn.Module], words: str) -> None:
    with pytest.raises(mg.MonographError, match=words) as told:
        loaded(kind())
    assert "test_imported_cache.py" in told.value.place


def test_fixed_lengths_are_refused() -> None:
    with pytest.raises(mg.MonographError, match="the number of rows is fixed"):
        mg.load(Learned().eval(), {"idx": torch.randint(1, 40, (2, 6))}, task="causal-lm")


def test_an_input_that_nothing_fills_is_refused() -> None:
    class Picture(Learned):
        def forward(self, input_ids: Any, picture: Any) -> Any:  # type: ignore[override]
            return super().forward(input_ids) + picture

    example = {"input_ids": torch.randint(1, 40, (2, 6)), "picture": torch.zeros(1, 1, 40)}
    with pytest.raises(mg.MonographError, match="takes picture"):
        mg.load(Picture().eval(), example, dynamic_shapes={"input_ids": sizes(), "picture": None}, task="causal-lm")


@pytest.mark.parametrize(
    ("kind", "attention", "mask"),
    [
        ("llama", "sdpa", False), ("gpt2", "eager", False), ("gpt_neox", "sdpa", True), ("mistral", "eager", True),
        ("gemma2", "eager", True), ("qwen2", "sdpa", False), ("opt", "eager", True), ("opt", "sdpa", False),
    ],
)  # fmt: skip
def test_torch_export(kind: str, attention: str, mask: bool, tmp_path: Path) -> None:
    module = tiny(kind, attention)
    with mg.build(traced(module, mask=mask), tmp_path / "built", threads=1) as engine:
        says_the_same(engine, module)


@pytest.mark.parametrize(("kind", "mask"), [("opt", False), ("opt", True), ("gpt2", True)])
def test_there_are_as_many_positions_as_rows_of_a_learned_table(kind: str, mask: bool, tmp_path: Path) -> None:
    """Also where 2 is added before they are chosen, and where they are counted from the mask."""
    module = tiny(kind, "eager")
    with mg.build(traced(module, mask=mask), tmp_path / "built", threads=1) as engine:
        assert engine.session.contract.positions == SIZES["max_position_embeddings"]
        assert engine.generate([5, 6, 7], max_new_tokens=93, eos=()).ids == greedy(module, [5, 6, 7], 93)
        with pytest.raises(mg.MonographError, match="the model has 96 positions"):
            engine.generate([5, 6, 7], max_new_tokens=94, eos=())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "mistral", "gemma2", "qwen2", "opt"])
def test_torchscript(kind: str, tmp_path: Path) -> None:
    module = tiny(kind, "eager")
    with mg.build(scripted(module, tmp_path), tmp_path / "built", threads=1) as engine:
        says_the_same(engine, module)
