"""The public face: README's example runs as it stands, names are there, and torch is imported only when used."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import readme  # noqa: E402


def test_graphs_need_no_heavy_library() -> None:
    """In a process of its own: what other tests imported must not matter."""
    code = (
        "import sys, monograph as mg\n"
        "from monograph.commands.show import show\n"
        "from monograph.frontends.dsl import load_family\n"
        "from monograph.passes.pipelines import decode\n"
        "decode(load_family('llama')(vocab=64, dim=32, ffn=48, layers=1, heads=4).graph())\n"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_every_public_name_is_there() -> None:
    import monograph as mg

    assert set(mg.__all__) <= set(dir(mg))
    for name in mg.__all__:
        assert getattr(mg, name).__doc__ or name == "ops", name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mg.nothing  # noqa: B018


def test_the_example_is_short() -> None:
    """The README says a model is twenty lines: from its imports to the last line of its function."""
    page = (ROOT / "README.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    model = code.partition("corpus =")[0]
    assert len([line for line in model.splitlines() if line.strip()]) <= 20
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_changes_of_the_example_must_fit() -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        readme.example({"steps=3000": "steps=1"})


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "".join(f"The for statement {i} is used to iterate over the elements.\n\n" for i in range(300))
    names = readme.run({"steps=1000, batch=8": "steps=2, batch=2, length=16", "mg.python_topics()": repr(text)})
    assert names["parity"].passed
    assert {r.backend for r in names["parity"].rows} == {"torch", "ort", "ort session", "ort chunks"}
    assert len(names["sample"].ids) == 40
    assert (tmp_path / "out" / "gpt" / "model.onnx").exists()
    place = next(n.location for n in names["model"].graph() if n.op.name == "attention")
    line = (ROOT / "README.md").read_text().splitlines()[place.line - 1]
    assert place.file.endswith("README.md")
    assert "ops.attention(q, k, v" in line


TINY = {
    "llama": {"vocab": 60, "dim": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2, "max_positions": 32},
    "gpt2": {"vocab": 60, "dim": 32, "layers": 2, "heads": 4, "max_positions": 32},
    "bert": {"vocab": 60, "dim": 32, "layers": 2, "heads": 4, "ffn": 48, "max_positions": 32},
    "transformer2017": {"vocab": 60, "dim": 32, "heads": 4, "ffn": 48, "layers": 2, "decoder_layers": 2},
    "lstm_lm": {"vocab": 60, "dim": 32},
    "lstm_seq2seq": {"vocab": 60, "dim": 32},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_the_parity_table_of_every_kind_of_model(family: str) -> None:
    """Decoders, encoders, encoder-decoders and recurrent models, in all lowerings: equal, and seen to differ."""
    from monograph import export, verify
    from monograph.frontends.dsl import load_family
    from monograph.ir.weights import Weights

    model = load_family(family)(**TINY[family])
    model.weights = Weights.initialize(model.graph(), seed=1)
    parity = verify(model)
    generates = model.task.generates
    decoding = {"ort session", "ort chunks"} if generates else set[str]()
    assert {r.backend for r in parity.rows} == {"torch", "onnx", "ort"} | decoding
    assert any("decode" in r.case for r in parity.rows) == generates
    assert parity.passed
    assert all(r.difference < 1e-5 and r.scale > 0.01 for r in parity.rows)
    with tempfile.TemporaryDirectory() as folder:
        export(model, folder)
        model.weights = Weights.initialize(model.graph(), seed=2)
        assert not any(r.passed for r in verify(model, folder, torch=False, tolerance=1e-3).rows)


@pytest.mark.slow
def test_build_without_a_folder_leaves_nothing_behind() -> None:
    from monograph import build
    from monograph.frontends.dsl import load_family
    from monograph.ir.weights import Weights

    model = load_family("llama")(vocab=64, dim=32, ffn=48, layers=1, heads=4)
    model.weights = Weights.initialize(model.graph())
    engine = build(model)
    folder = engine.folder
    assert (folder / "monograph.json").exists()
    assert len(engine.generate([1, 2, 3], max_new_tokens=2).ids) == 2
    del engine
    assert not folder.exists()


@pytest.mark.slow
def test_export_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import monograph as mg
    from monograph.backends.onnx import exporting
    from monograph.frontends.dsl import load_family
    from monograph.ir.weights import Weights

    model = load_family("llama")(vocab=64, dim=32, ffn=48, layers=1, heads=4)
    with pytest.raises(mg.MonographError, match="has no weights"):
        mg.export(model, tmp_path / "out")
    model.weights = Weights.initialize(model.graph())

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(exporting, "write_companions", fail)
        mg.export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(mg.MonographError, match="no export target is called 'onx', did you mean 'onnx'"):
        mg.export(model, tmp_path / "out", target="onx")
    (tmp_path / "file").write_text("")
    with pytest.raises(mg.MonographError, match="is a file, not a folder"):
        mg.export(model, tmp_path / "file")
    assert (mg.export(model, tmp_path / "out") / "model.onnx").exists()


@pytest.mark.slow
def test_a_folder_holds_one_build_and_nothing_else(tmp_path: Path) -> None:
    """Neither a mixture of an old build and a new one, nor files of somebody else that are deleted."""
    import monograph as mg
    from monograph.frontends.dsl import load_family
    from monograph.ir.weights import Weights

    def made(family: str) -> mg.Model:
        model = load_family(family)(**TINY[family])
        model.weights = Weights.initialize(model.graph(), seed=1)
        return model

    decoder, encoder, out = made("llama"), made("bert"), tmp_path / "out"
    for write in (mg.build, mg.export, mg.build):
        for model in (decoder, encoder):
            write(model, out)
            write(model, tmp_path / write.__name__ / model.name)
            alone = {p.name for p in (tmp_path / write.__name__ / model.name).iterdir()}
            assert {p.name for p in out.iterdir()} == alone
    (out / "notes.txt").write_text("mine")
    for write in (mg.build, mg.export):
        with pytest.raises(mg.MonographError, match=r"out: holds notes\.txt, which no build wrote"):
            write(decoder, out)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(mg.MonographError, match="holds build and 2 more, which no build wrote"):
        mg.export(decoder, tmp_path)


@pytest.mark.slow
def test_an_engine_owns_its_temporary_folder() -> None:
    import monograph as mg
    from monograph.frontends.dsl import load_family
    from monograph.ir.weights import Weights

    model = load_family("llama")(**TINY["llama"])
    model.weights = Weights.initialize(model.graph(), seed=1)
    with mg.build(model) as engine:
        assert engine.folder.exists()
        assert engine.report is not None
        assert engine.report.bound > 300_000_000
        assert engine.run({"input_ids": [[1, 2]]})["logits"].shape == (1, 2, 60)
    assert not engine.folder.exists()
    engine.close()
    with pytest.raises(mg.MonographError, match="the engine is closed"):
        engine.run({"input_ids": [[1, 2]]})
