"""What other clients of ONNX folders can open: their classes, the state they can hold, the names they look for.

Facts of optimum-onnx 0.1.0 and of Optimum 1.27, of onnxruntime-genai 0.18 and of transformers.js 4.3, read from their
sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...frontends.dsl import Model
from ...ir.errors import LoweringError, did_you_mean
from ...ir.graph import Graph
from ...ir.slots import Growth, Slot

CAUSAL, SEQ2SEQ, SPEECH = "causal-lm", "seq2seq-lm", "speech-to-text"
ENCODER, DECODER, CROSS, MERGED = "encoder_model", "decoder_model", "cross_model", "decoder_model_merged"

_CAUSAL_OPTIMUM = frozenset(
    "arcee bloom codegen cohere deepseek_v3 falcon gemma gemma3_text glm gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss "
    "gptj granite helium internlm2 llama mistral mpt nemotron olmo olmo2 opt phi phi3 qwen2 qwen3 qwen3_moe smollm3 "
    "stablelm".split()
)
_CAUSAL_WEB = frozenset(
    "afmoe apertus arcee bloom codegen cohere cohere2 ernie4_5 exaone falcon gemma gemma2 gemma3_text glm gpt2 gpt_neo "
    "gpt_neox gpt_oss gptj granite helium hunyuan_v1_dense jais llama ministral mistral mobilellm mpt nanochat olmo "
    "olmo2 olmo3 opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe smollm3 solar_open stablelm starcoder2 vaultgemma".split()
)
GENAI_TYPES = frozenset(
    "chatglm ernie4_5 gemma gemma2 gemma3_text gptoss granite internlm2 llama mistral nemotron olmo phi phimoe phi3 "
    "qwen2 qwen3 smollm3".split()
)
"""Decoders that onnxruntime-genai knows by a name of their own, over one graph with keys and values by layer."""
GENAI_DECODER = "decoder"
"""Its name for any other such decoder. (Its `gpt2` wants keys and values in one tensor.)"""

_TEXT_ENCODERS = frozenset(("bert",))
_WHISPER, _T5, _VIT = frozenset(("whisper",)), frozenset(("t5",)), frozenset(("vit",))
_COMMON: Mapping[str, frozenset[str]] = {
    "feature-extraction": _TEXT_ENCODERS,
    "masked-lm": _TEXT_ENCODERS,
    "sequence-classification": _TEXT_ENCODERS,
    "token-classification": _TEXT_ENCODERS,
    "question-answering": _TEXT_ENCODERS,
    "image-classification": _VIT,
    SEQ2SEQ: _T5,
    SPEECH: _WHISPER,
}

# Which settings of a config tell ORTModelForCausalLM the number of key heads and their width.
_KEY_HEADS = frozenset(
    "arcee deepseek_v3 cohere gemma gemma3_text glm granite gpt_oss helium mistral llama nemotron qwen2 qwen3 "
    "qwen3_moe smollm3 stablelm".split()
)
_WIDTHS = frozenset(("gemma", "gemma3_text", "gpt_oss", "nemotron"))


def _optimum_shape(kind: str, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(heads, width) of the empty past that ORTModelForCausalLM begins with; None where a config does not say."""

    def first(*names: str) -> int | None:
        return next((n for k in names if isinstance(n := config.get(k), int)), None)

    heads, dim = first("num_attention_heads", "n_head"), first("hidden_size", "n_embd")
    if heads is None or dim is None:
        return None
    kept = first("num_key_value_heads") or heads if kind in _KEY_HEADS else heads
    width = first("head_dim") or dim // heads if kind in _WIDTHS else dim // heads
    return kept, width


@dataclass(frozen=True)
class Layout:
    """How a client wants a folder.

    client: its name, as people know it. folder: where the graphs lie in it. data: what their data files are called
    beyond the graph's own name. opset: the newest that all versions in use read. padding: the side on which prompts
    are filled up. types: `model_type` by task of what it has a class for (None: of any). shape: (key heads, width)
    with which it begins, by model_type and config.
    """

    name: str
    client: str
    types: Mapping[str, frozenset[str] | None]
    folder: str = ""
    data: str = "_data"
    opset: int = 23
    padding: str = "left"
    shape: Callable[[str, Mapping[str, Any]], tuple[int, int] | None] = lambda kind, config: None

    def path(self, name: str) -> str:
        """Where the graph called `name` lies in the folder."""
        return f"{self.folder}/{name}.onnx" if self.folder else f"{name}.onnx"


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("optimum", "Optimum", {**_COMMON, CAUSAL: _CAUSAL_OPTIMUM}, shape=_optimum_shape),
        Layout("genai", "onnxruntime-genai", {CAUSAL: None}, padding="right"),
        # A browser has the runtime that its page brings, and kernels of a graphics card know no opset 23.
        Layout("web", "transformers.js", {**_COMMON, CAUSAL: _CAUSAL_WEB}, folder="onnx", opset=21),
    )
}


def layout_of(name: str | None) -> Layout | None:
    """A layout by its name. Raises LoweringError for an unknown one."""
    if name is None:
        return None
    if name not in LAYOUTS:
        what = f"no layout is called {name!r}{did_you_mean(name, LAYOUTS)}"
        raise LoweringError(what, hint=f"known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def check_class(layout: Layout, model: Model, kind: str) -> None:
    """Raises LoweringError where a client has no class for a model. kind: what its config says as model_type."""
    task = model.task.name
    if task not in layout.types:
        others = ", ".join(layout.types)
        raise LoweringError(f"{layout.client} has no class for the task {task!r}", place=kind, hint=f"it has: {others}")
    types = layout.types[task]
    if types is not None and kind not in types:
        what = f"{layout.client} has no class for model_type {kind!r} with the task {task!r}"
        raise LoweringError(what, place=kind, hint="export it without a layout: any ONNX runtime runs that folder")


def check_state(layout: Layout, graph: Graph, kind: str, config: Mapping[str, Any]) -> None:
    """Raises LoweringError unless a decoder remembers nothing but keys and values of the shape a client begins with."""
    layers = pairs_of(layout, graph.slots, kind)
    for keys, values in layers:
        shapes = [s.type.shape[1::2] for s in (keys, values)]
        if layout.shape is not None and shapes[0] != shapes[1]:
            what = f"{keys.input} is {keys.type} and {values.input} {values.type}, but {layout.client} has one shape"
            raise LoweringError(what, place=kind)
        wanted = layout.shape(kind, config)
        if wanted is not None and shapes[0] != wanted:
            what = f"{layout.client} takes {wanted[0]} key heads of {wanted[1]} from the config of a {kind}, but "
            raise LoweringError(f"{what}{keys.input} is {keys.type}", place=kind)


def pairs_of(layout: Layout, slots: tuple[Slot, ...], kind: str) -> list[tuple[Slot, Slot]]:
    """(keys, values) of each layer. Raises LoweringError for anything else that is remembered between calls."""
    found = [s for s in slots if s.growth is not Growth.once]
    for slot in found:
        grows = slot.growth in (Growth.append, Growth.window)
        if not grows or slot.type.rank != 4 or not slot.input.startswith("past_key_values."):
            what = f"{layout.client} has no place for {slot.input} {slot.type}, which {kind} remembers"
            raise LoweringError(what, place=kind)
    pairs = list(zip(found[::2], found[1::2], strict=False))
    if not pairs or any(not k.input.endswith(".key") or not v.input.endswith(".value") for k, v in pairs):
        names = ", ".join(s.input for s in found) or "nothing"
        what = f"{layout.client} wants keys and values of each layer, but {kind} remembers {names}"
        raise LoweringError(what, place=kind)
    return pairs
