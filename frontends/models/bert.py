"""BERT: post-norm encoder with learned positions and token types, alone or under a head. (Devlin et al. 2019)"""

from __future__ import annotations

from ...ir import Init
from ...ir.errors import ConfigError
from ...ir.ops import linear, reshape, slice_, tanh
from ..activations import activated
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..harmless import DROPOUT, keys
from ..layers import attention, drop
from ..task import ENDS, HIDDEN, POOLED, STARTS


class Bert(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size", 768)
    layers: int = key("num_hidden_layers", 12)
    heads: int = key("num_attention_heads", 12)
    ffn: int = key("intermediate_size", 3072)
    activation: str = key("hidden_act", "gelu")
    dropout: float = key("hidden_dropout_prob", 0.1)
    max_positions: int = key("max_position_embeddings", 512)
    token_types: int = key("type_vocab_size", 2)
    eps: float = key("layer_norm_eps", 1e-12)
    positions: str = key("position_embedding_type", "absolute")
    pooler: bool = key("add_pooling_layer", True)
    causal: bool = key("is_decoder", False)
    tied: bool = key("tie_word_embeddings", True)
    labels: dict[str, str] | None = key("id2label", None)
    number: int | None = key("num_labels", None)
    head_dropout: float | None = key("classifier_dropout", None)

    noted = {**keys(DROPOUT, "attention_probs_dropout_prob"), "is_causal": "only a decoder reads it"}

    def __post_init__(self) -> None:
        if self.positions != "absolute":
            raise ConfigError(f"position_embedding_type {self.positions!r} is not supported; known: 'absolute'")
        if self.causal:
            raise ConfigError("is_decoder = True is not supported: this family is an encoder, which sees both ways")
        if self.heads < 1 or self.dim % self.heads:
            raise ConfigError(f"hidden_size {self.dim} is not a multiple of num_attention_heads {self.heads}")
        if self.labels is not None and sorted(self.labels) != sorted(map(str, range(len(self.labels)))):
            raise ConfigError(f"id2label has the ids {', '.join(self.labels)}, expected 0 to {len(self.labels) - 1}")

    @property
    def classes(self) -> int:
        """How many classes a head tells apart: as many as have a name, or are said, or 2, as in the reference."""
        return len(self.labels) if self.labels is not None else 2 if self.number is None else self.number

    def dropped(self, x: Value) -> Value:
        """x after the dropout of a head."""
        return drop(x, self.dropout if self.head_dropout is None else self.head_dropout)


def encoder(m: Scope, c: Bert, ids: Value, attention_mask: Value, positions: Value, types: Value) -> Value:
    """Hidden states [B,S,C]."""
    mask = key_mask(attention_mask)
    e = m / "embeddings"
    x = e.embed("word_embeddings", ids, c.vocab, c.dim)
    x = x + e.embed("token_type_embeddings", types, c.token_types, c.dim)
    x = x + e.embed("position_embeddings", positions, c.max_positions, c.dim)
    x = drop(e.layer_norm("LayerNorm", x, c.eps), c.dropout)
    for b in m.layers("encoder.layer", c.layers):
        a, up, down = b / "attention", b / "intermediate", b / "output"
        y = attention(a / "self", x, heads=c.heads, mask=mask, names=("query", "key", "value", ""), biases=True)
        y = drop((a / "output").linear("dense", y, c.dim, bias=True), c.dropout)
        x = (a / "output").layer_norm("LayerNorm", y + x, c.eps)
        y = activated(up.linear("dense", x, c.ffn, bias=True), c.activation)
        y = drop(down.linear("dense", y, c.dim, bias=True), c.dropout)
        x = down.layer_norm("LayerNorm", y + x, c.eps)
    return x


HEADS = ("cls.*", "classifier.*", "qa_outputs.*", "pooler.*", "bert.pooler.*")


def stored(architecture: str) -> Checkpoint:
    """config.json does not say whether a checkpoint has a pooler: the tensors do."""
    pooler = {"add_pooling_layer": "*pooler.dense.weight"}
    tied = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    return Checkpoint(architecture, prefix="bert", old=old, heads=HEADS, tied=tied, from_weights=pooler)


def pooled(m: Scope, c: Bert, x: Value) -> Value:
    """The first token of each row for what follows, [B,C]."""
    first = reshape(slice_(x, axis=1, start=0, length=1), shape=(x.shape[0], c.dim))
    return tanh((m / "pooler").linear("dense", first, c.dim, bias=True))


@model(task="feature-extraction", checkpoint=stored("BertModel"))
def bert(
    m: Scope, c: Bert, input_ids: Value, attention_mask: Value, position_ids: Value, token_type_ids: Value
) -> dict[str, Value]:
    x = encoder(m, c, input_ids, attention_mask, position_ids, token_type_ids)
    return {HIDDEN: x, **({POOLED: pooled(m, c, x)} if c.pooler else {})}


@model(task="masked-lm", name="bert", checkpoint=stored("BertForMaskedLM"))
def masked_lm(
    m: Scope, c: Bert, input_ids: Value, attention_mask: Value, position_ids: Value, token_type_ids: Value
) -> Value:
    x = encoder(m / "bert", c, input_ids, attention_mask, position_ids, token_type_ids)
    head = m / "cls.predictions"
    x = activated((head / "transform").linear("dense", x, c.dim, bias=True), c.activation)
    x = (head / "transform").layer_norm("LayerNorm", x, c.eps)
    if not c.tied:
        return head.linear("decoder", x, c.vocab, bias=True)
    table = (m / "bert.embeddings.word_embeddings").param("weight", c.vocab, c.dim)
    return linear(x, table, head.param("bias", c.vocab, init=Init("zeros")))


@model(task="sequence-classification", name="bert", checkpoint=stored("BertForSequenceClassification"))
def classifier(
    m: Scope, c: Bert, input_ids: Value, attention_mask: Value, position_ids: Value, token_type_ids: Value
) -> Value:
    x = pooled(m / "bert", c, encoder(m / "bert", c, input_ids, attention_mask, position_ids, token_type_ids))
    return m.linear("classifier", c.dropped(x), c.classes, bias=True)


@model(task="token-classification", name="bert", checkpoint=stored("BertForTokenClassification"))
def token_classifier(
    m: Scope, c: Bert, input_ids: Value, attention_mask: Value, position_ids: Value, token_type_ids: Value
) -> Value:
    x = encoder(m / "bert", c, input_ids, attention_mask, position_ids, token_type_ids)
    return m.linear("classifier", c.dropped(x), c.classes, bias=True)


@model(task="question-answering", name="bert", checkpoint=stored("BertForQuestionAnswering"))
def answerer(
    m: Scope, c: Bert, input_ids: Value, attention_mask: Value, position_ids: Value, token_type_ids: Value
) -> dict[str, Value]:
    if c.classes != 2:
        raise ConfigError(f"a head for question answering has 2 scores a token, but num_labels is {c.classes}")
    x = encoder(m / "bert", c, input_ids, attention_mask, position_ids, token_type_ids)
    y = m.linear("qa_outputs", x, 2, bias=True)
    first, last = (reshape(slice_(y, axis=-1, start=i, length=1), shape=x.shape[:2]) for i in (0, 1))
    return {STARTS: first, ENDS: last}
