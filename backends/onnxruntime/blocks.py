"""Which blocks a provider's kernels multiply fastest: data of a target, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.errors import MonographError


@dataclass(frozen=True)
class Blocks:
    """Block lengths by form, where none is asked for, and whether blocks go without zero points.

    dynamic: there is a product of 8-bit weights with activations that are rounded as they come.
    """

    int4: int
    int8: int
    int2: int
    symmetric: bool
    dynamic: bool
    evidence: tuple[str, ...] = ()

    def length(self, form: str) -> int:
        """The block length for a form: `int8-dynamic` has one for tables, which are looked up."""
        return {"int4": self.int4, "int2": self.int2}.get(form, self.int8)


BLOCKS = {
    "cpu": Blocks(
        int4=32,
        int8=64,
        int2=32,
        symmetric=False,
        dynamic=True,
        evidence=(
            "SmolLM2-135M, one thread, medians: a prompt of 512 in 8 bits, blocks of 32 272 tokens/s, of 64 346, one "
            "scale a row 578; steps of 8 rows 96, 119 and 79; 4 bits in blocks of 32, level 4 against 0: prompt 253 "
            "and 301, steps 40 and 35, of 8 rows 94 and 50",
            "perplexity of 2,048 tokens of SmolLM2-135M, 51.95 in f32: 4 bits in blocks of 16 59.8, 32 60.4, 64 62.5; "
            "8 bits 51.9, one scale a row 54.0",
            "MatMulNBits with and without zero points: equal (1.31.1 and 1.32.0, one thread)",
            "one token, 576 to 1,536 channels, 4 bits: blocks of 32 0.092 ms, 64 0.077, 128 0.075",
            "DynamicQuantizeLinear and MatMulInteger: 512 tokens 1.34 ms, one token 0.017; rounded by row 1.67 and "
            "0.019, with a fifth of the error where one row is large; 8 bits in blocks of 64 3.0 and 0.017",
        ),
    ),
    "cuda": Blocks(
        int4=32,
        int8=32,
        int2=32,
        symmetric=True,
        dynamic=False,
        evidence=("the fused kernels take blocks of 32 without zero points and without bias (1.31.1)",),
    ),
}
"""By name of the provider."""

PORTABLE = Blocks(int4=32, int8=32, int2=32, symmetric=False, dynamic=True)
"""Of an export to standard ops."""


def blocks_of(provider: str) -> Blocks:
    """The blocks for a provider. Raises MonographError for one that nothing is known about."""
    if provider not in BLOCKS:
        raise MonographError(f"nothing is known about the blocks of {provider}", hint=f"known: {', '.join(BLOCKS)}")
    return BLOCKS[provider]
