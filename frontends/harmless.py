"""Entries of checkpoint files that change nothing that is computed here, with the reason: data, by reason."""

from __future__ import annotations

from collections.abc import Mapping


def keys(why: str, names: str) -> dict[str, str]:
    """{key: why} for each of the names, which blanks separate."""
    return dict.fromkeys(names.split(), why)


CACHE = "transformers reads it for its cache only"
DROPOUT = "dropout of attention scores, which only training applies, and training here does not"
EXTRA = "it says what transformers gives back beside the result"
GENERATION = "a setting of generation, which transformers reads from generation_config.json"
INITIAL = "it says where weights begin, and they are read"
LOSS = "it is about the loss that transformers adds in training"
ORIGIN = "it says where the checkpoint comes from or how it was made"
SPEED = "it says how transformers computes the same numbers"
STORED = "the tensors say what they are stored in"
TOKENIZER = "it is about the tokenizer, which is read from its own files"
OTHER_HEAD = "it belongs to a head that is not this one"

EVERY_CONFIG: Mapping[str, str] = {
    **keys(STORED, "torch_dtype dtype"),
    **keys(TOKENIZER, "tokenizer_class prefix"),
    **keys("it names code of the repository, which is never run", "auto_map custom_pipelines"),
    **keys(ORIGIN, "transformers_version _name_or_path name_or_path _commit_hash transformers.js_config "
           "unsloth_version unsloth_fixed is_llama_config quantization_source finetuning_task _diffusers_version"),
    **keys("it says what a classifier was trained for", "problem_type"),
    **keys("settings of generation by task, which transformers reads from generation_config.json",
           "task_specific_params"),
    **keys(DROPOUT, "attention_dropout"),
    **keys(INITIAL, "initializer_range initializer_factor init_std"),
    **keys(SPEED, "_attn_implementation attn_implementation _attn_implementation_autoset experts_implementation "
           "_experts_implementation chunk_size_feed_forward use_cache cache_implementation use_bfloat16 torchscript "
           "tf_legacy_loss gradient_checkpointing distributed_config fusion_config"),
    **keys(EXTRA, "return_dict output_attentions output_hidden_states keys_to_ignore_at_inference output_past "
           "output_scores return_dict_in_generate tie_last_hidden_states"),
    **keys(GENERATION, "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
           "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
           "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences remove_invalid_values "
           "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens forced_decoder_ids max_new_tokens "
           "forced_bos_token_id forced_eos_token_id"),
}  # fmt: skip
"""Keys of config.json, whatever the family."""

FOLLOWED = frozenset(
    "architectures model_type id2label label2id is_encoder_decoder decoder_start_token_id "
    "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id".split()
)
"""Keys of config.json that others read: which family and head, the names of labels, the ids of tokens."""

REFUSED: Mapping[str, str] = {
    "quantization_config": "weights that are quantized in a form of their own are not read",
    "compression_config": "weights that are compressed in a form of their own are not read",
    "adapter_layers": "adapters inside the model are not supported",
    "per_layer_config": "settings of their own for some layers are not supported",
    "tie_encoder_decoder": "an encoder and a decoder with the same weights are not supported",
    "pruned_heads": "layers with fewer heads than others are not supported",
}
"""Keys of config.json that change what a model computes outside its own source: any value but null, false or empty."""
