"""The graphs that a model is built as: one for prompts padded on the right, one for any mask, one for a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...ir.graph import Graph
from ...ir.tensors import Tensor
from ...ir.types import bf16, f16
from ...passes.adapters import AddAdapters
from ...passes.encoder_decoder import is_separable, separate
from ...passes.left_padding import why_alone
from ...passes.manager import Pipeline, PipelineReport
from ...passes.narrow_cache import narrow_cache
from ...passes.pipelines import PIPELINES
from ...passes.precision import Precision, is_f32, narrowed
from ...passes.token_flow import stream_of
from ..target import Target
from .attention import GroupQuery, cached_attentions
from .beside import PLAIN, Beside
from .choices import choices_of
from .quantized import prompt_layers, quantized_layers
from .rewrites import common, lengths_variant, mask_variant

MASKED, LENGTHS, ENCODER = "model.masked.onnx", "model.onnx", "encoder.onnx"
PROMPTS = "model.prompts.onnx"


@dataclass
class Variants:
    """The graphs of a build by file name, and what was noted on the way.

    attentions: how many the main graph has. masked: file of the graph for any mask. alone: why its rows of different
    lengths cannot run together. dump: folder for the text of the graph after every pass. precision: what is narrow.
    fine: see `quantized_layers`. verify: types after each pass. adapters: the pass that put them beside the layers
    which they change.
    """

    graphs: dict[str, Graph] = field(default_factory=dict[str, Graph])
    reports: dict[str, PipelineReport] = field(default_factory=dict[str, PipelineReport])
    attentions: int = 0
    masked: str = MASKED
    alone: str = ""
    dump: Path | None = None
    precision: Precision | None = None
    fine: Collection[str] = ()
    adapters: AddAdapters | None = None
    verify: bool = True

    def run(self, name: str, pipeline: Pipeline, graph: Graph) -> Graph:
        """Run a pipeline and keep its report under `name`."""
        place = None if self.dump is None else self.dump / f"{len(self.reports)}-{name.replace(' ', '-')}"
        self.reports[name] = pipeline.run(graph, dump=place, verify=self.verify)
        return graph

    def lowered(self, pipeline: Pipeline, target: Target) -> Pipeline:
        """A pipeline and, after it, encoded weights as the target's kernels take them."""
        return Pipeline(pipeline.name, [*pipeline.passes, quantized_layers(target, self.fine)])


def _add_prompts(variants: Variants, graph: Graph, target: Target, positions: int, sources: Collection[str]) -> None:
    """A graph for many tokens at once, where it is wanted and is not the one for single tokens."""
    choices = choices_of(target)
    if choices.prompts == "same":
        return
    aim, layers = target, prompt_layers(target, variants.fine)
    if choices.prompts == "float":
        aim = dataclasses.replace(target, choices=dataclasses.replace(choices, int4_level=0, int8_level=0))
        layers = quantized_layers(aim, variants.fine)
    shared = lengths_variant(aim, positions, sources)
    found = variants.run(PROMPTS, Pipeline(shared.name, [*shared.passes, layers]), graph.copy())
    if str(found) != str(variants.graphs[LENGTHS]):
        variants.graphs[PROMPTS] = found


def variants_of(
    graph: Graph,
    target: Target,
    positions: int,
    weights: Mapping[str, Tensor] | None = None,
    beside: Beside = PLAIN,
    *,
    streams: bool = True,
    verify: bool = True,
) -> Variants:
    """The graphs that are built for a plain graph, which is left as it was, or for one that already has slots.

    weights: they decide what of an f32 graph is narrow, if the target is. None: a graph stays as it is. beside: its
    adapters are put beside the layers that they change, once projections are packed. streams: whether it may
    be one that goes on with tokens. verify: types after each pass.
    """
    adapters = None if beside.adapters is None else AddAdapters(beside.adapters)
    variants = Variants(dump=beside.dump, fine=beside.fine, adapters=adapters, verify=verify)
    serves = bool(graph.slots) or (streams and stream_of(graph) is not None)
    graph = graph.copy()
    if not graph.slots:
        variants.run("graph", PIPELINES["decode" if serves else "encode"], graph)
    if weights is not None:
        narrow_cache(graph, weights)
    if weights is not None and target.dtype in (f16, bf16) and is_f32(graph):
        graph, variants.precision = narrowed(graph, target.dtype, weights, positions)
    if serves:
        variants.alone = why_alone(graph)
    sources: Collection[str] = ()
    if serves and is_separable(graph):
        encoder, graph = separate(graph)
        sources = encoder.inputs.keys()
        variants.run("encoder common", common(target, adapters), encoder)
        variants.graphs[ENCODER] = variants.run(ENCODER, variants.lowered(mask_variant(target), target), encoder)
    variants.run("common", common(target, adapters), graph)
    variants.attentions = sum(bool(n.op.keys) for n in graph)
    if choices_of(target).shared_cache and cached_attentions(graph):
        lengths = lengths_variant(target, positions, sources)
        shared = variants.run(LENGTHS, variants.lowered(lengths, target), graph.copy())
        if variants.reports[LENGTHS].counts.get(GroupQuery.name):
            variants.graphs[LENGTHS] = shared
            _add_prompts(variants, graph, target, positions, sources)
    # A model with one graph for everything has it under the name that everybody looks for.
    variants.masked = MASKED if LENGTHS in variants.graphs else LENGTHS
    variants.graphs[variants.masked] = variants.run(MASKED, variants.lowered(mask_variant(target), target), graph)
    return variants
