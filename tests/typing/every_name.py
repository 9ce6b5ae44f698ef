"""Every public name, used as people use it, for type checkers: pyright and mypy accept this file as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import monograph as mg
import numpy as np
from monograph import ops

PASTS = mg.Stream("S", "input_ids", "attention_mask", "position_ids")
ASKING = mg.Task("asking", {"input_ids": "i64[B,S]", "picture": "f32[B,width]"}, stream=PASTS)


class Tiny(mg.Config):
    vocab: int = mg.key("vocab_size", 64, gguf="vocab_size")
    width: int = 32
    heads: int = 4
    experts: int = 8


@mg.model(
    task=ASKING,
    std=0.1,
    checkpoint=mg.Checkpoint(architecture="TinyForAsking", prefix="model."),
    gguf=mg.GGUF({"token_embd": "embed"}),
)
def asking(m: mg.Scope, c: Tiny, input_ids: mg.Value, picture: mg.Value) -> dict[str, mg.Value]:
    x = m.embed("embed", input_ids, c.vocab, c.width) + picture[:, None]
    return {"logits": m.linear("head", x, c.vocab), "pooler_output": x[:, -1]}


@mg.model
def plain(m: mg.Scope, c: Tiny, input_ids, attention_mask, position_ids):
    x, mask = m.embed("embed", input_ids, c.vocab, c.width), mg.key_mask(attention_mask)
    for b in m.layers("layers", 2):
        q, k, v = (b.linear(name, x, c.width).split_heads(c.heads) for name in "qkv")
        q, k = (b.rope(y, position_ids, theta=10000.0) for y in (q, k))
        x = x + b.layer_norm("norm", ops.attention(q, k, v, mask=mask, causal=True).merge_heads(), 1e-5)
    return m.linear("head", m.rms_norm("norm", x, 1e-5), c.vocab, tie="embed")


def language(x: mg.Value, y: mg.Value, n: mg.Value, mask: mg.Value) -> Iterator[mg.Value]:
    """Operators, indices and plain numbers."""
    yield from (x + 1, 2.5 - x, x * y, 1 / x, x // 2, x % y, x**2, 2**x, -x, abs(x), x @ y, n + n.shape[0])
    yield from (x < y, x <= 1, x > 0.5, x >= y, x.eq(y), x.ne(0), mask & (x > 0), mask | True, ~mask, mask ^ mask)
    yield from (x[0], x[:, -1], x[..., ::2], x[None, :, 1:-1], x[:, None], x[n], x[..., [0, 1]], x[:, : y.shape[0]])
    yield from (ops.maximum(x, 0.0), ops.minimum(1, x), ops.where(mask, x, -1e9), ops.where(mask, 0.0, 1), *x)
    values, places = ops.topk(x, k=3)
    yield from (ops.softmax(x, axis=-1), ops.sum(x, axis=1), ops.argmax(x), values, ops.gather(y, places))
    yield from (x.cast(mg.DType.f16), x.reshape(2, -1), x.transpose(1, 0), ops.concat(x, y, axis=0))
    assert_type(ops.gelu(x), mg.Value)
    assert_type(x[0] > 0, mg.Value)
    assert_type(values, mg.Value)


def families() -> None:
    """A decorated function is a Family, and a Family called is a Model."""
    assert_type(asking, mg.Family)
    assert_type(plain, mg.Family)
    model = plain(width=64)
    assert_type(model, mg.Model)
    assert_type(model.graph(), mg.Graph)
    assert_type(mg.init(plain, seed=1), mg.Model)
    assert_type(mg.load("path", family=plain), mg.Model)
    slots: tuple[mg.Slot, ...] = model.graph().slots
    weights: mg.Weights | None = model.weights
    program = mg.Program("double", ASKING, model.graph())
    print(slots, weights, mg.Model(program).task, mg.__version__)


def everything(model: mg.Model, folder: Path) -> None:
    """From data to something that runs."""
    print(mg.Masked.of(["a text", "another"]), mg.Labelled.of([("good", "a text"), ("bad", "another")]))
    print(mg.Pairs.of([("one", "un"), ("two", "deux")]), mg.Arrays.of({"x": np.ones((4, 3)), "labels": np.ones(4)}))
    trained = mg.train(model, mg.Corpus.of(mg.python_topics(), vocab=1024), steps=10, folder=folder)
    module = mg.to_torch(trained, mg.DType.bf16, seed=1)
    print(sum(p.numel() for p in module.parameters()))
    print(mg.export(trained, folder / "onnx"))
    print(mg.optimize(folder / "onnx" / "model.onnx", folder / "fast", strict=True).refusals)
    print(mg.bisect(folder / "onnx" / "model.onnx"))
    try:
        engine = mg.build(trained, folder / "cpu")
    except mg.MonographError as e:
        print(e.what, e.hint)
        return
    sample = engine.generate("The for statement", max_new_tokens=40)
    parity, speed = mg.verify(trained, engine), mg.bench(trained, rounds=1)
    assert_type(sample.text, str)
    opened = mg.open(folder / "cpu")
    assert_type(opened, mg.Engine)
    small = mg.build(trained, folder / "int4", quantize=mg.Quantization("int4", "rtn", block=16))
    assert_type(mg.quality(small, mg.python_topics()[:2000], against=trained, tokens=200), mg.Quality)
    print(opened.generate("The for statement", max_new_tokens=4))
    if opened.tokenizer is None:
        mg.serve(folder / "cpu", port=8001)
    rows = mg.Instructions.read(trained.tokenizer, folder / "rows.jsonl") if trained.tokenizer else None
    if rows is not None:
        print(mg.finetune(trained, rows, lora=mg.Lora(rank=4), steps=2, folder=folder / "adapter").adapter)
        print(mg.Adapter.load(folder / "adapter").merged(trained), mg.distill(trained, model, rows, steps=1).model)
    if trained.tokenizer is not None:
        print(mg.dpo(trained, mg.Preferences.read(trained.tokenizer, folder / "pairs.jsonl"), steps=1).model)
    print(sample.text, parity.passed, [row.decode for row in speed.rows])
