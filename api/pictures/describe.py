"""Titles and details of blocks: what a block does, its sizes, and the settings that a reader looks for."""

from __future__ import annotations

from ..ir import ops
from ..ir.value import Node, Value, ancestors, leaves
from .blocks import Block, fixed
from .flow import Flow
from .vocabulary import ACTIVATIONS, PLUMBING, RANK, Role, is_sum, own, role_of, words


def describe(flow: Flow, block: Block) -> None:
    """Fill in role, title and details of a block from its nodes."""
    if block.role is Role.sum or not block.nodes:
        return
    found = [(n, r) for n in block.nodes if (r := role_of(n, flow.weighted(n) or block.layer == "-"))]
    if block.role is Role.other:
        _name(flow, block, found)
    heads = [n for n, r in found if r[0] is block.role]
    if block.role is Role.attention:
        block.details += _attention(flow, block, heads)
    elif block.role is Role.experts:
        block.details += _experts(heads)
    elif block.role is Role.recurrent and any(n.op is ops.state_space.op for n in heads):
        block.details += _state_space(heads)
    elif block.role in (Role.linear, Role.feed_forward):
        block.details += _widths([n for n, r in found if r[0] in (Role.linear, Role.feed_forward)])
    elif block.role is Role.convolution:
        block.details += _convolution(flow, heads)
    elif block.role is Role.embedding:
        block.details += [" × ".join(f"{d:,}" for d in fixed(p.type.shape)) for p in block.params if p.type.rank == 2]
    block.details += _activations(flow, block)
    if block.role in (Role.embedding, Role.convolution, Role.linear) and block.layer != "-":
        block.details += _others(flow, block)


def _name(flow: Flow, block: Block, found: list[tuple[Node, tuple[Role, str]]]) -> None:
    roles = {r[0] for _, r in found}
    weights = [n for n in block.nodes if n.op is ops.softmax.op and any(u.op is ops.matmul.op for u in n.output.users)]
    if weights and Role.attention not in roles:
        block.role, block.title = Role.attention, "Attention in parts"
        return
    for role in RANK:
        titles = [r[1] for _, r in found if r[0] is role]
        if not titles:
            continue
        block.role, block.title = role, titles[-1]
        linears = [n for n, r in found if r[0] is Role.linear]
        if role is Role.linear and len(linears) > 1:
            block.role, block.title = Role.feed_forward, "Feed-forward"
        if role is Role.attention:
            block.title = _kind_of_attention(flow, block)
        if role is Role.convolution and len(roles) > 1 and len(linears) > 1:
            block.title = "Short convolution" if block.title == "Causal convolution" else block.title
        return
    named = [r for _, r in found] or [(Role.other, words(_telling(block).op.name))]
    block.role, block.title = named[0]


def _telling(block: Block) -> Node:
    """The node that says most of a block without a layer in it: one with several operands, or the last."""
    return next((n for n in reversed(block.nodes) if len(n.arguments) > 1), block.nodes[-1])


def _kind_of_attention(flow: Flow, block: Block) -> str:
    node = next(n for n in block.nodes if n.op is ops.attention.op)
    inside = set(block.nodes)

    def sources(name: str) -> set[Value]:
        v = node.value(name)
        made = [n for n in ancestors(v) if n in inside]
        read = {x for n in made for x in flow.entering(n) if x.producer not in inside}
        return read or {v}

    return "Self-attention" if sources("q") & sources("k") else "Cross-attention"


def _attention(flow: Flow, block: Block, heads: list[Node]) -> list[str]:
    if not heads:
        node = next(n for n in block.nodes if n.op is ops.softmax.op)
        return [f"{node.output.shape[1]} heads"] if node.output.rank == 4 else []
    node = heads[0]
    q, k = node.value("q"), node.value("k")
    count, groups, width = q.shape[2], k.shape[2], q.shape[3]
    size = f"{count} head{'s' if count != 1 else ''} × {width}"
    lines = [size if count == groups else f"{size}, {groups} key/value"]
    said: list[str] = []
    if node.attributes["causal"]:
        said.append("causal")
    if node.attributes["window"] is not None:
        said.append(f"window {node.attributes['window']:,}")
    if any(n.op is ops.rope.op for n in block.nodes):
        said.append("rotary")
    if node["bias"] is not None:
        said.append("position bias")
    if node["sinks"] is not None:
        said.append("sinks")
    if node.attributes["softcap"] is not None:
        said.append(f"softcap {node.attributes['softcap']:g}")
    return [*lines, ", ".join(said)] if said else lines


def _experts(heads: list[Node]) -> list[str]:
    lines: list[str] = []
    for n in heads:
        if n.op is ops.moe.op:
            weights = n.arguments[3:]
            out, width = fixed(weights[0].type.shape)
            lines.append(f"{len(weights) // 3} experts, top {n.value('weights').shape[-1]}")
            lines.append(f"{width:,} → {out:,}, {n.attributes['activation']}")
    return lines


def _state_space(heads: list[Node]) -> list[str]:
    node = next(n for n in heads if n.op is ops.state_space.op)
    x, b = node.value("x"), node.value("b")
    return [f"{x.shape[2]} heads × {x.shape[3]}, state {b.shape[3]}"]


def _convolution(flow: Flow, heads: list[Node]) -> list[str]:
    lines: list[str] = []
    for n in heads:
        w = n.value("w")
        size = fixed(w.shape)[1 if n.op is ops.causal_conv.op else 2 :]
        lines.append(f"kernel {' × '.join(map(str, size))}, {fixed(w.shape)[0]:,} channels")
    return list(dict.fromkeys(lines))


def _widths(linears: list[Node]) -> list[str]:
    """`576 → 1,536 → 576` along the linear layers of a block, those side by side named once."""
    steps: list[str] = []
    for n in linears:
        if n.op in (ops.feed_forward.op, ops.gated_feed_forward.op):
            w = fixed(n.value("w_up").shape)
            steps += [f"{w[1]:,}", f"{w[0]:,}", f"{w[1]:,}"]
            continue
        for d in (n.arguments[0].shape[-1], n.output.shape[-1]):
            text = f"{d:,}" if isinstance(d, int) else str(d)
            if not steps or steps[-1] != text:
                steps.append(text)
    if len(steps) > 4:
        kept = [steps[0]]
        for i, text in enumerate(steps[1:], 1):
            if text == kept[-1] or (i + 1 < len(steps) and text == steps[0] and steps[i + 1] == kept[-1]):
                continue
            kept.append(text)
        steps = kept
    return [" → ".join(steps[:6])] if steps else []


def _activations(flow: Flow, block: Block) -> list[str]:
    """Activations by name, and ops from outside of the package."""
    named: list[str] = []
    inside = set(block.nodes)
    for n in block.nodes:
        if n.op in PLUMBING or role_of(n, flow.weighted(n)) is not None:
            continue
        if n.op in ACTIVATIONS or own(n.op):
            named.append(n.op.name.replace("_", " "))
    gated = any(_is_gate(flow, n, inside) for n in block.nodes)
    if named and gated and block.role is Role.feed_forward:
        named[0] = f"gated {named[0]}"
    if block.role is Role.attention or block.role is Role.recurrent:
        named = [x for x in named if x not in ("softplus", "silu")]
    if block.role is Role.experts:
        named = [x for x in named if x == "sigmoid"]
    return [", ".join(dict.fromkeys(named))] if named else []


def _is_gate(flow: Flow, node: Node, inside: set[Node]) -> bool:
    """Whether a node multiplies two values that were both computed in the block."""
    if node.op is not ops.mul.op or is_sum(node):
        return False
    return sum(v.producer in inside and v not in flow.still for v in node.arguments) == 2


def _others(flow: Flow, block: Block) -> list[str]:
    """Parameters that stand beside the layer of a block, as learned positions do beside that of patches."""
    plain = [n for n in block.nodes if role_of(n, flow.weighted(n)) is None]
    names = [
        p.name.removesuffix(".weight").rpartition(".")[2]
        for n in plain
        for v in n.arguments
        if v in flow.still
        for p in leaves(v)
        if p in block.params
    ]
    return [f"with {name}" for name in dict.fromkeys(names)]
