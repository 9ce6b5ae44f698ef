"""A tiny BERT of known numbers, for folders of sentence-transformers: made here, pooled there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a b c the cat sat on mat query : passage ! hello world . dog the"
).split()  # fmt: skip
TEXTS = (
    "the cat sat on the mat", "hello world !", "a", "THE CAT",
    "the cat sat on the mat a b c a b c a b c hello world the cat the dog . a b c",
)  # fmt: skip
WIDTH, LAYERS, FFN = 16, 2, 24
CONFIG: dict[str, Any] = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(set(WORDS)), "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": FFN, "max_position_embeddings": 32,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 24, "unk_token": "[UNK]", "pad_token": "[PAD]",
    "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    """The weights, by checkpoint name, drawn in this order."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(set(WORDS)), WIDTH),
        "embeddings.position_embeddings.weight": (32, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    parts = {
        "attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
        "attention.output.LayerNorm": (WIDTH,), "intermediate.dense": (FFN, WIDTH), "output.dense": (WIDTH, FFN),
        "output.LayerNorm": (WIDTH,),
    }  # fmt: skip
    for i in range(LAYERS):
        for part, shape in parts.items():
            shapes[f"encoder.layer.{i}.{part}.weight"] = shape
            shapes[f"encoder.layer.{i}.{part}.bias"] = shape[:1]
    shapes |= {"pooler.dense.weight": (WIDTH, WIDTH), "pooler.dense.bias": (WIDTH,)}
    random = np.random.default_rng(0)
    return {k: (0.5 * random.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}


def dense_arrays(inputs: int, outputs: int, *, bias: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of a dense layer, by the names that its module has for them."""
    random = np.random.default_rng([inputs, outputs])
    weight = random.standard_normal((outputs, inputs)).astype(np.float32)
    return {"linear.weight": weight} | ({"linear.bias": weight[:, 0] / 2} if bias else {})


def write_base(folder: Path) -> None:
    """A Hugging Face folder of the model with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    core: Any = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(WORDS))}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.add_special_tokens(list(WORDS[:5]))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    core.save(str(folder / "tokenizer.json"))
