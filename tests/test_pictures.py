"""Pictures: every family draws, blocks hold each parameter once, the page holds every state of the graph."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import monograph as mg
import pytest
from monograph.commands.show import show
from monograph.frontends.dsl import Family, Model, load_family
from monograph.ir import Graph, MonographError, Value, ops
from monograph.passes.pipelines import PIPELINES, decompose, optimize
from monograph.pictures import Picture, draw, write_page
from monograph.pictures.folding import Choice, Drawn, Frame, blocks_in
from monograph.pictures.history import history
from monograph.pictures.measure import cut, number, width, wrapped
from monograph.pictures.patterns import order_of, ranges, repeats
from monograph.pictures.svg import DARK, LIGHT
from monograph.pictures.vocabulary import Role
from monograph.resolve import resolve
from picture_models import OWN, handwritten, mixed
from small_models import FAMILIES, small

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "pictures" / "llama.svg"
SVG = "{http://www.w3.org/2000/svg}"
sys.path.insert(0, str(ROOT / "docs"))


def numbers(graph: Graph) -> int:
    return sum(math.prod(d for d in v.shape if isinstance(d, int)) for v in graph.params.values())


def parsed(picture: Picture) -> ElementTree.Element:
    return ElementTree.fromstring(picture.svg())


def frames(picture: Picture) -> list[Frame]:
    return [i for i in picture.folded.items if isinstance(i, Frame)]


def titles(picture: Picture) -> list[str]:
    return [d.block.title for d in picture.folded.drawn]


def check(picture: Picture, graph: Graph) -> None:
    """What holds for every picture: each parameter in one block, sums that agree, residual lines, well-formed text."""
    owned = [p.name for b in picture.found.blocks for p in b.params]
    assert len(owned) == len(set(owned))
    assert set(owned) == set(graph.params)
    assert picture.parameters == numbers(graph)
    drawn = sum(b.count for d in picture.folded.drawn for b in d.members)
    assert drawn == numbers(graph)
    for block in picture.found.blocks:
        if block.fork is not None:
            around = [e for e in picture.found.edges if e.target is block and e.around]
            assert len(around) == 1, f"{block.title} of {block.layer} has no residual line"
    root = parsed(picture)
    assert root.find(f"{SVG}title") is not None and root.find(f"{SVG}desc") is not None
    shown = "".join(root.itertext())
    for name in graph.outputs:
        assert name in shown
    assert not re.search(r"\b(nan|inf)\b", picture.svg())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws(family: str) -> None:
    graph = small(family).graph()
    picture = draw(graph)
    check(picture, graph)
    if small(family).config and getattr(small(family).config, "layers", 0) == 2 and family not in ("lfm2", "gru_lm"):
        assert frames(picture) or family in ("lstm_lm", "rnn_lm", "lstm_seq2seq"), "two layers are folded into a frame"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_from_primitives_too(family: str) -> None:
    graph = decompose(small(family).graph())
    picture = draw(graph)
    assert picture.parameters == numbers(graph)
    parsed(picture)


def test_an_own_model_from_a_file_draws() -> None:
    model = resolve(str(ROOT / "examples" / "own_model.py"))
    picture = draw(model)
    check(picture, model.graph())
    assert titles(picture).count("+") == 5
    assert {"GRU", "Self-attention", "Feed-forward"} <= set(titles(picture))
    feed = next(d.block for d in picture.folded.drawn if d.block.title == "Feed-forward")
    assert feed.details == ["32 → 128 → 32", "squared relu"]


@pytest.mark.parametrize("family", OWN, ids=lambda f: f.name)
def test_own_models_of_many_shapes_draw(family: Family, tmp_path: Path) -> None:
    picture = draw(family())
    check(picture, family().graph())
    data = data_of(write_page(family(), tmp_path / "page.html", "encode"))
    assert counts(data, states(data)[0]) == family().graph().counts()


SHAPES = {
    "handwritten": [(4, "")],
    "shared": [(4, "")],
    "skips": [(4, ""), (4, "")],
    "mixed": [(8, "")],
    "towers": [(3, ""), (3, "")],
    "stages": [(3, ""), (3, "")],
    "routed": [(6, "3 × [1 feed-forward + 1 mixture of experts]")],
    "chain": [(4, "")],
    "bare": [],
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers_of_own_models_are_folded(name: str) -> None:
    picture = draw(next(f for f in OWN if f.name == name)())
    found = [(f.times, f.order) for f in frames(picture)]
    assert found == SHAPES[name]


def test_a_layer_begins_behind_the_sum_before_it() -> None:
    (frame,) = frames(draw(handwritten()))
    names = [i.block.title for i in frame.items if isinstance(i, Drawn)]
    assert names == ["Layer norm", "Attention in parts", "+", "Layer norm", "Feed-forward", "+"]


def test_lines_between_kinds_of_layers_follow_the_drawing() -> None:
    """Each kind reads the one that is drawn below it, wherever it stands in the model."""
    picture = draw(mixed())
    (frame,) = frames(picture)
    low, high = (list(blocks_in([i])) for i in frame.items)
    between = [x for x in picture.folded.lines if x.source in low and x.target not in low]
    assert {x.target for x in between} == {high[0], high[2]} and {x.source for x in between} == {low[-1]}
    out = [x for x in picture.folded.lines if x.source in high and x.target not in high]
    assert [(x.source, x.target.block.title) for x in out] == [(high[-1], "RMS norm")]


def test_layers_that_alternate_are_one_frame_with_both_kinds() -> None:
    layers = ["sliding_attention"] * 5 + ["full_attention"]
    model = load_family("gemma3_text")(
        vocab=50, dim=16, heads=4, kv_heads=2, head_dim=4, ffn=24, layers=14, window=3, layer_types=(layers * 3)[:14]
    )
    picture = draw(model)
    check(picture, model.graph())
    (frame,) = frames(picture)
    assert (frame.times, frame.order) == (14, "2 × [5 local + 1 global] + 2 local")
    (choice,) = (i for i in frame.items if isinstance(i, Choice))
    assert [o.note for o in choice.options] == ["layers 0–4, 6–10, 12, 13", "layers 5, 11"]


def test_layers_of_two_kinds_stand_above_one_another() -> None:
    model = small("deepseek_v3")
    (frame,) = frames(draw(model))
    assert [i.times for i in frame.items if isinstance(i, Frame)] == [1, 1]


def test_encoder_and_decoder_stand_side_by_side() -> None:
    picture = draw(small("transformer2017"))
    assert titles(picture).count("Cross-attention") == 1
    cross = next(d for d in picture.folded.drawn if d.block.title == "Cross-attention")
    sources = [x.source.block.title for x in picture.folded.lines if x.target is cross]
    assert sources == ["Layer norm", "Layer norm"]
    assert [f.times for f in frames(picture)] == [2, 2]


def test_parallel_branches_share_one_sum() -> None:
    picture = draw(small("gptj"))
    plus = next(d for d in picture.folded.drawn if d.block.role is Role.sum)
    lines = [x for x in picture.folded.lines if x.target is plus]
    assert sorted(x.source.block.title for x in lines) == ["Embedding", "Feed-forward", "Self-attention"]
    assert [x.source.block.title for x in lines if x.around] == ["Embedding"]


class Flat(mg.Config):
    depth: int = 4


@mg.model(task="causal-lm", name='a<b&"c')
def flat(m: mg.Scope, c: Flat, input_ids: Value) -> Value:
    """Layers whose names have no numbers of their own, and a name that XML must not read."""
    x = m.embed("in<&>", input_ids, 11, 8)
    for i in range(c.depth):
        x = x + m.linear(f"down{i}", ops.relu(m.linear(f"up{i}", m.rms_norm(f"norm{i}", x, 1e-6), 16)), 8)
    return m.linear("out", x, 11)


def test_layers_without_scopes_are_found_by_their_structure() -> None:
    picture = draw(flat(Flat()))
    check(picture, flat(Flat()).graph())
    (frame,) = frames(picture)
    assert frame.times == 4
    assert [d.block.title for d in frame.items if not isinstance(d, (Frame, Choice))] == [
        "RMS norm",
        "Feed-forward",
        "+",
    ]


def test_names_are_escaped() -> None:
    picture = draw(flat(Flat()))
    assert "a<b" not in picture.svg()
    assert 'a<b&"c' in "".join(parsed(picture).itertext())


@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_themes(theme: str) -> None:
    text = draw(small("llama")).svg(theme)
    assert ("prefers-color-scheme" in text) == (theme == "auto")
    ElementTree.fromstring(text)


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = draw(small("gru_lm"))
    with pytest.raises(MonographError, match="no theme is called 'grey'"):
        picture.svg("grey")
    with pytest.raises(MonographError, match=r"\.svg or \.png, not \.jpg"):
        picture.save(tmp_path / "a.jpg")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MonographError, match=r"needs resvg-py.*\n*.*pip install"):
        picture.save(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_png(tmp_path: Path) -> None:
    assert draw(small("gru_lm")).save(tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_golden_svg() -> None:
    """MONOGRAPH_UPDATE=1 writes the file anew."""
    text = draw(small("llama")).svg()
    if os.environ.get("MONOGRAPH_UPDATE"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_pictures_of_the_docs_are_those_that_the_code_draws() -> None:
    import pictures  # pyright: ignore[reportMissingImports] - docs/pictures.py

    for name in pictures.MODELS:
        title, model = pictures.made(name)
        kept = (pictures.FOLDER / f"{name}.svg").read_text()
        assert draw(model, title=title).svg() == kept, "python docs/pictures.py draws them anew"


# -- the page ----------------------------------------------------------------------------------------------------


def data_of(path: Path) -> dict[str, Any]:
    text = path.read_text()
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert "<" not in found[1]
    assert not re.search(r"""(src|href)=|https?://(?!www\.w3\.org/2000/svg)|@import|fetch\(""", text)
    return json.loads(found[1])


def states(data: dict[str, Any]) -> list[list[list[Any]]]:
    return [[data["nodes"][first + i] for first, n in s["order"] for i in range(n)] for s in data["states"]]


def counts(data: dict[str, Any], state: list[list[Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in state:
        found[data["ops"][record[0]]] = found.get(data["ops"][record[0]], 0) + 1
    return found


@pytest.mark.parametrize("family", ["llama", "bert", "whisper", "mamba2"])
def test_the_page_holds_the_graph_before_and_after_every_pass(family: str, tmp_path: Path) -> None:
    model = small(family)
    data = data_of(write_page(model, tmp_path / "page.html"))
    assert [p["name"] for p in data["passes"]] == [p.name for p in PIPELINES["decode"].passes]
    found = states(data)
    assert counts(data, found[0]) == model.graph().counts()
    after, report = optimize(model.graph(), "decode")
    assert counts(data, found[-1]) == after.counts()
    assert sum(sum(p["counts"].values()) for p in data["passes"]) == sum(report.counts.values())
    assert [m["reason"] for m in data["misses"]] == [m.reason for m in report.misses]
    made = set(map(int, data["leaves"]))
    for record in found[-1]:
        assert all(v is None or v in made for v in record[2]), "a node reads what is made before it"
        made |= set(record[3])
    lines = [data["lines"].get(f"{r[5]}:{r[6]}") for r in found[0]]
    assert all(entry and entry[0] <= r[6] < entry[0] + len(entry[1]) for entry, r in zip(lines, found[0], strict=True))
    assert not any("/" in name for name in data["files"])


def test_nodes_that_were_fused_are_told_with_what_took_them() -> None:
    data = history(small("llama").graph(), PIPELINES["decode"])
    groups: dict[int, list[str]] = {}
    for state in data["states"]:
        for old, new in state.get("groups", []):
            groups.setdefault(new, []).append(data["ops"][data["nodes"][old][0]])
    named = {data["ops"][data["nodes"][new][0]]: sorted(old) for new, old in groups.items()}
    assert named["gated_feed_forward"] == ["linear", "linear", "linear", "mul", "silu"]
    assert named["add_rms_norm"] == ["add", "rms_norm"]


def test_what_a_pass_builds_anew_keeps_its_identity() -> None:
    data = history(small("llama").graph(), PIPELINES["decode"])
    before, after = (
        {r[3][0] for first, n in s["order"] for r in data["nodes"][first : first + n]} for s in data["states"][-2:]
    )
    kinds = {data["ops"][r[0]] for r in data["nodes"] if r[3][0] in after - before}
    assert kinds == {"cache_append", "cache_read"}
    assert before <= after


def test_the_page_embeds_what_could_end_its_script(tmp_path: Path) -> None:
    path = write_page(flat(Flat()), tmp_path / "page.html", "train", title="</script><b>")
    data = data_of(path)
    assert data["name"] == "</script><b>"
    assert any("in<&>" in leaf[1] for leaf in data["leaves"].values())
    assert path.read_text().count("</script>") == 2


# -- words -------------------------------------------------------------------------------------------------------


def test_repeats() -> None:
    assert repeats("abcabcabcd") == (0, 3, 3)
    assert repeats("xaaaa") == (1, 1, 4)
    assert repeats("abcd") is None


def test_order_of() -> None:
    assert order_of(["a"] * 4) == ""
    assert order_of(["a", "a", "b"] * 3) == "3 × [2 a + 1 b]"
    assert order_of(["a", "b", "b"]) == "1 a + 2 b"
    assert ranges([0, 1, 2, 5, 7, 8], "layer") == "layers 0–2, 5, 7, 8"
    assert ranges([3], "layer") == "layer 3"


def test_texts_are_measured_and_broken() -> None:
    assert width("mmm", 10) > width("iii", 10)
    assert all(width(line, 11) <= 100 for line in wrapped("reads attention_mask and position_ids", 11, 100))
    long = cut("a" * 100, 11, 100)
    assert width(long, 11) <= 100 and "…" in long
    assert [number(n) for n in (7, 1024, 999_600, 134_515_008)] == ["7", "1.02 K", "1 M", "135 M"]


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "examples" / "own_model.py")
    show(file, svg=tmp_path / "a.svg", html=tmp_path / "a.html", json_output=True)
    assert json.loads(capsys.readouterr().out) == {"svg": str(tmp_path / "a.svg"), "html": str(tmp_path / "a.html")}
    assert data_of(tmp_path / "a.html")["pipeline"] == "decode"
    ElementTree.fromstring((tmp_path / "a.svg").read_text())


def test_bytes_are_those_of_the_stored_weights() -> None:
    from monograph.ir.weights import Weights

    family = small("llama")
    weights = Weights.initialize(family.graph()).cast(mg.DType.f16)
    model = Model(family.source, family.config, weights)
    assert draw(model).bytes == 2 * draw(model).parameters == draw(family).bytes // 2


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_can_be_read_on_every_block(colours: dict[str, str]) -> None:
    """A contrast of 4.5, as WCAG 2 asks for small text."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for ink in ("ink", "muted"):
        for name in ("paper", "frame", *(r for r in Role if r in colours)):
            low, high = sorted((light(colours[ink]), light(colours[name])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {name}"
