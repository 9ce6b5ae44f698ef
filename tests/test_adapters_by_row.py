"""Several adapters over one base, chosen by row: every row against PEFT with that adapter alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import pytest
import torch
import transformers
from monograph.frontends.huggingface import load_folder
from monograph.inference.engine import Engine
from monograph.inference.generate import Settings
from monograph.ir import MonographError
from peft import LoraConfig, PeftModel, get_peft_model

Array = np.ndarray[Any, Any]
VOCAB = 48
SETTINGS: dict[str, dict[str, Any]] = {
    "a": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    "b": {"r": 5, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
    "c": {"r": 2, "lora_alpha": 9, "target_modules": ["k_proj", "down_proj"], "rank_pattern": {"k_proj": 7}},
}  # fmt: skip
GPT2 = {
    "a": {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    "b": {"r": 5, "lora_alpha": 4, "target_modules": ["c_attn", "mlp.c_proj", "c_fc"], "fan_in_fan_out": True},
}


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, **{"tie_word_embeddings": True, "hidden_size": 64, **changes},
        )
    )  # fmt: skip


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    )  # fmt: skip


class Adapted:
    """A base and its adapters, as PEFT writes and runs them."""

    def __init__(self, folder: Path, base: Any, settings: dict[str, dict[str, Any]], task: str = "CAUSAL_LM") -> None:
        torch.manual_seed(0)
        self.folder, self.names = folder, list(settings)
        self.base = base.eval()
        self.base.save_pretrained(folder / "base")
        for i, (name, given) in enumerate(settings.items()):
            torch.manual_seed(i + 1)
            copy = type(base).from_pretrained(folder / "base")
            model = get_peft_model(copy, LoraConfig(task_type=task, **given))
            for path, p in model.named_parameters():
                if "lora_" in path:
                    torch.nn.init.normal_(p, std=0.4)
            model.save_pretrained(folder / name)

    def folders(self) -> dict[str, Path]:
        return {n: self.folder / n for n in self.names}

    def reference(self, name: str | None) -> Any:
        copy = type(self.base).from_pretrained(self.folder / "base").eval()
        return copy if name is None else PeftModel.from_pretrained(copy, str(self.folder / name)).eval()

    def logits(self, name: str | None, ids: list[int]) -> Array:
        with torch.no_grad():
            return self.reference(name)(input_ids=torch.tensor([ids])).logits[0].numpy()

    def ids(self, name: str | None, prompt: list[int], count: int) -> list[int]:
        with torch.no_grad():
            found = self.reference(name).generate(
                input_ids=torch.tensor([prompt]),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Adapted, Engine]]:
    known: dict[str, tuple[Adapted, Engine]] = {}

    def get(kind: str) -> tuple[Adapted, Engine]:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            base, settings = (gpt2(), GPT2) if kind == "gpt2" else (llama(), SETTINGS)
            if kind == "biased":
                base = llama(attention_bias=True)
            adapted = Adapted(folder, base, settings)
            model = load_folder(folder / "base")
            engine = mg.build(model, folder / "built", adapters=adapted.folders(), threads=1)
            known[kind] = adapted, engine
        return known[kind]

    return get


KINDS = ("llama", "biased", "gpt2")
PROMPTS = [[5, 9, 13, 7], [3, 2], [1, 8, 30, 44, 21, 6, 17], [11, 12, 13], [4]]


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_of_a_mixed_batch_is_as_alone(made: Any, kind: str) -> None:
    adapted, engine = made(kind)
    names = [None, *adapted.names, adapted.names[0]][: len(PROMPTS)]
    rows = PROMPTS[: len(names)]
    numbers = [0 if n is None else adapted.names.index(n) + 1 for n in names]
    width = max(map(len, rows))
    right = np.array([r + [0] * (width - len(r)) for r in rows])
    last = engine.session.prefill(right, [len(r) for r in rows], {"adapter": numbers})
    stepped = engine.session.step(np.full(len(rows), 7))
    chunk = engine.session.append(np.array([[8, 9]] * len(rows)), every=True)
    left = np.array([[0] * (width - len(r)) + r for r in rows])
    mask = np.array([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    full = engine.run({"input_ids": left, "attention_mask": mask, "adapter": numbers})["logits"]
    for b, (name, row) in enumerate(zip(names, rows, strict=True)):
        wanted = adapted.logits(name, [*row, 7, 8, 9])
        np.testing.assert_allclose(last[b], wanted[-4], atol=1e-4)
        np.testing.assert_allclose(stepped[b], wanted[-3], atol=1e-4)
        np.testing.assert_allclose(chunk[b], wanted[-2:], atol=1e-4)
        np.testing.assert_allclose(full[b, width - len(row) :], wanted[:-3], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_the_base(made: Any, kind: str, tmp_path: Path) -> None:
    """Without an adapter the numbers are those of a build without any, to the last bit; projections stay packed."""
    adapted, engine = made(kind)
    plain = mg.build(load_folder(adapted.folder / "base"), tmp_path / "plain", threads=1)
    ids = np.array([PROMPTS[2], PROMPTS[2][::-1]])
    found, wanted = engine.run({"input_ids": ids})["logits"], plain.run({"input_ids": ids})["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert engine.report is not None
    assert plain.report is not None
    assert engine.report.attentions == plain.report.attentions
    assert engine.session.contract.adapters == tuple(adapted.names)
    layers = {"llama": 2 * 5, "biased": 2 * 5, "gpt2": 2 * 3}[kind]
    gathers, products = (
        [r.nodes["model.onnx"].get(op, 0) for r in (plain.report, engine.report)] for op in ("Gather", "MatMul")
    )
    assert gathers[1] - gathers[0] == 2 * layers
    assert products[1] - products[0] == 2 * layers


def test_one_packed_product_has_one_pair_of_stacks(made: Any) -> None:
    adapted, engine = made("llama")
    graph = onnx.load(adapted.folder / "built" / "model.onnx", load_external_data=False).graph
    stacks = {i.name: list(i.dims) for i in graph.initializer if "adapters" in i.name}
    packed = {k: v for k, v in stacks.items() if ".3.adapters." in k}
    assert len(packed) == 4
    assert sorted(packed.values()) == [[4, 5 + 7 + 5, 64 + 32 + 32]] * 2 + [[4, 64, 5 + 7 + 5]] * 2
    assert engine.report is not None
    assert engine.report.attentions["ort_group_query_attention"] == 2


def test_generation_by_name(made: Any) -> None:
    adapted, engine = made("llama")
    names = ["b", None, "a", "c", "b"]
    found = engine.generate(PROMPTS, adapter=names, max_new_tokens=8, eos=())
    for prompt, name, one in zip(PROMPTS, names, found, strict=True):
        assert one.ids == adapted.ids(name, prompt, 8)
    alone = engine.generate(PROMPTS[0], adapter="b", max_new_tokens=8, eos=())
    assert alone.ids == found[0].ids
    assert engine.generate(PROMPTS[0], max_new_tokens=8, eos=()).ids == adapted.ids(None, PROMPTS[0], 8)
    with pytest.raises(MonographError, match="no adapter is called 'd'"):
        engine.generate(PROMPTS[0], adapter="d")
    with pytest.raises(MonographError, match="2 adapters were given for 5 rows"):
        engine.generate(PROMPTS, adapter=["a", "b"])
    assert mg.verify(load_folder(adapted.folder / "base"), engine).passed
    with pytest.raises(MonographError, match="adapter holds 9"):
        engine.session.prefill(np.array([[1]]), [1], {"adapter": [9]})


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_quantized_base(made: Any, tmp_path: Path, weights: str) -> None:
    """Over integers by block the adapters stay in floats: each row is what its adapter makes of those very numbers."""
    adapted, _ = made("llama")
    model = load_folder(adapted.folder / "base")
    engine = mg.build(model, tmp_path / "built", quantize=weights, adapters=adapted.folders(), threads=1)
    assert engine.report is not None
    assert engine.report.nodes["model.onnx"].get("MatMulNBits")
    tokens, numbers = np.array([[5, 9, 13, 7]] * 4), [0, 1, 2, 3]
    together = engine.session.prefill(tokens, [4] * 4, {"adapter": numbers})
    exact = engine.session.another()
    for number, found in zip(numbers, together, strict=True):
        alone = exact.prefill(tokens[:1], [4], {"adapter": [number]})[0]
        np.testing.assert_allclose(found, alone, atol=1e-4)
    wide = [adapted.logits(n, [5, 9, 13, 7])[-1] for n in (None, *adapted.names)]
    near = [np.abs(together - w).mean(1).argmin() for w in wide]
    assert near == numbers  # Nearer to its own adapter over the wide base than any other row is.


def test_beams_and_guesses_keep_their_adapter(made: Any) -> None:
    adapted, engine = made("llama")
    names, rows, common = ["b", None, "c"], PROMPTS[:3], {"max_new_tokens": 8, "eos": ()}
    plain = engine.generate(rows, adapter=names, **common)
    assert [g.ids for g in engine.generate(rows, adapter=names, lookup=6, **common)] == [g.ids for g in plain]
    for name, row, one in zip(names, rows, engine.generate(rows, adapter=names, num_beams=3, **common), strict=True):
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "num_beams": 3}
        with torch.no_grad():
            found = adapted.reference(name).generate(input_ids=torch.tensor([row]), max_new_tokens=8, **settings)
        assert one.ids == found[0, len(row) :].tolist()


def test_in_the_scheduler(made: Any) -> None:
    """Rows of different adapters step together, and a prefix that one has read is no prefix of another."""
    adapted, engine = made("llama")
    names = [None, "a", "b", "c"] * 3
    prompt = [*PROMPTS[2], *PROMPTS[0], *PROMPTS[2]]
    wanted = {n: adapted.ids(n, prompt, 6) for n in set(names)}
    assert len({tuple(w) for w in wanted.values()}) > 2
    with engine.scheduler(rows=4) as scheduler:
        settings = Settings.of({"max_new_tokens": 6, "eos": ()})
        requests = [scheduler.submit(prompt, settings, adapter=name) for name in names]
        for name, request in zip(names, requests, strict=True):
            assert request.result(60).ids == wanted[name]
        with pytest.raises(MonographError, match="no adapter is called 'aa', did you mean 'a'"):
            scheduler.submit(prompt, settings, adapter="aa")


def test_behind_an_encoder(tmp_path: Path) -> None:
    """Both halves of an encoder-decoder take the adapter of the row."""
    t5 = transformers.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    settings = {"a": {"r": 3, "lora_alpha": 6, "target_modules": ["q", "v"]}, "b": {"r": 2, "target_modules": ["wi"]}}
    adapted = Adapted(tmp_path, transformers.T5ForConditionalGeneration(t5), settings, "SEQ_2_SEQ_LM")
    engine = mg.build(load_folder(tmp_path / "base"), tmp_path / "built", adapters=adapted.folders(), threads=1)
    names, source = [None, "b", "a"], [[5, 9, 13, 7], [3, 2, 4, 4], [1, 8, 30, 44]]
    found = engine.generate(source, adapter=names, max_new_tokens=6, eos=())
    for row, name, one in zip(source, names, found, strict=True):
        start = torch.tensor([[0, *one.ids]])
        with torch.no_grad():
            logits = adapted.reference(name)(input_ids=torch.tensor([row]), decoder_input_ids=start).logits[0]
        assert logits.argmax(-1).tolist()[:-1] == one.ids


@pytest.mark.parametrize(("changes", "said"), [
    ({"use_dora": True}, "DoRA"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding"),
    ({"modules_to_save": ["lm_head"]}, "whole weight"),
    ({"lora_bias": True, "target_modules": ["q_proj"]}, "bias"),
])  # fmt: skip
def test_what_cannot_be_chosen_by_row(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    untied = {"tie_word_embeddings": False, "attention_bias": "lora_bias" in changes}
    adapted = Adapted(tmp_path, llama(**untied), {"a": {**SETTINGS["a"], **changes}})
    with pytest.raises(MonographError, match="adapter a is more than A and B") as caught:
        mg.build(load_folder(tmp_path / "base"), tmp_path / "built", adapters=adapted.folders())
    assert said in str(caught.value)
    assert not (tmp_path / "built").exists()


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    adapted = Adapted(tmp_path, llama(), {"a": SETTINGS["a"]})
    other = llama(hidden_size=32)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MonographError, match="does not fit"):
        mg.build(load_folder(tmp_path / "other"), tmp_path / "built", adapters=adapted.folders())
    said = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    said["task_type"] = "SEQ_CLS"
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(MonographError, match="is for sequence-classification"):
        mg.build(load_folder(tmp_path / "base"), tmp_path / "built", adapters=adapted.folders())
