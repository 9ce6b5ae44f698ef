"""What is asked of a quantization: the form of the weights, who rounds them, and the budgets that it must keep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ...ir.errors import ConfigError, did_you_mean

FORMS = ("int4", "int8", "int2", "int8-dynamic")
"""`intN`: weights by blocks. `int8-dynamic`: 8 bits a row, multiplied by activations that are rounded as they come."""

METHODS = ("rtn", "kquant", "hqq", "gptq", "awq", "smoothquant")
CALIBRATED = ("gptq", "awq", "smoothquant")
"""Methods that look at activations, and so need text."""

BLOCKS = (16, 32, 64, 128, 256)
CACHES = ("", "int8")
TABLES = ("", "int8", "int4", "wide")
PROMPTS = ("", "same", "float", "int8")
"""How prompts are multiplied by weights in blocks: see `Choices.prompts` of the ONNX Runtime backend."""

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Quantization:
    """Weights in fewer bits.

    weights: one of FORMS ("": none, where only the cache is asked for). method: one of METHODS (None: `default_method`
    of the form). block: codes that share a scale (None: what is fastest on the target). symmetric: no zero points
    (None: what is fastest, then best, on the target). calibrate: text for methods that look at activations, or a file
    with it. quality: most that perplexity may rise, 0.005 for half a percent; chooses encodings and methods. size: most
    bytes of the data, chosen likewise. cache: "int8" for keys and values in 8 bits. prompts: one of PROMPTS ("": what
    the target does): "int8" reads prompts twice as fast by rows of 8 bits beside the blocks, less exactly. tables: one
    of TABLES, for embeddings and the head ("": 8 bits, as nothing evens out their errors). again: also round weights
    that are stored in blocks already. Raises ConfigError naming the field, its value, and what it may be.
    """

    weights: str = "int4"
    method: str | None = None
    block: int | None = None
    symmetric: bool | None = None
    calibrate: str | Path | tuple[str, ...] | None = None
    quality: float | None = None
    size: int | None = None
    cache: str = ""
    prompts: str = ""
    tables: str = ""
    again: bool = False

    def __post_init__(self) -> None:
        problems = [*self._names(), *self._numbers(), *self._combinations()]
        if problems:
            hint = "weights int4 rounds those, too" if not self.weights and self._budgeted else ""
            raise ConfigError("is not a quantization that can be built", place="quantize", details=problems, hint=hint)

    @staticmethod
    def of(given: str | Quantization | Mapping[str, Any] | None) -> Quantization | None:
        """`int4`, the fields of a Quantization, one as it is, or None. Raises ConfigError."""
        if given is None or isinstance(given, Quantization):
            return given
        if isinstance(given, str):
            return Quantization(given)
        unknown = [k for k in given if k not in Quantization.__dataclass_fields__]
        if unknown:
            meant = did_you_mean(unknown[0], Quantization.__dataclass_fields__)
            raise ConfigError(f"a quantization has no field {unknown[0]!r}{meant}", place="quantize")
        return Quantization(**given)

    @property
    def dynamic(self) -> bool:
        """Whether activations are rounded to 8 bits as they come."""
        return self.weights == "int8-dynamic"

    @property
    def bits(self) -> int:
        """Bits of the codes of weights."""
        return int(self.weights[3])

    @property
    def chosen_method(self) -> str:
        """The method asked for, or that of the form: nearest codes for 8 bits, weighted least squares for fewer."""
        return self.method or ("rtn" if self.bits == 8 else "kquant")

    def filled(self, block: int, symmetric: bool) -> Quantization:
        """With block and symmetry of a target where none were asked for."""
        if self.dynamic:
            return replace(self, method=self.chosen_method, symmetric=True)
        # Zero points save nothing worth a byte a block where there are 256 codes.
        given = (symmetric or self.bits == 8) if self.symmetric is None else self.symmetric
        return replace(self, method=self.chosen_method, block=self.block or block, symmetric=given)

    @property
    def _budgeted(self) -> bool:
        return self.quality is not None or self.size is not None

    def _names(self) -> list[str]:
        found: list[str] = []
        named = {"weights": (*FORMS, ""), "method": METHODS, "cache": CACHES, "prompts": PROMPTS, "tables": TABLES}
        for field, known in named.items():
            value = getattr(self, field)
            if value is not None and value not in known:
                shown = ", ".join(filter(None, known))
                found.append(f"{field} is {value!r}, expected one of {shown}{did_you_mean(str(value), known)}")
        return found

    def _numbers(self) -> list[str]:
        found: list[str] = []
        block, quality, size = cast("tuple[Any, Any, Any]", (self.block, self.quality, self.size))
        if block is not None and (isinstance(block, bool) or block not in BLOCKS):
            found.append(f"block is {block!r}, expected one of {', '.join(map(str, BLOCKS))}")
        if quality is not None and (not isinstance(quality, (int, float)) or not 0 < quality < 1):
            found.append(f"quality is {quality!r}, expected a share such as 0.005, for half a percent")
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            found.append(f"size is {size!r}, expected a number of bytes")
        return found

    def _combinations(self) -> list[str]:
        found: list[str] = []
        if self.weights == "int8-dynamic" and self.block is not None:
            found.append(f"block is {self.block}, but int8-dynamic has one scale a row")
        if self.weights == "int8-dynamic" and self.symmetric is False:
            found.append("symmetric is False, but int8-dynamic has no zero points of weights")
        if self.method == "smoothquant" and self.weights != "int8-dynamic":
            found.append(f"method is 'smoothquant', which prepares for int8-dynamic, but weights is {self.weights!r}")
        if self.method in CALIBRATED and self.calibrate is None:
            found.append(f"method is {self.method!r}, which needs text: calibrate is None (--calibrate FILE)")
        if self.quality is not None and self.calibrate is None:
            found.append(f"quality is {self.quality}, a share, which needs text: calibrate is None (--calibrate FILE)")
        if not self.weights and not self.cache and not self.prompts:
            found.append("weights, cache and prompts are empty, so there is nothing to round")
        return [*found, *self._idle()]

    def _idle(self) -> list[str]:
        """Fields that are given, but change nothing beside the others."""
        found: list[str] = []
        if self.weights == "int8-dynamic" and self.prompts:
            found.append(f"prompts is {self.prompts!r}, but int8-dynamic reads prompts as it makes steps")
        if not self.weights:
            own = ("method", "block", "symmetric", "size", "tables", "again")
            given = [f"{k} is {getattr(self, k)!r}" for k in own if getattr(self, k) not in (None, "", False)]
            if self.symmetric is False:
                given.append("symmetric is False")
            found += [f"{said}, but weights is empty, so none is rounded" for said in given]
            if not self.cache and self.calibrate is not None:
                found.append("calibrate is given, but weights and cache are empty, so nothing reads it")
            if not self.cache and self.quality is not None:
                found.append(f"quality is {self.quality}, but weights and cache are empty, so nothing keeps it")
        return found


def parse_quality(text: str) -> float:
    """`0.5%` or `0.005` as a share. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(%?)", text.strip())
    if not found:
        raise ConfigError(f"quality is {text!r}, expected a share such as 0.5% or 0.005", place="quantize")
    return float(found[1]) / (100 if found[2] else 1)


def parse_size(text: str) -> int:
    """`100MB` as bytes; units are powers of 1000. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kMG]?B)?", text.strip())
    if not found:
        raise ConfigError(f"size is {text!r}, expected bytes such as 100MB", place="quantize")
    return int(float(found[1]) * _UNITS[found[2] or "B"])
