"""ViT: an image as a row of patches behind a token of its own, under a pre-norm encoder. (Dosovitskiy et al. 2021)"""

from __future__ import annotations

from ...ir.errors import ConfigError
from ...ir.ops import concat, conv2d, expand, reshape, slice_, transpose
from ..activations import activated
from ..dsl import Checkpoint, Config, Scope, Value, key, model
from ..harmless import DROPOUT, keys
from ..layers import attention, drop, feed_forward
from ..task import HIDDEN, IMAGE_CLASSIFICATION, POOLED, Task

FEATURES = Task("image-feature-extraction", IMAGE_CLASSIFICATION.inputs, HIDDEN)
"""States of all patches, and of the image as a whole where there is a pooler."""

Sides = int | list[int]
"""Of a square, or height and width."""


def stored(architecture: str) -> Checkpoint:
    """config.json does not say whether the checkpoint has a pooler."""
    heads, pooler = ("classifier.*", "pooler.*", "vit.pooler.*"), {"add_pooling_layer": "*pooler.dense.weight"}
    return Checkpoint(architecture=architecture, prefix="vit", heads=heads, from_weights=pooler)


class Vit(Config):
    dim: int = key("hidden_size", 768)
    layers: int = key("num_hidden_layers", 12)
    heads: int = key("num_attention_heads", 12)
    ffn: int = key("intermediate_size", 3072)
    activation: str = key("hidden_act", "gelu")
    dropout: float = key("hidden_dropout_prob", 0.0)
    eps: float = key("layer_norm_eps", 1e-12)
    image: Sides = key("image_size", 224)
    patch: Sides = key("patch_size", 16)
    channels: int = key("num_channels", 3)
    biased: bool = key("qkv_bias", True)
    pooler: bool = key("add_pooling_layer", True)
    pooled: int | None = key("pooler_output_size", None)
    pooler_activation: str = key("pooler_act", "tanh")
    labels: dict[str, str] | None = key("id2label", None)
    number: int | None = key("num_labels", None)

    noted = keys(DROPOUT, "attention_probs_dropout_prob")

    def __post_init__(self) -> None:
        for name, value in (("image_size", self.image), ("patch_size", self.patch)):
            if isinstance(value, list) and len(value) != 2:
                raise ConfigError(f"{name} is {value}, expected one number or two")
        if min(*sides(self.patch)) < 1 or self.height < sides(self.patch)[0] or self.width < sides(self.patch)[1]:
            raise ConfigError(f"image_size {self.image} holds no patch of patch_size {self.patch}")

    @property
    def classes(self) -> int:
        """How many classes a head tells apart: as many as have a name, or are said, or 2, as in the reference."""
        return len(self.labels) if self.labels is not None else 2 if self.number is None else self.number

    @property
    def height(self) -> int:
        return sides(self.image)[0]

    @property
    def width(self) -> int:
        return sides(self.image)[1]

    @property
    def patches(self) -> int:
        tall, wide = sides(self.patch)
        return (self.height // tall) * (self.width // wide)


def sides(value: Sides) -> tuple[int, int]:
    """Height and width."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def encoder(m: Scope, c: Vit, pixels: Value) -> Value:
    """Hidden states [B,1+patches,C]."""
    e, batch = m / "embeddings", pixels.shape[0]
    p = e / "patch_embeddings.projection"
    w = p.param("weight", c.dim, c.channels, *sides(c.patch))
    x = conv2d(pixels, w, p.param("bias", c.dim), stride=sides(c.patch))
    x = transpose(reshape(x, shape=(batch, c.dim, c.patches)), permutation=(0, 2, 1))
    first = expand(e.param("cls_token", 1, 1, c.dim), shape=(batch, 1, c.dim))
    x = drop(concat(first, x, axis=1) + e.param("position_embeddings", 1, 1 + c.patches, c.dim), c.dropout)
    names = ("attention.query", "attention.key", "attention.value", "output.dense")
    for b in m.layers("encoder.layer", c.layers):
        y = b.layer_norm("layernorm_before", x, c.eps)
        y = attention(b / "attention", y, heads=c.heads, names=names, biases=(c.biased, c.biased, c.biased, True))
        x = x + drop(y, c.dropout)
        y = b.layer_norm("layernorm_after", x, c.eps)
        y = feed_forward(b, y, c.ffn, c.activation, names=("intermediate.dense", "output.dense"), bias=True)
        x = x + drop(y, c.dropout)
    return m.layer_norm("layernorm", x, c.eps)


def first_token(c: Vit, x: Value) -> Value:
    """[B,C] of [B,1+patches,C]."""
    return reshape(slice_(x, axis=1, start=0, length=1), shape=(x.shape[0], c.dim))


@model(task="image-classification", checkpoint=stored("ViTForImageClassification"))
def vit(m: Scope, c: Vit, pixel_values: Value) -> Value:
    x = first_token(c, encoder(m / "vit", c, pixel_values))
    return m.linear("classifier", x, c.classes, bias=True)


@model(task=FEATURES, name="vit", checkpoint=stored("ViTModel"))
def features(m: Scope, c: Vit, pixel_values: Value) -> dict[str, Value]:
    x = encoder(m, c, pixel_values)
    if not c.pooler:
        return {HIDDEN: x}
    y = (m / "pooler").linear("dense", first_token(c, x), c.pooled or c.dim, bias=True)
    return {HIDDEN: x, POOLED: activated(y, c.pooler_activation)}
