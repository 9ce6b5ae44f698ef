"""Options of `monograph build` for weights in fewer bits, and what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..ir.errors import ConfigError
from ..passes.quantize.settings import CACHES, FORMS, METHODS, PROMPTS, TABLES, Quantization, parse_quality, parse_size

_PANEL = "Weights in fewer bits"


def _forms(incomplete: str) -> list[str]:
    return [name for name in FORMS if name.startswith(incomplete)]


def _methods(incomplete: str) -> list[str]:
    return [name for name in METHODS if name.startswith(incomplete)]


WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help=f"one of {', '.join(FORMS)}", autocompletion=_forms, rich_help_panel=_PANEL),
]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", help=f"who rounds: {', '.join(METHODS)}", autocompletion=_methods, rich_help_panel=_PANEL),
]
BlockOption = Annotated[
    int | None, typer.Option("--block", help="codes that share a scale: 16, 32, 64, 128, 256", rich_help_panel=_PANEL)
]
SymmetricOption = Annotated[
    bool | None,
    typer.Option("--symmetric/--asymmetric", help="without or with zero points", rich_help_panel=_PANEL),
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option("--calibrate", help="text file for methods that look at activations", rich_help_panel=_PANEL),
]
QualityOption = Annotated[
    str | None,
    typer.Option("--quality", help="most that perplexity may rise, such as 0.5%", rich_help_panel=_PANEL),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="most bytes of weights, such as 100MB", rich_help_panel=_PANEL)
]
CacheOption = Annotated[
    str | None,
    typer.Option("--cache", help=f"keys and values in {' or '.join(filter(None, CACHES))}", rich_help_panel=_PANEL),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        help=f"how weights in blocks multiply prompts: {', '.join(filter(None, PROMPTS))}; int8 is fastest, less exact",
        rich_help_panel=_PANEL,
    ),
]
TablesOption = Annotated[
    str | None,
    typer.Option(
        "--tables", help=f"embeddings and head: {', '.join(TABLES[1:])}; by default int8", rich_help_panel=_PANEL
    ),
]
AgainOption = Annotated[
    bool,
    typer.Option("--again", help="also round weights that are stored in blocks already", rich_help_panel=_PANEL),
]


def quantization(
    weights: str | None,
    method: str | None,
    block: int | None,
    symmetric: bool | None,
    calibrate: Path | None,
    quality: str | None,
    size: str | None,
    cache: str | None,
    prompts: str | None,
    tables: str | None,
    again: bool,
) -> Quantization | None:
    """What the options ask for; None if none of them was given. Raises ConfigError."""
    budgets = quality is not None or size is not None
    rest = [method, block, symmetric, calibrate, tables]
    if weights is None and not budgets and cache is None and prompts is None:
        if again or any(v is not None for v in rest):
            raise ConfigError("options of a quantization were given, but not which", hint="add --weights int4")
        return None
    # A budget alone chooses from int4 on; beside something else that was asked for, it bounds that and only that.
    form = weights if weights is not None else "int4" if cache is None and prompts is None else ""
    return Quantization(
        form,
        method,
        block,
        symmetric,
        calibrate,
        None if quality is None else parse_quality(quality),
        None if size is None else parse_size(size),
        cache or "",
        prompts or "",
        tables or "",
        again,
    )


def adapters_of(given: Sequence[str] | None) -> dict[str, Path]:
    """Folders by name from `NAME=DIR`. Raises ConfigError."""
    found: dict[str, Path] = {}
    for text in given or ():
        name, sign, folder = text.partition("=")
        if not (name and sign and folder):
            raise ConfigError(f"--adapter is {text!r}, expected NAME=DIR")
        if name in found:
            raise ConfigError(f"--adapter names {name!r} twice")
        found[name] = Path(folder)
    return found
