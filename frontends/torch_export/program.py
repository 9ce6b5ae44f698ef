"""From a module to an exported program, and from that to a Model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import _decomp, nn
from torch.export import ExportedProgram

from ...ir import Graph
from ...ir.errors import MonographError
from ...ir.types import Dim
from ..dsl import Model, Program
from ..task import Task, task_of
from .errors import NotImportableError
from .importing import TABLE, Importer
from .names import place_of_error
from .own_gradients import OwnGradients, differing
from .recurrent import Whole

_ROUNDS = 3
"""How often ops that the table does not have are replaced by their parts, if PyTorch knows these."""

_LONGEST = 400
"""Characters of a line of somebody else's message; some print a whole graph."""

CUSTOM = "module"
"""What the task of a module is called that is none of the built-in ones."""


def is_module(given: object) -> bool:
    """Whether something is a module of PyTorch."""
    return isinstance(given, nn.Module)


def is_program(given: object) -> bool:
    """Whether something is what torch.export gives."""
    return isinstance(given, ExportedProgram)


def from_module(
    module: Any, example_inputs: object, *, dynamic_shapes: Any = None, task: str | Task | None = None, name: str = ""
) -> Model:
    """A module as a Model, traced by torch.export on example inputs: by name in a dict, in order in a tuple, or one.

    Its mode is kept: of a module in training mode dropout stays, and is off where the model is served. Raises
    NotImportableError for what torch.export cannot trace, for gradients that are not those of the forward pass, and for
    ops that the IR does not have.
    """
    args, kwargs = _arguments(example_inputs)
    called = name or type(module).__name__
    gradients = OwnGradients()
    hook = module.register_forward_hook(gradients.outputs)
    try:
        with warnings.catch_warnings(), _no_guesses(), gradients, Whole():
            # Recurrent layers list their parameters anew for each call; that is no state which is lost.
            warnings.filterwarnings("ignore", r".*_flat_weights\[", UserWarning)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except MonographError:
        raise
    except Exception as e:  # What the module raises itself, and what torch.export asserts, comes out as well.
        raise _not_traced(e, called) from e
    finally:
        hook.remove()
    gap = differing(module, program.module(), args, kwargs) if gradients.found else ""
    if gap:
        what = f"it has gradients of its own, which torch.export does not see: {gap}"
        hint = "write it as ops, or if it is not trained here: module.requires_grad_(False)"
        raise NotImportableError(what, place=called, details=list(gradients.found), hint=hint)
    return from_program(program, task=task, name=called)


@contextmanager
def _no_guesses() -> Generator[None]:
    """nn.Transformer looks at the numbers of a mask for whether it is causal, to say so; it is applied either way."""
    place: Any = torch.nn.modules.transformer
    known = place._detect_is_causal_mask

    def said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
        return is_causal is True

    place._detect_is_causal_mask = said
    try:
        yield
    finally:
        place._detect_is_causal_mask = known


def _not_traced(e: Exception, called: str) -> NotImportableError:
    text = str(e).strip().splitlines() or [type(e).__name__]
    known = isinstance(e, (RuntimeError, ValueError, TypeError))
    what = f"torch.export cannot trace it: {'' if known else f'{type(e).__name__}: '}{text[0][:_LONGEST]}"
    details = [t[:_LONGEST] for t in text[1:12] if t.strip()]
    place = place_of_error(e)
    return NotImportableError(what, place=called, details=[f"at {place}", *details] if place else details)


def _arguments(given: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, Mapping):
        return (), dict(cast("Mapping[str, Any]", given))
    return (tuple(cast("list[Any]", given)), {}) if isinstance(given, (tuple, list)) else ((given,), {})


def from_program(program: Any, *, task: str | Task | None = None, name: str = "") -> Model:
    """An exported program as a Model. Its tensors stay where they are, and are read when somebody asks for them.

    Parameters have their paths in the module, tied ones the first; sizes that vary are symbols. task: what the model is
    for (None: a task of its own with these inputs and outputs). Raises NotImportableError that lists every op without
    a counterpart, with its place.
    """
    called = name or "program"
    try:
        ready = _in_core_ops(program)
    except Exception as e:  # It asserts, too.
        raise _not_traced(e, called) from e
    importer = Importer(ready, called, {})
    renamed = _stream_names(importer)
    graph, weights = Importer(ready, called, renamed).run() if renamed else importer.run()
    contract = _task(graph, task)
    graph.stream = contract.stream if contract.generates else None
    return Model(Program(called, contract, graph), weights=weights)


def _task(graph: Graph, task: str | Task | None) -> Task:
    """The contract of a graph: all of its inputs with their types."""
    inputs = {k: str(v.type) for k, v in graph.inputs.items()}
    main = next(iter(graph.outputs), "")
    if task is None:
        return Task(CUSTOM, inputs, main, zeros=())
    known = task_of(task)
    if known.output not in graph.outputs:
        what = f"gives {', '.join(graph.outputs) or 'nothing'}, but the output of {known} is {known.output}"
        raise NotImportableError(what, place=graph.name)
    return Task(
        known.name,
        {**inputs, **{k: v for k, v in known.inputs.items() if k not in inputs}},
        known.output,
        known.stream,
        known.source,
        known.zeros,
        known.generates,
        known.by_column,
    )


def _stream_names(importer: Importer) -> dict[str, str]:
    """New names of symbols, by what PyTorch calls them, so that tokens are [B,S] and those of a decoder [B,U]."""
    found: dict[str, str] = {}
    sizes = {n.name: n.meta["val"].shape for n in importer.user_inputs() if hasattr(n.meta.get("val"), "shape")}
    for name, wanted in (("input_ids", "BS"), ("decoder_input_ids", "BU")):
        shape = sizes.get(name, ())
        for size, new in zip(shape, wanted, strict=False) if len(shape) == 2 else ():
            d = importer.dims.of(size)
            if isinstance(d, Dim) and d.name is not None:
                found.setdefault(str(size.node.expr), new)
    taken = set(found.values())
    for symbol, now in importer.dims.names.items():
        if now in taken and symbol not in found:
            found[symbol] = f"{now}_{symbol}"
    return {k: v for k, v in found.items() if importer.dims.name(k) != v}


_KNOWN_PARTS: Any = vars(_decomp)["decomposition_table"]
_parts_of: Any = _decomp.get_decompositions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

# -- to core ops -----------------------------------------------------------------------------------------------------


def _in_core_ops(program: ExportedProgram) -> ExportedProgram:
    """The program without mutation, in ops that the table has and core ATen ops."""
    table: Any = torch.export.default_decompositions()
    for key in TABLE:
        namespace, op, overload = key.split(".")
        packet = getattr(getattr(torch.ops, namespace), op, None)
        if packet is not None and overload in packet.overloads():
            table.pop(getattr(packet, overload), None)
    ready: Any = _without_gradients(program)
    ready = ready.run_decompositions(table)
    for _ in range(_ROUNDS):
        used = {n.target for n in ready.graph.nodes if n.op == "call_function" and hasattr(n.target, "_schema")}
        unknown = [op for op in used if str(op) not in TABLE and op in _KNOWN_PARTS]
        if not unknown:
            break
        ready = ready.run_decompositions(_parts_of(unknown))
    return ready


def _without_gradients(program: ExportedProgram) -> ExportedProgram:
    """What regions under torch.no_grad() give is detached: the decomposition forgets these regions."""
    region = torch.ops.higher_order.wrap_with_set_grad_enabled
    if not any(n.target is region for n in program.graph.nodes):
        return program
    module, signature = copy.deepcopy(program.graph_module), copy.deepcopy(program.graph_signature)
    for node in list(module.graph.nodes):
        if node.target is region and node.args[0] is False:
            for made in [n for n in node.users if isinstance(n.meta.get("val"), torch.Tensor)]:
                with module.graph.inserting_after(made):
                    stopped = module.graph.call_function(torch.ops.aten.detach.default, (made,))
                stopped.meta = dict(made.meta)
                for user in [u for u in made.users if u is not stopped]:
                    user.replace_input_with(made, stopped)
                signature.replace_all_uses(made.name, stopped.name)  # Where it is an output.
    module.recompile()
    constraints = cast("dict[Any, Any]", program.range_constraints)  # pyright: ignore[reportUnknownMemberType]
    return ExportedProgram(
        module,
        module.graph,
        signature,
        program.state_dict,
        constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
        verifiers=program.verifiers,
    )
