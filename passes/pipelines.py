"""The named pipelines, and why the order is what it is.

1. canonicalize, fold, cse, dce: one spelling for each thing, so that every pattern has one form to match.
2. fuse_layers before fuse_blocks before fuse_residuals: a block's body is written in layers, and a residual sum
   can only be taken once the feed-forward that feeds it no longer wants the same add.
3. add_state after fusion: it knows `attention` and layers with states, whatever the graph looked like when it came in.
Training keeps dropout; every other pipeline removes it first. Packing is left to the targets, which know whether
their kernels take packed operands. No pass touches weight bytes.
"""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import MonographError, did_you_mean
from ..ir.graph import Graph
from . import fuse
from .canonicalize import canonicalize, remove_dropout
from .cse import cse
from .dce import dce
from .decompose import decompose as _decompose
from .encoder_decoder import separate
from .fold import fold
from .manager import Check, FunctionPass, Pass, Pipeline, PipelineReport
from .state import add_state

CLEAN: tuple[Pass, ...] = (
    FunctionPass("canonicalize", canonicalize),
    FunctionPass("fold", fold),
    FunctionPass("cse", cse),
    FunctionPass("dce", dce),
)
RAISE: tuple[Pass, ...] = (fuse.LAYERS, FunctionPass("dce", dce), fuse.BLOCKS, fuse.RESIDUALS, FunctionPass("dce", dce))
_INFERENCE: tuple[Pass, ...] = (FunctionPass("remove_dropout", remove_dropout), *CLEAN, *RAISE)
_MEMORY: tuple[Pass, ...] = (FunctionPass("add_state", add_state),)

PIPELINES = {
    "clean": Pipeline("clean", CLEAN),
    "train": Pipeline("train", (*CLEAN, *RAISE)),
    "encode": Pipeline("encode", _INFERENCE),
    "decode": Pipeline("decode", (*_INFERENCE, *_MEMORY)),
}


def optimize(
    graph: Graph, pipeline: str, *, verify: bool = True, dump: Path | None = None, check: Check | None = None
) -> tuple[Graph, PipelineReport]:
    """Run a named pipeline on a copy. Raises MonographError for an unknown name, PassError for a broken pass."""
    if pipeline not in PIPELINES:
        raise MonographError(f"no pipeline is called {pipeline!r}{did_you_mean(pipeline, PIPELINES)}")
    new = graph.copy()
    return new, PIPELINES[pipeline].run(new, verify=verify, dump=dump, check=check)


def train(graph: Graph) -> Graph:
    """For the PyTorch backend: fused layers, dropout kept, no cache."""
    return optimize(graph, "train")[0]


def encode(graph: Graph) -> Graph:
    """For encoders and stateless scoring: fused layers, no dropout, no cache."""
    return optimize(graph, "encode")[0]


def decode(graph: Graph) -> Graph:
    """For generation: `encode` plus a growing KV cache; with P = 0 past tokens it is the prefill."""
    return optimize(graph, "decode")[0]


def decompose(graph: Graph) -> Graph:
    """Everything down to primitives, with common expressions shared: the hardest input for `decode` and `encode`."""
    new = graph.copy()
    _decompose(new)
    PIPELINES["clean"].run(new)
    return new


def seq2seq(graph: Graph) -> tuple[Graph, Graph]:
    """(encoder, decoder) for generation: the encoder also gives the cross-attention keys and values, once."""
    return separate(decode(graph))
