"""What is known to go wrong in kernels of a provider, as data with the public threads that say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir

from ..ir.errors import MonographError

WEIGHTS = ("refuse", "capture", "slow", "session")
"""Not built so; wrong in a captured step only; right but not the fastest; what a session has to see to."""


@dataclass(frozen=True)
class Trap:
    """A use of an op that goes wrong. thread: who says so, `-` for nobody. weight: one of WEIGHTS. when: `always`,
    `NAME=given` or `NAME=computed` for an operand, `NAME=given` or `NAME=number` for an attribute, `group=number` for
    query heads a key head. what: goes wrong, in words.
    """

    thread: str
    weight: str
    domain: str
    op: str
    when: str
    what: str

    @staticmethod
    def parse(line: str) -> Trap:
        """Read `trap thread weight domain op when what...`. Raises MonographError for an unknown weight."""
        _, thread, weight, domain, op, when, what = line.split(" ", 6)
        if weight not in WEIGHTS:
            raise MonographError(f"a trap weighs {weight!r}, expected one of {', '.join(WEIGHTS)}: {line}")
        return Trap(thread, weight, "" if domain == "ai.onnx" else domain, op, when, what)

    def catches(self, node: onnx_ir.Node, names: Sequence[str]) -> bool:
        """Whether a node is such a use. names: of its inputs, by its schema."""
        if (node.domain, node.op_type) != (self.domain, self.op):
            return False
        if self.when == "always":
            return True
        name, wanted = self.when.split("=")
        if name == "group":
            heads, groups = (_number(node, k) for k in ("num_heads", "kv_num_heads"))
            return bool(groups) and heads == int(wanted) * groups
        if name in names:
            at = names.index(name)
            v = node.inputs[at] if at < len(node.inputs) else None
            return v is not None and (wanted == "given" or v.producer() is not None)
        given = node.attributes.get(name)
        if given is None:
            return False
        return float(given.value or 0.0) != 0.0 if wanted == "given" else given.value == int(wanted)

    def __str__(self) -> str:
        return self.what if self.thread == "-" else f"{self.what} ({self.thread})"


def _number(node: onnx_ir.Node, name: str) -> int:
    given = node.attributes.get(name)
    return 0 if given is None else int(given.value)


@dataclass(frozen=True)
class Facts:
    """What a provider's table says besides its kernels. host: (domain, op) => inputs read in host memory. inplace: ops
    that may write a state where they read it.
    """

    traps: tuple[Trap, ...] = ()
    host: Mapping[tuple[str, str], Collection[str]] = field(default_factory=dict[tuple[str, str], Collection[str]])
    inplace: Collection[tuple[str, str]] = ()

    @staticmethod
    def parse(lines: Sequence[str]) -> Facts:
        """The lines of a table that begin with `trap`, `host` or `inplace`."""
        host: dict[tuple[str, str], set[str]] = {}
        inplace: set[tuple[str, str]] = set()
        for line in lines:
            kind, domain, op, *rest = line.split()
            key = ("" if domain == "ai.onnx" else domain, op)
            if kind == "host":
                host.setdefault(key, set()).update(rest)
            elif kind == "inplace":
                inplace.add(key)
        return Facts(tuple(Trap.parse(line) for line in lines if line.startswith("trap ")), host, frozenset(inplace))


KINDS = ("trap ", "host ", "inplace ")
"""How the lines of a table begin that are no kernels."""
