"""What a graph remembers between calls: slots, and the stream of tokens they follow. The names of state."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .types import TensorType


class Growth(enum.Enum):
    """How what is remembered changes when new tokens are read."""

    append = "append"
    """Grows by what is new: keys and values of attention."""
    window = "window"
    """The same, where only the newest n tokens count."""
    replace = "replace"
    """Becomes another value of the same shape: recurrent states, the tail of a convolution."""
    once = "once"
    """Computed on the first call, by the encoder, and never changed."""


@dataclass(frozen=True)
class Slot:
    """One thing that a model remembers between calls, such as the keys of one layer.

    input, output: the graph input that takes it and the graph output that gives its next value ("" for `once`). type:
    of the input. axis: the axis that grows, whose size is a symbol of its own (None: none grows). window: for growth
    `window`, how many tokens count, the current one included. first: the output of the encoder graph that is its
    first value ("": it begins empty if an axis grows, else as zeros).
    """

    input: str
    output: str
    growth: Growth
    type: TensorType
    axis: int | None = None
    window: int = 0
    first: str = ""

    def __str__(self) -> str:
        said = {"axis": self.axis, "window": self.window or None, "first": self.first or None}
        options = ", ".join(f"{k}={v}" for k, v in said.items() if v is not None)
        return f"slot {self.input} -> {self.output or '_'}: {self.growth.value}({options})"


@dataclass(frozen=True)
class Stream:
    """Tokens that are read one after another, and the inputs that run along them.

    length: the symbol for the number of tokens in one call. ids [B,S]: the tokens. mask [B,T]: over all tokens so far,
    1 for each that counts. positions [B,S]: the position of each token.
    """

    length: str = "S"
    ids: str = "input_ids"
    mask: str = "attention_mask"
    positions: str = "position_ids"

    @property
    def names(self) -> tuple[str, str, str]:
        """The inputs: ids, mask, positions."""
        return self.ids, self.mask, self.positions

    def __str__(self) -> str:
        return f"stream {self.length} {' '.join(self.names)}"


TOKENS = Stream()
"""The only tokens of a decoder or an encoder, or those that an encoder-decoder's encoder reads."""
TARGETS = Stream("U", "decoder_input_ids", "decoder_attention_mask", "decoder_position_ids")
"""The tokens that the decoder of an encoder-decoder reads and makes."""

PAST = "P"
"""Symbol for the number of tokens that an `append` slot holds."""


SOURCES, FOLD = "G", "F"
"""Symbols, where rows that follow one source are side by side: for sources, and for rows of each."""


def past_of(window: int | None) -> str:
    """Symbol for the number of tokens that a slot holds, by the window of what reads it (None: all of them)."""
    return PAST if window is None else f"{PAST}{window}"


def key_value(index: int, part: str) -> tuple[str, str]:
    """(input, output) for `part` (key, value, ...) of the attention number `index`."""
    return f"past_key_values.{index}.{part}", f"present.{index}.{part}"


def remembered(index: int) -> tuple[str, str]:
    """(input, output) for what is remembered outside attention, number `index`."""
    return f"past_value.{index}", f"present_value.{index}"


def state(index: int, part: str) -> tuple[str, str, str]:
    """(input, output, first) for `part` (h, c, ...) of the stateful layer number `index`."""
    return f"past_state.{index}.{part}", f"present_state.{index}.{part}", f"initial_state.{index}.{part}"


def encoded(index: int, part: str = "") -> str:
    """Name under which a result of the encoder travels to the decoder."""
    return f"encoder.{index}.{part}" if part else f"encoder.{index}"


_NEXT = {
    "present.": "past_key_values.",
    "present_value.": "past_value.",
    "present_state.": "past_state.",
    "initial_state.": "past_state.",
}


def next_input(output: str) -> str | None:
    """The input that brings an output to the next call, or an encoder's to the first one; None: it is no state."""
    begin = next((k for k in _NEXT if output.startswith(k)), None)
    return None if begin is None else _NEXT[begin] + output.removeprefix(begin)
