"""`bench`: subjects side by side, their work and shares, noise, profiles by layer, plots and pages."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import monograph as mg
import numpy as np
import pytest
from command_line import call
from monograph.machine import Ceilings
from monograph.performance import Benchmark, Speed, Times, _Load, _noise, _speed, work  # pyright: ignore[reportPrivateUsage]
from monograph.performance_pages import page, png
from monograph.profiling import layers_of
from monograph.subjects import Built, Growing, Module, Subject, work_of
from small_models import small


def with_weights(family: str) -> mg.Model:
    return mg.init(small(family))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[mg.Model, Path, Path]:
    """A small decoder, built and exported."""
    model, place = with_weights("llama"), tmp_path_factory.mktemp("bench")
    mg.build(model, place / "built").close()
    mg.export(model, place / "exported")
    return model, place / "built", place / "exported"


def test_every_subject_reads_the_same_prompt_and_steps(folders: tuple[mg.Model, Path, Path]) -> None:
    """What is timed is what is meant: three engines give the same logits after a prompt and after a step."""
    model, built, exported = folders
    runs = [Built(built, 1, ""), Growing(exported / "model.onnx", 1, "logits"), Module(model, 1, compiled=False)]
    tokens = np.tile(np.arange(6), (2, 1))
    first = [np.asarray(r.prefill(tokens, np.full(2, 6))) for r in runs]
    first[2] = first[2][:, -1]
    after = [np.asarray(r.step(np.array([3, 5]))) for r in runs]
    after[2] = after[2][:, -1]
    for found in (first, after):
        np.testing.assert_allclose(found[1], found[0], atol=1e-4)
        np.testing.assert_allclose(found[2], found[0], atol=1e-4)


def test_a_folder_against_a_file_and_a_model_against_pytorch(folders: tuple[mg.Model, Path, Path]) -> None:
    model, built, exported = folders
    found = mg.bench(built, against=[exported / "model.onnx"], batch=2, prompt=5, new_tokens=3, rounds=2, threads=1)
    assert [r.variant for r in found.rows] == ["built", "model.onnx"] and found.batch == 2
    assert all(r.prefill > 0 and r.decode > 0 and 0 < r.decode_share <= 1 for r in found.rows)
    both = mg.bench(model, against=["eager"], prompt=5, new_tokens=3, rounds=1, threads=1)
    assert [r.variant for r in both.rows] == ["fused for ONNX Runtime", "PyTorch eager"]
    assert both.rows[0].layers == ()


def test_models_that_do_different_things_are_not_compared(folders: tuple[mg.Model, Path, Path], tmp_path: Path) -> None:
    mg.build(with_weights("bert"), tmp_path / "bert").close()
    with pytest.raises(mg.MonographError, match="cannot be compared: built continues texts, bert does not"):
        mg.bench(folders[1], against=[tmp_path / "bert"])
    with pytest.raises(mg.MonographError, match="neither an ONNX file nor a folder with one"):
        mg.bench(folders[1], against=[tmp_path])
    with pytest.raises(mg.MonographError, match="two subjects are called 'built'"):
        mg.bench(folders[1], against=[folders[1]])


def test_encoders_in_batches(tmp_path: Path) -> None:
    model = with_weights("bert")
    mg.build(model, tmp_path / "built").close()
    mg.export(model, tmp_path / "exported")
    found = mg.bench(tmp_path / "built", against=[tmp_path / "exported"], batch=3, prompt=7, rounds=1, threads=1)
    assert found.new_tokens == 0 and found.batch == 3 and all(r.decode == 0 for r in found.rows)


def test_work_of_a_file_counts_what_its_products_read(folders: tuple[mg.Model, Path, Path], tmp_path: Path) -> None:
    model, built, exported = folders
    weights = work(model.graph(), "logits", 1, 0)[1]
    for path in (built / "model.onnx", exported / "model.onnx"):
        nodes, flops, moved = work_of(path)
        assert nodes > 10 and flops == moved // 2 and 0 <= weights - moved < 0.05 * weights  # All but norms.
    mg.build(model, tmp_path / "q", quantize="int8-dynamic").close()
    _, flops, moved = work_of(tmp_path / "q" / "model.onnx")
    assert flops == work_of(built / "model.onnx")[1] and moved < weights / 2


def speed(prefill: list[float], decode: list[float]) -> Speed:
    limits = Ceilings(1e9, 1e10, 1)
    times = [Times(p, d, 10, limits) for p, d in zip(prefill, decode, strict=True)]
    subject = Subject("x", lambda profile: None, 5)  # pyright: ignore[reportArgumentType]
    return _speed(subject, times, (), (10**8, 10**6), _Load(np.zeros((2, 50), np.int64), 4))


def test_medians_spreads_and_shares() -> None:
    found = speed([0.1, 0.2, 0.3], [0.04, 0.04, 0.08])
    assert found.prefill == 100 / 0.2 and found.prefill_spread == pytest.approx(0.5)
    assert found.decode == 2 / 0.01 and found.decode_spread == pytest.approx(0.5)
    assert found.prefill_share == pytest.approx(1e8 / 0.2 / 1e10) and found.decode_share == pytest.approx(0.1)
    assert speed([1e-3], [1e-6]).prefill_share == 1 == speed([1e-3], [1e-6]).decode_share  # A limit that was beaten.


def test_noise_that_exceeds_a_difference_is_said() -> None:
    steady, other, wild = (
        speed([0.2] * 3, [0.04] * 3),
        speed([0.1] * 3, [0.02] * 3),
        speed([0.1, 0.19, 0.3], [0.04] * 3),
    )
    assert _noise([steady, other], decodes=True) == []
    (said,) = _noise([steady, wild], decodes=False)
    assert said == "prefill: x and x differ by 5%, less than the noise of 53%: give more rounds"


def test_kernels_are_grouped_by_layer() -> None:
    def event(name: str, op: str, dur: int) -> dict[str, object]:
        return {"name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": op}}

    events = [event("model.layers.0.mlp/MatMul", "MatMul", 3000), event("model.layers.11.mlp/MatMul", "MatMul", 5000),
              event("/model/layers.3/attn/q_proj/MatMul", "MatMul", 1000), event("Add", "Add", 1000)]  # fmt: skip
    first, second, third = layers_of(events)
    assert (first.scope, first.count, first.milliseconds, first.share) == ("model.layers.N.mlp", 2, 8.0, 0.8)
    assert {second.scope, third.scope} == {"/model/layers.N/attn/q_proj", ""}


def test_a_profile_names_layers_of_the_model(folders: tuple[mg.Model, Path, Path]) -> None:
    found = mg.bench(folders[1], prompt=20, new_tokens=2, rounds=1, threads=1, profile=True).rows[0].layers
    scopes = {layer.scope for layer in found}
    assert "model.layers.N.mlp.gate_proj" in scopes and sum(x.share for x in found) == pytest.approx(1)
    assert any(x.op.endswith("Attention") for x in found)


def test_plot_and_page(tmp_path: Path, folders: tuple[mg.Model, Path, Path]) -> None:
    plot, html = tmp_path / "p.png", tmp_path / "p.html"
    given = ("--prompt", 5, "--new", 2, "--rounds", 2, "--threads", 1)
    told = call("bench", folders[1], "--against", folders[2], *given, "--plot", plot, "--html", html, "--json")
    found = json.loads(told.stdout)
    assert [r["variant"] for r in found["rows"]] == ["built", "exported"] and found["rows"][0]["layers"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = html.read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)  # Nothing from elsewhere.
    picture = re.search(r"data:image/png;base64,([^\"]+)", text)
    assert picture is not None and base64.b64decode(picture[1]).startswith(b"\x89PNG")
    assert "where the time goes" in text and "exported" in text


def test_names_in_a_page_are_text() -> None:
    row = replace(speed([0.1], [0.1]), variant="<script>x</script>", intensity=(0.0, 0.0))
    found = Benchmark([row], Ceilings(1e9, 1e10, 1), 5, 0, 1, 0, 0)
    text = page(found, "<b>")
    assert "<script>" not in text and "&lt;script&gt;" in text and "<b>" not in text
    assert png(found).startswith(b"\x89PNG")
