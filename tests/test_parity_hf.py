"""Every model family against the Hugging Face implementation: same checkpoint folder, same inputs, every mask."""

import numpy as np
import pytest
import torch
import transformers
from monograph.backends.torch import to_torch
from monograph.frontends.load import load
from monograph.ir import interpret
from monograph.ir.types import DType, f32
from real_weights import real_weights

pytestmark = pytest.mark.slow

BATCH, LENGTH, VOCAB = 3, 7, 61
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16, "attn_implementation": "eager"}
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
    "attn_implementation": "eager",
}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **more}}


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
CASES = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama-tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "llama-all-heads": ("LlamaForCausalLM", {**LLAMA, "num_key_value_heads": 4}),
    "llama-one-kv-head": ("LlamaForCausalLM", {**LLAMA, "num_key_value_heads": 1}),
    "llama-wide-heads": ("LlamaForCausalLM", {**LLAMA, "head_dim": 10}),
    "llama-biases": ("LlamaForCausalLM", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-tanh-gelu": ("LlamaForCausalLM", {**LLAMA, "hidden_act": "gelu_pytorch_tanh"}),
    "llama-linear-rope": ("LlamaForCausalLM", {**LLAMA, **rope("linear", factor=3.0)}),
    "llama-llama3-rope": ("LlamaForCausalLM", {**LLAMA, **rope("llama3", **LLAMA3)}),
    "llama-yarn-rope": (
        "LlamaForCausalLM",
        {**LLAMA, **rope("yarn", factor=4.0, original_max_position_embeddings=16)},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-without-head": ("GPT2Model", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False}),
    "gpt2-scaled-by-layer": ("GPT2LMHeadModel", {**GPT2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 32}),
    "gpt2-unscaled-relu": ("GPT2LMHeadModel", {**GPT2, "scale_attn_weights": False, "activation_function": "relu"}),
    "bert": ("BertModel", BERT),
    "bert-tanh-gelu": ("BertModel", {**BERT, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "bert-masked-lm": ("BertForMaskedLM", BERT),
    "bert-masked-lm-untied": ("BertForMaskedLM", {**BERT, "tie_word_embeddings": False}),
    "bert-three-labels": ("BertForSequenceClassification", {**BERT, "num_labels": 3}),
    "bert-seven-labels": (
        "BertForSequenceClassification",
        {
            **BERT,
            "id2label": {i: f"name {i}" for i in range(LENGTH)},
            "label2id": {f"name {i}": i for i in range(LENGTH)},
            "classifier_dropout": 0.3,
        },
    ),
}
EXACT_IN_F64 = [k for k in CASES if not k.startswith("llama")]
"""transformers computes the norms and angles of llama in float32 whatever the model's dtype."""
WHOLE = [k for k in CASES if k not in ("gpt2-without-head", "bert-masked-lm-untied")]
"""Cases whose checkpoint holds exactly the model of the family, no more and no less."""

MASKS = {
    "all-ones": np.ones((BATCH, LENGTH), np.int64),
    "right-padded": np.array([[1] * n + [0] * (LENGTH - n) for n in (7, 4, 1)]),
    "left-padded": np.array([[0] * (LENGTH - n) + [1] * n for n in (7, 4, 1)]),
    "holed": np.array([[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(name, Hugging Face model with rough weights, our model loaded from the folder it was saved to)."""
    name, settings = CASES[request.param]
    torch.manual_seed(0)
    theirs = getattr(transformers, name)
    theirs = theirs(theirs.config_class(**settings)).eval()
    with torch.no_grad():
        # Fresh biases are zero and fresh norms are one: a lost or swapped one would not show.
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.3 if p.ndim == 1 else torch.randn_like(p) * 0.1)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return request.param, theirs, load(folder)


def inputs_for(graph, mask):
    rng = np.random.default_rng(1)
    decoder = "token_type_ids" not in graph.inputs
    positions = np.maximum(mask.cumsum(-1) - 1, 0) if decoder else np.tile(np.arange(LENGTH), (BATCH, 1))
    made = {
        "input_ids": rng.integers(0, VOCAB, mask.shape),
        "attention_mask": mask,
        "position_ids": positions,
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    return {k: made[k] for k in graph.inputs}


def expected_outputs(theirs, inputs):
    with torch.no_grad():
        found = theirs(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    return {k: v.numpy() for k, v in found.items() if torch.is_tensor(v)}


def assert_close(found, expected, mask, tolerance):
    for name, y in found.items():
        if name not in expected:
            continue
        want = expected[name]
        rows = mask.astype(bool) if y.ndim == 3 else mask[:, 0].astype(bool)
        np.testing.assert_allclose(y[rows], want[rows], atol=tolerance, rtol=tolerance, err_msg=name)


def reference(name, theirs, inputs):
    """What transformers gives, under our output names."""
    if name == "gpt2-without-head":
        hidden = expected_outputs(theirs, inputs)["last_hidden_state"]
        return {"logits": hidden @ theirs.wte.weight.detach().numpy().T}
    return expected_outputs(theirs, inputs)


@pytest.mark.parametrize("mask", MASKS)
def test_reference_and_torch_equal_transformers(case, mask):
    name, theirs, ours = case
    graph = ours.graph(f32)
    inputs = inputs_for(graph, MASKS[mask])
    expected = reference(name, theirs, inputs)
    assert set(graph.outputs) <= set(expected)
    found = interpret(graph, inputs, lambda k: ours.weights.numpy(k, f32))
    assert_close(found, expected, MASKS[mask], 1e-5)
    with torch.no_grad():
        trained = to_torch(graph, ours.weights).eval()(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    assert_close({k: v.numpy() for k, v in trained.items()}, expected, MASKS[mask], 1e-5)


@pytest.mark.parametrize("case", EXACT_IN_F64, indirect=True)
@pytest.mark.parametrize("mask", MASKS)
def test_in_float64_the_difference_is_rounding_only(case, mask):
    name, theirs, ours = case
    graph = ours.graph(DType.f64)
    inputs = inputs_for(graph, MASKS[mask])
    try:
        expected = reference(name, theirs.double(), inputs)
    finally:
        theirs.float()
    found = interpret(graph, inputs, lambda k: ours.weights.numpy(k, DType.f64))
    assert_close(found, expected, MASKS[mask], 1e-10)


@pytest.mark.parametrize("case", WHOLE, indirect=True)
def test_a_hugging_face_folder_survives_a_round_trip(case, tmp_path):
    """Saved by us, transformers loads it and computes the same; its config says the same."""
    from monograph.frontends.huggingface import save_pretrained

    _, theirs, ours = case
    save_pretrained(ours, tmp_path / "out")
    again = type(theirs).from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    mine, before = again.config.to_dict(), theirs.config.to_dict()
    assert {k: mine[k] for k in before if k not in ("_name_or_path", "dtype", "architectures")} == {
        k: v for k, v in before.items() if k not in ("_name_or_path", "dtype", "architectures")
    }
    for k, v in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[k], v, rtol=0, atol=0)


@pytest.mark.weights
def test_minilm_equals_transformers():
    folder = real_weights("minilm")
    ours = load(folder)
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A man is eating food.", "The quick brown fox jumps over the lazy dog, and nobody minds it.", "Bonjour!"]
    batch = tokenizer(texts, padding=True, return_tensors="np")
    assert [ours.tokenizer.encode(t) for t in texts] == [
        ids[m == 1].tolist() for ids, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    mask = batch["attention_mask"]
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(mask.shape[1]), (len(texts), 1)),
        "token_type_ids": batch["token_type_ids"],
    }
    expected = expected_outputs(theirs, inputs)
    graph = ours.graph(f32)
    assert_close(interpret(graph, inputs, lambda k: ours.weights.numpy(k)), expected, mask, 1e-5)
    with torch.no_grad():
        found = to_torch(graph, ours.weights).eval()(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    assert_close({k: v.numpy() for k, v in found.items()}, expected, mask, 1e-5)


@pytest.mark.weights
def test_smollm2_from_gguf_equals_transformers_on_64_tokens(tmp_path):
    """transformers loads the folder that we write from the GGUF file: names, rotary order, config and tokenizer."""
    from monograph.frontends.huggingface import save_pretrained

    ours = load(real_weights("smollm2"))
    save_pretrained(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    text = "The three most famous cities of Italy are Rome, Milan and Naples. In 1861 they became one country. " * 4
    ids = ours.tokenizer.encode(text)[:64]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"][:64] == ids
    inputs = {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, 64), np.int64),
        "position_ids": np.arange(64)[None],
    }
    expected = expected_outputs(theirs, inputs)["logits"]
    found = interpret(ours.graph(f32), inputs, lambda k: ours.weights.numpy(k))["logits"]
    # Logits are about 20; in float32 that leaves 1e-4 after 30 layers.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.98
    loss = -torch.log_softmax(torch.from_numpy(found[0, :-1]), -1)[torch.arange(63), torch.tensor(ids[1:])].mean()
    assert loss < 2.5
