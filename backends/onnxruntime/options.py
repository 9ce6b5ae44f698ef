"""Open ONNX Runtime sessions: threads, optimizers, and whether the provider that was asked for is really there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import numpy as np

from ...ir.errors import RuntimeInputError, WeightsError
from ...ir.types import f32
from ..ort import MOST_THREADS
from ..target import PROVIDERS
from . import device_graphs
from .capture import Captures
from .contract import Contract
from .huge_pages import huge_pages
from .runtime import CAPTURE, RUNTIME_ERRORS, Loaded, available_providers, missing_libraries

FLASH_OFF = "ORT_GQA_DISABLE_FLASH_ATTENTION"
"""Read when a kernel is made. Without it prompts are computed in tiles, which on small CPUs is up to twice as slow in
f32; with it scores take S*T numbers a head at once. So it is off by default, and `tune` measures."""


LIBRARIES = 'pip install "onnxruntime-gpu[cuda,cudnn]" brings the libraries, the system has the driver'


def physical_cores() -> int:
    """Cores this process may use; two hardware threads of one core count once where the system tells them apart."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set[object]()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(cpu)
    return max(1, len(cores))


def check_threads(threads: int | None) -> None:
    """Raises RuntimeInputError for a number of threads that no session can have; None is left to the session."""
    given: object = threads  # callers without types give anything
    if given is not None and (type(given) is not int or not 1 <= given <= MOST_THREADS):
        raise RuntimeInputError(f"threads is {given!r}, expected a whole number from 1 to {MOST_THREADS}")


def load(
    path: Path,
    contract: Contract,
    threads: int | None = None,
    *,
    flash: bool | None = None,
    packed: bool = True,
    captures: Captures | None = None,
    profile: str = "",
) -> Loaded:
    """A session for one file of a built folder.

    threads: for the work inside an op (None: as the build chose, else one a physical core). flash: tiled attention for
    prompts (None: as the build chose). packed: keep copies of the weights in the order that kernels read them, if the
    build chose it; without, they are read where the file is mapped. captures: of the steps that the graph makes; where
    the runtime refuses to capture it, that is noted there. profile: see `Loaded`.
    Raises RuntimeInputError if the provider cannot be used, WeightsError for a damaged file.
    """
    check_threads(threads)
    provider = PROVIDERS.get(contract.provider)
    if provider is None or provider not in available_providers():
        available = ", ".join(available_providers())
        what = f"the model was built for {contract.provider}, which this ONNX Runtime does not have"
        raise RuntimeInputError(what, place=str(path), details=[f"available: {available}"])
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise RuntimeInputError("ONNX Runtime opens files with names in UTF-8 only", place=str(path)) from None
    chosen = contract.choices
    said = {"session.disable_prepacking": not (packed and chosen.prepacked),
            "session.intra_op.allow_spinning": chosen.spinning}  # fmt: skip
    settings = {k: str(int(v)) for k, v in said.items()}
    tiled = chosen.flash if flash is None else flash

    def opened(provided: Mapping[str, str]) -> Loaded:
        with huge_pages(chosen.huge_pages and contract.provider == "cpu"):
            return Loaded(
                path,
                provider,
                threads=threads or chosen.threads or physical_cores(),
                settings=settings,
                disabled_optimizers=contract.disabled_optimizers,
                provided=provided,
                profile=profile,
            )

    _check_libraries(contract.provider, str(path))
    provided = _provided(contract)
    with _environment(FLASH_OFF, None if tiled else "1"):
        try:
            loaded = None
            if captures is not None and not captures.reasons and contract.provider == "cuda":
                loaded = _capturing(opened, provided, captures)
            loaded = loaded or opened(provided)
        except RUNTIME_ERRORS as e:
            hint = "there is not enough memory for it" if "bad_alloc" in str(e) else ""
            raise WeightsError(f"ONNX Runtime cannot open it: {e}", place=str(path), hint=hint) from e
    if loaded.providers[0] != provider:  # As in `check_device`.
        raise _no_session(contract.provider, str(path), f"it would run on {', '.join(loaded.providers)}")
    return loaded


def check_device(provider: str, place: str = "") -> None:
    """Open a session over a graph of one node on `cpu` or `cuda`. Raises RuntimeInputError where none opens there."""
    name = PROVIDERS[provider]
    if name not in available_providers():
        raise _no_session(provider, place, f"this ONNX Runtime has {', '.join(available_providers())} only")
    _check_libraries(provider, place)
    # A provider that fails to start is left out in silence, and everything runs on the CPU.
    found = Loaded(device_graphs.copy(np.dtype(np.float32)), name).providers
    if found[0] != name:
        raise _no_session(provider, place, f"it would run on {', '.join(found)}, so there is no device or no driver")


def _check_libraries(provider: str, place: str) -> None:
    """Raises RuntimeInputError where a library that the provider is made of is not there."""
    if provider == "cuda" and (lost := missing_libraries()):
        raise _no_session(provider, place, f"{', '.join(lost)} cannot be loaded")


def _no_session(provider: str, place: str, why: str) -> RuntimeInputError:
    hint = f"{LIBRARIES}; `monograph doctor` says what is missing"
    what = f"no session opens on {provider}: {why}"
    return RuntimeInputError(what, place=place, hint=hint if provider == "cuda" else "")


def _provided(contract: Contract) -> dict[str, str]:
    """Options of the provider: in f32 products are not rounded to TF32, whose numbers have 10 bits."""
    return {"use_tf32": "0"} if contract.provider == "cuda" and contract.dtype == str(f32) else {}


def _capturing(
    opened: Callable[[Mapping[str, str]], Loaded], provided: Mapping[str, str], captures: Captures
) -> Loaded | None:
    """A session whose runs can be captured; None, and why, where the runtime refuses the graph."""
    try:
        return opened({**provided, CAPTURE: "1"})
    except RUNTIME_ERRORS as e:
        captures.reasons.append(f"ONNX Runtime does not capture it: {e}")
        return None


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Generator[None]:
    """Set a variable for the time of the block; None leaves it as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
