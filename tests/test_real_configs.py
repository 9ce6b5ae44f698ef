"""Files config.json of public repositories, with every odd key and sizes made tiny: loaded as transformers loads them,
or refused by name."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
import transformers
from family_parity import masks
from monograph.frontends.dsl import Model
from monograph.frontends.task import Role
from monograph.ir import interpret
from monograph.ir.errors import ConfigError

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parent / "configs"
ORIGIN = {
    "bert_chinese": "jxlin98/CWS: bert-base-chinese/config.json",
    "bert_ner": "780Noman/NER_Using_BERT: model/config.json",
    "bert_six_labels": "BetaProg01/ClaudiaProject: model/config.json",
    "bert_uncased": "lukyanchikov/NLP: bert-base-uncased/config.json",
    "bloom": "ShadowConYT/ai_tutoring_system_with_llm: bloom/config.json",
    "gemma2": "kevinstephano/thunder_model_blocks: thunder_model_blocks/gemma2/gemma2_config.py",
    "gpt2": "vanu23/chatbot: gpt2/config.json",
    "gpt2_couplets": "952994221/NLP-Couplet-GPT2: model/config.json",
    "hatebert": "AshifulRidoy/XAI-on-HateBERT: model/config.json",
    "llama31": "BonjoLi/LLaDA-vs-LLaMA-Code: llama/config.json",
    "llama32": "kevinstephano/thunder_model_blocks: thunder_model_blocks/hf_llama/llama_config.py",
    "minilm": "ethe/bakalog: all-MiniLM-L6-v2/config.json",
    "mistral_nemo": "kevinstephano/thunder_model_blocks: thunder_model_blocks/mistral/mistral_config.py",
    "rubert": "AlexTurgen/russian-sentiment-rubert: model/config.json",
    "smollm": "AtulDeshpande09/Fine-tuned-Economics-QA-using-smolLM: model/config.json",
    "t5_rewardrepair": "ASSERT-KTH/RewardRepair: model/config.json",
    "t5_small": "learningexample/xformer: t5-small/config.json",
    "tinyllama": "swayam8624/nanoquant-private: TinyLlama-1.1B-Chat-v1.0/config.json",
    "vit": "AndradeBia/Interface-grafica: vit_model/config.json",
    "whisper": "2nanbae/2025_ASR_certificate: model/config.json",
    "refused_distilbert": "AdityaKulshrestha/Question-Answering-AdversarialQA: model/config.json",
    "refused_gptj_before_gptj": "jokersoft/helper: gpt-j-6B/config.json",
    "refused_gptq": "Billy19191/OP-GPT-Discord-Bot: model/config.json",
    "refused_llama2c": "AlisherAmirbek/LlaMA2-30M: model/config.json",
    "refused_llama_model": "thuml/iVideoGPT: configs/llama/config.json",
}
"""Where each file of `configs` comes from: the repository and the path in it."""
UNNAMED = {"bert_chinese": transformers.BertForMaskedLM, "gpt2_couplets": transformers.GPT2LMHeadModel}
"""Files from before model_type: which class the repository loads them with."""


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def checkpoint(name: str, folder: Path, **more: Any) -> Any:
    """The model of transformers that the file says, with random weights, saved beside the file as it was found.

    more: keys that it gets besides.
    """
    said = {**read(name), **more}
    cls = UNNAMED.get(name) or getattr(transformers, said["architectures"][0])
    torch.manual_seed(0)
    made = cls(cls.config_class.from_dict(dict(said))).eval()
    with torch.no_grad():
        for p in made.parameters():
            p += 0.1 * torch.randn_like(p)
    made.save_pretrained(folder)
    if name in UNNAMED:
        said["model_type"] = cls.config_class.model_type
    (folder / "config.json").write_text(json.dumps(said))
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


def inputs(model: Model) -> dict[str, Any]:
    rng, graph, given = np.random.default_rng(1), model.graph(), dict[str, Any]()
    for stream in model.task.streams:
        given[stream.ids], given[stream.mask] = rng.integers(3, 60, (3, 9)), masks(9)["right"]
    for k, v in graph.inputs.items():
        if model.task.role(k) is Role.features:
            given[k] = rng.standard_normal([n if isinstance(n, int) else 3 for n in v.shape]).astype(np.float32)
    return model.task.fill(given, graph.inputs)


LOADED = sorted(k for k in ORIGIN if not k.startswith("refused"))


def compare(theirs: Any, folder: Path) -> None:
    """All outputs of the loaded folder are those of the model of transformers, where the mask counts."""
    model = mg.load(folder)
    given = inputs(model)
    accepted = inspect.signature(theirs.forward).parameters
    with torch.no_grad():
        want = theirs(**{k: torch.tensor(v) for k, v in given.items() if k in accepted})
    assert model.weights is not None
    got = interpret(model.graph(), given, model.weights.numpy)
    stream = model.task.stream
    for output in (k for k in model.graph().outputs if k in want):
        expected, found = want[output].numpy(), got[output]
        if stream is not None and expected.ndim > 1 and expected.shape[1] == 9:
            expected, found = expected[given[stream.mask] != 0], found[given[stream.mask] != 0]
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", LOADED)
def test_a_file_as_it_is_found_gives_the_numbers_of_transformers(name: str, tmp_path: Path) -> None:
    compare(checkpoint(name, tmp_path), tmp_path)


ODD: list[tuple[str, dict[str, Any]]] = [
    ("smollm", {"partial_rotary_factor": 0.5, "rope_interleaved": True, "use_sliding_window": False}),
    ("smollm", {"hidden_act": "relu2", "attention_dropout": 0.5, "mlp_bias": True, "attention_bias": True}),
    ("tinyllama", {"rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}}),
    ("tinyllama", {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0, "odd": [1]}}),
    ("tinyllama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "finetuned": True, "attn_factor": 0.5}}),
    ("llama31", {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}),
    ("mistral_nemo", {"sliding_window": 3, "rope_scaling": None, "max_window_layers": 1}),
    ("gpt2", {"rope_theta": 50.0, "num_hidden_layers": 1, "scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"activation_function": "quick_gelu", "n_inner": 40, "head_mask": None}),
    ("gemma2", {"hidden_activation": "silu", "attention_bias": True, "use_bidirectional_attention": False}),
    ("bert_uncased", {"num_labels": 5, "is_causal": False, "hidden_act": "gelu_new", "pooler_type": "mean"}),
    ("bloom", {"n_embed": 16, "seq_length": 7, "offset_alibi": 3}),
    ("t5_small", {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}),
    ("vit", {"qkv_bias": False, "hidden_act": "mish", "num_labels": 7}),
]


@pytest.mark.parametrize(("name", "more"), ODD, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ODD)])
def test_odd_keys_give_the_numbers_of_transformers(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    compare(checkpoint(name, tmp_path, **more), tmp_path)


@pytest.mark.parametrize("name", LOADED)
def test_each_key_is_used_or_noted(name: str, tmp_path: Path) -> None:
    checkpoint(name, tmp_path)
    model = mg.load(tmp_path)
    used = model.config.to_dict() if model.config is not None else {}
    noted = {note.key for note in model.notes}
    ids = {"architectures", "model_type", "is_encoder_decoder", "label2id"}
    rest = {k for k in read(name) if k not in used and k not in noted and k not in ids and not k.endswith("_token_id")}
    assert rest <= {"num_hidden_layers"}  # Another name, in Whisper.
    assert all(str(note).startswith(("config.json: ", "model.safetensors: ")) for note in model.notes)


NOTED = {
    "smollm": "is_llama_config rope_interleaved attention_dropout pretraining_tp",
    "gpt2_couplets": "n_ctx pruned_heads summary_type output_past finetuning_task torchscript use_bfloat16 num_labels",
    "bert_chinese": "directionality pooler_fc_size pooler_type pooler_num_fc_layers",
    "hatebert": "_num_labels output_past problem_type",
    "rubert": "emb_size add_cross_attention dtype",
    "gemma2": "hidden_act cache_implementation sliding_window_size",
    "whisper": "apply_spec_augment scale_embedding begin_suppress_tokens median_filter_width forced_decoder_ids",
    "bloom": "offset_alibi skip_bias_add masked_softmax_fusion attention_softmax_in_fp32 n_inner",
    "t5_rewardrepair": "n_positions output_past output_hidden_states task_specific_params",
}


@pytest.mark.parametrize("name", NOTED)
def test_odd_keys_are_noted(name: str, tmp_path: Path) -> None:
    checkpoint(name, tmp_path)
    assert {*NOTED[name].split()} <= {note.key for note in mg.load(tmp_path).notes}


FOUND = {
    "refused_distilbert": "model_type 'distilbert' is not supported",
    "refused_gptj_before_gptj": "model_type 'gpt_neo' is not supported, did you mean 'gpt_neox'",
    "refused_gptq": "key 'quantization_config' = .*: weights that are quantized in a form of their own",
    "refused_llama2c": "has model_type None",
    "refused_llama_model": "has the architecture LlamaModel, which llama has no head for",
}


@pytest.mark.parametrize("name", FOUND)
def test_files_that_say_another_model_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(read(name)))
    with pytest.raises(ConfigError, match=FOUND[name]):
        mg.load(tmp_path)


CHANGED: list[tuple[str, dict[str, Any], str]] = [
    ("smollm", {"sliding_window": 4}, "key 'sliding_window' = 4: .* only None is computed here"),
    ("smollm", {"is_causal": False}, "key 'is_causal' = False: .* only True is computed here"),
    ("smollm", {"hidden_act": "xielu"}, "activation 'xielu' is not supported"),
    ("llama31", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported: its frequencies"),
    ("llama31", {"rope_scaling": {"type": "su", "factor": 2.0}}, "'su' is not supported: its frequencies"),
    ("llama31", {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "rope_scaling of type 'ntk' is not supported"),
    ("bert_uncased", {"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
    ("minilm", {"is_decoder": True}, "is_decoder = True is not supported"),
    ("bert_uncased", {"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice, which bert has no head for"),
    ("gpt2", {"add_cross_attention": True}, "key 'add_cross_attention' = True: .* only False is computed here"),
    ("gemma2", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' = True"),
    ("bloom", {"slow_but_exact": True}, "slow_but_exact with pretraining_tp 4 is not supported"),
    ("tinyllama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification, which llama"),
]


@pytest.mark.parametrize(("name", "change", "message"), CHANGED)
def test_what_changes_the_numbers_is_refused_by_name(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint(name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(read(name) | change))
    with pytest.raises(ConfigError, match=message) as e:
        mg.load(tmp_path)
    assert "config.json" in e.value.place or change.get("hidden_act")  # This one is found where it is used.
