"""`monograph run` for every task: what it says of texts, of sounds and of arrays, against transformers."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from command_line import call
from family_parity import reference_model
from monograph.frontends.audio import LogMel
from monograph.inference.speech import NO_TIMES, START
from test_family_whisper import CASES as WHISPER

pytestmark = pytest.mark.slow

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] where is the cat on mat dog log a of green old house near river who sat".split()
TEXT, QUESTION = "the old cat sat on a green mat near the river house", "where is the cat"
BERT: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 32, "initializer_range": 0.4,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random checkpoints of BERT by head, each with its model of transformers' beside it."""
    place, found = tmp_path_factory.mktemp("bert"), dict[str, Path]()
    torch.manual_seed(3)
    heads: dict[str, dict[str, int]] = {"QuestionAnswering": {}, "MaskedLM": {}, "Model": {}}
    heads |= {"TokenClassification": {"num_labels": 4}, "SequenceClassification": {"num_labels": 3}}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    pair = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    core.post_processor = pair
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    for head, more in heads.items():
        config = transformers.BertConfig(**BERT, **more)
        name = f"BertFor{head}" if head != "Model" else "BertModel"
        getattr(transformers, name)(config).eval().save_pretrained(place / head)
        fast.save_pretrained(place / head)
        found[head] = place / head
    return found


def theirs(name: str, folder: Path, *texts: str) -> tuple[Any, Any]:
    """(what transformers reads, what its model gives)."""
    read = transformers.AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", return_offsets_mapping=True)
    # The plain class of transformers' does not say which text a token is of; the one of BERT does.
    types = torch.tensor([read.encodings[0].type_ids])
    given = {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"], "token_type_ids": types}
    with torch.no_grad():
        return read, getattr(transformers, name).from_pretrained(folder)(**given)


def test_each_token_gets_its_label(folders: dict[str, Path]) -> None:
    folder = folders["TokenClassification"]
    (said,) = json.loads(call("run", folder, TEXT, "--json").stdout)
    _, given = theirs("AutoModelForTokenClassification", folder, TEXT)
    chances = torch.softmax(given.logits[0, 1:-1].double(), -1)
    assert [t["label"] for t in said["tokens"]] == [f"LABEL_{i}" for i in chances.argmax(-1).tolist()]
    assert np.allclose([t["probability"] for t in said["tokens"]], chances.max(-1).values, atol=1e-5)
    assert [t["text"] for t in said["tokens"]] == TEXT.split()
    assert "cat/LABEL_" in call("run", folder, TEXT).output


def test_a_question_is_answered_from_the_text(folders: dict[str, Path]) -> None:
    folder = folders["QuestionAnswering"]
    (said,) = json.loads(call("run", folder, QUESTION, TEXT, "--json").stdout)
    read, given = theirs("AutoModelForQuestionAnswering", folder, QUESTION, TEXT)
    inside = torch.tensor([s == 1 for s in read.sequence_ids(0)])
    first, last = (
        torch.softmax(x[0].double().masked_fill(~inside, -torch.inf), -1)
        for x in (given.start_logits, given.end_logits)
    )
    n = len(first)
    best = max(((first[a] * last[b]).item(), a, b) for a in range(n) for b in range(a, min(a + 30, n)))
    offsets = read["offset_mapping"][0].tolist()
    assert (said["start"], said["end"]) == (offsets[best[1]][0], offsets[best[2]][1])
    assert said["text"] == TEXT[said["start"] : said["end"]]
    assert abs(said["probability"] - best[0]) < 1e-5
    assert said["text"] in call("run", folder, QUESTION, TEXT).output
    assert "no text to find the answer in" in call("run", folder, QUESTION, code=1).output
    assert "tokens, expected 1 to 32" in call("run", folder, QUESTION, TEXT * 4, code=1).output


def test_other_heads_say_theirs(folders: dict[str, Path]) -> None:
    said = json.loads(call("run", folders["SequenceClassification"], TEXT, "--json").stdout)
    _, given = theirs("AutoModelForSequenceClassification", folders["SequenceClassification"], TEXT)
    assert said["label"] == f"LABEL_{int(given.logits.argmax())}"
    masked = TEXT.replace("cat", "[MASK]")
    (found,) = json.loads(call("run", folders["MaskedLM"], masked, "--json").stdout)
    read, given = theirs("AutoModelForMaskedLM", folders["MaskedLM"], masked)
    place = int((read["input_ids"][0] == 4).nonzero())
    assert found["masks"][0][0]["id"] == int(given.logits[0, place].argmax())
    (vector,) = json.loads(call("run", folders["Model"], TEXT, "--json").stdout)
    assert len(vector["vector"]) == 24
    assert "numbers)" in call("run", folders["Model"], TEXT).output
    assert "--chat goes with" in call("run", folders["Model"], TEXT, "--chat", code=1).output


def test_speech_is_written_down(tmp_path: Path) -> None:
    """A tiny random Whisper on two WAV files: the ids that transformers' model makes of the same spectrogram."""
    hear = LogMel(mels=8, rate=800, window=40, hop=100, seconds=3)
    model = reference_model(WHISPER["whisper"])
    special = {START: 3, "<|en|>": 4, "<|fr|>": 5, "<|transcribe|>": 6, "<|translate|>": 7, NO_TIMES: 8}
    words = {**{f"w{i}": i for i in range(61) if i not in special.values()}, **special}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    core.add_special_tokens(list(special))
    model.save_pretrained(tmp_path / "checkpoint")
    core.save(str(tmp_path / "checkpoint" / "tokenizer.json"))
    about = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8, "sampling_rate": 800, "n_fft": 40,
             "hop_length": 100, "chunk_length": 3}  # fmt: skip
    (tmp_path / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(about))
    never = [*range(9)]
    (tmp_path / "checkpoint" / "generation_config.json").write_text(json.dumps({"suppress_tokens": never}))
    rng, files = np.random.default_rng(1), []
    for i, count in enumerate((900, 2400)):
        files.append(tmp_path / f"{i}.wav")
        with wave.open(str(files[-1]), "wb") as f:
            f.setnchannels(1)
            f.setsampwidth(2)
            f.setframerate(800)
            f.writeframes((rng.standard_normal(count) * 8000).clip(-32768, 32767).astype("<i2").tobytes())
    said = json.loads(
        call("run", tmp_path / "checkpoint", *files, "--max-new-tokens", 5, "--language", "fr", "--json").stdout
    )
    for file, found in zip(files, said, strict=True):
        with wave.open(str(file), "rb") as f:
            samples = np.frombuffer(f.readframes(10_000), "<i2").astype(np.float32) / 32768
        ids, features = [3, 5, 6, 8], torch.from_numpy(hear(samples))[None]
        for _ in range(5):
            with torch.no_grad():
                logits = model(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            logits[never] = -torch.inf
            ids.append(int(logits.argmax()))
        assert found["ids"][: len(ids) - 4] == ids[4:][: len(found["ids"])]
        assert found["file"] == str(file)
    engine = mg.build(mg.load(tmp_path / "checkpoint"), tmp_path / "built")
    assert engine.transcribe(files[0], language="fr", max_new_tokens=5).ids == said[0]["ids"]
    assert "no token <|xx|>" in call("run", tmp_path / "built", files[0], "--language", "xx", code=1).output
    assert "cannot be read as a WAV file" in call("run", tmp_path / "built", "no.wav", code=1).output
