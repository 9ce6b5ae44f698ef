"""Two graphs over the same weights that take and give the same: one for steps, one for many tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .runtime import UNCAPTURED, Array, Binding, Loaded, OrtValue, Place

PROMPT_TOKENS = 16
"""Tokens of a row from which on the graph for prompts reads them. Fewer are steps that guess ahead, or the end of a
piece; those must be multiplied as steps are."""


class Paired(Loaded):
    """A session for steps that leaves prompts to another one, which is opened when the first of them comes.

    ids: the input whose length says which is meant.
    """

    def __init__(self, steps: Loaded, prompts: Callable[[], Loaded], ids: str) -> None:
        self.steps, self.prompts, self.ids = steps, prompts, ids
        self.file, self.captures = steps.file, steps.captures
        self.inputs, self.outputs, self.dtypes = steps.inputs, steps.outputs, steps.dtypes

    @property
    def providers(self) -> list[str]:
        return self.steps.providers

    def profiled(self) -> Path | None:
        return self.steps.profiled()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._for(feeds[self.ids].shape).run(feeds)

    def run_values(self, feeds: Mapping[str, OrtValue]) -> dict[str, OrtValue]:
        return self._for(feeds[self.ids].shape()).run_values(feeds)

    def bind(
        self,
        inputs: Mapping[str, OrtValue | Place],
        outputs: Mapping[str, OrtValue | Place | str],
        graph: int = UNCAPTURED,
    ) -> Binding:
        ids = inputs[self.ids]
        shape = ids.shape if isinstance(ids, Place) else ids.shape()
        return self._for(shape).bind(inputs, outputs, graph)

    def release(self, graph: int) -> None:
        self.steps.release(graph)

    def _for(self, shape: tuple[int, ...]) -> Loaded:
        return self.steps if shape[1] < PROMPT_TOKENS else self.prompts()
