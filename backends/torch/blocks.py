"""Layers as submodules: what shards or wraps a model layer by layer finds modules with a `forward` at their paths."""

from __future__ import annotations

import operator
from itertools import groupby

from torch import fx

_TRAINING = "training"


def into_blocks(module: fx.GraphModule) -> None:
    """Turn the nodes of each layer (`Location.scope`) of a flat module into a submodule at the layer's path.

    Names of parameters stay what they are. A layer whose parameters are also read elsewhere, or whose nodes do not
    stand together, stays in the outer module: a wrapper that frees a layer's weights after its forward would
    take them from the other reader.
    """
    scopes = {scope for n in module.graph.nodes if (scope := n.meta.get("scope"))}
    homes = {n: _home(n, scopes) for n in module.graph.nodes if n.op in ("call_function", "call_method")}
    for scope, run in groupby(list(homes), homes.__getitem__):
        nodes = list(run)
        if scope and _owns(module, scope, nodes):
            _make(module, scope, nodes)
    module.graph.lint()
    module.recompile()


def _scope_of(path: str, scopes: set[str]) -> str:
    return next((s for s in sorted(scopes, key=len, reverse=True) if path.startswith(f"{s}.")), "")


def _home(node: fx.Node, scopes: set[str]) -> str:
    """The layer whose parameters a node reads; of a node that reads none, the one it was written in."""
    read = {_scope_of(str(n.target), scopes) for n in node.all_input_nodes if _is_parameter(n)}
    return read.pop() if len(read) == 1 else "" if read else node.meta.get("scope", "")


def _is_parameter(node: fx.Node) -> bool:
    return node.op == "get_attr" and node.target != _TRAINING


def _owns(module: fx.GraphModule, scope: str, run: list[fx.Node]) -> bool:
    """Whether the run reads all that is read of the layer's parameters, and there are some."""
    own = [n for n in module.graph.nodes if _is_parameter(n) and str(n.target).startswith(f"{scope}.")]
    readers = {user for n in own for user in n.users}
    return bool(readers) and readers <= set(run)


def _make(module: fx.GraphModule, scope: str, run: list[fx.Node]) -> None:
    """Move a run of nodes into a submodule and call it in their place."""
    inner, inputs = fx.Graph(), list[fx.Node]()
    copies: dict[fx.Node, fx.Node] = {}
    own = [n for n in module.graph.nodes if _is_parameter(n) and str(n.target).startswith(f"{scope}.")]
    given = {m: None for n in run for m in n.all_input_nodes if m not in set(run) and m not in own}
    for n in given:
        if n.target == _TRAINING:
            continue
        copies[n] = inner.placeholder(n.name)
        inputs.append(n)
    for n in own:
        copies[n] = inner.get_attr(str(n.target).removeprefix(f"{scope}."))
    for n in given:
        if n.target == _TRAINING:
            copies[n] = inner.get_attr(_TRAINING)
    for n in run:
        copies[n] = inner.node_copy(n, copies.__getitem__)
    outputs = [n for n in run if any(user not in set(run) for user in n.users)]
    inner.output(copies[outputs[0]] if len(outputs) == 1 else tuple(copies[n] for n in outputs))
    _call(module.graph, scope, run, inputs, outputs)
    for n in [*reversed(run), *own]:
        module.graph.erase_node(n)
    parent, _, name = scope.rpartition(".")
    setattr(module.get_submodule(parent), name, fx.GraphModule(module.get_submodule(scope), inner, class_name="Layer"))


def _call(graph: fx.Graph, scope: str, run: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]) -> None:
    """Call the submodule before the run, after whatever it takes, and give its results to the run's readers."""
    inside = set(run)
    for n in inputs:
        if n.op in ("get_attr", "call_module") and n > run[0]:
            run[0].prepend(n)  # Parameters and constants were placed where they were first read.
    with graph.inserting_before(run[0]):
        result = graph.create_node("call_module", scope, tuple(inputs))
        for i, n in enumerate(outputs):
            new = result if len(outputs) == 1 else graph.call_function(operator.getitem, (result, i))
            n.replace_all_uses_with(new, lambda user: user not in inside)
