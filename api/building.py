"""From a model to something that runs: a PyTorch module, a portable ONNX folder, an ONNX Runtime engine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from .frontends.dsl import Model
from .frontends.huggingface import write_companions
from .ir import DType, Graph, MonographError
from .ir.errors import WeightsError, did_you_mean
from .ir.files import staged
from .ir.types import f32
from .ir.weights import Weights
from .passes import pipelines

if TYPE_CHECKING:
    import torch.fx

    from .inference.engine import Engine

Progress = Callable[[int, int, str], None]
"""(bytes written, bytes in all, tensor just written)."""

TARGETS = ("cpu", "cuda", "onnx")
"""`cpu`, `cuda`: ONNX Runtime's own fused ops for that provider. `onnx`: standard opset, runs in any runtime."""

_BASE, _FACTOR = 300_000_000, 3


def memory_bound(model: Model) -> int:
    """Most bytes of resident memory of a build: 300 MB and three times the largest tensor, four bytes a number."""
    sizes = [v.type.elements for v in model.graph().params.values()]
    return _BASE + _FACTOR * max((4 * n for n in sizes if isinstance(n, int)), default=0)


def weights_of(model: Model) -> Weights:
    """The weights of a model. Raises WeightsError when it has none yet."""
    if model.weights is None:
        raise WeightsError(f"model {model.name} has no weights", hint="load a checkpoint, or train it")
    return model.weights


def to_torch(model: Model, dtype: DType = f32, *, seed: int = 0) -> torch.fx.GraphModule:
    """A trainable PyTorch module whose parameter names are the checkpoint's; random weights if the model has none.

    Call it with the graph's inputs by name; it gives a dict of outputs by name. seed: of random weights.
    """
    from .backends import torch as backend

    return backend.to_torch(pipelines.train(model.graph(dtype)), model.weights, seed=seed)


def serving_graphs(model: Model, dtype: DType = f32) -> dict[str, Graph]:
    """The graphs a served model consists of, by file name: one, or encoder and decoder. Weights in blocks stay so."""
    graph = model.graph(dtype, encoded=True)
    if not model.task.generates:
        return {"model": pipelines.encode(graph)}
    if not model.task.separated:
        return {"model": pipelines.decode(graph)}
    encoder, decoder = pipelines.seq2seq(graph)
    return {"encoder_model": encoder, "decoder_model": decoder}


def export(
    model: Model,
    folder: str | Path,
    *,
    target: str = "onnx",
    dtype: DType = f32,
    opset: int = 23,
    progress: Progress | None = None,
) -> Path:
    """Write a folder with the ONNX model, its config and its tokenizer; gives the folder.

    target: only "onnx", standard ops for any runtime (`build` makes those of ONNX Runtime). Weights are written
    tensor by tensor, never all in memory. The folder appears whole or not at all. Raises MonographError subclasses
    for an unknown target, missing weights or an op that the target cannot say.
    """
    if target != "onnx":
        raise MonographError(f"no export target is called {target!r}{did_you_mean(target, ['onnx'])}")
    from .backends import onnx as backend

    weights = weights_of(model)
    with whole(folder) as work:
        for name, graph in serving_graphs(model, dtype).items():
            backend.export(graph, weights, work / f"{name}.onnx", opset, progress=progress)
        with staged(work) as stage:
            write_companions(stage, model, weights)
    return Path(folder)


def build(
    model: Model,
    folder: str | Path | None = None,
    *,
    target: str = "cpu",
    max_positions: int | None = None,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Build for ONNX Runtime and open the result, ready to generate, embed or run.

    folder: where it goes (None: a temporary folder that lives as long as the engine). target: "cpu" or "cuda".
    max_positions: most tokens a row may have (None: what the config says). strict: fail unless every attention is
    fused. threads: of the engine (None: one a physical core). Raises LoweringError for what the target cannot do,
    WeightsError for missing or damaged weights.
    """
    from .backends import onnxruntime as backend
    from .inference.engine import Engine

    temporary = tempfile.mkdtemp(prefix="monograph-") if folder is None else None
    place = Path(temporary or str(folder))
    try:
        backend.build(model, None, place, target, max_positions=max_positions, strict=strict, progress=progress)
        engine = Engine.open(place, threads=threads)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if temporary is not None:
        weakref.finalize(engine, shutil.rmtree, temporary, ignore_errors=True)
    return engine


@contextlib.contextmanager
def whole(folder: str | Path) -> Generator[Path, None, None]:
    """A folder to work in, whose files move to `folder` when the block ends; after an error nothing is left."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise MonographError("is a file, not a folder", place=str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    work.mkdir()
    try:
        yield work
        if not folder.exists():
            work.rename(folder)
            return
        for file in work.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
