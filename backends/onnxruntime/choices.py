"""What was measured about ONNX Runtime's ops, by provider: data of a target, with its evidence, and no code."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.errors import MonographError


@dataclass(frozen=True)
class Choices:
    """Which of several legal ops a provider is given. Each field names what it decides; `evidence` says why.

    pack_projections: q, k and v in one product, where the attention kernel takes them undivided.
    skip_rms_norm, skip_layer_norm: the sum of the residual stream inside the norm after it.
    quick_gelu: SiLU as one op. rotary_table: most numbers of the table with which the attention kernel rotates itself;
    beyond, the graph rotates. disabled_optimizers: ONNX Runtime's own fusions that make this graph slower.
    """

    pack_projections: bool
    skip_rms_norm: bool
    skip_layer_norm: bool
    quick_gelu: bool
    rotary_table: int
    disabled_optimizers: tuple[str, ...]
    evidence: tuple[str, ...]


CHOICES = {
    "cpu": Choices(
        pack_projections=True,
        skip_rms_norm=True,
        skip_layer_norm=False,
        quick_gelu=True,
        rotary_table=4 << 20,
        disabled_optimizers=("SkipLayerNormFusion", "BiasGeluFusion"),
        evidence=(
            "1.31.1 and 1.32.0, f32, one thread, medians in turn",
            "512 tokens, 576 channels: packed and undivided 3.69 ms, three products 3.63, packed and divided 3.84",
            "SkipSimplifiedLayerNormalization 0.42 ms, Add and RMSNormalization 0.47",
            "SkipLayerNormalization 1.81 ms, Add and LayerNormalization 0.54",
            "QuickGelu 0.45 ms, Sigmoid and Mul 1.03; BiasGelu 1.29, Gelu 0.64",
        ),
    ),
    "cuda": Choices(
        pack_projections=True,
        skip_rms_norm=True,
        skip_layer_norm=True,
        quick_gelu=True,
        rotary_table=4 << 20,
        disabled_optimizers=(),
        evidence=(
            "not measured here: the provider's kernels by its own list (kernels_cuda.txt), whose fused ops read and "
            "write memory once where their parts do so several times",
        ),
    ),
}
"""By name of the provider."""


def choices_of(provider: str) -> Choices:
    """The choices for a provider. Raises MonographError for one that nothing is known about."""
    if provider not in CHOICES:
        raise MonographError(f"nothing is known about the ops of {provider}", hint=f"known: {', '.join(CHOICES)}")
    return CHOICES[provider]
