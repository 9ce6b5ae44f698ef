"""A tiny llama with a past as exporters write it: named as optimum does, or with other names, sizes and leftovers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

LAYERS, KEY_HEADS, WIDTH = 2, 2, 8
PASTS = [f"past_key_values.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
PRESENTS = [name.replace("past_key_values", "present") for name in PASTS]
OWN = ["input_ids", "attention_mask", "position_ids"]


def tiny(seed: int = 0) -> Any:
    """Random weights under which the best token is best by far."""
    names = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    names |= {"num_attention_heads": 4, "num_key_value_heads": KEY_HEADS, "head_dim": WIDTH, "pad_token_id": None}
    config = transformers.AutoConfig.for_model("llama", **names, max_position_embeddings=96, attn_implementation="sdpa")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


class WithPast(nn.Module):
    """Logits and the keys and values of all tokens, of tokens behind a past."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
        cache = transformers.DynamicCache()
        for i in range(LAYERS):
            cache.update(past[2 * i], past[2 * i + 1], i)
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": cache}
        found = self.model(input_ids=input_ids, use_cache=True, **given)
        return found.logits, *(x for layer in found.past_key_values.layers for x in (layer.keys, layer.values))


def with_past(model: Any, folder: Path) -> Path:
    """The file that optimum would write."""
    ids = torch.arange(18).reshape(2, 9) + 5
    past = [torch.randn(2, KEY_HEADS, 4, WIDTH) for _ in PASTS]
    example = ids, torch.ones(2, 13, dtype=torch.long), torch.arange(4, 13).expand(2, 9).contiguous(), past
    rows, tokens, total = "batch_size", "sequence_length", "total_sequence_length"
    axes = {name: {0: rows, 1: total if "mask" in name else tokens} for name in [*OWN, "logits"]}
    axes |= {name: {0: rows, 2: "past_sequence_length"} for name in PASTS}
    axes |= {name: {0: rows, 2: total} for name in PRESENTS}
    path, names = folder / "model.onnx", {"input_names": [*OWN, *PASTS], "output_names": ["logits", *PRESENTS]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = WithPast(model).eval()
        torch.onnx.export(module, example, str(path), dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    return path


def renamed(path: Path) -> Path:
    """The same file with names that say nothing of a past, one symbol for each input, and numbers written as names."""
    model = onnx.load(path)
    names = {name: f"input.cache.layers.{i // 2}.{('keys', 'values')[i % 2]}" for i, name in enumerate(PASTS)}
    for v in model.graph.input:
        dims = v.type.tensor_type.shape.dim
        if v.name in names:
            v.name = names[v.name]
            dims[1].dim_param, dims[3].dim_param = str(KEY_HEADS), str(WIDTH)
            dims[2].dim_param = f"s{list(names.values()).index(v.name)}"
        elif v.name == "attention_mask":
            dims[0].dim_param, dims[1].dim_param = "rows_of_mask", "columns_of_mask"
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    del model.graph.value_info[:]
    target = path.with_name("renamed.onnx")
    onnx.save(model, target)
    return target


def as_optimum(path: Path) -> Path:
    """The same file with the sizes that optimum writes: that of the mask is a sum."""
    model = onnx.load(path)
    names = {"total_sequence_length": "past_sequence_length + sequence_length"}
    for v in (*model.graph.input, *model.graph.output):
        for d in v.type.tensor_type.shape.dim:
            if d.dim_param in names:
                d.dim_param = names[d.dim_param]
    target = path.with_name("optimum.onnx")
    onnx.save(model, target)
    return target


def halved(path: Path) -> Path:
    """The same file in f16."""
    target = path.with_name("halved.onnx")
    onnx.save(convert_float_to_float16(onnx.load(path)), target)
    return target


def one_token(path: Path) -> Path:
    """The same file for one new token at a time."""
    model = onnx.load(path)
    for v in model.graph.input:
        if v.name in ("input_ids", "position_ids"):
            v.type.tensor_type.shape.dim[1].dim_value = 1
    target = path.with_name("one.onnx")
    onnx.save(model, target)
    return target


def grouped(folder: Path, *, past: bool) -> Path:
    """A decoder of one layer whose GroupQueryAttention takes the past itself, all rows being full."""
    rng, vocabulary, wide = torch.Generator().manual_seed(0), 40, (4 + 2 * KEY_HEADS) * 16
    tensors = {"table": (vocabulary, 32), "packed": (32, wide), "out": (64, 32), "head": (32, vocabulary)}
    weights = [
        onnx.numpy_helper.from_array((0.5 * torch.randn(*shape, generator=rng)).numpy(), name)
        for name, shape in tensors.items()
    ]
    angles = torch.arange(64)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
    weights += [
        onnx.numpy_helper.from_array(f(angles).numpy(), name) for name, f in (("c", torch.cos), ("s", torch.sin))
    ]
    numbers = {"one": [1], "axis": [0], "at": 1}
    weights += [onnx.numpy_helper.from_array(torch.tensor(n).numpy(), name) for name, n in numbers.items()]
    node = helper.make_node
    pasts = ["memory.k", "memory.v"] if past else ["", ""]
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"]),
        node("MatMul", ["x", "packed"], ["qkv"]),
        node("Shape", ["input_ids"], ["rows"], start=0, end=1),
        node("Shape", ["input_ids"], ["new"], start=1, end=2),
        *([node("Shape", ["memory.k"], ["old"], start=2, end=3), node("Add", ["old", "new"], ["all"])] if past
          else [node("Identity", ["new"], ["all"])]),
        node("Cast", ["all"], ["total1"], to=TensorProto.INT32),
        node("Squeeze", ["total1", "axis"], ["total"]),
        node("Cast", ["one"], ["one32"], to=TensorProto.INT32),
        node("Sub", ["total1", "one32"], ["last"]),
        node("Expand", ["last", "rows"], ["ends"]),
        node("GroupQueryAttention", ["qkv", "", "", *pasts, "ends", "total", "c", "s"], ["y", "present.k", "present.v"],
             domain="com.microsoft", num_heads=4, kv_num_heads=KEY_HEADS, do_rotary=1, name="attention"),
        node("MatMul", ["y", "out"], ["z"]),
        node("Add", ["x", "z"], ["sum"]),
        node("MatMul", ["sum", "head"], ["logits"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    shape = ["rows", KEY_HEADS, "old", 16]
    inputs = [value("input_ids", TensorProto.INT64, ["rows", "new"])]
    inputs += [value(name, TensorProto.FLOAT, shape) for name in pasts if name]
    outputs = [value("logits", TensorProto.FLOAT, ["rows", "new", vocabulary])]
    outputs += [value(f"present.{kind}", TensorProto.FLOAT, ["rows", KEY_HEADS, None, 16]) for kind in "kv"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "grouped", inputs, outputs, weights)
    path = folder / f"grouped{past}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
