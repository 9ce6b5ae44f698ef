"""Check a graph: structure, order, use-lists, and every node's types against its op's shape rule."""

from __future__ import annotations

from .errors import MonographError, VerifyError
from .graph import Graph, Node, Value
from .text import names_of, print_graph


def verify(graph: Graph) -> Graph:
    """Give the graph back if it is well formed. Raises VerifyError with every error shown under its line."""
    notes = errors_of(graph)
    if notes:
        count = sum(map(len, notes.values()))
        details = [line for found in notes.values() for note in found for line in note.splitlines()]
        error = VerifyError(f"graph {graph.name} has {count} error{'s' if count > 1 else ''}", details=details)
        error.args = (f"{error.what}\n{_near_errors(print_graph(graph, notes))}",)
        raise error
    return graph


def _near_errors(text: str, around: int = 4) -> str:
    """The lines of a printed graph that are near an error, with `...` for what is left out."""
    lines = text.splitlines()
    marked = [i for i, line in enumerate(lines) if line.startswith("  ^ ")]
    kept = [any(abs(i - m) <= around for m in marked) for i in range(len(lines))]
    shown: list[str] = []
    for line, keep in zip(lines, kept, strict=True):
        if keep:
            shown.append(line)
        elif not shown or shown[-1] != "  ...":
            shown.append("  ...")
    return "\n".join(shown)


def errors_of(graph: Graph) -> dict[Node | None, list[str]]:
    """All errors by node (None: about inputs and outputs). Empty for a well-formed graph."""
    names = names_of(graph)
    notes: dict[Node | None, list[str]] = {}
    seen: set[Value] = {*graph.inputs.values(), *graph.params.values()}
    for node in graph:
        found = [*_operands(node, seen, names), *_uses(node, names)] or _types(node)
        if found:
            notes[node] = found
        seen.update(node.outputs)
    head = [f"output {k} is not computed in this graph" for k, v in graph.outputs.items() if v not in seen]
    head += [
        f"output {k} is {v.type}, an encoded weight: only dequantize reads it"
        for k, v in graph.outputs.items()
        if v.type.encoding is not None
    ]
    if head:
        notes[None] = head
    return notes


def _operands(node: Node, seen: set[Value], names: dict[Value, str]) -> list[str]:
    found: list[str] = []
    labels = node.op.signature.operand_names(len(node.operands))
    for i, v in enumerate(node.operands):
        label = labels[i] if i < len(labels) else f"operand {i}"
        if v is None:
            if label not in node.op.signature.optional:
                found.append(f"{node.op.name}: operand {label} is missing")
        elif v not in names:
            found.append(f"{node.op.name}: {label} is not a value of this graph")
        elif v not in seen:
            found.append(f"{node.op.name}: {label} = {names[v]} is used before it is defined")
    return found


def _uses(node: Node, names: dict[Value, str]) -> list[str]:
    lost = [v for i, v in enumerate(node.operands) if v is not None and (node, i) not in v.uses]
    stale = [(v, n) for v in node.outputs for n, i in v.uses if i >= len(n.operands) or n.operands[i] is not v]
    return [f"{node.op.name}: the use of {names.get(v, v)} is not recorded" for v in lost] + [
        f"{node.op.name}: {names.get(v, v)} lists a use by {n.op.name} that does not read it" for v, n in stale
    ]


def _types(node: Node) -> list[str]:
    try:
        attributes, types = node.op.typed(node.operands, node.attributes, node.location)
    except MonographError as e:
        return [str(e)]
    written = tuple(v.type for v in node.outputs)
    found: list[str] = []
    if written != types:
        shown = [", ".join(map(str, t)) for t in (written, types)]
        found.append(f"{node.op.name}: written type is {shown[0]} but the op gives {shown[1]}")
    if attributes != node.attributes:
        changed = [k for k in attributes if attributes[k] != node.attributes.get(k)]
        found.append(f"{node.op.name}: attribute {changed[0]} is not in its normal form {attributes[changed[0]]!r}")
    return found
