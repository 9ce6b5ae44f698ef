"""How much attention, norms and rotary positions of exported files each optimizer fuses, and whether it stays right.

Tiny random models of transformers, through every exporter, then through every optimizer. What a model computes is
counted in PyTorch, what is fused in the files written, alike for all. Files of optimum are made by the transformers
that it wants, and have a past too, or two branches.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import monograph as mg
from clients import environment as client
from monograph.console import out, working
from report import RESULTS, WORK, Row, parser, publish
from serving_peers import environment

PLACE = WORK / "fusion"
WORKER = Path(__file__).with_name("fusion_worker.py")
EXPORTERS = ("dynamo-18", "dynamo-23", "torchscript", "hf", "hf-fused", "optimum", "optimum-past", "optimum-merged")
OPTIMIZERS = {
    "": "as exported",
    "ours": "Monograph",
    "hf-fuser": "transformers 5.24, its fuser",
    "transformers-optimizer": "onnxruntime.transformers",
    "onnxscript": "onnxscript",
    "at-load": "ONNX Runtime at load",
}
WRONG = 1e-3
"""The largest error that is no fault, as a share of the largest number."""
KINDS = ("attention", "norms", "rotary")
NOTHING: dict[str, Any] = {
    "optimizer": "", "attention": 0, "norms": 0, "rotary": 0, "error": 0.0, "eager": 0.0, "broken": False,
    "wrong": False,
}  # fmt: skip
"""What results leave out of an entry."""
COLUMNS = {"crashes": "crash", "does not run": "broken", "wrong": "wrong"}


def worker(task: str, names: Sequence[str], exporters: Sequence[str] = EXPORTERS) -> None:
    """Run a worker until it ends well: what ends its process is noted as failed, and the rest goes on."""
    if task == "optimum":
        command = [str(client("optimum 2.x")), str(WORKER.with_name("fusion_optimum.py")), str(PLACE), *names]
    else:
        command = [str(environment("exported")), str(WORKER), str(PLACE), task, ",".join(exporters), *names]
    for _ in range(100):
        with (PLACE / f"{task}.log").open("a") as log:
            if not subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                return
    sys.exit(f"{task} does not end: see {PLACE / f'{task}.log'}")


def ours(folder: Path, exporters: Sequence[str]) -> None:
    """Our own files of all that was exported, made anew; what goes wrong is noted."""
    for exporter in exporters:
        source, target = folder / f"{exporter}.onnx", folder / f"{exporter}.ours"
        if not source.exists():
            continue
        shutil.rmtree(target, ignore_errors=True)
        note = folder / f"{exporter}.ours.report"
        start = time.perf_counter()
        try:
            report = mg.optimize(source, target)
            refusals, seconds = report.refusals, time.perf_counter() - start
            note.write_text(json.dumps({"refusals": refusals, "layers": report.layers, "seconds": seconds}, indent=1))
        except Exception as e:
            fault = "" if isinstance(e, mg.MonographError) else traceback.format_exc()
            note.write_text(json.dumps({"crash": f"{type(e).__name__}: {e}"[:600], "trace": fault}, indent=1))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def result(folder: Path, exporter: str, optimizer: str) -> dict[str, Any]:
    """What became of one file that runs as it was exported."""
    stem = f"{exporter}.{optimizer}" if optimizer else exporter
    facts, failed = read(folder / f"{stem}.json"), folder / f"{stem}.failed"
    if optimizer == "ours":
        note = read(folder / f"{stem}.report")
        facts = {"fails": note["crash"], "crash": True} if "crash" in note else {**facts, **note}
    elif failed.exists():
        return {"fails": failed.read_text(), "crash": True}
    if "loads" not in facts:
        return {"crash": True, "fails": facts.get("fails", "there is no result")}
    wanted = facts["ran"] if not optimizer else read(folder / f"{exporter}.json")["ran"]
    facts["broken"] = not facts["loads"] or facts["ran"] < wanted
    error = facts.get("error" if optimizer else "eager", 0.0)
    facts["wrong"] = not facts["broken"] and not error <= WRONG
    return facts


def collected(names: Iterable[str], exporters: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each model, exporter and optimizer; of files that never run, one with the reason."""
    entries: list[dict[str, Any]] = []
    for name in names:
        folder = PLACE / name
        for exporter in exporters:
            failed, source = folder / f"{exporter}.failed", read(folder / f"{exporter}.json")
            if exporter.startswith("optimum-") and not failed.exists() and not (folder / f"{exporter}.onnx").exists():
                continue  # There is no such form of this model.
            totals = totals_of(folder, exporter)
            why = failed.read_text() if failed.exists() else "" if source.get("ran") else source.get("fails", "no file")
            if why:
                entries.append({"model": name, "exporter": exporter, "optimizer": "", "not exported": why})
                continue
            for optimizer in OPTIMIZERS:
                facts = result(folder, exporter, optimizer)
                entries.append({"model": name, "exporter": exporter, "optimizer": optimizer, "totals": totals, **facts})
    return entries


def totals_of(folder: Path, exporter: str) -> dict[str, int]:
    return read(folder / f"{exporter}.totals.json") or read(folder / "totals.json")


def kept(names: Iterable[str], exporters: Sequence[str]) -> list[dict[str, Any]]:
    """Entries of the last results for exporters that are not measured anew."""
    entries = [NOTHING | e for e in read(RESULTS / "fusion_coverage.json").get("entries", [])]
    entries = [e for e in entries if e["model"] in names and e["exporter"] not in exporters]
    totals = {(e["model"], e["exporter"]): e["totals"] for e in entries if "totals" in e}
    return [e | {"totals": totals[e["model"], e["exporter"]]} if "not exported" not in e else e for e in entries]


def row(optimizer: str, entries: Sequence[dict[str, Any]]) -> Row:
    own = [e for e in entries if e["optimizer"] == optimizer and "totals" in e]
    cells: dict[str, Any] = {"optimizer": OPTIMIZERS[optimizer]}
    for exporter in EXPORTERS:
        cells[f"attention, {exporter}"] = share([e for e in own if e["exporter"] == exporter], "attention")
    cells |= {"norms": share(own, "norms"), "rotary": share(own, "rotary"), "files": len(own)}
    cells |= {name: sum(bool(e.get(key)) for e in own) for name, key in COLUMNS.items()}
    right = [e["error" if optimizer else "eager"] for e in own if not (e.get("crash") or e["broken"] or e["wrong"])]
    return {**cells, "largest error of the others": f"{max(right, default=0.0):.1e}"}


def share(entries: Sequence[dict[str, Any]], kind: str) -> str:
    """fused / total, of every file at most what is there; of one that does not run, nothing."""
    total = sum(e["totals"][kind] for e in entries)
    runs = [e for e in entries if not e.get("crash") and not e["broken"]]
    return f"{sum(min(e[kind], e['totals'][kind]) for e in runs)}/{total}"


def missing(entries: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """What is not whole in our own files, by kind."""
    found: dict[str, list[str]] = {}
    for e in [e for e in entries if e["optimizer"] == "ours"]:
        place = f"{e['model']} {e['exporter']}"
        if e.get("crash") or e["broken"]:
            found.setdefault("fails", []).append(f"{place}: {e['fails']}")
            continue
        for kind in KINDS:
            if e[kind] < e["totals"][kind]:
                found.setdefault(kind, []).append(f"{place}: {e[kind]} of {e['totals'][kind]}")
        if e["wrong"]:
            found.setdefault("wrong", []).append(f"{place}: {e['error']:.3g}")
    return found


def brief(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries without what says nothing, and without names of folders; totals once for each file exported."""
    left_out = {"layers", "refusals", "seconds", "trace"}
    found: list[dict[str, Any]] = []
    for e in entries:
        told = {k: v for k, v in e.items() if v and k not in left_out and (k != "totals" or not e["optimizer"])}
        found.append({k: v.replace(f"{PLACE}/", "") if isinstance(v, str) else v for k, v in told.items()})
    return found


def make(given: argparse.Namespace) -> None:
    """The files of exporters and of other optimizers that are not there."""
    with working("exports"):
        if any(not e.startswith("optimum") for e in given.exporters):
            worker("export", given.names, given.exporters)
        if any(e.startswith("optimum") for e in given.exporters):
            worker("optimum", given.names)
    with working("other optimizers"):
        worker("optimize", given.names, given.exporters)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--names", nargs="*", default=[], help="models; all if none")
    options.add_argument(
        "--exporters", nargs="*", default=EXPORTERS, choices=EXPORTERS, help="of the others, the last results"
    )
    options.add_argument("--only-ours", action="store_true", help="measure our own files anew, and only them")
    options.add_argument("--as-it-is", action="store_true", help="make no files anew, only count what is there")
    given = options.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    if not given.only_ours and not given.as_it_is:
        make(given)
    names = given.names or sorted(p.name for p in PLACE.iterdir() if p.is_dir())
    with working(f"{len(names)} models"):
        for name in [] if given.as_it_is else names:
            ours(PLACE / name, given.exporters)
    with working("results"):
        worker("measure", names, given.exporters)
    entries = [*kept(names, given.exporters), *collected(names, given.exporters)]
    missed = missing(entries)
    lost = [e for e in entries if "not exported" in e]
    note = (
        f"{len(names)} models; {len(lost)} of their exports fail, or run on no input, and are left out. Fused ops of "
        "files that run, of what PyTorch computes. `crashes`: the optimizer raises, or its process ends. `does not "
        "run`: its file does not load, or fails for inputs that the original takes. `wrong`: an output differs by more "
        f"than {WRONG:g} of its largest number from the original (as exported: from PyTorch), at tokens that count, on "
        "masks of ones, padded left and right and with holes, batches of 1 and 3, two lengths; of files with a past, "
        "none, a few tokens and one behind it. optimum: optimum-onnx 0.1.0 with transformers 4.57; optimum-past: "
        "decoders with keys and values, optimum-merged: of encoder-decoders, with and without in one file."
    )
    rows = [row(o, entries) for o in OPTIMIZERS]
    publish("fusion_coverage", rows, note=note, only_print=given.no_publish or bool(given.names), missing=missed,
            entries=brief(entries))  # fmt: skip
    for kind, lines in missed.items():
        out().print(f"{kind}: {len(lines)} not whole")
        for line in lines:
            out().print(f"  {line}", markup=False)


if __name__ == "__main__":
    main()
