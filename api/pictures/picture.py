"""The picture of a model, as SVG or PNG."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir import Graph, MonographError
from ..ir.display import size
from ..ir.files import write_file
from .architecture import architecture
from .blocks import Architecture, Block
from .folding import Drawn, Folded, Frame, blocks_in, fold
from .layout import lay_out
from .measure import number, wrapped
from .places import DETAIL, SMALL
from .svg import write_svg
from .vocabulary import Role

if TYPE_CHECKING:
    from ..frontends.dsl import Model

THEMES = ("auto", "light", "dark")


@dataclass(frozen=True)
class Picture:
    """The architecture of a model, drawn: blocks with residual lines, repeated layers folded into one frame.

    A notebook shows it by itself. found, folded: the blocks, and what of them is drawn once. sizes: stored bytes of a
    parameter by its path.
    """

    name: str
    found: Architecture
    folded: Folded
    sizes: Mapping[str, int]

    def svg(self, theme: str = "auto") -> str:
        """The drawing as text. theme: "auto" (light or dark as the reader's), "light" or "dark"."""
        if theme not in THEMES:
            raise MonographError(f"no theme is called {theme!r}", hint=f"known: {', '.join(THEMES)}")
        layout = lay_out(self.folded, self._texts, self._label)
        return write_svg(layout, self.name, self._lines(), self._description(), theme)

    def png(self, zoom: float = 2.0, theme: str = "light") -> bytes:
        """The drawing as PNG. zoom: pixels for each unit of the SVG. Raises MonographError without resvg-py."""
        try:
            resvg = importlib.import_module("resvg_py")
        except ImportError:
            hint = 'pip install "monograph[plot]"'
            raise MonographError("a PNG needs resvg-py, which is not installed", hint=hint) from None
        return bytes(resvg.svg_to_bytes(svg_string=self.svg(theme), zoom=zoom, font_dirs=_fonts()))

    def save(self, path: str | Path) -> Path:
        """Write the drawing to a file: SVG or PNG by its ending. Raises MonographError for another ending."""
        path = Path(path)
        endings = {".svg": lambda: self.svg().encode(), ".png": self.png}
        if path.suffix.lower() not in endings:
            what = f"a picture is written as {' or '.join(endings)}, not {path.suffix or 'without an ending'}"
            raise MonographError(what, place=str(path))
        write_file(path, endings[path.suffix.lower()]())
        return path

    def _repr_svg_(self) -> str:
        return self.svg()

    @property
    def parameters(self) -> int:
        """Numbers in all parameters of the blocks."""
        return sum(b.count for b in self.found.blocks)

    @property
    def bytes(self) -> int:
        return sum(self._bytes(b) for b in self.found.blocks)

    def _bytes(self, block: Block) -> int:
        return sum(self.sizes[p.name] for p in block.params)

    def _lines(self) -> list[str]:
        dtypes = sorted({str(p.dtype) if p.type.encoding is None else str(p.type.encoding).split("(")[0]
                         for p in self.found.graph.params.values()})  # fmt: skip
        first = f"{number(self.parameters)} parameters, {size(self.bytes)}"
        return [f"{first} ({', '.join(dtypes)})" if dtypes else first]

    def _texts(self, drawn: Drawn) -> list[tuple[str, float]]:
        block = drawn.block
        if block.value is not None:
            return [(str(block.value.type), SMALL)]
        lines = [(text, DETAIL) for text in block.details]
        if block.params:
            counts = sorted({b.count for b in drawn.members})
            lines.append((f"{number(counts[-1])} · {size(max(map(self._bytes, drawn.members)))}", SMALL))
        if any(v in block.params for b in drawn.members[1:] for v in b.tied):
            lines.append(("one for all layers", SMALL))
        if block.tied and len(drawn.members) == 1:
            lines.append((f"tied with {self._owner(block)}", SMALL))
        if block.beside:
            lines.append((f"reads {', '.join(block.beside)}", SMALL))
        if drawn.note:
            lines.append((drawn.note, SMALL))
        return lines

    def _owner(self, block: Block) -> str:
        owners = [b.title.lower() for b in self.found.blocks if any(p in b.params for p in block.tied)]
        return ", ".join(dict.fromkeys(owners))

    def _label(self, frame: Frame) -> list[tuple[str, float]]:
        lines = [(f"× {frame.times}", 16.0)]
        lines += [(part, DETAIL) for part in wrapped(frame.order, DETAIL, 110.0)] if frame.order else []
        blocks = [b for d in blocks_in(frame.items) for b in d.members]
        count = sum(b.count for b in blocks)
        if count:
            lines += [(number(count), SMALL), (size(sum(map(self._bytes, blocks))), SMALL)]
        return lines

    def _description(self) -> str:
        """The picture in words, from the inputs to the outputs."""
        said: list[str] = []
        for item in self.folded.items:
            if isinstance(item, Frame):
                inner = ", ".join(d.block.title for d in blocks_in(item.items) if d.block.role is not Role.sum)
                said.append(f"{item.times} layers of {inner}" + (f" in the order {item.order}" if item.order else ""))
            elif isinstance(item, Drawn) and item.block.role is not Role.sum:
                said.append(item.block.title)
        return f"Architecture of {self.name}, from inputs to outputs: {'; '.join(said)}."


def _fonts() -> list[str]:
    """The folder with the fonts of matplotlib, for machines that have none of their own."""
    found = importlib.util.find_spec("matplotlib")
    places = [] if found is None else list(found.submodule_search_locations or ())
    return [str(path) for place in places if (path := Path(place) / "mpl-data" / "fonts" / "ttf").is_dir()]


def draw(model: Model | Graph, *, title: str = "") -> Picture:
    """The architecture of a model, or of a graph, as papers draw it; only structure is read, no weights.

    Bytes are those of the stored weights; without weights, those that 32-bit floats take. title: by default the name
    of the graph.
    """
    if isinstance(model, Graph):
        graph, sizes = model, dict[str, int]()
    else:
        graph = model.graph(encoded=True)
        stored = model.weights
        known = () if stored is None else [k for k in graph.params if k in stored]
        sizes = {} if stored is None else {k: int(str(stored[k].type.bytes)) for k in known}
    found = architecture(graph)
    sizes |= {k: int(str(v.type.bytes)) for k, v in found.graph.params.items() if k not in sizes}
    return Picture(title or graph.name, found, fold(found), sizes)
