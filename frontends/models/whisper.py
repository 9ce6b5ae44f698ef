"""Whisper: a spectrogram read by two convolutions and an encoder, and a decoder that writes. (Radford et al. 2023)"""

from __future__ import annotations

from typing import Any

from ...ir.errors import ConfigError
from ...ir.ops import conv1d, gelu, transpose
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..harmless import OTHER_HEAD, keys
from ..layers import attention, drop, feed_forward


class Whisper(Config):
    vocab: int = key("vocab_size")
    dim: int = key("d_model")
    layers: int = key("encoder_layers")
    heads: int = key("encoder_attention_heads")
    ffn: int = key("encoder_ffn_dim")
    decoder_layers: int = key("decoder_layers")
    decoder_heads: int = key("decoder_attention_heads")
    decoder_ffn: int = key("decoder_ffn_dim")
    mels: int = key("num_mel_bins", 80)
    source_positions: int = key("max_source_positions", 1500)
    max_positions: int = key("max_target_positions", 448)
    activation: str = key("activation_function", "gelu")
    dropout: float = key("dropout", 0.0)
    inner_dropout: float = key("activation_dropout", 0.0)
    tied: bool = key("tie_word_embeddings", True)

    noted = {
        **keys("layers that training leaves out by chance", "encoder_layerdrop decoder_layerdrop"),
        **keys(
            "parts of a spectrogram that training hides",
            "apply_spec_augment mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob "
            "mask_feature_length mask_feature_min_masks",
        ),
        **keys(OTHER_HEAD, "classifier_proj_size use_weighted_layer_sum"),
        "median_filter_width": "it is about times of words, which are not computed here",
        "scale_embedding": "transformers reads it and never uses the number",
    }

    def __post_init__(self) -> None:
        for name, heads in (("encoder", self.heads), ("decoder", self.decoder_heads)):
            if heads < 1 or self.dim % heads:
                raise ConfigError(f"d_model {self.dim} is not a multiple of {name}_attention_heads {heads}")

    @property
    def frames(self) -> int:
        """Of a spectrogram: the second convolution makes one place of two."""
        return 2 * self.source_positions


BIASES = (True, False, True, True)
NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")
EPS = 1e-5


def encoder(m: Scope, c: Whisper, features: Value) -> Value:
    """Spectrograms [B,M,F] -> [B,F/2,C]."""
    x = features
    for name, channels, stride in (("conv1", c.mels, 1), ("conv2", c.dim, 2)):
        p = m / name
        x = gelu(conv1d(x, p.param("weight", c.dim, channels, 3), p.param("bias", c.dim), stride=stride, padding=1))
    x = transpose(x, permutation=(0, 2, 1)) + (m / "embed_positions").param("weight", c.source_positions, c.dim)
    x = drop(x, c.dropout)
    for b in m.layers("layers", c.layers):
        y = b.layer_norm("self_attn_layer_norm", x, EPS)
        x = x + drop(attention(b / "self_attn", y, heads=c.heads, names=NAMES, biases=BIASES), c.dropout)
        x = x + feed(b, c, x, c.ffn)
    return m.layer_norm("layer_norm", x, EPS)


def feed(m: Scope, c: Whisper, x: Value, width: int) -> Value:
    y = m.layer_norm("final_layer_norm", x, EPS)
    y = feed_forward(m, y, width, c.activation, names=("fc1", "fc2"), bias=True, dropout=c.inner_dropout)
    return drop(y, c.dropout)


@model(
    task="speech-to-text",
    checkpoint=Checkpoint(
        architecture="WhisperForConditionalGeneration",
        prefix="model",
        tied={"proj_out.weight": "model.decoder.embed_tokens.weight"},
    ),
)
def whisper(
    m: Scope,
    c: Whisper,
    input_features: Value,
    decoder_input_ids: Value,
    decoder_attention_mask: Value,
    decoder_position_ids: Value,
) -> Value:
    memory, mask, d = (
        encoder(m / "model.encoder", c, input_features),
        key_mask(decoder_attention_mask),
        m / "model.decoder",
    )
    common: dict[str, Any] = {"heads": c.decoder_heads, "names": NAMES, "biases": BIASES}
    d = m / "model.decoder"
    x = d.embed("embed_tokens", decoder_input_ids, c.vocab, c.dim)
    x = drop(x + d.embed("embed_positions", decoder_position_ids, c.max_positions, c.dim), c.dropout)
    for b in d.layers("layers", c.decoder_layers):
        y = b.layer_norm("self_attn_layer_norm", x, EPS)
        x = x + drop(attention(b / "self_attn", y, mask=mask, causal=True, **common), c.dropout)
        y = b.layer_norm("encoder_attn_layer_norm", x, EPS)
        x = x + drop(attention(b / "encoder_attn", y, memory=memory, **common), c.dropout)
        x = x + feed(b, c, x, c.decoder_ffn)
    x = d.layer_norm("layer_norm", x, EPS)
    return m.linear("proj_out", x, c.vocab, tie="model.decoder.embed_tokens" if c.tied else None)
