"""A graph from elsewhere, raised and lowered as a model of our own: with all rewrites, or without some of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir

from .backends.onnx.lower import lower
from .backends.onnx.ops import OnnxAttention, OnnxCachedAttention
from .backends.onnx.rewrites import AS_IT_IS
from .backends.onnx.save import count
from .backends.onnxruntime.choices import choices_of
from .backends.onnxruntime.ops import OrtMultiHeadAttention
from .backends.onnxruntime.rewrites import common, mask_variant
from .backends.target import Target
from .branches import Branch, Branches, raise_branches, softmaxes_in
from .ir.graph import Graph, Node
from .ir.ops.attention import Attention
from .ir.ops.foreign import Foreign
from .ir.tensors import Array, Tensor, held
from .ir.verify import verify
from .passes.imported import join_caches
from .passes.manager import FunctionPass, Pass, Pipeline
from .passes.pattern import NearMiss
from .passes.pipelines import PIPELINES
from .passes.raising import KINDS, raise_graph
from .passes.raising.layouts import shorten_layouts
from .passes.raising.report import Left, RaisingReport
from .passes.raising.scores import is_softmax

OPSET = 23
TARGET = Target.of("cpu")
F32 = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)


def _passes() -> list[Pass]:
    """What runs after raising: the passes of a model without a cache, and those to the ops of ONNX Runtime."""
    own = FunctionPass("caches", join_caches), FunctionPass("layouts", shorten_layouts)
    return [*PIPELINES["encode"].passes, *own, *common(TARGET).passes, *mask_variant(TARGET).passes]


SWITCHES: tuple[str, ...] = tuple(dict.fromkeys((*KINDS, *(p.name for p in _passes()))))
"""Every rewrite that can be left out, in the order in which they are made."""

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a rewrite raises that has a fault: it is left out as one that computes something else."""

_FUSED = (OrtMultiHeadAttention, OnnxAttention, OnnxCachedAttention)


@dataclass
class Raised:
    """graph: as it is written. plain: after raising alone. report: of raising. left: every softmax that is no
    attention, with its first obstacle. unfused: attentions that are written in parts. counts: ONNX nodes by op type.
    misses: what was almost fused. branches: what was raised inside of branches.
    """

    model: onnx_ir.Model
    graph: Graph
    plain: Graph
    report: RaisingReport
    left: list[Left]
    unfused: list[str] = field(default_factory=list[str])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])
    branches: list[Branch] = field(default_factory=list[Branch])

    @property
    def fused(self) -> list[Node]:
        """Attentions that are one op of the runtime."""
        inside = [n for b in self.branches for n in b.raised.fused]
        return [*(n for n in self.graph if isinstance(n.op, _FUSED)), *inside]


def raised_model(
    graph: Graph, weights: Mapping[str, Tensor], off: Collection[str] = (), opset: int = 0, *, every_row: bool = False
) -> Raised:
    """The ONNX model of a graph, which is left as it was. off: of SWITCHES, and places of a report. every_row: rows of
    attention without a key keep the mean of all values, where they have it; else they are zeros.

    Raises MonographError for what has no ONNX form, and for a graph that a pass left broken.
    """
    made = graph.copy()

    def read(name: str) -> Array:
        return held(weights[name], graph.params[name].type, name)

    report = raise_graph(made, read, without=off, every_row=every_row)
    plain = made.copy()
    # Every pass counts less than what comes out, which is compared with the file: it is looked at once.
    found = Pipeline("optimize", [p for p in _passes() if p.name not in off]).run(made, verify=False)
    verify(made)
    whole, opset = made.copy(), max(OPSET, opset)
    inside = raise_branches(whole, weights, opset, lambda g, w, _: raised_model(g, w, off, opset, every_row=every_row))
    left = accounted(plain, report, inside)
    for branch in inside.found:
        report.raised += branch.raised.report.raised
        report.places += branch.raised.report.places
        found.misses += branch.raised.misses
    model = lower(whole, inside.weights, opset, pipeline=AS_IT_IS, narrow=True)
    if not choices_of(TARGET).skip_layer_norm:
        sums_before_norms(model)
    unfused = [f"attention at {n.location} is written in parts" for n in made if isinstance(n.op, Attention)]
    unfused += [x for b in inside.found for x in b.raised.unfused]
    return Raised(model, made, plain, report, left, unfused, count(model), found.misses, inside.found)


def sums_before_norms(model: onnx_ir.Model) -> int:
    """Sums that a layer norm reads are written as Sum of two, which is the same. Gives how many.

    ONNX Runtime joins Add and LayerNormalization where it opens a file, to an op whose kernel is slower than both
    (choices.py); a session of ours tells it not to, other programs do not.
    """
    written = 0
    for node in model.graph:
        reads = [use.node.op_type for use in node.outputs[0].uses()] if node.outputs else []
        plain = node.op_type == "Add" and not node.domain and all(v is not None and v.type == F32 for v in node.inputs)
        if plain and "LayerNormalization" in reads:
            node.op_type = "Sum"
            written += 1
    return written


def accounted(graph: Graph, report: RaisingReport, inside: Branches | None = None) -> list[Left]:
    """Every softmax of a raised graph with the first obstacle to raising it, also those that raising never sees; and
    every root of a mean of squares that is no norm. inside: what was raised of the branches in it."""
    known = {x.location: x for x in report.left if x.what == "softmax"}
    found = [x for x in report.left if x.what != "softmax"]
    inside = inside or Branches({})
    for node in graph:
        if is_softmax(node):
            unseen = Left.at("softmax", node, None, "it was not looked at: attention was not raised at all")
            found.append(known.get(node.location, unseen))
        elif isinstance(node.op, Foreign) and node.location not in inside.done:
            name, reason = str(node.attributes["name"]), inside.left.get(node.location, "")
            why = f"softmax inside of {name}, which stays as the file has it{f': {reason}' if reason else ''}"
            count = softmaxes_in(node)
            why = f"{count} {why}"
            if name.endswith("Softmax"):
                why, count = f"{name} gives no weights that a product with values reads", 1
            found += [Left.at("softmax", node, None, why)] * bool(count)
    return [*found, *(x for b in inside.found for x in b.raised.left)]
