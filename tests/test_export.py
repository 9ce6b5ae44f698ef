"""Saving ONNX models: layout, streaming, bounded memory, and nothing left behind after a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from monograph.backends.onnx import export, lower, save
from monograph.backends.onnx.save import layout
from monograph.backends.onnx.tensors import WeightTensor, write_array
from monograph.ir import Graph, interpret
from monograph.ir.errors import WeightsError
from monograph.ir.ops import linear
from monograph.ir.types import TensorType, f32, tensor
from monograph.ir.weights import Array, Tensor, Weights
from monograph.passes import pipelines
from test_onnx_backend import MASKS, arrays, decoder, past, prompt
from test_onnx_ops import assert_same


class Counted(Tensor):
    """A tensor that counts how often it is read, and fails when told to."""

    def __init__(self, array: Array, fails: bool = False) -> None:
        self.array, self.fails, self.reads = array, fails, 0
        self.type = TensorType(f32, array.shape)

    def numpy(self) -> Array:
        self.reads += 1
        if self.fails:
            raise WeightsError("the disk is gone", place="shard 2")
        return self.array


def chain(count: int, size: int) -> Graph:
    """x -> linear -> linear ..., one weight each."""
    g = Graph("chain")
    x = g.input("x", tensor(f32, "B", size))
    for i in range(count):
        x = linear(x, g.param(f"layers.{i}.weight", tensor(f32, size, size)))
    g.output("y", x)
    return g


def counted(count: int, size: int) -> dict[str, Counted]:
    rng = np.random.default_rng(0)
    return {f"layers.{i}.weight": Counted(rng.standard_normal((size, size)).astype(np.float32)) for i in range(count)}


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def test_an_exported_decoder_runs_from_its_folder(tmp_path: Path) -> None:
    graph = decoder()
    weights = Weights.initialize(graph, seed=5)
    decode = pipelines.decode(graph)
    path = export(decode, weights, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "model.onnx"
    assert names(path.parent) == {"model.onnx", "model.onnx.data"}
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = prompt(MASKS["left padded"]) | past(3, 0)
    outputs = [o.name for o in session.get_outputs()]
    got = dict(zip(outputs, session.run(outputs, inputs), strict=True))
    assert_same(got, interpret(decode, inputs, arrays(weights)))


def test_reading_back_gives_the_same_model(tmp_path: Path) -> None:
    graph = decoder()
    model = lower(pipelines.decode(graph), Weights.initialize(graph, seed=5))
    read = onnx_ir.load(save(model, tmp_path))
    assert [(n.name, n.op_type) for n in read.graph] == [(n.name, n.op_type) for n in model.graph]
    assert list(read.graph.initializers) == list(model.graph.initializers)
    for name, value in model.graph.initializers.items():
        other = read.graph.initializers[name].const_value
        assert value.const_value is not None and other is not None
        np.testing.assert_array_equal(other.numpy(), value.const_value.numpy(), err_msg=name)
    assert [str(v.shape) for v in read.graph.outputs] == [str(v.shape) for v in model.graph.outputs]


def test_each_weight_is_read_once_and_progress_adds_up(tmp_path: Path) -> None:
    weights = counted(3, 64)
    model = lower(chain(3, 64), weights)
    assert [w.reads for w in weights.values()] == [0, 0, 0], "lowering reads nothing"
    seen: list[tuple[int, int, str]] = []
    save(model, tmp_path / "small.onnx", lambda *step: seen.append(step))
    assert [w.reads for w in weights.values()] == [1, 1, 1]
    size = 64 * 64 * 4
    assert seen == [(size * (i + 1), 3 * size, f"layers.{i}.weight.transposed") for i in range(3)]
    assert names(tmp_path) == {"small.onnx", "small.onnx.data"}
    assert (tmp_path / "small.onnx.data").stat().st_size == 3 * size
    assert isinstance(model.graph.initializers["layers.0.weight.transposed"].const_value, WeightTensor)


def test_offsets_are_aligned() -> None:
    g = Graph("sizes")
    for i, n in enumerate((300, 300, 300_000, 5, 300_001, 300)):
        g.output(f"y{i}", g.input(f"x{i}", tensor(f32, n)) + g.param(f"w{i}", tensor(f32, n)))
    model = lower(g, Weights.of({k: np.zeros(v.shape, np.float32) for k, v in g.params.items()}))
    offsets = {p.name: p.offset for p in layout(model)}
    assert offsets == {"w0": 0, "w1": 1216, "w2": 65536, "w4": 1310720, "w5": 1310720 + 1200064}


def test_a_model_without_large_weights_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(b"of an older model")
    path = save(lower(chain(1, 4), counted(1, 4)), tmp_path)
    assert names(tmp_path) == {"model.onnx"}
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 4), np.float32)})[0].shape == (1, 4)


def test_a_failing_tensor_leaves_nothing_behind(tmp_path: Path) -> None:
    weights = counted(3, 64)
    weights["layers.1.weight"].fails = True
    model = lower(chain(3, 64), weights)
    with pytest.raises(WeightsError, match="shard 2: the disk is gone"):
        save(model, tmp_path / "made" / "here")
    assert names(tmp_path) == set()
    assert weights["layers.0.weight"].reads == 1, "the failure came half-way"


def test_a_failing_save_leaves_the_older_model_as_it_was(tmp_path: Path) -> None:
    weights = counted(2, 64)
    save(lower(chain(2, 64), weights), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    weights["layers.1.weight"].fails = True
    model = lower(chain(2, 64), weights)
    with pytest.raises(WeightsError):
        save(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    weights["layers.1.weight"].fails = False
    save(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before, "the model survives a failed save"


class Short(Counted):
    """A tensor that gives fewer elements than its type says."""

    def numpy(self) -> Array:
        return self.array[:-1]


def test_a_tensor_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    g = Graph("one")
    g.output("y", g.input("x", tensor(f32, 400)) + g.param("w", tensor(f32, 400)))
    with pytest.raises(WeightsError, match="tensor w gave 1596 bytes, expected 1600"):
        save(lower(g, {"w": Short(np.zeros(400, np.float32))}), tmp_path)
    assert names(tmp_path) == set()


def test_saving_over_the_file_that_the_weights_come_from(tmp_path: Path) -> None:
    save(lower(chain(2, 64), counted(2, 64)), tmp_path)
    model = onnx_ir.load(tmp_path / "model.onnx")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


class Hole(onnx_ir.LazyTensor):
    """A tensor whose bytes are a hole in a sparse file."""

    def __init__(self, like: onnx_ir.TensorProtocol) -> None:
        super().__init__(lambda: like, like.dtype, like.shape, name=like.name)

    def tofile(self, file: BinaryIO) -> None:
        file.truncate(file.tell() + self.nbytes)
        file.seek(0, 2)


def test_a_model_beyond_two_gigabytes(tmp_path: Path) -> None:
    size = 20_000
    model = lower(chain(4, size), {k: Counted(np.broadcast_to(np.float32(0), (size, size))) for k in counted(4, 1)})
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, WeightTensor):
            value.const_value = Hole(value.const_value)
    path = save(model, tmp_path)
    assert path.stat().st_size < 10_000
    assert (tmp_path / "model.onnx.data").stat().st_size > 4 * size * size * 4 > 2**32
    onnx.checker.check_model(str(path), full_check=True)
    stored = [v.const_value for v in onnx_ir.load(path).graph.initializers.values()]
    offsets = [t.offset for t in stored if isinstance(t, onnx_ir.ExternalTensor)]
    assert offsets == [p.offset for p in layout(model)] and max(o or 0 for o in offsets) > 2**32


def test_arrays_are_written_in_row_major_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = rng.standard_normal((3000, 3000)).astype(np.float32)
    for array in (large.T, large[::2, ::-1], np.float32(3.5)[()], np.zeros((0, 4), np.int64), np.array(7, np.int32)):
        with (tmp_path / "x").open("wb") as f:
            write_array(f, np.asarray(array))
        assert (tmp_path / "x").read_bytes() == np.asarray(array).tobytes()


MEASURE = """
import sys
import numpy as np
from monograph.backends.onnx import export
from monograph.ir.types import TensorType, bf16, f32
from monograph.ir.weights import Tensor
from monograph.machine import peak_memory
sys.path.insert(0, sys.argv[2])
from test_export import chain

class Lazy(Tensor):
    type = TensorType(bf16, (2048, 2048))
    def numpy(self):
        return np.random.default_rng(0).standard_normal(self.shape, dtype=np.float32).astype(bf16.numpy)

graph = chain(30, 2048)
export(chain(1, 2048), {"layers.0.weight": Lazy()}, sys.argv[1] + "/one")
before = peak_memory()
export(graph, {k: Lazy() for k in graph.params}, sys.argv[1] + "/all")
print(peak_memory() - before)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """30 tensors of 16 MB (480 MB): once one has been written, the others need next to nothing more."""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), here], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64_000_000, f"peak grew by {done.stdout.strip()} bytes"
