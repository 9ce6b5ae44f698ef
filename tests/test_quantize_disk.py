"""A disk that is full while a model is quantized: one error that says so, and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import monograph as mg
import pytest
from monograph.frontends.huggingface import save_pretrained
from monograph.ir.errors import MonographError
from test_gguf_blocks import write_llama
from test_measured_builds import model

pytestmark = pytest.mark.slow

FULL = """
import resource, signal, sys
import monograph as mg
source, folder, form, method, most = sys.argv[1:]
text = mg.python_topics()[:20_000]
asked = mg.Quantization(form, method or None, calibrate=text, cache="" if form else "int8")
model = mg.load(source)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
try:
    mg.build(model, folder, quantize=asked)
except mg.MonographError as e:
    print(type(e).__name__, e)
"""


@pytest.mark.parametrize(
    ("form", "method"), [("int4", ""), ("int4", "gptq"), ("int8-dynamic", "smoothquant"), ("", "")]
)
@pytest.mark.parametrize("most", [500, 5_000, 60_000])
def test_a_full_disk_is_said_and_nothing_is_left(form: str, method: str, most: int, tmp_path: Path) -> None:
    save_pretrained(model(), tmp_path / "source")
    (tmp_path / "to").mkdir()
    folders = [str(tmp_path / "source"), str(tmp_path / "to" / "out")]
    command = [sys.executable, "-c", FULL, *folders, form, method, str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("WriteError") and "cannot be written" in done.stdout, done.stdout
    assert list((tmp_path / "to").iterdir()) == []


def test_an_older_build_is_replaced_as_a_whole_and_other_files_are_kept(tmp_path: Path) -> None:
    text = mg.python_topics()[:20_000]
    mg.build(model(), tmp_path / "out", quantize=mg.Quantization("int4", calibrate=text)).close()
    assert (tmp_path / "out" / "quality.json").exists()
    mg.build(model(), tmp_path / "out", quantize="int8").close()
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "quality.json" not in names and "quantization.json" in names
    mg.build(model(), tmp_path / "out").close()
    assert not {"quality.json", "quantization.json"} & {p.name for p in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(MonographError, match=r"notes\.txt"):
        mg.build(model(), tmp_path / "out", quantize="int4")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("form", ["int4", "int8", "int2", "int8-dynamic"])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
def test_blocks_of_a_gguf_file_stay_or_are_rounded_again(form: str, again: bool, kind: str, tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", kind)
    asked = mg.Quantization(form, again=again)
    mg.build(mg.load(tmp_path / "m.gguf"), tmp_path / "out", quantize=asked).close()
    layers = json.loads((tmp_path / "out" / "quantization.json").read_text())["weights"]
    kept = [w for w in layers if "is stored as" in w["why"]]
    told = [w for w in layers if "is rounded again" in w["why"]]
    assert not kept if again else kept
    assert all(w["error"] is None and w["encoding"] for w in kept)
    assert all(w["error"] is not None for w in told)
