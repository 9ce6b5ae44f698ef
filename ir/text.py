"""The textual form of a graph: one node a line, types always written, parse(print(g)) == g."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from .errors import MonographError, ParseError, did_you_mean
from .graph import Graph, Location, Node, Value
from .init import Init
from .op import OPS, Op
from .slots import Growth, Slot, Stream
from .tables import TABLES, Table, made
from .types import Dim, DType, parse_dim, parse_type

_DTYPES = {d.value for d in DType}
_QUOTED = r'"(?:[^"\\]|\\.)*"'


def names_of(graph: Graph) -> dict[Value, str]:
    """The name each value prints under: %input, @param, or %N counted along the node list."""
    names = {v: f"%{quote(k)}" for k, v in graph.inputs.items()} | {v: f"@{quote(k)}" for k, v in graph.params.items()}
    counter = 0
    for node in graph:
        for v in node.outputs:
            names[v] = f"%{counter}"
            counter += 1
    return names


def quote(name: str) -> str:
    """A name as it is written in text: bare, or as a JSON string where bare would read as something else."""
    return name if re.fullmatch(r"[\w./:-]+", name) and not name.isdecimal() else json.dumps(name)


def unquote(text: str) -> str:
    return json.loads(text) if text.startswith('"') else text


def print_graph(graph: Graph, notes: Mapping[Node | None, list[str]] | None = None) -> str:
    """The graph as text; `notes` are shown, marked, under the node (None: under the head) they belong to."""
    names, notes = names_of(graph), notes or {}
    inputs = ", ".join(f"{names[v]}: {v.type}" for v in graph.inputs.values())
    lines = [f"graph {quote(graph.name)}({inputs}) {{", *_marked(notes.get(None, []))]
    lines += [f"  param {names[v]}: {v.type}{f' = {v.init}' if v.init else ''}" for v in graph.params.values()]
    lines += [f"  {graph.stream}"] if graph.stream else []
    lines += [f"  {slot}" for slot in graph.slots]
    for node in graph:
        lines += [f"  {print_node(node, names)}", *_marked(notes.get(node, []))]
    returned = ", ".join(f"{quote(k)}={names.get(v, '%<foreign>')}" for k, v in graph.outputs.items())
    return "\n".join([*lines, f"  return {returned}".rstrip(), "}"]) + "\n"


def _marked(notes: list[str]) -> list[str]:
    return [f"  ^ {line}" for note in notes for line in note.splitlines()]


def print_node(node: Node, names: Mapping[Value, str]) -> str:
    """`%3 = add(%1, %2) : f32[B,S]    # model.py:6 model.layers.0`."""
    arguments = ["_" if v is None else names.get(v, "%<foreign>") for v in node.operands]
    while arguments and arguments[-1] == "_":
        arguments.pop()
    defaults = node.op.signature.attributes
    arguments += [
        f"{k}={format_attribute(v)}" for k, v in node.attributes.items() if k not in defaults or v != defaults[k]
    ]
    results = ", ".join(names.get(v, "%<foreign>") for v in node.outputs)
    types = ", ".join(str(v.type) for v in node.outputs)
    comment = f"    # {node.location}" if node.location.file or node.location.scope else ""
    return f"{results} = {node.op.name}({', '.join(arguments)}) : {types}{comment}"


def format_attribute(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Table) and TABLES[value.maker](**value.arguments) == value:
        said = ", ".join(f"{k}={format_attribute(v)}" for k, v in value.arguments.items())
        return f"{value.maker}({said})"
    if isinstance(value, tuple):
        return f"[{','.join(map(format_attribute, cast('tuple[Any, ...]', value)))}]"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (Dim, DType)):
        return str(value)
    raise MonographError(f"an attribute of type {type(value).__name__} cannot be written as text: {value!r}")


def parse(text: str, ops: Mapping[str, Op] = OPS) -> Graph:
    """Read a graph back. Raises ParseError with the line for anything that is not one."""
    return _Parser(text, ops).graph()


class _Parser:
    def __init__(self, text: str, ops: Mapping[str, Op]) -> None:
        self.lines = [(i + 1, line.strip()) for i, line in enumerate(text.splitlines()) if line.strip()]
        self.ops = ops
        self.values: dict[str, Value] = {}

    def graph(self) -> Graph:
        graph = None
        for number, line in self.lines:
            try:
                if graph is None:
                    graph = self.head(line)
                elif self.line(graph, line):
                    return graph
            except (MonographError, ValueError) as e:
                raise ParseError(str(e), place=f"line {number}") from e
        if graph is None:
            raise ParseError("the text is empty, expected `graph name(...) {`")
        raise ParseError("the graph is not closed by `}`", place=f"line {self.lines[-1][0]}")

    def head(self, head: str) -> Graph:
        found = re.fullmatch(rf"graph ({_QUOTED}|\S+?)\((.*)\) \{{", head)
        if not found:
            raise MonographError(f"{head!r} is not `graph name(%input: type, ...) {{`")
        graph = Graph(unquote(found[1]))
        for item in _split(found[2]):
            name, _, type_text = item.rpartition(":")
            self.values[name.strip()] = graph.input(unquote(name.strip().removeprefix("%")), parse_type(type_text))
        return graph

    def line(self, graph: Graph, line: str) -> bool:
        """Take one line; True at the closing brace."""
        if line == "}":
            return True
        if line.startswith("param "):
            self.param(graph, line)
        elif line.startswith("stream "):
            _, *words = line.split()
            if len(words) != 4:
                raise MonographError(f"{line!r} is not `stream length ids mask positions`")
            graph.stream = Stream(*words)
        elif line.startswith("slot "):
            graph.slots += (_slot(graph, line),)
        elif line == "return" or line.startswith("return "):
            for item in _split(line.removeprefix("return")):
                found = re.fullmatch(rf"({_QUOTED}|[^=]*)=(.*)", item)
                if not found:
                    raise MonographError(f"{item!r} is not `name=%value`")
                graph.output(unquote(found[1].strip()), self.value(found[2].strip()))
        elif not line.startswith("^"):
            self.node(graph, line)
        return False

    def param(self, graph: Graph, line: str) -> None:
        found = re.fullmatch(rf"param @({_QUOTED}|\S+): (\S+)(?: = (normal|uniform|zeros|ones)(?:\((\S+)\))?)?", line)
        if not found:
            raise MonographError(f"{line!r} is not `param @path: type`")
        init = Init(found[3], float(found[4] or 0)) if found[3] else None
        self.values[f"@{found[1]}"] = graph.param(unquote(found[1]), parse_type(found[2]), init)

    def node(self, graph: Graph, line: str) -> None:
        found = re.fullmatch(r"(%.*?) = (\w+)\((.*)\) : (.*?)(?:\s+# (.*))?", line)
        if not found:
            raise MonographError(f"{line!r} is not `%name = op(...) : type`")
        op = self.ops.get(found[2])
        if op is None:
            raise MonographError(f"no op is called {found[2]!r}{did_you_mean(found[2], self.ops)}")
        operands: list[Value | None] = []
        attributes: dict[str, Any] = {}
        for item in _split(found[3]):
            if item[0] in "%@":
                operands.append(self.value(item))
            elif item == "_":
                operands.append(None)
            else:
                key, _, value = item.partition("=")
                attributes[key.strip()] = parse_attribute(value.strip())
        operands += [None] * (len(op.signature.operands) - len(operands))
        node = Node(op, operands, op.signature.attributes_of(attributes), _location(found[5] or ""))
        node.outputs = [Value(graph, parse_type(t), "", node, i) for i, t in enumerate(_split(found[4]))]
        results = _split(found[1])
        if len(results) != len(node.outputs):
            raise MonographError(f"{len(results)} results but {len(node.outputs)} types")
        self.values.update(zip(results, node.outputs, strict=True))
        graph.insert(node)

    def value(self, name: str) -> Value:
        if name not in self.values:
            raise MonographError(f"{name} is used before it is defined{did_you_mean(name, self.values)}")
        return self.values[name]


def _slot(graph: Graph, line: str) -> Slot:
    found = re.fullmatch(r"slot (\S+) -> (\S+): (\w+)\((.*)\)", line)
    if not found or found[3] not in Growth.__members__ or found[1] not in graph.inputs:
        raise MonographError(f"{line!r} is not `slot input -> output: growth(axis=..)` of an input")
    said = dict(item.split("=", 1) for item in _split(found[4]))
    output = "" if found[2] == "_" else found[2]
    axis = int(said["axis"]) if "axis" in said else None
    window, first = int(said.get("window", 0)), said.get("first", "")
    return Slot(found[1], output, Growth[found[3]], graph.inputs[found[1]].type, axis, window, first)


def _location(comment: str) -> Location:
    # What has lines is source code; other files are read up to the first space.
    found = re.fullmatch(r"(\S+?|.*?\.py):([1-9]\d*)(?: (.*))?", comment.strip())
    if found:
        return Location(found[1], int(found[2]), found[3] or "")
    file, _, scope = comment.strip().partition(" ")
    return Location(file.removeprefix("?"), 0, scope)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    items: list[str] = []
    depth, start, quoted, i = 0, 0, False, 0
    while i < len(text):
        c = text[i]
        if quoted:
            i += c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in "[(":
            depth += 1
        elif c in "])":
            depth -= 1
        elif c == "," and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
        i += 1
    items.append(text[start:].strip())
    return [item for item in items if item]


_LITERALS: dict[str, Any] = {"none": None, "true": True, "false": False, "inf": float("inf"), "-inf": float("-inf")}


def parse_attribute(text: str) -> Any:
    """The inverse of `format_attribute`. Raises MonographError."""
    if text in _LITERALS:
        return _LITERALS[text]
    if text.startswith("["):
        return tuple(parse_attribute(item) for item in _split(text[1:-1]))
    if text.startswith('"'):
        return json.loads(text)
    if text in _DTYPES:
        return DType(text)
    call = re.fullmatch(r"([a-z_]+)\((.*)\)", text)
    if call:
        given = (item.partition("=") for item in _split(call[2]))
        return made(call[1], {key.strip(): parse_attribute(value.strip()) for key, _, value in given})
    readers: tuple[Callable[[str], Any], ...] = (int, float, parse_dim)
    for reader in readers:
        try:
            return reader(text)
        except (ValueError, MonographError):
            continue
    raise MonographError(f"{text!r} is not an attribute value")
