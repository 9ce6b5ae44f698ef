"""A layout as SVG: boxes, lines and texts, in light and dark."""

from __future__ import annotations

from html import escape

from .folding import Choice, Drawn, Frame
from .layout import Layout
from .measure import width
from .places import DETAIL, RADIUS, TITLE, Place, Route
from .vocabulary import Role

LIGHT = {
    "paper": "#ffffff", "ink": "#1c2127", "muted": "#525c69", "line": "#3b4450", "quiet": "#8b95a3",
    "frame": "#f4f6f8", "edge": "#c3cad3",
    Role.embedding: "#ffe0e3", Role.norm: "#f5f4c3", Role.attention: "#ffe2b8", Role.feed_forward: "#c3e8f7",
    Role.experts: "#c5e7d3", Role.recurrent: "#e0d6f7", Role.convolution: "#d3e4c8", Role.linear: "#dcdff2",
    Role.other: "#e6e8eb",
}  # fmt: skip
DARK = {
    "paper": "#14181d", "ink": "#edf0f3", "muted": "#b6bfca", "line": "#aeb8c4", "quiet": "#7d8896",
    "frame": "#1c2229", "edge": "#465160",
    Role.embedding: "#5c2a32", Role.norm: "#4d4a1d", Role.attention: "#5f431a", Role.feed_forward: "#1d4a5e",
    Role.experts: "#1f4f39", Role.recurrent: "#423566", Role.convolution: "#35502a", Role.linear: "#363d66",
    Role.other: "#39414b",
}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
HEAD = 66.0


def _style(colours: dict[str, str]) -> str:
    roles = "".join(f".{r.value}{{fill:{colours[r]}}}" for r in Role if r in colours)
    return (
        f".paper{{fill:{colours['paper']}}}text{{fill:{colours['ink']}}}.muted{{fill:{colours['muted']}}}"
        f".box{{stroke:{colours['line']}}}.frame{{fill:{colours['frame']};stroke:{colours['edge']}}}"
        f".choice{{fill:none;stroke:{colours['quiet']}}}.wire{{stroke:{colours['line']}}}"
        f".side{{stroke:{colours['quiet']}}}.head{{fill:{colours['line']}}}.sidehead{{fill:{colours['quiet']}}}"
        f".sum{{fill:{colours['paper']};stroke:{colours['line']}}}{roles}"
    )


def write_svg(layout: Layout, title: str, lines: list[str], description: str, theme: str) -> str:
    """The drawing as text. theme: "auto" follows the reader's, "light" and "dark" do not."""
    style = f"text{{font-family:{FONT}}}" + _style(DARK if theme == "dark" else LIGHT)
    if theme == "auto":
        style += f"@media(prefers-color-scheme:dark){{{_style(DARK)}}}"
    head = HEAD + 14 * (len(lines) - 1)
    texts = [width(title, 17, True), *(width(x, DETAIL) for x in lines)]
    wide, high = max(layout.width, max(texts) + 48), layout.height + head
    writer = _Writer(layout, high, (wide - layout.width) / 2)
    body = [
        f'<rect class="paper" width="{wide:g}" height="{high:g}"/>',
        f'<text x="24" y="32" font-size="17" font-weight="700">{escape(title)}</text>',
        *(f'<text class="muted" x="24" y="{51 + 14 * i}" font-size="{DETAIL:g}">{escape(x)}</text>'
          for i, x in enumerate(lines)),
        *writer.run(),
    ]  # fmt: skip
    size = f'width="{wide:g}" height="{high:g}" viewBox="0 0 {wide:g} {high:g}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title>', f'<desc id="desc">{escape(description)}</desc>',
        f"<style>{style}</style>", *body, "</svg>", "",
    ])  # fmt: skip


class _Writer:
    def __init__(self, layout: Layout, height: float, shift: float) -> None:
        self.layout, self.height, self.shift = layout, height, shift

    def run(self) -> list[str]:
        boxes: list[str] = []
        frames: list[str] = []
        for place in self.layout.places:
            self.item(place, frames, boxes)
        wires = [x for r in self.layout.routes for x in self.route(r)]
        return [*frames, *wires, *boxes]

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x + self.shift, self.height - y

    def item(self, place: Place, frames: list[str], boxes: list[str]) -> None:
        if isinstance(place.item, Drawn):
            boxes += self.box(place, place.item)
            return
        inner_left = place.inner_left or place.left
        inner_right = place.inner_right or place.right
        x, y = self.at(place.x - inner_left, place.top)
        kind = "choice" if isinstance(place.item, Choice) else "frame"
        dash = ' stroke-dasharray="4 3"' if kind == "choice" else ""
        size = f'width="{inner_left + inner_right:g}" height="{place.height:g}"'
        frames.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" {size} rx="9"{dash}/>')
        if isinstance(place.item, Frame):
            frames += self.label(place)
        for row in place.rows:
            for p in row:
                self.item(p, frames, boxes)

    def label(self, place: Place) -> list[str]:
        """How often a frame is repeated, beside it."""
        before = place.left > place.inner_left
        x = place.x - place.inner_left - 8 if before else place.x + place.inner_right + 8
        total = sum(size + 5 for _, size in place.label)
        x, y = self.at(x, place.middle + total / 2)
        anchor = "end" if before else "start"
        found: list[str] = []
        for text, size in place.label:
            y += size + 5
            look = 'font-weight="700"' if size > DETAIL else 'class="muted"'
            look += f' text-anchor="{anchor}"'
            found.append(f'<text x="{x:g}" y="{y - 4:g}" font-size="{size:g}" {look}>{escape(text)}</text>')
        return found

    def box(self, place: Place, drawn: Drawn) -> list[str]:
        block = drawn.block
        x, y = self.at(place.x - place.left, place.top)
        cx, cy = self.at(place.x, place.middle)
        if block.role is Role.sum:
            arm = RADIUS - 5
            cross = f"M{cx - arm:g} {cy:g}H{cx + arm:g}M{cx:g} {cy - arm:g}V{cy + arm:g}"
            return [f'<g><title>Add</title><circle class="sum" cx="{cx:g}" cy="{cy:g}" r="{RADIUS:g}" '
                    f'stroke-width="1.4"/><path class="wire" d="{cross}" stroke-width="1.4"/></g>']  # fmt: skip
        plain = block.role in (Role.input, Role.output)
        found = ["<g>"]
        if not plain:
            size = f'width="{place.left + place.right:g}" height="{place.height:g}"'
            names = ", ".join(p.name for b in drawn.members[:1] for p in (*b.params, *b.tied))
            found.append(f"<title>{escape(f'{block.title}: {names}' if names else block.title)}</title>")
            found.append(f'<rect class="box {block.role.value}" x="{x:g}" y="{y:g}" {size} rx="6" stroke-width="1.2"/>')
        y += TITLE + (2 if plain else 6)
        found.append(f'<text x="{cx:g}" y="{y:g}" font-size="{TITLE:g}" font-weight="600" text-anchor="middle">'
                     f"{escape(block.title)}</text>")  # fmt: skip
        for text, size in place.lines:
            y += size + 4
            look = "" if size == DETAIL and not plain else ' class="muted"'
            found.append(
                f'<text x="{cx:g}" y="{y:g}" font-size="{size:g}" text-anchor="middle"{look}>{escape(text)}</text>'
            )
        return [*found, "</g>"]

    def route(self, route: Route) -> list[str]:
        points = [self.at(*p) for p in route.points]
        quiet = route.line.quiet
        (x0, y0), (x1, y1) = points[-2], points[-1]
        size = 6.0
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        tip = f"{x1:g},{y1:g}"
        back = x1 - dx * size, y1 - dy * size
        wing = [(back[0] - dy * 3.2, back[1] - dx * 3.2), (back[0] + dy * 3.2, back[1] + dx * 3.2)]
        head = (
            f'<polygon class="{"sidehead" if quiet else "head"}" points="{tip} '
            + " ".join(f"{a:g},{b:g}" for a, b in wing)
            + '"/>'
        )
        path = _rounded([*points[:-1], (back[0], back[1])])
        dash = ' stroke-dasharray="3 3"' if quiet else ""
        found = [f'<path class="{"side" if quiet else "wire"}" d="{path}" fill="none" stroke-width="1.4"{dash}/>', head]
        if route.label is not None:
            x, y = self.at(*route.label)
            shape = f"[{','.join(map(str, route.line.value.shape))}]"
            anchor = ' text-anchor="end"' if route.before else ""
            found.append(f'<text class="muted" x="{x:g}" y="{y + 1:g}" font-size="10"{anchor}>{escape(shape)}</text>')
        return found


def _rounded(points: list[tuple[float, float]], radius: float = 6.0) -> str:
    """A path along points with round corners."""
    path = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        r = min(radius, _far(before, here) / 2, _far(here, after) / 2)
        a, b = _toward(here, before, r), _toward(here, after, r)
        path.append(f"L{a[0]:g} {a[1]:g}Q{here[0]:g} {here[1]:g} {b[0]:g} {b[1]:g}")
    return "".join([*path, f"L{points[-1][0]:g} {points[-1][1]:g}"])


def _far(a: tuple[float, float], b: tuple[float, float]) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _toward(a: tuple[float, float], b: tuple[float, float], r: float) -> tuple[float, float]:
    far = _far(a, b) or 1.0
    return a[0] + (b[0] - a[0]) * r / far, a[1] + (b[1] - a[1]) * r / far
