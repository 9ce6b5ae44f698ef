"""What a picture calls the ops of the language: the role of each, which decides the colour and the title of a block."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

from ..ir import Value, ops
from ..ir.op import Op
from ..ir.value import Node


class Role(StrEnum):
    """What a block does; the value is its class in the drawing."""

    input = "input"
    output = "output"
    embedding = "embedding"
    norm = "norm"
    attention = "attention"
    feed_forward = "feed-forward"
    experts = "experts"
    recurrent = "recurrent"
    convolution = "convolution"
    linear = "linear"
    sum = "sum"
    other = "other"


ROLES = MappingProxyType(
    {
        ops.embedding.op: (Role.embedding, "Embedding"),
        ops.sinusoidal_positions.op: (Role.embedding, "Sinusoidal positions"),
        ops.rms_norm.op: (Role.norm, "RMS norm"),
        ops.layer_norm.op: (Role.norm, "Layer norm"),
        ops.add_rms_norm.op: (Role.norm, "Add, RMS norm"),
        ops.add_layer_norm.op: (Role.norm, "Add, layer norm"),
        ops.attention.op: (Role.attention, "Attention"),
        ops.moe.op: (Role.experts, "Mixture of experts"),
        ops.topk.op: (Role.experts, "Mixture of experts"),
        ops.state_space.op: (Role.recurrent, "State space"),
        ops.gru.op: (Role.recurrent, "GRU"),
        ops.lstm.op: (Role.recurrent, "LSTM"),
        ops.rnn.op: (Role.recurrent, "RNN"),
        ops.causal_conv.op: (Role.convolution, "Causal convolution"),
        ops.conv1d.op: (Role.convolution, "Convolution"),
        ops.conv2d.op: (Role.convolution, "Convolution"),
        ops.feed_forward.op: (Role.feed_forward, "Feed-forward"),
        ops.gated_feed_forward.op: (Role.feed_forward, "Feed-forward"),
        ops.linear.op: (Role.linear, "Linear"),
        ops.matmul.op: (Role.linear, "Linear"),
        ops.cross_entropy.op: (Role.other, "Cross-entropy"),
    }
)
"""Ops that make a block of their own, with the title of that block."""

RANK = (Role.attention, Role.experts, Role.recurrent, Role.convolution, Role.feed_forward, Role.linear, Role.embedding)
"""Of several roles in one block, the one that is named."""

ACTIVATIONS = frozenset(f.op for f in (ops.relu, ops.gelu, ops.silu, ops.softplus, ops.tanh, ops.sigmoid, ops.softmax))
"""Ops that a block names in its details."""

PLUMBING = frozenset(f.op for f in (ops.cast, ops.neg, ops.exp, ops.rsqrt, ops.sqrt, ops.abs, ops.dropout, ops.floor))
"""Ops of one operand that a block does not name."""

GATHERING = frozenset({ops.gather.op, ops.take_along_axis.op})
"""Ops that choose elements of their first operand by the second."""

_STREAM = MappingProxyType({ops.attention.op: ("q", "k", "v"), ops.rope.op: ("x",), ops.causal_conv.op: ("x", "tail")})
"""Operands through which the tokens flow, of ops that also take masks, positions or tables."""


def own(op: Op) -> bool:
    """Whether an op comes from outside of this package."""
    return not type(op).__module__.startswith(ops.__name__)


def role_of(node: Node, weighted: bool) -> tuple[Role, str] | None:
    """Role and title of the block that a node makes; None for what is part of another's.

    weighted: whether one of its operands is a parameter, or made of parameters.
    """
    found = ROLES.get(node.op)
    if found is not None and (weighted or found[0] is not Role.linear):
        return found
    if found is None and weighted and not node.op.elementwise and own(node.op):
        return Role.other, words(node.op.name)
    return None


def words(name: str) -> str:
    """The name of an op as a title: `squared_relu` -> `Squared relu`."""
    return name.replace("_", " ").strip().capitalize()


def quiet_by_op(node: Node, place: int) -> bool:
    """Whether the op of a node takes this operand to one side: a mask, positions, counts, a table."""
    names = node.op.signature.operand_names(len(node.operands))
    name = names[place]
    if name in node.op.masks or name in node.op.counts:
        return True
    return node.op in _STREAM and name not in _STREAM[node.op]


def is_sum(node: Node) -> bool:
    """Whether a node adds two values of one type."""
    return node.op is ops.add.op and all(v.type == node.output.type for v in node.arguments)


def scaled(node: Node) -> Value | None:
    """The value that a node multiplies by a scalar or divides by one; None for any other node."""
    if node.op not in (ops.mul.op, ops.div.op):
        return None
    x, y = node.arguments
    return x if y.is_constant and y.number is not None else None
