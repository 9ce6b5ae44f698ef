"""The models that clients.py gives to other clients: two real ones, and a tiny random one of each kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from monograph.assets import fetch
from report import WORK

VOCAB = 259
PAD, END = 0, 2
TEXTS = ("The capital of France is", "Once upon a time, there was", "def fibonacci(n):\n    ")
ROWS = ([72, 104, 111, 111, 114, 35, 122, 114], [73, 103, 90], [100, 50, 60, 70, 81])


@dataclass(frozen=True)
class Case:
    """A checkpoint folder, what it is for, and what clients are given.

    rows: ids. features: floats in place of them. layouts: of the clients that have a class for it. blocks: weights stay
    in the blocks of their GGUF file.
    """

    name: str
    task: str
    folder: Callable[[], Path]
    rows: Sequence[Sequence[int]] = ROWS
    features: Any = None
    layouts: tuple[str, ...] = ("optimum", "genai", "web")
    texts: tuple[str, ...] = TEXTS
    pad: int = PAD
    transformers_class: str = "AutoModelForCausalLM"
    blocks: bool = False


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Bytes as tokens, with a start, an end and padding."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", *letters])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


def tiny(name: str, config: str, head: str, **settings: Any) -> Path:
    """A checkpoint of a model with random weights, large enough that its tokens vary. Made once."""
    folder = WORK / "clients" / "checkpoints" / name
    if not (folder / "config.json").exists():
        torch.manual_seed(len(name))
        made = getattr(transformers, config)(**settings)
        model = getattr(transformers, head)(made)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        if (ends := model.get_output_embeddings()) is not None:
            # Clients forbid the end of a text until all tokens are there; so it must never be the likeliest.
            ends.weight.data[END] = 0
        model.save_pretrained(folder)
        if "vocab_size" in settings:
            tokenizer().save_pretrained(folder)
    return folder


SPECIAL = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": END}
TEXT: dict[str, Any] = {"vocab_size": VOCAB, "max_position_embeddings": 128, **SPECIAL}
WIDTH: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
GROUPS = {"num_key_value_heads": 2}
OLD: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128, **SPECIAL}
T5: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4,
    "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD,
}  # fmt: skip
WHISPER: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80, "num_mel_bins": 8,
    "max_source_positions": 20, "max_target_positions": 64, "decoder_start_token_id": 1, "suppress_tokens": [],
    "begin_suppress_tokens": [], **SPECIAL,
}  # fmt: skip
VIT: dict[str, Any] = {**WIDTH, "image_size": 16, "patch_size": 4, "num_labels": 5}


def case(name: str, task: str, config: str, head: str, settings: dict[str, Any], **other: Any) -> Case:
    made = functools.partial(tiny, name, config, head, **settings)
    return Case(name, task, made, transformers_class=head, **other)


def floats(*shape: int) -> dict[str, Any]:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {"shape": list(shape), "values": values.flatten().tolist()}


SOURCE = ("optimum", "web")
CASES = (
    Case("smollm2", "causal-lm", lambda: fetch("smollm2"), rows=(), pad=2),
    Case("smollm2 Q4_1", "causal-lm", lambda: fetch("smollm2"), rows=(), pad=2, blocks=True),
    Case("minilm", "feature-extraction", lambda: fetch("minilm"), rows=(), layouts=SOURCE,
         transformers_class="AutoModel"),
    case("llama", "causal-lm", "LlamaConfig", "LlamaForCausalLM", {**TEXT, **WIDTH, **GROUPS}),
    case("mistral", "causal-lm", "MistralConfig", "MistralForCausalLM",
         {**TEXT, **WIDTH, **GROUPS, "sliding_window": 6}),
    case("gemma3_text", "causal-lm", "Gemma3TextConfig", "Gemma3ForCausalLM",
         {**TEXT, **WIDTH, **GROUPS, "head_dim": 12, "sliding_window": 6,
          "layer_types": ["sliding_attention", "full_attention"]}),
    case("gpt2", "causal-lm", "GPT2Config", "GPT2LMHeadModel", OLD),
    case("gptj", "causal-lm", "GPTJConfig", "GPTJForCausalLM", {**OLD, "rotary_dim": 8}),
    case("gpt_neox", "causal-lm", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**TEXT, **WIDTH}),
    case("bloom", "causal-lm", "BloomConfig", "BloomForCausalLM",
         {"vocab_size": VOCAB, "hidden_size": 48, "n_layer": 2, "n_head": 4, **SPECIAL}),
    case("bert-classes", "sequence-classification", "BertConfig", "BertForSequenceClassification",
         {**TEXT, **WIDTH, "num_labels": 3}, layouts=SOURCE),
    case("bert-masked", "masked-lm", "BertConfig", "BertForMaskedLM", {**TEXT, **WIDTH}, layouts=SOURCE),
    case("vit", "image-classification", "ViTConfig", "ViTForImageClassification", VIT, layouts=SOURCE, texts=(),
         features=floats(2, 3, 16, 16)),
    case("t5", "seq2seq-lm", "T5Config", "T5ForConditionalGeneration", T5, layouts=SOURCE),
    case("whisper", "speech-to-text", "WhisperConfig", "WhisperForConditionalGeneration", WHISPER, layouts=SOURCE,
         features=floats(2, 8, 40)),
)  # fmt: skip
