"""What a newcomer meets: pages and pictures of benchmarks that can be read, and errors that say what to do instead."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import monograph as mg
import pytest
from command_line import call
from monograph.commands import doctor
from monograph.inference.server.run import service_of
from monograph.machine import Ceilings
from monograph.performance import Benchmark, Speed
from monograph.performance_pages import check_drawing, limits, page, png, rows
from PIL import Image
from small_models import small

LIMITS = Ceilings(30e9, 200e9, 2)
DECODER = Speed("built", 300, 400.0, 0.7, 23.0, 0.4, 0.05, 0.1, 10**8, (25.0, 0.4))
ENCODER = Speed("minilm", 130, 7000.0, 0.9, 0.0, 0.0, 0.05, 0.0, 10**7, (60.0, 1.0))


def benchmark(row: Speed, names: list[str], *, new: int = 8, unit: str = "tokens", batch: int = 1) -> Benchmark:
    return Benchmark([replace(row, variant=n) for n in names], LIMITS, 64, new, 2, 1, 1, unit, batch)


def test_a_page_has_the_columns_of_the_terminal_and_no_empty_ones() -> None:
    for found in (benchmark(DECODER, ["a", "b"]), benchmark(ENCODER, ["a", "b"], new=0)):
        said = page(found, "x")
        assert all(f"<th>{name}</th>" in said for name in rows(found)[0])
        assert "<td></td>" not in said
    assert "decode (" not in page(benchmark(ENCODER, ["a"], new=0), "x")


def test_a_page_says_what_was_measured_and_is_read_in_the_dark() -> None:
    said = page(benchmark(DECODER, ["a"]), "x")
    assert "64 prompt tokens, 8 new ones, 2 threads, median of 2 rounds" in said and "30.0 GB/s" in said
    assert "color-scheme" in said and "name=viewport" in said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (benchmark(ENCODER, ["a"], new=0), "64 tokens, "),
        (benchmark(ENCODER, ["a"], new=0, batch=3), "64 tokens in each of 3 rows, "),
        (benchmark(ENCODER, ["a"], new=0, unit="calls"), "calls of 1 row, "),
        (benchmark(ENCODER, ["a"], new=0, unit="calls", batch=4), "calls of 4 rows, "),
        (benchmark(DECODER, ["a"], batch=8), "64 prompt tokens, 8 new ones in each of 8 rows, "),
    ],
)
def test_loads_are_told_in_words(found: Benchmark, said: str) -> None:
    assert limits(found).startswith(said)


@pytest.mark.parametrize("count", [1, 2, 6, 14])
def test_a_picture_grows_with_its_rows_and_takes_any_name(count: int) -> None:
    names = ["a $ and b$", "x" * 90, "long words " * 20, "under_score", *(f"variant {i}" for i in range(count))]
    tall = Image.open(io.BytesIO(png(benchmark(DECODER, names))))
    low = Image.open(io.BytesIO(png(benchmark(DECODER, names[:1]))))
    assert tall.width == low.width and tall.height >= low.height
    assert Image.open(io.BytesIO(png(benchmark(ENCODER, names, new=0)))).width < tall.width


def test_a_subject_without_known_work_has_no_roofline() -> None:
    unknown = replace(ENCODER, prefill_share=0.0, intensity=(0.0, 0.0))
    assert Image.open(io.BytesIO(png(benchmark(unknown, ["a"], new=0)))).format == "PNG"


def test_what_cannot_be_measured_is_told_with_what_can(tmp_path: Path) -> None:
    mg.build(mg.init(small("llama")), tmp_path / "built").close()
    cases = (("eager", "eager runs a model in PyTorch"), ("nowhere", "no such file"), (tmp_path, "build it first"))
    for other, hint in cases:
        with pytest.raises(mg.MonographError, match=hint):
            mg.bench(tmp_path / "built", against=[other])
    with pytest.raises(mg.MonographError, match="is a folder, expected the name of a file"):
        check_drawing(tmp_path)


def test_a_folder_that_no_build_wrote_says_how_to_make_one(tmp_path: Path) -> None:
    for opened in (lambda: mg.quality(tmp_path, "a text"), lambda: service_of(tmp_path)):
        with pytest.raises(mg.MonographError, match="hint: monograph build MODEL FOLDER writes one"):
            opened()


def test_doctor_tells_of_two_runtimes_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def versions() -> dict[str, str | None]:
        return dict.fromkeys(doctor.PACKAGES, "1.0")

    monkeypatch.setattr(doctor, "providers", lambda: [{"provider": "x", "works": True, "got": "x", "reason": ""}])
    monkeypatch.setattr(doctor, "versions", versions)
    assert "both builds of ONNX Runtime are installed" in " ".join(call("doctor").output.split())
