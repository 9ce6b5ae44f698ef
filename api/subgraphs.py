"""All values of an ONNX file in ONNX Runtime, and parts of it as files of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .frontends.onnx.file import OnnxFile, open_onnx
from .frontends.onnx.nested import reads
from .frontends.onnx.runtime import failures, open_session, run_within
from .ir.errors import RuntimeInputError
from .ir.tensors import Array


@dataclass
class Side:
    """A model with its weights in memory. makers: the node of each value. stored: what is written in the file."""

    path: Path
    file: OnnxFile
    model: onnx.ModelProto
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict[str, onnx.NodeProto])
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict[str, onnx.TensorProto])

    @classmethod
    def of(cls, path: Path) -> Side:
        """Read and check a file. Raises OnnxFileError."""
        file = open_onnx(path)
        model = onnx.ModelProto.FromString(file.model.SerializeToString())
        onnx.load_external_data_for_model(model, str(path.parent))
        for i, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{i}"
        makers = {name: node for node in model.graph.node for name in node.output if name}
        return cls(path, file, model, makers, {t.name: t for t in model.graph.initializer})

    @property
    def fed(self) -> list[str]:
        """Inputs that a caller must bring."""
        return [v.name for v in self.model.graph.input if v.name not in self.stored]

    @property
    def outputs(self) -> list[str]:
        return [v.name for v in self.model.graph.output]

    def numbers(self, name: str) -> bytes:
        """What is stored under a name, or a Constant gives, whatever it is called."""
        if name not in self.stored:
            return b"".join(sorted(x.SerializeToString() for x in self.makers[name].attribute))
        return numpy_helper.to_array(self.stored[name]).tobytes()

    def values(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor that a node of the main graph gives, without the runtime's own optimizations, and the inputs."""
        shown = onnx.ModelProto()
        shown.CopyFrom(self.model)
        known = set(self.outputs)
        shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in self.makers if n not in known)
        return {**{n: feeds[n] for n in self.fed}, **run(shown, feeds, self.path)}

    def region(self, value: str, cuts: Collection[str]) -> list[onnx.NodeProto]:
        """Nodes that a value is computed from, down to `cuts`, in topological order."""
        return self.region_of([value], cuts)

    def region_of(self, values: Collection[str], cuts: Collection[str]) -> list[onnx.NodeProto]:
        """Nodes that values are computed from, down to `cuts`, in topological order."""
        found: set[int] = set()
        waiting = [*values]
        while waiting:
            name = waiting.pop()
            node = self.makers.get(name)
            if node is None or id(node) in found or (name in cuts and name not in values):
                continue
            found.add(id(node))
            waiting += reads(node)
        return [node for node in self.model.graph.node if id(node) in found]

    def inputs_of(self, nodes: Iterable[onnx.NodeProto]) -> list[str]:
        """Values that nodes read and neither make nor find stored."""
        nodes = list(nodes)
        made = {n for node in nodes for n in node.output}
        return list(dict.fromkeys(n for x in nodes for n in reads(x) if n not in made and n not in self.stored))

    def part(
        self,
        nodes: Iterable[onnx.NodeProto],
        value: str,
        like: Array,
        given: Mapping[str, tuple[str, Array]],
        types: Mapping[str, np.dtype[Any]] | None = None,
    ) -> onnx.ModelProto:
        """Some nodes as a model that gives one value. like: an array of its type and rank.

        given: (name in the part, numbers) of each value that the nodes read from outside. types: of values that the
        nodes read in another type than that of the numbers.
        """
        nodes = list(nodes)
        read = dict.fromkeys(n for x in nodes for n in reads(x))
        same: list[onnx.NodeProto] = []
        inputs: dict[str, onnx.ValueInfoProto] = {}
        for name in self.inputs_of(nodes):
            called, array = given[name]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs[called] = helper.make_tensor_value_info(called, kind, array.shape)
            wanted = (types or {}).get(name, array.dtype)
            if wanted != array.dtype:
                to = helper.np_dtype_to_tensor_dtype(wanted)
                same.append(helper.make_node("Cast", [called], [name], to=to, name=f"{called} as {name}"))
            elif called != name:
                same.append(helper.make_node("Identity", [called], [name], name=f"{called} is {name}"))
        graph = onnx.GraphProto(name="part", input=inputs.values(), node=[*same, *nodes])
        kind = helper.np_dtype_to_tensor_dtype(like.dtype)
        graph.output.append(helper.make_tensor_value_info(value, kind, [None] * like.ndim))
        graph.initializer.extend(self.stored[n] for n in read if n in self.stored)
        sparse = self.model.graph.sparse_initializer
        graph.sparse_initializer.extend(s for s in sparse if s.values.name in read)
        model = helper.make_model(graph, opset_imports=list(self.model.opset_import))
        model.ir_version = self.model.ir_version
        return model


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], path: Path, *, optimized: bool = False) -> dict[str, Array]:
    """Outputs of a model in memory. Raises RuntimeInputError where ONNX Runtime does not run it."""
    try:
        own = open_session(model.SerializeToString(), optimized=optimized)
        names = [o.name for o in own.get_outputs() if o.type.startswith("tensor")]
        given = {i.name: feeds[i.name] for i in own.get_inputs()}
        return {k: np.asarray(y) for k, y in zip(names, run_within(own, names, given, str(path)), strict=True)}
    except failures() as e:
        raise RuntimeInputError(
            f"ONNX Runtime does not run it: {' '.join(str(e).split())[:300]}", place=str(path)
        ) from None
