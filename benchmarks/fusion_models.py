"""Tiny models of transformers with random weights for fusion_coverage.py, their inputs, and what is in them.

Run by the environment of the exporters; nothing here reads Monograph.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 64, "type_vocab_size": 2, "n_embd": 32, "n_layer": 2,
    "n_head": 4, "n_positions": 64, "dim": 32, "hidden_dim": 40, "n_heads": 4, "n_layers": 2, "ffn_dim": 40,
    "word_embed_proj_dim": 32, "head_dim": 8, "sliding_window": 5, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "decoder_start_token_id": 1, "forced_eos_token_id": None,
    "image_size": 12, "patch_size": 4, "embedding_size": 24, "projection_dim": 24,
}  # fmt: skip
"""Given to every configuration that has a field of the name. Heads, key and value heads and lengths are all different
from one another where a model allows it."""


def quiet() -> None:
    """What a worker sets before it makes files: one thread, no hub, nothing printed but what it prints itself."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"


@dataclass(frozen=True)
class Kind:
    """One architecture. inputs: of INPUTS. sizes: beside SIZES. auto: the class that makes it. output: the one that is
    compared. type: of its configuration, if that is not its name. without: keys of SIZES that mean something else."""

    group: str
    auto: str
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    sizes: dict[str, Any] = field(default_factory=dict[str, Any])
    output: str | int = 0
    type: str = ""
    without: tuple[str, ...] = ()


def _text(**sizes: Any) -> Kind:
    return Kind("encoder", "AutoModel", sizes=sizes)


def _causal(**sizes: Any) -> Kind:
    return Kind("decoder", "AutoModelForCausalLM", sizes=sizes)


def _pair(**sizes: Any) -> Kind:
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return Kind("encoder-decoder", "AutoModelForSeq2SeqLM", names, sizes)


def _image(output: str | int = 0, **sizes: Any) -> Kind:
    return Kind("vision", "AutoModel", ("pixel_values",), sizes, output)


DEEPSEEK: dict[str, Any] = {
    "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 20, "num_key_value_heads": 4,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, Kind] = {
    "bert": _text(), "roberta": _text(), "distilbert": _text(), "electra": _text(), "albert": _text(), "mpnet": _text(),
    "deberta-v2": _text(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
                        max_relative_positions=16, share_att_key=True, norm_rel_ebd="layer_norm"),
    "deberta": _text(relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=16),
    "xlm-roberta": _text(), "nomic_bert": _text(),
    "modernbert": _text(local_attention=6, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2),
    "gpt2": _causal(), "gpt_neo": _causal(attention_types=[[["global", "local"], 1]], window_size=5),
    "gpt_neox": _causal(rotary_pct=0.5), "gptj": _causal(rotary_dim=4), "opt": _causal(), "bloom": _causal(),
    "falcon": replace(_causal(), without=("head_dim",)),
    "falcon-alibi": replace(_causal(alibi=True), type="falcon", without=("head_dim",)),
    "mpt": _causal(max_seq_len=64), "llama": _causal(), "mistral": _causal(), "qwen2": _causal(), "qwen3": _causal(),
    "gemma": _causal(), "gemma2": _causal(query_pre_attn_scalar=16), "phi": _causal(partial_rotary_factor=0.5),
    "gemma3_text": _causal(query_pre_attn_scalar=16, sliding_window_pattern=2), "phi3": _causal(),
    "olmo2": _causal(), "cohere": _causal(), "stablelm": _causal(partial_rotary_factor=0.5), "granite": _causal(),
    "starcoder2": _causal(), "gpt_oss": _causal(**EXPERTS),
    "deepseek_v3": replace(_causal(**DEEPSEEK), without=("head_dim",)),
    "mixtral": _causal(**EXPERTS),
    "t5": _pair(), "bart": _pair(), "marian": _pair(decoder_vocab_size=50), "pegasus": _pair(), "mbart": _pair(),
    "whisper": Kind("encoder-decoder", "AutoModelForSpeechSeq2Seq", ("input_features", "decoder_input_ids"),
                    {"num_mel_bins": 6, "max_source_positions": 10, "max_target_positions": 64},
                    without=("num_key_value_heads",)),
    "vit": _image(), "deit": _image(), "dinov2": _image(),
    "clip_text_model": _text(), "clip_vision_model": _image("pooler_output"),
    "siglip_text_model": replace(_text(), auto="SiglipTextModel"),
    "siglip_vision_model": _image("pooler_output"),
    "swin": replace(_image(image_size=32, patch_size=2, window_size=4, depths=[2, 2], num_heads=[2, 4], embed_dim=16),
                    without=("num_attention_heads", "num_hidden_layers", "num_layers", "hidden_size")),
}  # fmt: skip
"""Whisper's features have one length, and images one size, as the models want them."""


def config_of(name: str) -> Any:
    kind = KINDS[name]
    plain = transformers.AutoConfig.for_model(kind.type or name)
    wanted = {**SIZES, **kind.sizes}
    known = {k: v for k, v in wanted.items() if k in kind.sizes or (hasattr(plain, k) and k not in kind.without)}
    return type(plain)(**known)


def model_of(name: str) -> Any:
    """The model, the same each time; weights large enough that every token and mask shows in the outputs."""
    torch.manual_seed(0)
    kind = KINDS[name]
    made = getattr(transformers, kind.auto)
    model = (made.from_config if "Auto" in kind.auto else made)(config_of(name)).eval()
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            if p.dim() > 1:
                p.normal_(0, 1.5 / np.sqrt(p.shape[-1]))
            else:
                p.add_(torch.randn(p.shape) * (0.2 if key.endswith("weight") else 0.3))
    return model


@dataclass(frozen=True)
class Trial:
    mask: str
    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.mask}, batch {self.batch}, length {self.length}"


TRIALS = (
    Trial("ones", 1, 9), Trial("ones", 3, 9), Trial("right", 3, 9), Trial("left", 3, 9), Trial("hole", 3, 9),
    Trial("left", 1, 13), Trial("right", 3, 13),
)  # fmt: skip


def kept_of(trial: Trial) -> np.ndarray[Any, Any]:
    """Which tokens count [batch, length]: rows differ in how many do not."""
    kept = np.ones((trial.batch, trial.length), np.int64)
    for row in range(trial.batch):
        n = 1 + (row * 2 + 1) % 5
        where = {"ones": slice(0, 0), "right": slice(-n, None), "left": slice(0, n), "hole": slice(2, 2 + n)}
        kept[row, where[trial.mask]] = 0
    return kept


def inputs_of(name: str, trial: Trial) -> dict[str, Any]:
    kind, config = KINDS[name], config_of(name)
    rng = np.random.default_rng(trial.batch * 100 + trial.length)
    made: dict[str, Any] = {}
    for given in kind.inputs:
        if given == "attention_mask":
            made[given] = kept_of(trial)
        elif given == "input_ids":
            made[given] = rng.integers(3, 50, (trial.batch, trial.length))
        elif given == "decoder_input_ids":
            made[given] = rng.integers(3, 50, (trial.batch, trial.length - 2))
        elif given == "pixel_values":
            made[given] = rng.standard_normal((trial.batch, 3, config.image_size, config.image_size))
        else:
            made[given] = rng.standard_normal((trial.batch, config.num_mel_bins, 2 * config.max_source_positions))
    return {k: v.astype(np.float32 if v.dtype.kind == "f" else np.int64) for k, v in made.items()}


def trials_of(name: str) -> list[Trial]:
    """Those that differ for a model: without a mask only the sizes do."""
    masked = "attention_mask" in KINDS[name].inputs
    text = any("ids" in i for i in KINDS[name].inputs)
    seen: dict[tuple[Any, ...], Trial] = {}
    for t in TRIALS:
        seen.setdefault((t.mask if masked else "", t.batch, t.length if text else 0), t)
    return list(seen.values())


class Plain(torch.nn.Module):
    """One output of a model from its inputs in order, without a cache."""

    def __init__(self, name: str, model: Any) -> None:
        super().__init__()
        self.kind, self.model = KINDS[name], model
        takes = inspect.signature(model.forward).parameters
        self.off: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}

    def forward(self, *given: Any) -> Any:
        return self.model(**dict(zip(self.kind.inputs, given, strict=True)), **self.off)[self.kind.output]


class Inside(TorchDispatchMode):
    """Counts what runs inside of modules whose class is an attention: one for each softmax or fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[Any] = []
        self.attention = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if ("softmax" in name or "scaled_dot_product" in name) and any(
            "Attention" in type(m).__name__ for m in self.stack
        ):
            self.attention += 1
        return func(*args, **(kwargs or {}))


def totals_of(model: Any, forward: Callable[..., Any], given: Sequence[Any]) -> dict[str, int]:
    """What a forward of these tensors computes: attentions, norms (of modules of a class named so, unless they norm
    weights alone), and tensors that are rotated."""
    attention, normed, turned = passed(model, forward, given)
    _, others, _ = passed(model, forward, [v.flip(-1) for v in given])
    norms = sum(not torch.equal(x, y) for x, y in zip(normed, others, strict=True))
    return {"attention": attention, "norms": norms, "rotary": turned}


def passed(model: Any, forward: Callable[..., Any], given: Sequence[Any]) -> tuple[int, list[Any], int]:
    """Attentions of a forward, what its norms are given, and how many tensors it rotates."""
    counter, normed, turned = Inside(), list[Any](), [0]
    hooks: list[Any] = []

    def enter(module: Any, args: Any) -> None:
        counter.stack.append(module)
        kind = type(module).__name__
        if "Norm" in kind and "Batch" not in kind and not list(module.children()):
            normed.append(args[0])

    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(lambda *_: counter.stack.pop() and None, always_call=True))
    with torch.no_grad(), counting_rotations(model, turned), counter:
        forward(*given)
    for hook in hooks:
        hook.remove()
    return counter.attention, normed, turned[0]


@contextlib.contextmanager
def counting_rotations(model: Any, turned: list[int]) -> Iterator[None]:
    """Count the tensors that the functions of a model's file rotate by position."""
    inside = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inside[0] += 1
            made = function(*args, **kwargs)
            inside[0] -= 1
            if not inside[0]:
                turned[0] += len(made) if isinstance(made, tuple) else 1
            return made

        return call

    with contextlib.ExitStack() as stack:
        for place in {type(m).__module__ for m in model.modules() if "transformers" in type(m).__module__}:
            module = importlib.import_module(place)
            for key in [k for k in vars(module) if k.startswith(("apply_rotary", "apply_multimodal_rotary"))]:
                stack.enter_context(mock.patch.object(module, key, counted(getattr(module, key))))
        yield


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """Inputs by name, what PyTorch makes of them, and masks of the tokens that count [batch, tokens]."""

    label: str
    inputs: dict[str, Any]
    eager: Any
    kept: tuple[Any, ...] = ()


def save(path: Path, trials: Sequence[Tried]) -> None:
    arrays: dict[str, Any] = {"labels": np.array([t.label for t in trials])}
    for i, t in enumerate(trials):
        arrays |= {f"{i}/inputs/{k}": v for k, v in t.inputs.items()}
        arrays |= {f"{i}/kept/{k}": v for k, v in enumerate(t.kept)} | {f"{i}/eager": t.eager}
    np.savez(path, **arrays)


def opened(path: Path) -> list[Tried]:
    with np.load(path) as file:
        arrays = dict(file)
    found: list[Tried] = []
    for i, label in enumerate(arrays["labels"].tolist()):
        inputs = {k.split("/", 2)[2]: v for k, v in arrays.items() if k.startswith(f"{i}/inputs/")}
        kept = tuple(v for k, v in arrays.items() if k.startswith(f"{i}/kept/"))
        found.append(Tried(label, inputs, arrays[f"{i}/eager"], kept))
    return found


LONGEST = 400
"""Seconds that one export or optimization may take."""


def once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file that is not there; a failure is noted, also one that ends the process."""
    failed = path.with_suffix(".failed")
    if path.exists() or failed.exists():
        return
    failed.write_text("the process ended")
    part = path.with_name(f"part-{path.name}")
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"not done after {LONGEST} s")))
    signal.alarm(LONGEST)
    try:
        make(part)
    except Exception as e:
        failed.write_text(f"{type(e).__name__}: {(innermost(e).splitlines() or [''])[0]}"[:300])
        return
    finally:
        signal.alarm(0)
    part.replace(path)
    failed.unlink()
    print(path.parent.name, path.name, flush=True)


def innermost(error: BaseException) -> str:
    """What was raised first, of a chain of errors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(error).strip()
