"""Tokenizer folders: ids, text, special ids and size as transformers' AutoTokenizer reads the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir.errors import ConfigError
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

S = {"bos_token": "<s>", "eos_token": "</s>"}
ENDS = ("<s>", "</s>")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
IM_END = {"content": "<|im_end|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
TEXT = "hi hi<|im_end|> hi</s>hi  Hí<img> hi"
GENERIC = {**S, "tokenizer_class": "PreTrainedTokenizerFast"}
LLAMA = {**S, "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizerFast"}


def byte_core(post: str | None = None, added: tuple[tuple[str, bool], ...] = ()) -> tokenizers.Tokenizer:
    core: Any = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate([*ENDS, *BYTES, "hi"])}, [("h", "i")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return finished(core, post, added)


def piece_core(post: str | None = None, added: tuple[tuple[str, bool], ...] = ()) -> tokenizers.Tokenizer:
    words = ["<unk>", *ENDS, *[f"<0x{i:02X}>" for i in range(256)], "▁", "h", "i", "▁h", "▁hi", "hi"]
    merges = [("▁", "h"), ("▁h", "i"), ("h", "i")]
    core: Any = tokenizers.Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(core, post, added)


def word_core() -> tokenizers.Tokenizer:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "hi",
        "Hi",
        "h",
        "H",
        "##i",
        "##í",
        "don",
        "'",
        "t",
        ",",
        ".",
    ]
    core: Any = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    core.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in words[:5]])
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return core


def finished(core: Any, post: str | None, added: tuple[tuple[str, bool], ...]) -> tokenizers.Tokenizer:
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ENDS])
    for token, special in added:
        core.add_tokens([AddedToken(token, special=special, normalized=False)])
    if post:
        special_tokens = [(t, core.token_to_id(t)) for t in ENDS]
        core.post_processor = processors.TemplateProcessing(
            single=post, pair=f"{post} $B", special_tokens=special_tokens
        )
    return core


def write(folder: Path, core: Any, settings: dict[str, Any], model_type: str, files: dict[str, Any]) -> None:
    if core is not None:
        core.save(str(folder / "tokenizer.json"))
    for name, content in {
        "tokenizer_config.json": settings,
        "config.json": {"model_type": model_type},
        **files,
    }.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


CASES: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]] = {
    "llama class, BOS, no template": (piece_core(), {**LLAMA, "add_bos_token": True}, "llama", {}),
    "llama class, BOS and EOS, a template": (
        piece_core("<s> $A"),
        {**LLAMA, "add_bos_token": True, "add_eos_token": True},
        "llama",
        {},
    ),
    "llama class, no BOS, a template": (piece_core("<s> $A"), {**LLAMA, "add_bos_token": False}, "llama", {}),
    "llama class, legacy": (piece_core("<s> $A"), {**LLAMA, "legacy": True}, "llama", {}),
    "llama class, not legacy": (piece_core("<s> $A"), {**LLAMA, "legacy": False}, "llama", {}),
    "llama class, no prefix": (piece_core("<s> $A"), {**LLAMA, "add_prefix_space": False}, "llama", {}),
    "llama class, a mistral": (piece_core("<s> $A"), {**LLAMA, "legacy": True}, "mistral", {}),
    "llama class on bytes": (byte_core(), {**LLAMA, "add_bos_token": True}, "llama", {}),
    "no class, llama": (piece_core("<s> $A"), S, "llama", {}),
    "generic, BOS said": (byte_core(), {**GENERIC, "add_bos_token": True}, "llama", {}),
    "generic, prefix said": (byte_core("<s> $A"), {**GENERIC, "add_prefix_space": True}, "llama", {}),
    "an added token of the config": (byte_core(), {**GENERIC, "added_tokens_decoder": {"259": IM_END}}, "llama", {}),
    "added tokens of the config, another id": (
        byte_core(),
        {**GENERIC, "added_tokens_decoder": {"300": IM_END, "280": {**IM_END, "content": "<img>", "special": False}}},
        "llama",
        {},
    ),
    "an added token that takes the space": (
        byte_core(),
        {**GENERIC, "added_tokens_decoder": {"259": {**IM_END, "lstrip": True, "rstrip": True}}},
        "llama",
        {},
    ),
    "the end is an ordinary token": (
        byte_core(added=(("<|im_end|>", False),)),
        {**GENERIC, "eos_token": "<|im_end|>"},
        "llama",
        {},
    ),
    "additional tokens": (
        byte_core(added=(("<|im_end|>", False),)),
        {**GENERIC, "additional_special_tokens": ["<|im_end|>", "<img>"]},
        "llama",
        {},
    ),
    "extra tokens, a list": (byte_core(), {**GENERIC, "extra_special_tokens": ["<|im_end|>"]}, "llama", {}),
    "extra tokens, by name": (
        byte_core(),
        {**GENERIC, "extra_special_tokens": {"image_token": "<img>", "eot_token": "<|im_end|>"}},
        "llama",
        {},
    ),
    "a token of this model": (byte_core(), {**GENERIC, "image_token": "<img>"}, "llama", {}),
    "padding that is new": (byte_core(), {**GENERIC, "pad_token": "<img>"}, "llama", {}),
    "padding written out": (byte_core(), {**GENERIC, "pad_token": {**IM_END, "__type": "AddedToken"}}, "llama", {}),
    "special_tokens_map.json": (
        byte_core(),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        "llama",
        {"special_tokens_map.json": {"eos_token": IM_END, "pad_token": "<img>", "bos_token": "<s>"}},
    ),
    "special_tokens_map.json wins": (
        byte_core(),
        GENERIC,
        "llama",
        {"special_tokens_map.json": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<img>"]}},
    ),
    "special_tokens_map.json beside added_tokens_decoder": (
        byte_core(),
        {**GENERIC, "added_tokens_decoder": {"259": IM_END}},
        "llama",
        {"special_tokens_map.json": {"eos_token": "<|im_end|>"}},
    ),
    "added_tokens.json": (byte_core(), GENERIC, "llama", {"added_tokens.json": {"<|im_end|>": 259, "<img>": 260}}),
    "splits special tokens": (byte_core("<s> $A"), {**GENERIC, "split_special_tokens": True}, "llama", {}),
    "cleans up, bytes": (byte_core(), {**GENERIC, "clean_up_tokenization_spaces": True}, "llama", {}),
    "gpt2 class, BOS said": (byte_core(), {**S, "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}, "gpt2", {}),
    "gpt2 class, prefix": (
        byte_core(),
        {**S, "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        "gpt2",
        {},
    ),
    "gpt2, no class": (byte_core(), S, "gpt2", {}),
    "gpt_neox class, a template": (byte_core("<s> $A"), {**S, "tokenizer_class": "GPTNeoXTokenizer"}, "gpt_neox", {}),
    "gemma class": (piece_core("<s> $A"), {**LLAMA, "tokenizer_class": "GemmaTokenizerFast"}, "gemma2", {}),
    "bert class": (word_core(), {"tokenizer_class": "BertTokenizer"}, "bert", {}),
    "bert class, cased": (word_core(), {"tokenizer_class": "BertTokenizer", "do_lower_case": False}, "bert", {}),
    "bert class, accents": (
        word_core(),
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": False},
        "bert",
        {},
    ),
    "bert, no class": (word_core(), {}, "bert", {}),
    "bert, generic, cleans up": (
        word_core(),
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True, "pad_token": "[PAD]"},
        "bert",
        {},
    ),
    "electra class": (word_core(), {"tokenizer_class": "ElectraTokenizer"}, "bert", {}),
    "a class that is not known": (byte_core(), {**S, "tokenizer_class": "MyTokenizer"}, "llama", {}),
    "both lists of tokens": (
        byte_core(),
        {**GENERIC, "extra_special_tokens": ["<img>"], "additional_special_tokens": ["<|im_end|>"]},
        "llama",
        {},
    ),
    "extra tokens, written out": (
        byte_core(),
        {**GENERIC, "extra_special_tokens": [{**IM_END, "rstrip": True, "__type": "AddedToken"}]},
        "llama",
        {},
    ),
    "null tokens": (byte_core(), {**GENERIC, "extra_special_tokens": None, "pad_token": None}, "llama", {}),
    "an added token that the config lists, too": (
        piece_core("<s> $A", (("<img>", False),)),
        {**LLAMA, "added_tokens_decoder": {"264": {**IM_END, "content": "<img>", "special": False}}},
        "llama",
        {},
    ),
    "vocab.txt": (
        None,
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        "bert",
        {"vocab.txt": "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", "Hi", "h", "##i"])},
    ),
    "vocab.json and merges.txt": (
        None,
        {"tokenizer_class": "GPT2Tokenizer", **S},
        "gpt2",
        {
            "vocab.json": {w: i for i, w in enumerate([*ENDS, *BYTES, "hi"])},
            "merges.txt": "#version: 0.2\nh i\n",
        },
    ),
    "vocab.json and merges.txt, BOS": (
        None,
        {"tokenizer_class": "GPT2Tokenizer", **S, "add_bos_token": True, "pad_token": "<pad>"},
        "gpt2",
        {
            "vocab.json": {w: i for i, w in enumerate([*ENDS, *BYTES, "hi"])},
            "merges.txt": "#version: 0.2\nh i\n",
        },
    ),
    "vocab.json and merges.txt, roberta": (
        None,
        {"tokenizer_class": "RobertaTokenizer"},
        "roberta",
        {
            "vocab.json": {w: i for i, w in enumerate([*ENDS, "<pad>", "<unk>", "<mask>", *BYTES, "hi"])},
            "merges.txt": "h i\n",
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    write(tmp_path, *CASES[name])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mine = Tokenizer.open(tmp_path)
    again = Tokenizer.open(saved(mine, tmp_path / "saved"))
    for text in (TEXT, "hi", "", " don't, hi .", "</s>", "é 日本\n\n hi"):
        ids = theirs(text).input_ids
        for tokenizer in (mine, again):
            assert tokenizer.encode(text) == ids
            assert tokenizer.encode(text, add_special=False) == theirs(text, add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            assert tokenizer.decode(ids, skip_special=False) == theirs.decode(ids)
    assert mine.encode("hi", "hi hi") == theirs("hi", "hi hi").input_ids
    assert mine.size == len(theirs)
    named = (theirs.bos_token_id, theirs.pad_token_id, theirs.mask_token_id, theirs.cls_token_id, theirs.sep_token_id)
    assert (mine.bos_id, mine.pad_id, mine.mask_id, mine.cls_id, mine.sep_id) == named
    assert mine.eos_id == theirs.eos_token_id
    silent = {i for i in theirs.all_special_ids if theirs.decode([i], skip_special_tokens=True) == ""}
    assert silent <= mine.special_ids


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(folder)
    return folder


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a token that is a number": ({"tokenizer_config.json": {"pad_token": 5}}, "pad_token is 5, expected a token"),
    "an added token without content": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"9": {"special": True}}}},
        r"tokenizer_config.json: added_tokens_decoder\[9\] is {'special': True}, expected a token",
    ),
    "an id that is no number": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"x": "<a>"}}},
        "added_tokens_decoder has the id 'x', expected a number",
    ),
    "splits that are to be replaced": (
        {"tokenizer_config.json": {"fix_mistral_regex": True}},
        "key 'fix_mistral_regex' = True: it replaces the splits of tokenizer.json",
    ),
    "a side": ({"tokenizer_config.json": {"truncation_side": "up"}}, "key 'truncation_side' = 'up': expected left or"),
    "a template that is a number": ({"tokenizer_config.json": {"chat_template": 5}}, "chat_template is 5, expected"),
    "templates without text": ({"tokenizer_config.json": {"chat_template": [{"name": "a"}]}}, "chat_template is"),
    "an end that is no id": ({"generation_config.json": {"eos_token_id": ["</s>"]}}, "has eos_token_id .*expected an"),
    "a list": ({"tokenizer_config.json": []}, "is a JSON list, not an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_entries_that_cannot_be_followed_are_named(name: str, tmp_path: Path) -> None:
    files, message = BAD[name]
    write(tmp_path, byte_core(), {}, "llama", files)
    with pytest.raises(ConfigError, match=message):
        Tokenizer.open(tmp_path)


def test_entries_that_change_nothing_are_noted_with_a_reason(tmp_path: Path) -> None:
    settings = {**GENERIC, "padding_side": "left", "auto_map": {}, "made_up": 1, "model_max_length": 5}
    write(tmp_path, byte_core(), settings, "llama", {})
    notes = {n.key: n.why for n in Tokenizer.open(tmp_path).notes}
    assert set(notes) == {"padding_side", "auto_map", "made_up"}
    assert notes["made_up"] == "transformers 5.24 does not read it"


@pytest.mark.parametrize("file", ["tokenizer.model", "spiece.model", "tekken.json", "vocab.txt"])
def test_a_vocabulary_that_is_not_read_is_named(file: str, tmp_path: Path) -> None:
    write(tmp_path, None, {"tokenizer_class": "XTokenizer"}, "llama", {file: "x"})
    with pytest.raises(ConfigError, match=f"has no tokenizer.json, only {file}"):
        Tokenizer.open(tmp_path)


def test_templates_of_every_place(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write(tmp_path, byte_core(), {**GENERIC, "chat_template": named}, "llama", {})
    theirs, hi = transformers.AutoTokenizer.from_pretrained(tmp_path), [{"role": "user", "content": "hi"}]
    mine = Tokenizer.open(tmp_path)
    for tools in (None, [{"name": "f"}]):
        want = theirs.apply_chat_template(hi, tools=tools, tokenize=False)
        assert mine.chat(hi, tools=tools) == want
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("r")
    (tmp_path / "chat_template.jinja").write_text("file")
    mine = Tokenizer.open(tmp_path)
    assert (mine.chat(hi), mine.chat(hi, template="rag")) == ("file", "r")
    again = Tokenizer.open(saved(mine, tmp_path / "saved"))
    assert (again.chat(hi), again.chat(hi, template="rag")) == ("file", "r")


def test_every_end_of_generation_counts_once(tmp_path: Path) -> None:
    files = {
        "config.json": {"model_type": "llama", "eos_token_id": [7, 1]},
        "generation_config.json": {"eos_token_id": [8, 7]},
    }
    write(tmp_path, byte_core(), {**GENERIC, "eot_token": "hi"}, "llama", files)
    assert Tokenizer.open(tmp_path).eos_ids == (1, 258, 8, 7)
