"""What an ONNX file says about itself beside its graph: the tokens it reads, and what it remembers between calls."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from ...frontends.task import Task
from ...ir.graph import Graph
from ...ir.slots import Slot, Stream

SLOTS, STREAM, TASK = "monograph.slots", "monograph.stream", "monograph.task"
"""Keys of metadata_props."""


def metadata_of(graph: Graph) -> dict[str, str]:
    """The metadata of a graph: slots as a JSON list, in the form of monograph.json, and the stream as an object."""
    found: dict[str, str] = {}
    if graph.slots:
        found[SLOTS] = json.dumps([slot_json(s) for s in graph.slots])
    if graph.stream is not None:
        found[STREAM] = json.dumps(stream_json(graph.stream))
    return found


def slot_json(slot: Slot) -> dict[str, Any]:
    said: dict[str, Any] = {f.name: getattr(slot, f.name) for f in fields(slot)}
    return said | {"growth": slot.growth.value, "type": str(slot.type)}


def stream_json(stream: Stream) -> dict[str, Any]:
    return {f.name: getattr(stream, f.name) for f in fields(stream)}


def task_json(task: Task) -> dict[str, Any]:
    """What a model is for: the name of its task, the main output, inputs that are 0 where they are left out."""
    return {
        "name": task.name,
        "output": task.output,
        "generates": task.generates,
        "zeros": [k for k in task.zeros if k in task.inputs],
        "positions": "columns" if task.by_column else "tokens",
    }
