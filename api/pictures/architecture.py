"""The architecture of a graph: its blocks with titles, details and parameters, and what flows between them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..ir import ops
from ..ir.graph import Graph
from ..ir.value import Node, Value, ancestors, leaves
from .blocks import Architecture, Block, Edge, gathered
from .describe import describe
from .flow import Flow
from .vocabulary import Role, quiet_by_op


def architecture(graph: Graph) -> Architecture:
    """Gather the nodes of a graph into blocks, name them, and connect them."""
    flow, blocks = gathered(graph)
    building = _Building(flow, blocks)
    building.run()
    return Architecture(flow.graph, flow, building.blocks, building.edges)


class _Building:
    def __init__(self, flow: Flow, blocks: list[Block]) -> None:
        self.flow, self.blocks = flow, blocks
        self.edges: list[Edge] = []
        self.block_of: dict[Value, Block] = {v: b for b in blocks for n in b.nodes for v in n.outputs}
        self.owned: set[Value] = set()

    def run(self) -> None:
        main = list(self.blocks)
        for block in main:
            self.aside(block)
        for block in main:
            self.own(block, block.nodes)
        for block in main:
            self.enter(block)
        order = {b: i for i, b in enumerate(self.blocks)}
        for block in self.blocks:
            if block.role is not Role.input:
                describe(self.flow, block)
                block.layer, block.inner = block.layer or layer_of(block), layer_of(block, 2)
        for block in self.blocks:
            if block.role is Role.sum:
                before = [e.source for e in self.edges if e.target is block and not e.around]
                if before:
                    last = max(before, key=lambda b: order.get(b, -1))
                    block.layer, block.inner = last.layer, last.inner
        for name, value in self.flow.graph.outputs.items():
            made = Block(Role.output, name, value=value)
            self.blocks.append(made)
            self.edges.append(Edge(self.source(value), made, value))

    def source(self, value: Value) -> Block:
        """The block that makes a value; an input gets one when it is first asked for."""
        if value not in self.block_of:
            made = Block(Role.input, value.name, value=value)
            self.block_of[value] = made
            self.blocks.insert(sum(b.role is Role.input for b in self.blocks), made)
        return self.block_of[value]

    def own(self, block: Block, nodes: Iterable[Node]) -> None:
        """Give a block the parameters that its nodes read, directly or through what is made of them alone."""
        for n in nodes:
            for v in n.arguments:
                for p in leaves(v) if v in self.flow.still else ():
                    if p in self.owned:
                        if p not in block.params and p not in block.tied:
                            block.tied.append(p)
                    else:
                        self.owned.add(p)
                        block.params.append(p)

    def aside(self, block: Block) -> None:
        """What comes from one side: the names of inputs, or a block of its own where there are parameters in it."""
        inside = {v for n in block.nodes for v in n.outputs}
        for n in block.nodes:
            for i, v in enumerate(n.operands):
                if v is None or v in inside or not self.flow.quiet(n, i):
                    continue
                if v in self.flow.still and not (quiet_by_op(n, i) and self.shared(v)):
                    continue
                if v in self.block_of and self.block_of[v] is not block:
                    self.connect(Edge(self.block_of[v], block, v, quiet=True))
                    continue
                made = [a for a in ancestors(v, self.block_of) if a not in self.flow.place]
                weighted = [a for a in made if self.flow.weighted(a)]
                if weighted:
                    self.side_block(n, i, v, made)
                    self.connect(Edge(self.block_of[v], block, v, quiet=True))
                names = [x.name for x in leaves(v) if not x.is_param]
                block.beside += [x for x in names if x not in block.beside]

    def shared(self, value: Value) -> bool:
        """Whether several layers read something that was computed from parameters."""
        return len(value.users) > 1 and value.producer is not None and any(p.is_param for p in leaves(value))

    def side_block(self, reader: Node, place: int, value: Value, made: list[Node]) -> None:
        name = reader.op.signature.operand_names(len(reader.operands))[place]
        title = "Position bias" if reader.op is ops.attention.op and name == "bias" else f"{name.capitalize()}"
        block = Block(Role.embedding, title, nodes=made)
        self.block_of[value] = block
        self.blocks.insert(0, block)
        self.own(block, block.nodes)
        block.layer = "-"

    def enter(self, block: Block) -> None:
        """Edges of the main flow that lead into a block."""
        inside = {v for n in block.nodes for v in n.outputs}
        for n in block.nodes:
            for v in self.flow.entering(n):
                if v not in inside:
                    self.connect(Edge(self.source(v), block, v, around=self.around(block, v)))

    def around(self, block: Block, value: Value) -> bool:
        return block.fork is not None and value is block.fork

    def connect(self, edge: Edge) -> None:
        for known in self.edges:
            if known.source is edge.source and known.target is edge.target and known.value is edge.value:
                return
        self.edges.append(edge)


def layer_of(block: Block, depth: int = 1) -> str:
    """The layer that a block belongs to: the scope of its nodes, or what the paths of its parameters share.

    depth: numbers in the path, 1 for the outermost list of layers.
    """
    scopes = [numbered(n.location.scope, depth) for n in block.nodes]
    named = [s for s in scopes if s]
    if named:
        return max(set(named), key=named.count)
    paths = {numbered(p.name, depth) for p in block.params}
    return paths.pop() if len(paths) == 1 else ""


def numbered(path: str, depth: int = 1) -> str:
    """The front of a path up to a number: `model.layers.3.mlp` -> `model.layers.3`; nothing without that many."""
    found = re.match(rf"(?:(?:[^.]*\.)*?\d+(?:\.|$)){{{depth}}}", path)
    return found[0].rstrip(".") if found else ""
