"""A folder built for another provider, made to run on the CPU: its graphs are checked without the device.

Every node stays. Where the CPU has the kernel in the same type, that runs; where it has it in f32 only, the operands
are widened and the result is rounded back, which is what a kernel does that adds up in f32.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx_ir

from ...ir.errors import ConfigError
from ...ir.files import whole
from ...ir.manifest import seal
from ...ir.types import TensorType, bf16, f32
from ..onnx.folder import foreign
from ..onnx.untyped import read_graph
from ..target import kernel_table
from .contract import FILE, Contract
from .widened import widen, widen_ends

CPU = "cpu"


def rehosted(folder: str | Path, into: str | Path) -> Path:
    """Write a built folder again, with the same nodes and bytes, for the CPU; gives the new folder.

    Raises ConfigError for a folder that `build` did not write, LoweringError for a node that the CPU has in no type.
    """
    source, target = Path(folder), Path(into)
    contract = Contract.read(source)
    if contract.provider == CPU:
        raise ConfigError("was built for the CPU already", place=str(source))
    with whole(target, replaces=foreign) as stage:
        for path in source.iterdir():
            if path.name not in (FILE, "checksums.json", ".verified.json") and path.suffix != ".onnx":
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, stage.work / path.name)
        for name in contract.inputs:
            _file(source / name, stage.work / name)
        (stage.work / FILE).write_text(_on_cpu(contract).to_json(), encoding="utf-8")
        seal(stage.work)
    return target


def _file(source: Path, target: Path) -> None:
    model = onnx_ir.from_proto(read_graph(source))
    table = kernel_table(CPU)
    widen(model, table)
    widen_ends(model)
    table.check(model)
    target.write_bytes(onnx_ir.to_proto(model).SerializeToString(deterministic=True))


def _on_cpu(contract: Contract) -> Contract:
    """The contract with the CPU as its provider, and f32 for what NumPy has no type for."""
    inputs: Mapping[str, Mapping[str, TensorType]] = {
        file: {k: _wide(t) for k, t in types.items()} for file, types in contract.inputs.items()
    }
    slots = tuple(dataclasses.replace(s, type=_wide(s.type)) for s in contract.slots)
    return dataclasses.replace(contract, provider=CPU, inputs=inputs, slots=slots)


def _wide(type: TensorType) -> TensorType:
    return type.with_dtype(f32) if type.dtype == bf16 else type
