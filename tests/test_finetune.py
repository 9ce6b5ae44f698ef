"""Fine-tuning: which tokens count, what is trained, and the losses of DPO and distillation against their formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monograph.backends.torch import to_inputs, to_torch
from monograph.cli import app
from monograph.data.batch import Batch
from monograph.data.byte_level import train_tokenizer
from monograph.data.errors import CorpusError
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.huggingface import load_folder, save_pretrained
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, PassError, WeightsError
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from monograph.training.adapters import Adapter, Lora
from monograph.training.corpus import Corpus
from monograph.training.distill import distillation_loss
from monograph.training.dpo import Preferences, accuracy, dpo_loss, encode_pair, log_probabilities, rewards
from monograph.training.finetune import distill, dpo, finetune, tuning_settings
from monograph.training.instruct import Instructions, Row, encode_chat, encode_row, pad, read_jsonl, shuffled
from monograph.training.loop import Run
from monograph.training.lora import LoraWeights
from monograph.training.loss import with_loss
from monograph.training.preference import PreferenceLoss
from monograph.training.progress import Step
from typer.testing import CliRunner

pytestmark = pytest.mark.slow

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "yellow"}
QUIET: dict[str, Any] = {"progress": False, "device": "cpu", "length": 64, "batch": 6}


def talk(question: str, answer: str) -> dict[str, Any]:
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return {"messages": [user, assistant]}


ROWS = [talk(f"colour of {thing}?", colour) for thing, colour in COLOURS.items()]
TURNED = [*list(COLOURS.values())[1:], "blue"]
WRONG = [talk(f"colour of {thing}?", colour) for thing, colour in zip(COLOURS, TURNED, strict=True)]
PAIRS = [
    {
        "prompt": row["messages"][:1],
        "chosen": row["messages"][1:],
        "rejected": [{"role": "assistant", "content": "grey"}],
    }
    for row in ROWS
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    saved = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(saved)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = train_tokenizer(" ".join(r["messages"][0]["content"] for r in ROWS) + " assistant user grey", 300)
    made.core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(made.core, {"eos_token": "<|im_end|>", "chat_template": CHATML})


@pytest.fixture(scope="module")
def taught(tokenizer: Tokenizer) -> Model:
    """A base model, which knows wrong answers."""
    data = Instructions.of(tokenizer, WRONG)
    return finetune(tiny(), data, steps=100, learning_rate=1e-2, **QUIET).model


def tiny(seed: int = 0, **changes: Any) -> Model:
    settings = {"vocab": 302, "dim": 32, "ffn": 64, "layers": 2, "heads": 4, "kv_heads": 2, "tied": True, **changes}
    model = load_family("llama")(**settings)
    model.weights = Weights.initialize(model.graph(), seed)
    return model


def logits_of(model: Model, batch: Batch) -> np.ndarray:
    """By the NumPy reference."""
    assert model.weights is not None
    graph = model.graph()
    params = {k: model.weights.numpy(k) for k in graph.params}
    return interpret(graph, {k: batch[k] for k in graph.inputs}, params)["logits"].astype(np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def mean_loss(model: Model, batch: Batch) -> float:
    chosen = np.take_along_axis(log_softmax(logits_of(model, batch)), np.maximum(batch["labels"], 0)[..., None], -1)
    return -float(chosen[..., 0][batch["labels"] >= 0].mean())


def answers(model: Model, tokenizer: Tokenizer) -> list[str]:
    """What the model says to each question, greedily, by the reference."""
    found = []
    for row in ROWS:
        ids = tokenizer.encode(tokenizer.chat(row["messages"][:1]), add_special=False)
        start = len(ids)
        for _ in range(8):
            n = len(ids)
            batch = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, n), np.int64)}
            following = int(logits_of(model, {**batch, "position_ids": np.arange(n)[None]})[0, -1].argmax())
            if following == tokenizer.eos_id:
                break
            ids.append(following)
        found.append(tokenizer.decode(ids[start:]))
    return found


# -- which tokens count ------------------------------------------------------------------------------------------------


def test_only_the_answers_of_a_chat_count(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *ROWS[0]["messages"], *ROWS[1]["messages"]]
    row = encode_chat(tokenizer, messages)
    assert tokenizer.decode(row.ids, skip_special=False) == tokenizer.chat(messages, add_generation_prompt=False)
    said = [i for i, counts in zip(row.ids, row.said, strict=True) if counts]
    assert tokenizer.decode(said, skip_special=False) == "blue<|im_end|>\ngreen<|im_end|>\n"


def test_completions_count_with_their_end(tokenizer: Tokenizer) -> None:
    row = encode_row(tokenizer, {"prompt": "the sky is", "completion": " blue"})
    said = [i for i, counts in zip(row.ids, row.said, strict=True) if counts]
    assert tokenizer.decode(said, skip_special=False) == " blue<|im_end|>"
    assert tokenizer.decode(row.ids) == "the sky is blue"
    whole = encode_row(tokenizer, {"prompt": PAIRS[0]["prompt"], "completion": PAIRS[0]["chosen"]})
    assert whole == encode_row(tokenizer, ROWS[0])


def test_rows_that_cannot_be_used_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for row, message in (
        ({"messages": ROWS[0]["messages"][:1]}, "none of 1 messages is the assistant's"),
        ({"text": "x"}, "has keys text; expected messages, or prompt and completion"),
        ({"messages": []}, "has keys messages"),
    ):
        with pytest.raises(CorpusError, match=f"rows: row 2: {message}"):
            Instructions.of(tokenizer, [ROWS[0], row])
    thinking = CHATML.replace("m.content", "m.content if loop.last else '...'")
    forgetful = Tokenizer(tokenizer.core, {**tokenizer.settings, "chat_template": thinking})
    with pytest.raises(CorpusError, match="the chat template writes messages 1 to 2 of 4 differently when more follow"):
        encode_chat(forgetful, [*ROWS[0]["messages"], *ROWS[1]["messages"]])
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n{broken\n")
    with pytest.raises(CorpusError, match=r"rows.jsonl:3: is not JSON"):
        read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(CorpusError, match=r"rows.jsonl:1: is a JSON list, not an object"):
        read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n\xff\n')
    with pytest.raises(CorpusError, match="is not UTF-8"):
        read_jsonl(path)
    path.write_text("\n")
    with pytest.raises(CorpusError, match="has no rows"):
        read_jsonl(path)
    with pytest.raises(CorpusError, match="there is no such file"):
        read_jsonl(tmp_path / "nothing")


def test_batches_are_shifted_and_padded_on_the_right() -> None:
    rows = [Row((5, 6, 7, 8), (False, False, True, True)), Row((9, 4), (True, True))]
    batch = pad(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 7, 8], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2]] * 2


def test_padding_does_not_change_the_loss(tokenizer: Tokenizer) -> None:
    data = Instructions.of(tokenizer, [*ROWS[:2], talk("colour of grass and of snow?", "green, white")])
    model = tiny()
    module = to_torch(with_loss(model.graph()), model.weights)
    (batch,) = (next(data.batches(3, 64)),)
    assert not batch["attention_mask"].all()
    alone = [pad([row]) for row in data.rows]
    counts = [int((b["labels"] >= 0).sum()) for b in alone]
    losses = [module(**to_inputs(b))["loss"].item() for b in alone]
    assert module(**to_inputs(batch))["loss"].item() == pytest.approx(np.average(losses, weights=counts), abs=1e-5)


def test_long_rows_are_cut_and_rows_without_an_answer_left_out(tokenizer: Tokenizer) -> None:
    long = talk("colour of sky? " * 20, "blue")
    data = Instructions.of(tokenizer, [long, ROWS[0], ROWS[1]], held_out=0.3)
    assert len(data.rows) == 2
    batch = next(data.batches(4, 40))
    assert batch["input_ids"].shape[1] <= 40
    assert len({tuple(r) for r in batch["input_ids"]}) == 1, "only the short row is left"
    with pytest.raises(CorpusError, match="none of 2 rows has a token to learn within its first 3"):
        next(data.batches(4, 3))
    with pytest.raises(CorpusError, match="1 rows are too few to train on and to hold out 50%"):
        Instructions.of(tokenizer, ROWS[:1], held_out=0.5)
    with pytest.raises(CorpusError, match="the held-out share is 1"):
        Instructions.of(tokenizer, ROWS, held_out=1)


def test_every_pass_sees_every_row_once_in_another_order() -> None:
    def take(n: int, **settings: int) -> list[int]:
        batches = shuffled(10, 4, **{"seed": 1, "start": 0, **settings})
        return [i for _ in range(n) for i in next(batches)]

    first = take(5)
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10] != first[10:]
    assert take(3, start=2) == first[8:]
    assert take(5, seed=2) != first


# -- all weights, and a LoRA -------------------------------------------------------------------------------------------


def test_all_weights_learn_the_answers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = Instructions.of(tokenizer, ROWS)
    tuned = finetune(tiny(), data, steps=100, learning_rate=1e-2, folder=tmp_path, **QUIET)
    assert tuned.adapter is None
    loaded = load_folder(tmp_path)
    assert answers(loaded, loaded.tokenizer) == list(COLOURS.values())
    assert mean_loss(tuned.model, next(data.batches(6, 64))) < 0.05


def test_a_lora_learns_the_answers_and_leaves_the_base_alone(
    tokenizer: Tokenizer, taught: Model, tmp_path: Path
) -> None:
    assert answers(taught, tokenizer) == TURNED
    data = Instructions.of(tokenizer, [*ROWS, ROWS[0]], held_out=0.1)
    model, history = taught, list[Step]()
    assert model.weights is not None
    before = {k: model.weights.numpy(k).copy() for k in model.weights}
    lora = Lora(rank=8, alpha=16.0, dropout=0.05)
    settings = {**QUIET, "steps": 60, "learning_rate": 1e-2, "observe": history.append, "folder": tmp_path}
    tuned = finetune(model, data, lora=lora, **settings)
    assert tuned.adapter is not None
    assert answers(tuned.model, tokenizer) == list(COLOURS.values())
    for k, x in before.items():
        np.testing.assert_array_equal(model.weights.numpy(k), x)
    held_out = next(data.held_out_batches(1, 64))
    assert mean_loss(tuned.model, held_out) == pytest.approx(history[-1].held_out, abs=1e-4)
    names = {"adapter_config.json", "adapter_model.safetensors"}
    assert {p.name for p in tmp_path.iterdir()} == names | {"checkpoints", "log.jsonl", "loss.png"}
    kept = max((tmp_path / "checkpoints").iterdir())
    assert {p.name for p in kept.iterdir()} == names | {"optimizer.safetensors", "state.json"}
    loaded = Adapter.load(tmp_path)
    assert loaded.lora == lora
    np.testing.assert_array_equal(logits_of(loaded.merged(model), held_out), logits_of(tuned.model, held_out))
    moments = Weights.open(kept / "optimizer.safetensors")
    assert {k.split(".", 1)[1] for k in moments} == set(loaded.weights)


def test_gradients_of_an_adapter_are_those_of_the_merged_weight(tokenizer: Tokenizer) -> None:
    """dB = s dW A^T and dA = s B^T dW, with dW the gradient of the merged weight. (Hu et al. 2021, equation 3)"""
    model, lora = tiny(), Lora(rank=3, alpha=4.5, targets=("q_proj", "down_proj"))
    graph = model.graph()
    lora.insert(graph)
    adapter = Adapter(lora, Weights.of({k: v for k, v in random_params(graph).items() if "lora_" in k}))
    batch = to_inputs(next(Instructions.of(tokenizer, ROWS).batches(4, 64)))
    graph, weights = adapter.beside(model)
    beside, merged = (
        to_torch(with_loss(graph), weights),
        to_torch(with_loss(model.graph()), adapter.merged(model).weights),
    )
    for module in (beside, merged):
        module(**batch)["loss"].backward()
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        a, b = (beside.get_parameter(f"{name}.lora_{x}.weight") for x in "AB")
        whole = merged.get_parameter(f"{name}.weight").grad
        assert whole is not None
        torch.testing.assert_close(b.grad, 1.5 * whole @ a.T, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(a.grad, 1.5 * b.T @ whole, atol=1e-6, rtol=1e-4)


def test_a_resumed_lora_goes_on_exactly(tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: Step) -> None:
        if step.step == 5:
            raise Stop

    data, lora = Instructions.of(tokenizer, ROWS), Lora(rank=2, targets=("q_proj", "v_proj"), dropout=0.1)
    settings = {**QUIET, "lora": lora, "steps": 8, "learning_rate": 1e-2, "evaluate_every": 4}
    whole = finetune(tiny(), data, **settings).adapter
    with pytest.raises(Stop):
        finetune(tiny(), data, folder=tmp_path, observe=stop, **settings)
    resumed = finetune(tiny(), data, folder=tmp_path, resume=True, **settings).adapter
    assert whole is not None
    assert resumed is not None
    for k in whole.weights:
        np.testing.assert_array_equal(resumed.weights.numpy(k), whole.weights.numpy(k), err_msg=k)
    with pytest.raises(ConfigError, match=r"holds Lora\(rank=2, .*, not Lora\(rank=4"):
        finetune(tiny(), data, folder=tmp_path, resume=True, **{**settings, "lora": Lora(rank=4)})


def test_a_text_fine_tunes_too(tokenizer: Tokenizer, taught: Model) -> None:
    corpus = Corpus.of("the sky is blue. " * 200, tokenizer, held_out=0.0)
    history: list[Step] = []
    settings = {**QUIET, "length": 16, "observe": history.append}
    finetune(taught, corpus, lora=Lora(), steps=30, learning_rate=2e-2, **settings)
    assert history[-1].loss < history[0].loss - 1


def test_what_cannot_be_fine_tuned(tokenizer: Tokenizer) -> None:
    data = Instructions.of(tokenizer, ROWS)
    empty = tiny()
    empty.weights = None
    with pytest.raises(WeightsError, match="llama has no weights to fine-tune"):
        finetune(empty, data, steps=1, **QUIET)
    with pytest.raises(PassError, match="target 'c_attn' names no linear layer"):
        finetune(tiny(), data, lora=Lora(targets=("c_attn",)), steps=1, **QUIET)
    with pytest.raises(ConfigError, match="the model has 280 tokens but the tokenizer of the data has 300"):
        finetune(tiny(vocab=280), data, steps=1, **QUIET)
    with pytest.raises(ConfigError, match="beta is 0"):
        dpo(tiny(), Preferences.of(tokenizer, PAIRS), beta=0, steps=1, **QUIET)
    with pytest.raises(ConfigError, match="temperature is 0"):
        distill(tiny(), tiny(), data, temperature=0, steps=1, **QUIET)
    with pytest.raises(ConfigError, match=r"the student has 302 tokens .*; the teacher 310"):
        distill(tiny(), tiny(vocab=310), data, steps=1, **QUIET)


def test_a_lora_on_a_base_in_8_bits(tokenizer: Tokenizer, taught: Model) -> None:
    data, history = Instructions.of(tokenizer, ROWS), list[Step]()
    lora = Lora(rank=8, alpha=16.0)
    settings = {**QUIET, "steps": 60, "learning_rate": 1e-2, "observe": history.append}
    tuned = finetune(taught, data, lora=lora, quantized=True, **settings)
    assert answers(tuned.model, tokenizer) == list(COLOURS.values())
    adapter = LoraWeights(taught, data, lora, quantized=True)
    module = Run(taught, data, tuning_settings("lora", steps=1, length=64, batch=6, device="cpu"), trained=adapter)
    module = module.learner.module
    held = {k: t for k, t in module.state_dict().items() if k.endswith("_proj.weight")}
    assert {t.dtype for t in held.values()} == {torch.uint8}
    assert {k: str(t.encoding) for k, t in module.encoded.items()} == dict.fromkeys(held, "int8")
    assert {k for k, p in module.named_parameters() if p.requires_grad} == adapter.names
    with pytest.raises(ConfigError, match="quantized weights cannot be trained: give a LoRA"):
        finetune(taught, data, quantized=True, steps=1, **QUIET)


# -- direct preference optimisation ------------------------------------------------------------------------------------


def test_dpo_loss_by_hand() -> None:
    policy, reference = torch.tensor([-1.0, -2.0, -3.0, -1.5]), torch.tensor([-1.5, -2.0, -2.0, -3.0])
    # Pair 1: chosen gained 0.5, rejected lost 1: margin 1.5. Pair 2: chosen 0, rejected gained 1.5: margin -1.5.
    np.testing.assert_allclose(rewards(policy, reference, 0.2).numpy(), [0.3, -0.3], rtol=1e-6)
    want = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(0.3))) / 2
    assert dpo_loss(policy, reference, 0.2).item() == pytest.approx(want, rel=1e-6)
    assert dpo_loss(policy, policy, 0.2).item() == pytest.approx(math.log(2), rel=1e-6)
    assert accuracy(rewards(policy, reference, 0.2).numpy()) == 0.5


def test_gradient_of_dpo_is_weighted_by_how_wrong_the_reward_is() -> None:
    """-beta * sigmoid(-margin) on the chosen, + on the rejected. (Rafailov et al. 2023, section 4)"""
    policy = torch.tensor([-1.0, -3.0], requires_grad=True)
    dpo_loss(policy, torch.tensor([-2.0, -1.0]), 0.5).backward()
    weight = 0.5 / (1 + math.exp(0.5 * ((-1 + 2) - (-3 + 1))))
    np.testing.assert_allclose(policy.grad, [-weight, weight], rtol=1e-6)


def test_log_probabilities_of_answers(tokenizer: Tokenizer) -> None:
    batch = next(Preferences.of(tokenizer, PAIRS).batches(2, 64))
    model = tiny()
    logits = logits_of(model, batch)
    found = log_probabilities(torch.from_numpy(logits), torch.from_numpy(batch["labels"])).numpy()
    for row in range(4):
        at = np.flatnonzero(batch["labels"][row] >= 0)
        want = sum(log_softmax(logits[row, t])[batch["labels"][row, t]] for t in at)
        assert found[row] == pytest.approx(want, rel=1e-5)


def test_pairs_are_texts_or_conversations(tokenizer: Tokenizer) -> None:
    chosen, rejected = encode_pair(tokenizer, PAIRS[0])
    for row, said in ((chosen, "blue<|im_end|>\n"), (rejected, "grey<|im_end|>\n")):
        counted = [i for i, counts in zip(row.ids, row.said, strict=True) if counts]
        assert tokenizer.decode(counted, skip_special=False) == said
    whole = {k: [*PAIRS[0]["prompt"], *PAIRS[0][k]] for k in ("chosen", "rejected")}
    assert encode_pair(tokenizer, whole) == (chosen, rejected)
    several = {k: [*ROWS[1]["messages"], *x] for k, x in whole.items()}
    last = encode_pair(tokenizer, several)[0]
    counted = [i for i, counts in zip(last.ids, last.said, strict=True) if counts]
    assert tokenizer.decode(counted, skip_special=False) == "blue<|im_end|>\n", "only the last answer counts"
    texts = encode_pair(tokenizer, {"prompt": "sky:", "chosen": " blue", "rejected": " grey"})
    assert [tokenizer.decode(r.ids) for r in texts] == ["sky: blue", "sky: grey"]
    with pytest.raises(CorpusError, match="row 1: has keys chosen; expected prompt, chosen and rejected"):
        Preferences.of(tokenizer, [{"chosen": "x"}])
    same = [{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}]
    with pytest.raises(CorpusError, match="none of 1 pairs differs"):
        next(Preferences.of(tokenizer, same).batches(1, 64))


@pytest.mark.parametrize("lora", [None, Lora(rank=4, dropout=0.1)], ids=["all", "lora"])
def test_dpo_starts_at_log_2_and_learns_to_prefer(tokenizer: Tokenizer, lora: Lora | None) -> None:
    data = Preferences.of(tokenizer, [*PAIRS, PAIRS[0]], held_out=0.1)
    model, history = tiny(), list[Step]()
    rate = 2e-2 if lora else 2e-3
    settings = {**QUIET, "learning_rate": rate, "warmup": 0, "observe": history.append}
    tuned = dpo(model, data, beta=0.3, lora=lora, steps=25, **settings)
    assert history[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert history[-1].loss < 0.5
    batch = next(data.batches(6, 64))
    labels = torch.from_numpy(batch["labels"])
    after, before = (log_probabilities(torch.from_numpy(logits_of(m, batch)), labels) for m in (tuned.model, model))
    assert accuracy(rewards(after, before, 0.3).numpy()) == 1.0
    held_out = next(data.held_out_batches(1, 64))
    labels = torch.from_numpy(held_out["labels"])
    both = [log_probabilities(torch.from_numpy(logits_of(m, held_out)), labels) for m in (tuned.model, model)]
    assert history[-1].held_out == pytest.approx(dpo_loss(*both, 0.3).item(), abs=1e-4)


def test_the_reference_of_a_lora_is_the_model_without_it(tokenizer: Tokenizer) -> None:
    data, model = Preferences.of(tokenizer, PAIRS), tiny()
    adapter = LoraWeights(model, data, Lora(dropout=0.5))
    objective = PreferenceLoss(model, data, 0.1, adapter)
    settings = tuning_settings("dpo", steps=5, length=64, batch=2, device="cpu")
    learner = Run(model, data, settings, objective=objective, trained=adapter).learner
    with torch.no_grad():
        for name, p in learner.module.named_parameters():
            if name.endswith("lora_B.weight"):
                p.normal_()
    batch = next(data.batches(2, 64))
    learner.module.train()
    policy, reference = objective.both(learner, batch)
    want = log_probabilities(torch.from_numpy(logits_of(model, batch)), torch.from_numpy(batch["labels"]))
    np.testing.assert_allclose(reference.numpy(), want.numpy(), atol=1e-3)
    assert (policy - reference).abs().max() > 0.01
    assert policy.requires_grad
    assert not reference.requires_grad
    assert learner.module.training, "the mode is put back"


# -- distillation ------------------------------------------------------------------------------------------------------


def test_distillation_loss_by_its_formula() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = rng.standard_normal((2, 2, 3, 5))
    labels = np.array([[1, -100, 4], [0, 2, -100]])
    soft = hard = 0.0
    for b, s in zip(*np.nonzero(labels >= 0), strict=True):
        p, q = log_softmax(theirs[b, s] / 3.0), log_softmax(mine[b, s] / 3.0)
        soft += float((np.exp(p) * (p - q)).sum()) / 4
        hard -= float(log_softmax(mine[b, s])[labels[b, s]]) / 4
    tensors = [torch.from_numpy(x).float() for x in (mine, theirs)]
    for share in (0.0, 0.3, 1.0):
        found = distillation_loss(*tensors, torch.from_numpy(labels), 3.0, share).item()
        assert found == pytest.approx((1 - share) * 9.0 * soft + share * hard, rel=1e-5)
    same = distillation_loss(tensors[0], tensors[0], torch.from_numpy(labels), 3.0, 0.0)
    assert same.item() == pytest.approx(0.0, abs=1e-6)
    nothing = distillation_loss(*tensors, torch.full((2, 3), -100))
    assert nothing.item() == 0.0


def test_a_student_comes_to_speak_like_its_teacher(tokenizer: Tokenizer, taught: Model) -> None:
    student = load_family("llama")(vocab=302, dim=32, ffn=48, layers=2, heads=2, kv_heads=1, tied=True)
    history: list[Step] = []
    settings = {**QUIET, "observe": history.append, "hard": 0.0, "temperature": 2.0, "steps": 200}
    tuned = distill(student, taught, Instructions.of(tokenizer, WRONG), learning_rate=1e-2, **settings)
    assert history[-1].loss < 0.1 * history[0].loss
    assert answers(tuned.model, tokenizer) == TURNED, "learned without one label"
    assert student.weights is None


def test_a_student_with_a_lora_keeps_its_base(tokenizer: Tokenizer) -> None:
    data, student = Instructions.of(tokenizer, ROWS), tiny(1)
    tuned = distill(student, tiny(2), data, lora=Lora(rank=2), steps=2, **QUIET)
    assert tuned.adapter is not None
    assert {k.rpartition(".lora_")[2] for k in tuned.adapter.weights} == {"A.weight", "B.weight"}


# -- the command -------------------------------------------------------------------------------------------------------


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--json")])
    found = json.loads(result.stdout)
    assert result.exit_code == ("error" in found), result.output
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_command(tokenizer: Tokenizer, taught: Model, tmp_path: Path) -> None:
    base, short = tmp_path / "base", ("--steps", 2, "--batch", 2, "--length", 64)
    save_pretrained(replace(taught, tokenizer=tokenizer), base)
    rows, pairs = write_rows(tmp_path / "rows.jsonl", ROWS), write_rows(tmp_path / "pairs.jsonl", PAIRS)
    lora, merged = tmp_path / "lora", tmp_path / "merged"
    given = ("--lora", "--rank", 2, "--target", "q_proj", "--target", "v_proj", "--merged", merged)
    found = call("finetune", base, lora, "--data", rows, *given, *short)
    assert found["adapter_parameters"] == 2 * 2 * (32 + 32 + 32 + 16)
    assert found["measured"][-1]["held_out"] > 0
    assert Adapter.load(lora).lora == Lora(2, 16.0, ("q_proj", "v_proj"))
    assert call("merge", base, lora, tmp_path / "again")["layers"] == 4
    batch = next(Instructions.of(tokenizer, ROWS).batches(2, 64))
    again, once = load_folder(tmp_path / "again"), load_folder(merged)
    np.testing.assert_array_equal(logits_of(again, batch), logits_of(once, batch))
    assert np.abs(logits_of(again, batch) - logits_of(load_folder(base), batch)).max() > 1e-6
    preferred = call("finetune", base, tmp_path / "dpo", "--data", pairs, "--dpo", "--lora", *short)
    assert preferred["measured"][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    call("finetune", base, tmp_path / "student", "--data", rows, "--teacher", merged, *short)
    assert answers(load_folder(tmp_path / "student"), tokenizer) == TURNED, "two small steps change no answer"


def test_command_refusals(tokenizer: Tokenizer, tmp_path: Path) -> None:
    base, rows = tmp_path / "base", write_rows(tmp_path / "rows.jsonl", ROWS)
    save_pretrained(tiny(), base)
    given = ("finetune", base, tmp_path / "out", "--data", rows)
    assert "has no tokenizer, so rows of text cannot be read" in call(*given)["error"]
    assert "--dpo and --teacher are two kinds of training" in call(*given, "--dpo", "--teacher", base)["error"]
    assert "--target is about an adapter: give --lora" in call(*given, "--target", "q_proj")["error"]
    assert "has no adapter_config.json" in call("merge", base, base, tmp_path / "out")["error"]
    assert not (tmp_path / "out").exists()
