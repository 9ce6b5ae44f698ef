"""The data report: what was read, what each filter removed, duplicates, lengths; as JSON and as a page."""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.tensors import Array
from .clean import Counts
from .files import read_json, write_json
from .filters import FILTERS
from .parts import Parts
from .recipe import Recipe
from .shards import SIDES, Shards

_EXAMPLES, _EXCERPT = 8, 300
_CHUNK = 1 << 20
_OTHER = {
    "unicode_normalised": "changed by Unicode normalisation",
    "control_characters": "control characters taken out",
    "empty": "nothing left",
    "oversize": "longer than input.max_document_bytes",
    "not_utf8": "not UTF-8",
    "not_json": "not JSON",
    "no_text": "no text in the field",
}


def write(run: Path, recipe: Recipe, manifest: dict[str, Any], engine: str) -> None:
    """Write report.json and report.html into a run whose shards are done."""
    value = collect(run, recipe, manifest, engine)
    work = run / ".report.html.tmp"
    work.write_text(page(value), encoding="utf-8")
    work.replace(run / "report.html")
    write_json(run / "report.json", value)


def collect(run: Path, recipe: Recipe, manifest: dict[str, Any], engine: str) -> dict[str, Any]:
    """All numbers of a run, read piece by piece."""
    counts, read, damaged = Counts(), Counter[str](), dict[str, str]()
    for result in _results(run / "clean"):
        counts.add(result["cleaned"])
        read.update(result["read"])
        damaged = {**result["damaged"], **damaged}
    stages = {name: entry["counts"] for name, entry in manifest["stages"].items() if "counts" in entry}
    limits = recipe.clean.limits
    return {
        "engine": engine,
        "recipe": recipe.to_dict(),
        "input": {**stages["plan"], "documents": read["documents"], "text_bytes": read["bytes"]},
        "filters": [_filter_row(name, counts, limits) for name in [*_OTHER, *FILTERS] if counts.documents[name]]
        + [_damage_row(name, read, damaged) for name in _OTHER if read[name]],
        "cleaned": {k: stages["clean"][k] for k in ("documents", "characters")},
        "duplicates": {
            "exact": stages["exact"]["duplicates"],
            "near": stages["clusters"]["near"],
            "bands": stages["near"]["bands"],
            "candidates": stages["near"]["candidates"],
            "links": stages["near"]["links"],
            "examples": _examples(run, recipe.duplicates.threshold),
        },
        "tokenizer": stages["tokenizer"],
        "splits": {s: {**stages["tokenize"]["splits"][s], **stages["pack"]["splits"][s]} for s in SIDES},
        "lengths": {s: lengths(Shards(run / "shards", s)) for s in SIDES},
        "seconds": {name: entry["seconds"] for name, entry in manifest["stages"].items() if "seconds" in entry},
    }


def removals(run: Path) -> list[str]:
    """One line for each reason for which documents were removed, the most frequent first."""
    found = Counter[str]()
    for r in _results(run / "clean"):
        found.update({k: v for k, v in r["read"].items() if k in _OTHER})
        found.update({k: v for k, v in r["cleaned"]["documents"].items() if _removes(k)})
    return [f"{n} documents: {name}" for name, n in found.most_common()] or ["the input holds no documents"]


def lengths(shards: Shards) -> dict[str, Any]:
    """Documents by length in tokens: `counts[i]` documents have 2**i to 2**(i+1) - 1 tokens."""
    counts = np.zeros(64, np.int64)
    longest = 0
    for shard in shards.shards:
        for i in range(0, len(shard), _CHUNK):
            sizes = np.diff(shard.offsets[i : i + _CHUNK + 1])
            longest = max(longest, int(sizes.max()))
            counts += np.bincount(_log2(sizes), minlength=64)
    used = int(np.flatnonzero(counts).max()) + 1 if counts.any() else 0
    mean = shards.tokens / len(shards) if len(shards) else 0.0
    return {"counts": counts[:used].tolist(), "mean": round(mean, 2), "longest": longest}


def _log2(sizes: Array) -> Array:
    return np.frexp(np.maximum(sizes, 1).astype(np.float64))[1] - 1


def _removes(name: str) -> bool:
    return name == "empty" or (name in FILTERS and FILTERS[name].kind == "document")


def _filter_row(name: str, counts: Counts, limits: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "says": _OTHER.get(name, ""), "source": "", "kind": "document"}
    if name in FILTERS:
        f = FILTERS[name]
        limit = limits.get(name, f.limit)
        says = f.says if limit is None else f.says.replace("`limit`", f"{limit:g}")
        row |= {"says": says, "source": f.source, "kind": f.kind, "limit": limit}
    elif not _removes(name):
        row["kind"] = "edit"
    return {
        **row,
        "documents": counts.documents[name],
        "lines": counts.lines[name],
        "characters": counts.characters[name],
        "examples": counts.examples.get(name, []),
    }


def _damage_row(name: str, read: Counter[str], damaged: dict[str, str]) -> dict[str, Any]:
    row = {"name": name, "says": _OTHER[name], "source": "", "kind": "damaged", "documents": read[name], "lines": 0}
    return {**row, "characters": 0, "examples": [damaged[name]]}


def _results(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir()):
        if (path / "result.json").exists():
            yield read_json(path / "result.json")


def _examples(run: Path, threshold: float) -> list[dict[str, Any]]:
    """A few pairs of duplicates with the beginnings of their texts."""
    exact = [(later, first, 1.0, "exact") for later, first, _ in _links(run / "exact")]
    names = ("related, kept", "near")
    near = [(later, first, alike, names[alike >= threshold]) for later, first, alike in _links(run / "near")]
    pairs = [*exact[: _EXAMPLES // 2], *near]
    pairs = [p for i, p in enumerate(pairs) if p[:2] not in {q[:2] for q in pairs[:i]}][:_EXAMPLES]
    parts = Parts.of(run)
    texts = parts.excerpts([i for p in pairs for i in p[:2]], _EXCERPT)
    return [
        {"kind": kind, "similarity": round(alike, 4), "kept": texts[first], "other": texts[later]}
        for later, first, alike, kind in pairs
    ]


def _links(folder: Path) -> list[tuple[int, int, float]]:
    found: list[tuple[int, int, float]] = []
    for task in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not (task / "edges.npy").exists():
            continue
        edges = np.load(task / "edges.npy", mmap_mode="r")[:_EXAMPLES]
        likeness = task / "similarity.npy"
        alike = np.load(likeness, mmap_mode="r")[:_EXAMPLES] if likeness.exists() else np.ones(len(edges))
        found += [(int(a), int(b), float(s)) for (a, b), s in zip(edges, alike, strict=True)]
        if len(found) >= 4 * _EXAMPLES:
            break
    return found


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { font-weight: 600 } table { border-collapse: collapse; width: 100% }
td, th { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .5rem; margin: .2rem 0; font-size: 12px; max-height: 9rem; overflow: auto }
.bar { fill: #3b6ea5 } svg text { font: 11px system-ui, sans-serif; fill: #444 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } pre { background: #242424 }
td, th { border-color: #444 } svg text { fill: #bbb } }
"""  # noqa: E501


def page(value: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else."""
    sections = [
        f"<h1>Data report</h1><p>{_summary(value)}</p>",
        "<h2>Cleaning</h2>" + _filters_table(value["filters"]),
        "<h2>Duplicates</h2>" + _duplicates(value["duplicates"]),
        "<h2>Length of documents, in tokens</h2>"
        + "".join(f"<h3>{s}</h3>{_histogram(value['lengths'][s])}" for s in SIDES if value["lengths"][s]["counts"]),
        "<h2>Shards</h2>" + _table([{"split": s, **row} for s, row in value["splits"].items()]),
        "<h2>Time</h2>" + _table([{"stage": k, "seconds": v} for k, v in value["seconds"].items()]),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Data report</title><style>{_STYLE}</style>'
    return head + "\n".join(sections) + "</html>\n"


def _summary(value: dict[str, Any]) -> str:
    kept = sum(row["documents"] for row in value["splits"].values())
    tokens = sum(row["tokens"] for row in value["splits"].values())
    return (
        f"{value['input']['documents']:,} documents read ({value['input']['text_bytes']:,} bytes), "
        f"{value['cleaned']['documents']:,} after cleaning, {kept:,} after removing duplicates: {tokens:,} tokens "
        f"with a vocabulary of {value['tokenizer']['vocab']:,}. Engine: {html.escape(value['engine'])}."
    )


def _filters_table(rows: list[dict[str, Any]]) -> str:
    shown = [{k: row[k] for k in ("name", "says", "source", "documents", "lines", "characters")} for row in rows]
    body = _table(shown)
    for row in rows:
        if row["examples"]:
            texts = "".join(f"<pre>{html.escape(t)}</pre>" for t in row["examples"])
            body += f"<details><summary>{row['name']}: examples</summary>{texts}</details>"
    return body


def _duplicates(value: dict[str, Any]) -> str:
    text = f"<p>{value['exact']:,} exact and {value['near']:,} near-duplicates"
    if value["bands"]:
        text += f" ({value['bands'][0]} bands of {value['bands'][1]} rows, {value['candidates']:,} pairs compared)"
    parts = [text + ".</p>"]
    for e in value["examples"]:
        what = f"{e['kind']}, similarity {e['similarity']:.2f}"
        texts = "".join(f"<pre>{html.escape(e[k])}</pre>" for k in ("kept", "other"))
        parts.append(f"<details><summary>{what}</summary>{texts}</details>")
    return "".join(parts)


def _histogram(value: dict[str, Any]) -> str:
    counts, most = value["counts"], max(value["counts"])
    rows: list[str] = []
    for i, n in enumerate(counts):
        y, width = 18 * i, 420 * n / most
        rows.append(f'<text x="90" y="{y + 12}" text-anchor="end">{1 << i:,}-{(2 << i) - 1:,}</text>')
        rows.append(f'<rect class="bar" x="96" y="{y + 2}" width="{width:.1f}" height="13"/>')
        rows.append(f'<text x="{100 + width:.1f}" y="{y + 12}">{n:,}</text>')
    note = f"<p>mean {value['mean']:,.1f}, longest {value['longest']:,}</p>"
    return f'<svg width="600" height="{18 * len(counts) + 4}" role="img">{"".join(rows)}</svg>{note}'


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>nothing</p>"
    numeric = {k for k, v in rows[0].items() if isinstance(v, (int, float))}

    def cell(tag: str, key: str, value: Any) -> str:
        text = f"{value:,}" if isinstance(value, (int, float)) else html.escape(str(value))
        return f'<{tag} class="n">{text}</{tag}>' if key in numeric else f"<{tag}>{text}</{tag}>"

    head = "".join(cell("th", k, k) for k in rows[0])
    body = ("".join(cell("td", k, v) for k, v in row.items()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(itertools.chain(*(('<tr>', r, '</tr>') for r in body)))}</table>"
