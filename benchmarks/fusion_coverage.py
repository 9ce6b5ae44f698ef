"""How much of the attention, the norms and the rotary positions of exported files each optimizer fuses, and how rightly.

Tiny random models of transformers, through every exporter, then through every optimizer. What a model computes is
counted in PyTorch, what is fused in the files written, alike for all.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import monograph as mg
from monograph.console import out, working
from report import WORK, Row, parser, publish
from serving_peers import environment

PLACE = WORK / "fusion"
WORKER = Path(__file__).with_name("fusion_worker.py")
EXPORTERS = ("dynamo-18", "dynamo-23", "torchscript", "hf", "hf-fused")
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
OPTIMUM = """
import subprocess, sys
run = [sys.executable, "-m", "pip", "install", "--dry-run", "-q", "transformers==5.24.0", "optimum-onnx"]
done = subprocess.run(run, capture_output=True, text=True)
lines = [l for l in (done.stdout + done.stderr).splitlines() if "optimum" in l and "transformers" in l]
print("installs" if not done.returncode else "; ".join(lines[:2]) or done.stderr[-300:])
"""


def worker(task: str, names: Sequence[str]) -> None:
    """Run the worker until it ends well: what ends its process is noted as failed, and the rest goes on."""
    command = [str(environment("exported")), str(WORKER), str(PLACE), task, *names]
    for _ in range(100):
        with (PLACE / f"{task}.log").open("a") as log:
            if not subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                return
    sys.exit(f"{task} does not end: see {PLACE / f'{task}.log'}")


def ours(folder: Path) -> None:
    """Our own files of all that was exported, made anew; what goes wrong is noted."""
    for exporter in EXPORTERS:
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
    """What became of one file."""
    stem = folder / (f"{exporter}.{optimizer}" if optimizer else exporter)
    facts = read(Path(f"{stem}.json"))
    failed = folder / f"{stem.name}.failed" if optimizer else folder / f"{exporter}.failed"
    if optimizer == "ours":
        note = read(Path(f"{stem}.report"))
        facts = {"fails": note["crash"], "crash": True} if "crash" in note else {**facts, **note}
    elif failed.exists():
        return {"fails": failed.read_text(), "crash": True}
    if not facts:
        return {"fails": "there is no result", "crash": True}
    error = facts.get("error", 0.0) if optimizer else facts.get("eager", 0.0)
    facts["wrong"] = bool(facts["loads"]) and not (error <= WRONG) and not (facts["fails"] and math.isinf(error))
    return facts


def collected(names: Iterable[str]) -> list[dict[str, Any]]:
    """One entry for each model, exporter and optimizer."""
    entries: list[dict[str, Any]] = []
    for name in names:
        folder = PLACE / name
        totals = read(folder / "totals.json")
        for exporter in EXPORTERS:
            if not (folder / f"{exporter}.onnx").exists():
                failed = folder / f"{exporter}.failed"
                why = failed.read_text() if failed.exists() else "not exported"
                entries.append({"model": name, "exporter": exporter, "optimizer": "", "not exported": why})
                continue
            for optimizer in OPTIMIZERS:
                facts = result(folder, exporter, optimizer)
                entries.append({"model": name, "exporter": exporter, "optimizer": optimizer, "totals": totals, **facts})
    return entries


def row(optimizer: str, entries: Sequence[dict[str, Any]]) -> Row:
    own = [e for e in entries if e["optimizer"] == optimizer and "totals" in e]
    cells: dict[str, Any] = {"optimizer": OPTIMIZERS[optimizer]}
    for exporter in EXPORTERS:
        cells[f"attention, {exporter}"] = share([e for e in own if e["exporter"] == exporter], "attention")
    cells |= {"norms": share(own, "norms"), "rotary": share(own, "rotary"), "files": len(own)}
    cells["crashes"] = sum(bool(e.get("crash")) for e in own)
    broken = [e for e in own if not e.get("crash") and (not e["loads"] or e["fails"])]
    cells |= {"does not run": len(broken), "wrong": sum(bool(e.get("wrong")) for e in own)}
    return cells


def share(entries: Sequence[dict[str, Any]], kind: str) -> str:
    """fused / total, of every file at most what is there."""
    total = sum(e["totals"][kind] for e in entries)
    return f"{sum(min(e.get(kind, 0), e['totals'][kind]) for e in entries)}/{total}"


def missing(entries: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """What is not whole in our own files, by kind."""
    found: dict[str, list[str]] = {}
    for e in [e for e in entries if e["optimizer"] == "ours"]:
        place = f"{e['model']} {e['exporter']}"
        for kind in KINDS:
            if not e.get("crash") and e.get(kind, 0) < e["totals"][kind]:
                found.setdefault(kind, []).append(f"{place}: {e.get(kind, 0)} of {e['totals'][kind]}")
        if e.get("crash") or not e["loads"] or e["fails"]:
            found.setdefault("fails", []).append(f"{place}: {e['fails']}")
        if e.get("wrong"):
            found.setdefault("wrong", []).append(f"{place}: {e['error']:.3g}")
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--names", nargs="*", default=[], help="models; all if none")
    options.add_argument("--only-ours", action="store_true", help="measure our own files anew, and only them")
    given = options.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    optimum = PLACE / "optimum.txt"
    if not given.only_ours:
        with working("exports"):
            worker("export", given.names)
        with working("other optimizers"):
            worker("optimize", given.names)
    if not optimum.exists():
        made = subprocess.run(
            [str(environment("exported")), "-c", OPTIMUM], capture_output=True, text=True, check=False
        )
        optimum.write_text(made.stdout.strip())
    names = given.names or sorted(p.parent.name for p in PLACE.glob("*/totals.json"))
    with working(f"{len(names)} models"):
        for name in names:
            ours(PLACE / name)
    with working("results"):
        worker("measure", names)
    entries = collected(names)
    missed = missing(entries)
    note = (
        f"{len(names)} models. Fused of what PyTorch computes; a norm or a rotation of a file that fails counts as not "
        f"fused. wrong: an output differs by more than {WRONG:g} of its largest number from the file that was optimized "
        "(as exported: from PyTorch), at tokens that count, on masks of ones, padded left and right and with holes, "
        "batches of 1 and 3, two lengths. crashes: the optimizer fails, or ends the process. does not run: the file "
        f"does not load, or fails for some inputs. optimum beside transformers 5.24: {optimum.read_text()}"
    )
    publish("fusion_coverage", [row(o, entries) for o in OPTIMIZERS], note=note, only_print=given.no_publish or bool(given.names),
            missing=missed, entries=entries)  # fmt: skip
    for kind, lines in missed.items():
        out().print(f"{kind}: {len(lines)} not whole")
        for line in lines:
            out().print(f"  {line}", markup=False)


if __name__ == "__main__":
    main()
