"""Whether a step can be captured as a CUDA graph: every node that stands in the way, its layer and the reason."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from ...ir.slots import next_input
from ..target import Target, place_of, schema_of

_HOST, _DEVICE, _FIXED = "host", "device", "fixed"
_SHAPES = ("Shape", "Size")
"""Ops whose result the CUDA provider leaves in host memory."""


def capture_refusals(model: onnx_ir.Model, target: Target) -> list[str]:
    """Why runs of a model cannot be captured and replayed, a line a node or output; empty if they can.

    The runtime captures where every node runs on the device, or on the host over shapes only, without a copy between
    the two; replays are right where all memory stays where it is and no known trap is in it. Each line: op, the user's
    line and the layer, what is wrong, and the public thread if there is one.
    """
    check = _Check(model, target)
    for node in model.graph:
        check.node(node)
    check.outputs()
    return list(dict.fromkeys(check.found))


class _Check:
    """Where each value of a model lives while it runs, and what stands in the way of a capture."""

    def __init__(self, model: onnx_ir.Model, target: Target) -> None:
        self.model, self.table = model, target.table
        self.facts, self.opsets = target.table.facts, model.opset_imports
        self.found: list[str] = []
        self.home: dict[onnx_ir.Value, str] = {}
        for v in model.graph.inputs:
            self.home[v] = self.input(v)

    def say(self, node: onnx_ir.Node, what: str) -> None:
        self.found.append(f"{node.domain or 'ai.onnx'}.{node.op_type} at {place_of(node)}: {what}")

    def at(self, v: onnx_ir.Value | None) -> str:
        """Where a value lives; constants are wherever they are read."""
        if v is None or v.is_initializer() or v.const_value is not None:
            return _FIXED
        return self.home.get(v, _FIXED)

    def input(self, v: onnx_ir.Value) -> str:
        """Inputs that are read in host memory only are given there."""
        readers = [name in self.host(node) for node, i in v.uses() for name in [self.name(node, i)]]
        return _HOST if readers and all(readers) else _DEVICE

    def names(self, node: onnx_ir.Node) -> list[str]:
        """What the inputs of a node are called in its schema; the last name repeats."""
        schema = schema_of(node.op_type, self.opsets.get(node.domain, 1), node.domain)
        return [labels[-1] for labels in schema["inputs"]] if schema else []

    def name(self, node: onnx_ir.Node, i: int) -> str:
        names = self.names(node)
        return names[min(i, len(names) - 1)] if names else ""

    def host(self, node: onnx_ir.Node) -> set[str]:
        return set(self.facts.host.get((node.domain, node.op_type), ()))

    def node(self, node: onnx_ir.Node) -> None:
        """Say what is wrong with a node, and where its results are."""
        self.found += self.table.trapped(node, self.opsets, "refuse", "capture")
        given = {self.at(v) for v in node.inputs} - {_FIXED}
        if node.domain == "" and node.op_type in _SHAPES:
            self.home.update(dict.fromkeys(node.outputs, _HOST))
            return
        if not given:
            self.home.update(dict.fromkeys(node.outputs, _FIXED))
            return
        host = self.host(node)
        # Shapes stay on the host; what reads nothing but sizes there makes its result on the device.
        sizes = all(self.name(node, i) in host for i, v in enumerate(node.inputs) if self.at(v) != _FIXED)
        on_host = given == {_HOST} and not sizes
        problem = self.table.problem(node, self.opsets)
        if problem and not on_host:
            self.say(node, f"{self.table.provider} has no kernel for it, so it runs on the host")
        for i, v in enumerate(node.inputs):
            at, name = self.at(v), self.name(node, i)
            if name in host and at == _DEVICE:
                self.say(node, f"{name} is computed on the device and read on the host")
            elif name not in host and at == _HOST and not on_host:
                self.say(node, f"{name} is computed on the host and read on the device")
        self.home.update(dict.fromkeys(node.outputs, _HOST if on_host else _DEVICE))

    def outputs(self) -> None:
        """Say which outputs have another size than what they become the next time, and so another address."""
        inputs = {v.name: v for v in self.model.graph.inputs}
        for v in self.model.graph.outputs:
            before, node = inputs.get(next_input(v.name or "")), v.producer()
            if before is None or node is None or (node.domain, node.op_type) in self.facts.inplace:
                continue
            if str(before.shape) != str(v.shape):
                self.say(node, f"{before.name} {before.shape} becomes {v.name} {v.shape}, which moves at every run")


def by_op(refusals: list[str]) -> Mapping[str, int]:
    """How many refusals there are for each op, for reports."""
    counts: dict[str, int] = {}
    for line in refusals:
        op = line.partition(" at ")[0]
        counts[op] = counts.get(op, 0) + 1
    return counts
