"""genai_config.json: what onnxruntime-genai reads beside a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ...frontends.dsl import Model
from ...ir.errors import LoweringError
from ...ir.graph import Graph
from ...ir.slots import TOKENS
from .clients import GENAI_DECODER, GENAI_TYPES, LAYOUTS, pairs_of

FILE = "genai_config.json"
_SEARCH = ("do_sample", "top_k", "top_p", "temperature", "repetition_penalty", "no_repeat_ngram_size", "length_penalty")
_DEFAULTS: Mapping[str, Any] = {
    "do_sample": False, "top_k": 1, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "length_penalty": 1.0, "num_beams": 1, "num_return_sequences": 1, "min_length": 0,
    "early_stopping": True, "diversity_penalty": 0.0,
}  # fmt: skip


def genai_config(model: Model, graph: Graph, kind: str, file: str, positions: int) -> dict[str, Any]:
    """The content of genai_config.json for a decoder. kind: model_type. file: of the graph. positions: most tokens.

    Raises LoweringError for a model that has no end of text, which the library needs.
    """
    pairs = pairs_of(LAYOUTS["genai"], graph.slots, kind)
    heads, width = pairs[0][0].type.shape[1::2]
    vocab = graph.outputs[model.task.output].shape[-1]
    ends = _ends(model)
    if not ends:
        hint = "onnxruntime-genai reads eos_token_id; add a tokenizer or generation_config.json that says it"
        raise LoweringError("does not say which token ends a text", place=kind, hint=hint)
    first = {k: model.generation[f"{k}_token_id"] for k in ("bos", "pad") if f"{k}_token_id" in model.generation}
    named = {k: getattr(model.tokenizer, f"{k}_id", None) for k in ("bos", "pad")}
    bos, pad = (first.get(k, named[k]) for k in ("bos", "pad"))
    inputs = {name: name for name in TOKENS.names if name in graph.inputs}
    return {
        "model": {
            "type": kind if kind in GENAI_TYPES else GENAI_DECODER,
            **({} if bos is None else {"bos_token_id": bos}),
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            "pad_token_id": ends[0] if pad is None else pad,
            "vocab_size": vocab,
            "context_length": positions,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file,
                "head_size": width,
                "num_key_value_heads": heads,
                "num_attention_heads": getattr(model.config, "heads", heads),
                "hidden_size": getattr(model.config, "dim", 0),
                "num_hidden_layers": len(pairs),
                "inputs": {
                    **inputs,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": model.task.output,
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        # Keys and values grow by concatenation: what comes in and what goes out are two buffers.
        "search": {**_search(model), "max_length": positions, "past_present_share_buffer": False},
    }


def _ends(model: Model) -> list[int]:
    said: Any = model.generation.get("eos_token_id")
    own = [] if said is None else cast("list[int]", said if isinstance(said, list) else [said])
    return list(dict.fromkeys([*own, *(model.tokenizer.eos_ids if model.tokenizer is not None else ())]))


def _search(model: Model) -> dict[str, Any]:
    return {**_DEFAULTS, **{k: model.generation[k] for k in _SEARCH if model.generation.get(k) is not None}}
