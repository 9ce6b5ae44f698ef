"""What was measured about ONNX Runtime's ops, by provider: data of a target, with its evidence, and no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from ...ir.errors import ConfigError, MonographError
from ..target import Target

Attend = Literal["multi_head", "standard", "parts"]
"""MultiHeadAttention where it fits and Attention-23 elsewhere; Attention-23; products and a softmax."""

Level = Literal[0, 4]

PromptForm = Literal["same", "float", "int8"]
"""Many tokens at once are read by the graph that decodes, by one that multiplies the same blocks at level 0, or by one
whose weights have 8 bits a row, made of the blocks, and are multiplied by activations rounded by row."""

HeadForm = Literal["stored", "transposed"]
"""A head that is the embedding, too: multiplied as it is stored, or by a transposed copy."""

_SKIP_NORM, _BIAS_GELU, _BIAS_GEMM = "SkipLayerNormFusion", "BiasGeluFusion", "MatMulAddFusion"


@dataclass(frozen=True)
class Choices:
    """Which of several legal ops and settings a build gets. Each field names what it decides; `evidence` says why.

    shared_cache: caches in buffers that GroupQueryAttention writes in place, where it fits; else they grow. attention:
    the op for attention that GroupQueryAttention does not take. pack_projections: q, k and v in one product, where
    the attention kernel takes them undivided. pack_gates: both products of a gated feed-forward in one.
    skip_rms_norm, skip_layer_norm: the sum of the residual stream inside the norm after it. quick_gelu: SiLU as one
    op. bias_gelu: a bias inside GELU. bias_gemm: the bias of a product inside it. tied_head: see HeadForm.
    rotary_table: most numbers of the table with which the attention kernel rotates itself; beyond, the graph
    rotates. int4_level, int8_level, int4_head, int8_head: accuracy level of MatMulNBits for layers and for a tied
    head (4 rounds activations to 8 bits by block; 0 computes in their type). fine_head: a tied head at level 4
    multiplies by both parts of its activations, as exactly as with 16 bits, where no other layer rounds.
    prompts: see PromptForm. block_embedding: rows of an embedding in blocks by GatherBlockQuantized. flash: tiled
    attention for prompts. threads: of a session that is not told how many (0: one a physical core). spinning: idle
    threads wait in a loop. prepacked: kernels keep weights in an order of their own. huge_pages: their memory lies in
    pages of 2 MB, where the system has them. next_token: the graph chooses the likeliest token, so that logits need
    not leave the device. disabled_optimizers: more of ONNX Runtime's own fusions that make this graph slower.
    """

    shared_cache: bool = True
    attention: Attend = "multi_head"
    pack_projections: bool = True
    pack_gates: bool = False
    skip_rms_norm: bool = True
    skip_layer_norm: bool = True
    quick_gelu: bool = True
    bias_gelu: bool = True
    bias_gemm: bool = True
    tied_head: HeadForm = "stored"
    rotary_table: int = 4 << 20
    int4_level: Level = 0
    int8_level: Level = 0
    int4_head: Level = 0
    int8_head: Level = 0
    fine_head: bool = True
    prompts: PromptForm = "same"
    block_embedding: bool = True
    flash: bool = True
    threads: int = 0
    spinning: bool = True
    prepacked: bool = True
    huge_pages: bool = True
    next_token: bool = False
    disabled_optimizers: tuple[str, ...] = ()
    evidence: tuple[str, ...] = field(default=(), compare=False)

    @property
    def disabled(self) -> tuple[str, ...]:
        """Fusions of ONNX Runtime that a session is told to leave out, for what the graph has apart stays apart."""
        named = {_SKIP_NORM: self.skip_layer_norm, _BIAS_GELU: self.bias_gelu, _BIAS_GEMM: self.bias_gemm}
        return (*(name for name, wanted in named.items() if not wanted), *self.disabled_optimizers)

    def level(self, bits: int, *, head: bool = False) -> int:
        """Accuracy level of MatMulNBits for codes of so many bits. Those that are no 4 bits have the level of 8."""
        if bits == 4:
            return self.int4_head if head else self.int4_level
        return self.int8_head if head else self.int8_level

    def said(self) -> dict[str, Any]:
        """The fields as JSON has them, all but the evidence."""
        found = {k: v for k, v in asdict(self).items() if k != "evidence"}
        return {**found, "disabled_optimizers": list(self.disabled_optimizers)}

    def changed(self, other: Choices) -> dict[str, Any]:
        """Fields of `other` that differ from these, by name."""
        mine = self.said()
        return {k: v for k, v in other.said().items() if v != mine[k]}

    @staticmethod
    def of(said: Mapping[str, Any], place: str = "") -> Choices:
        """Choices from what `said` gives. Raises ConfigError listing every field that is unknown or of another type."""
        types, problems = get_type_hints(Choices), list[str]()
        names = {f.name for f in fields(Choices)} - {"evidence"}
        problems += [f"unknown choice {k!r}" for k in said if k not in names]
        given: dict[str, Any] = {k: _frozen(v) for k, v in said.items() if k in names}
        problems += [f"{k} is {v!r}, expected {_named(types[k])}" for k, v in given.items() if not _fits(v, types[k])]
        if problems:
            raise ConfigError("choices are damaged", place=place, details=problems)
        return Choices(**given)


def _frozen(value: Any) -> Any:
    """A list of JSON as the tuple that a field has."""
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(type(value) is type(a) and value == a for a in get_args(kind))
    if kind is int:
        return type(value) is int and value >= 0
    if kind is bool:
        return type(value) is bool
    return isinstance(value, tuple) and all(isinstance(n, str) for n in cast("tuple[Any, ...]", value))


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return {int: "a whole number", bool: "true or false"}.get(kind, "names")


CHOICES = {
    "cpu": Choices(
        skip_layer_norm=False,
        bias_gelu=False,
        int4_level=4,
        int4_head=4,
        prompts="float",
        int8_level=4,
        int8_head=4,
        evidence=(
            "1.31.1 and 1.32.0, f32, one thread, medians in turn",
            "one token behind 512, 9 heads of 3: GroupQueryAttention in place 0.183 ms, growing 0.257, Attention 0.21",
            "512 tokens, 576 channels: packed and undivided 3.69 ms, three products 3.63, packed and divided 3.84",
            "gate and up projections packed or apart: equal, 0.42 ms and 22.4 ms",
            "SkipSimplifiedLayerNormalization 0.42 ms, Add and RMSNormalization 0.47",
            "SkipLayerNormalization 1.81 ms, Add and LayerNormalization 0.54",
            "QuickGelu 0.45 ms, Sigmoid and Mul 1.03; BiasGelu 1.29, Gelu 0.64",
            "MatMulNBits of 8 bits: level 0 is 13 to 58 times slower than 4; of 4 bits in blocks of 32 level 0 gives "
            "457 tokens/s of a prompt and 49 of decoding, level 4 gives 303 and 63, off by 4e-7 and by 5e-3",
            "the same with zero points on an EPYC with AVX-512 VNNI, best of 30: one token, 576 to 1,536 channels "
            "0.038 ms at level 0 and 0.013 at 4, 2,048 to 8,192 0.85 and 0.41; 128 tokens 1.09 and 1.06, 72 and 68",
            "gate and up projections of 4 bits, there: two products 0.023 ms and 2.08, one 0.022 and 2.03",
            "GroupQueryAttention there over codes of 8 bits: one token behind 2,048 0.15 ms, over f32 0.19; a prompt "
            "of 512 80 ms, over f32 4",
            "the likeliest of 49,152 logits in the graph 30 us, by NumPy 2 us",
            "without prepacked weights a product of 4 bits takes 24 times as long",
            "SmolLM2-135M there, two threads, three in turn: a step in f32 13.2 ms and 12.2 in huge pages, 4 bits in "
            "blocks of 32 3.70 and 3.48, of 64 3.37 and 3.14",
        ),
    ),
    "cuda": Choices(
        next_token=True,
        evidence=(
            "not measured here: the provider's kernels by its own list (kernels_cuda.txt), whose fused ops read and "
            "write memory once where their parts do so several times",
        ),
    ),
}
"""By name of the provider."""


EXACT = Choices(block_embedding=False)
"""For clients whose sessions take no settings: every product in the type of its activations, every op everywhere."""


def choices_of(target: Target) -> Choices:
    """What a target was given, or the shipped choices of its provider. Raises MonographError for one not known."""
    if target.choices is not None:
        return target.choices
    if target.provider not in CHOICES:
        what = f"nothing is known about the ops of {target.provider}"
        raise MonographError(what, hint=f"known: {', '.join(CHOICES)}")
    return CHOICES[target.provider]


def why(target: Target) -> tuple[str, ...]:
    """What decided the choices of a target, in words."""
    if target.choices is None:
        lead = f"the shipped choices for {target.provider}: nothing was measured on this machine"
        return (lead, *choices_of(target).evidence)
    return target.choices.evidence or ("choices that were given, without evidence",)


def chosen(target: Target, choices: Choices | None) -> Target:
    """The target with choices, where they are given."""
    return target if choices is None else replace(target, choices=choices)
