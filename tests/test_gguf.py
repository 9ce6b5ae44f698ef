"""GGUF: every block format, rotary rows back in order, configs from metadata, and files that lie."""

import struct
import tracemalloc

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.frontends.dsl import load_family
from monograph.frontends.gguf import checkpoint_name, load_gguf, rotary_order
from monograph.frontends.gguf_file import read_gguf
from monograph.frontends.load import load
from monograph.frontends.models.llama import GGUF_NAMES
from monograph.ir.encoded import Encoded
from monograph.ir.encodings import LAYOUTS
from monograph.ir.errors import ConfigError, MonographError, WeightsError
from monograph.ir.weights import Weights
from real_weights import real_weights

Q = GGMLQuantizationType
TINY = {"vocab": 64, "dim": 32, "ffn": 64, "layers": 2, "heads": 4, "kv_heads": 2}


def write_gguf(path, arrays, metadata=None, kinds=None, architecture="llama"):
    """A GGUF file by the package of the format; `kinds` says which tensors to quantize and how."""
    w = GGUFWriter(str(path), architecture)
    for key, value in (metadata or {}).items():
        add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string}.get(
            type(value), w.add_array
        )
        add(key, value)
    for name, x in arrays.items():
        kind = (kinds or {}).get(name)
        if kind is None:
            w.add_tensor(name, x)
        else:
            w.add_tensor(name, x if x.dtype == np.uint8 else quantize(x, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def rows_as_llama_cpp_stores_them(x, heads):
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def tiny_llama(tied=True, **changes):
    """(our weights, the GGUF arrays of the same model, its metadata)."""
    family = load_family("llama")
    graph = family(**TINY, tied=tied, **changes).graph()
    weights = Weights.initialize(graph, 3)
    back = {v: k for k, v in GGUF_NAMES.items()}
    arrays = {}
    for path in graph.params:
        stem, _, suffix = path.rpartition(".")
        parts = stem.split(".")
        number = next((p for p in parts if p.isdigit()), "")
        pattern = back[".".join("{}" if p.isdigit() else p for p in parts)]
        x = weights.numpy(path)
        if parts[-1] in ("q_proj", "k_proj"):
            x = rows_as_llama_cpp_stores_them(x, TINY["heads"] if parts[-1] == "q_proj" else TINY["kv_heads"])
        arrays[f"{pattern.format(number)}.{suffix}"] = x
    metadata = {
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
    }
    return weights, arrays, metadata


# -- tensors -------------------------------------------------------------------------------------------------------


def dequantizable():
    found = []
    for kind, (block, size) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        if block > 1:
            found.append(kind.name)
    return found


@pytest.mark.parametrize("kind", dequantizable())
def test_every_block_format_is_read_as_it_is_stored(tmp_path, kind):
    block, size = GGML_QUANT_SIZES[Q[kind]]
    raw = np.random.default_rng(0).integers(0, 120, (3, 2 * size), np.uint8)
    arrays = {"first": np.arange(8, dtype=np.float32), "t": raw, "last": np.ones((2, 3), np.float16)}
    file = read_gguf(write_gguf(tmp_path / "m.gguf", arrays, kinds={"t": Q[kind]}))
    t = file.tensors["t"]
    known = f"<{kind.lower()}>" if kind.lower() in LAYOUTS else ""
    assert (str(t.type), t.source_format) == (f"f32[3,{2 * block}]{known}", "" if known else kind)
    if known:
        np.testing.assert_array_equal(t.stored(), raw)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(t.numpy(), dequantize(raw, Q[kind]))
    assert file.tensors["first"].numpy().tolist() == list(range(8))
    assert file.tensors["last"].numpy().tolist() == [[1, 1, 1], [1, 1, 1]]


def test_formats_without_a_dequantizer_say_so(tmp_path):
    size = GGML_QUANT_SIZES[Q.Q8_K][1]
    raw = np.zeros((1, size), np.uint8)
    file = read_gguf(write_gguf(tmp_path / "m.gguf", {"t": raw}, kinds={"t": Q.Q8_K}))
    with pytest.raises(WeightsError, match=r"m\.gguf: tensor t: Q8_K cannot be dequantized"):
        file.tensors["t"].numpy()


def test_metadata_of_every_kind(tmp_path):
    metadata = {
        "a.flag": True,
        "a.count": 7,
        "a.rate": 0.5,
        "a.text": "héllo",
        "a.texts": ["x", "", "日本"],
        "a.numbers": [1.5, -2.0],
        "a.whole": [3, -4, 5],
    }
    file = read_gguf(write_gguf(tmp_path / "m.gguf", {"t": np.zeros(8, np.float32)}, metadata))
    assert {k: file.metadata[k] for k in metadata} == metadata


# -- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_gets_its_checkpoint_names_and_row_order_back(tmp_path, tied):
    weights, arrays, metadata = tiny_llama(tied)
    model = load(write_gguf(tmp_path / "m.gguf", arrays, metadata))
    assert (
        model.config.to_dict() == load_family("llama")(**TINY, tied=tied, eps=1e-5, max_positions=128).config.to_dict()
    )
    assert set(model.weights) == set(weights)
    for name in weights:
        np.testing.assert_array_equal(model.weights.numpy(name), weights.numpy(name), err_msg=name)
    assert load(tmp_path).config == model.config


def test_reordered_rows_stay_in_blocks(tmp_path):
    weights, arrays, metadata = tiny_llama()
    kinds = {k: Q.Q4_1 for k in arrays if "norm" not in k}
    model = load(write_gguf(tmp_path / "m.gguf", arrays, metadata, kinds))
    q = model.weights["model.layers.1.self_attn.q_proj.weight"]
    assert isinstance(q, Encoded)
    np.testing.assert_array_equal(q.numpy(), dequantize(q.stored(), Q.Q4_1))
    want = dequantize(quantize(weights.numpy("model.layers.1.self_attn.q_proj.weight"), Q.Q4_1), Q.Q4_1)
    np.testing.assert_array_equal(q.numpy(), want)


def test_biases_are_reordered_too_and_told_by_their_presence(tmp_path):
    _weights, arrays, metadata = tiny_llama(attention_bias=True)
    rng = np.random.default_rng(0)
    bias = rng.normal(size=32).astype(np.float32)
    arrays["blk.0.attn_q.bias"] = rows_as_llama_cpp_stores_them(bias, 4)
    model = load(write_gguf(tmp_path / "m.gguf", arrays, metadata))
    assert model.config.attention_bias
    np.testing.assert_array_equal(model.weights.numpy("model.layers.0.self_attn.q_proj.bias"), bias)


def test_rotary_order_is_the_inverse_of_llama_cpp():
    x = np.arange(24)
    stored = rows_as_llama_cpp_stores_them(x, 3)
    assert stored.tolist() != x.tolist()
    assert stored[rotary_order(24, 3)].tolist() == x.tolist()
    with pytest.raises(WeightsError, match="tensor q has 24 rows, not a multiple of twice its 5 heads"):
        rotary_order(24, 5, "q")


def test_names():
    table = {"blk.{}.attn_q": "layers.{}.q", "token_embd": "embed"}
    assert checkpoint_name("blk.12.attn_q.weight", table) == "layers.12.q.weight"
    assert checkpoint_name("token_embd.weight", table) == "embed.weight"
    assert checkpoint_name("blk.0.odd.weight", table) == "blk.0.odd.weight"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling_comes_from_metadata(tmp_path, extra, expected):
    _, arrays, metadata = tiny_llama()
    model = load(write_gguf(tmp_path / "m.gguf", arrays, {**metadata, **extra}))
    assert model.config.rope_scaling == expected


def llama3_factors(width, theta, factor):
    """The factors that llama.cpp's converter writes for Llama 3.1, by its own formula."""
    found = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * theta ** (i / width)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192 / 1:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_llama3_factors_become_the_rule_they_came_from(tmp_path):
    _, arrays, metadata = tiny_llama()
    metadata["llama.rope.freq_base"] = 500000.0
    arrays["rope_freqs.weight"] = llama3_factors(8, 500000.0, 8.0)
    scaling = load(write_gguf(tmp_path / "m.gguf", arrays, metadata)).config.rope_scaling
    assert scaling == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    arrays["rope_freqs.weight"] = np.array([1, 2, 3, 8], np.float32)
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight that do not follow the rule of Llama 3\.1"):
        load(write_gguf(tmp_path / "m.gguf", arrays, metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling of type 'longrope'; linear and yarn are supported"),
        ({"llama.rope.dimension_count": 4}, "rotates 4 of 8 channels of a head"),
        ({"llama.rope.scaling.type": "yarn"}, r"has rope\.scaling\.factor None, expected a positive number"),
        ({"llama.block_count": 1 << 31}, "is 2147483648, and 4096 layers are the most"),
        (
            {"llama.attention.key_length": 1 << 31},
            "has tensors of width up to 64, but its config says heads of 2147483648",
        ),
        ({"llama.attention.head_count": 33}, "width up to 64, but its config says heads of 0 channels"),
        ({"llama.attention.head_count": 0}, "has a config that says heads = 0"),
        ({"llama.block_count": 3}, r"missing: model\.layers\.2\.self_attn\.q_proj\.weight: f32\[32,32\]"),
        ({"llama.feed_forward_length": 65}, r"wrong: model\.layers\.0\.mlp\.gate_proj\.weight is f32\[64,32\]"),
        ({"llama.attention.head_count": "four"}, "'num_attention_heads' is 'four', expected int"),
        ({"llama.attention.head_count_kv": [2, 2]}, r"'num_key_value_heads' is \[2, 2\]"),
    ],
)
def test_metadata_that_does_not_fit_is_one_clear_error(tmp_path, change, message):
    _, arrays, metadata = tiny_llama()
    path = write_gguf(tmp_path / "m.gguf", arrays, {**metadata, **change})
    with pytest.raises(MonographError, match=message) as e:
        load(path)
    assert "m.gguf" in str(e.value)


def test_missing_keys_unknown_families_and_unknown_tensors_are_named(tmp_path):
    _, arrays, metadata = tiny_llama()
    metadata.pop("llama.embedding_length")
    with pytest.raises(ConfigError, match=r"does not say llama\.embedding_length"):
        load(write_gguf(tmp_path / "a.gguf", arrays, metadata))
    with pytest.raises(ConfigError, match="model_type 'lama' is not supported, did you mean 'llama'"):
        load(write_gguf(tmp_path / "b.gguf", arrays, architecture="lama"))
    with pytest.raises(ConfigError, match="gpt2 has no table of GGUF names"):
        names = {"gpt2.vocab_size": 4}
        load(write_gguf(tmp_path / "c.gguf", arrays, names, architecture="gpt2"))
    _, arrays, metadata = tiny_llama()
    arrays["blk.0.ffn_gate_inp.weight"] = np.zeros((4, 32), np.float32)
    with pytest.raises(WeightsError, match=r"unexpected: blk\.0\.ffn_gate_inp\.weight: f32\[4,32\]"):
        load(write_gguf(tmp_path / "d.gguf", arrays, metadata))


# -- files that lie ------------------------------------------------------------------------------------------------


def text(s):
    return struct.pack("<Q", len(s)) + s


def gguf(keys=b"", tensors=b"", key_count=0, tensor_count=0, data=b"", magic=b"GGUF", version=3):
    head = magic + struct.pack("<IQQ", version, tensor_count, key_count) + keys + tensors
    return head + bytes(-len(head) % 32) + data


def info(name=b"t", dims=(8,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


LIES = {
    "has 4 bytes; a GGUF file has at least 24": b"GGUF",
    "starts with b'GGML', not with b'GGUF'": gguf(magic=b"GGML"),
    "has GGUF version 50331648; 2 and 3 in little-endian order are read": gguf(version=3 << 24),
    "it says that it has 1152921504606846976 of metadata keys": gguf(key_count=1 << 60),
    "it says that it has 1152921504606846976 of tensors": gguf(tensor_count=1 << 60),
    r"a key at byte 32 needs 281474976710656 bytes": gguf(struct.pack("<Q", 1 << 48) + bytes(32), key_count=1),
    r"has a key at byte 32 that is not UTF-8": gguf(text(b"\xff\xfe") + bytes(32), key_count=1),
    r"has the key 'k' twice": gguf(2 * (text(b"k") + struct.pack("<IB", 0, 1)), key_count=2),
    r"has a value of unknown kind 77 for k": gguf(text(b"k") + struct.pack("<I", 77) + bytes(32), key_count=1),
    r"needs 4503599627370496 bytes": gguf(text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 50) + bytes(32), key_count=1),
    r"it says that it has 1125899906842624 of k": gguf(
        text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 50) + bytes(32), key_count=1
    ),
    r"has a value of unknown kind 9 for k": gguf(
        text(b"k") + struct.pack("<I", 9) + 6 * struct.pack("<IQ", 9, 1) + bytes(32), key_count=1
    ),
    r"has general\.alignment 3, expected a power of two": gguf(
        text(b"general.alignment") + struct.pack("<II", 4, 3), key_count=1
    ),
    r"tensor t has 9 dimensions, at most 4 are allowed": gguf(b"", info(dims=(1,) * 9), tensor_count=1, data=bytes(64)),
    r"tensor t has type number 9999, which is not known": gguf(b"", info(kind=9999), tensor_count=1, data=bytes(64)),
    r"tensor t is I16, which has no counterpart": gguf(b"", info(kind=25), tensor_count=1, data=bytes(64)),
    r"tensor t has rows of 8 elements, not a multiple of the 32 of Q4_0": gguf(b"", info(kind=2), tensor_count=1),
    r"tensor t is F32\[1099511627776, 1099511627776\] at bytes 96 to 4835703278458516698824800, outside": gguf(
        b"", info(dims=(1 << 40, 1 << 40)), tensor_count=1, data=bytes(64)
    ),
    r"tensor t is F32\[8\] at bytes 64 to 96, outside the file \(the file has 95 bytes\)": gguf(
        b"", info(), tensor_count=1, data=bytes(31)
    ),
    r"tensor t starts at byte 3 of the data, not at a multiple of 32": gguf(
        b"", info(offset=3), tensor_count=1, data=bytes(64)
    ),
    r"tensor u starts at byte 0 of the data, inside t which ends at 32": gguf(
        b"", info() + info(b"u", (16,)), tensor_count=2, data=bytes(128)
    ),
    r"has the tensor t twice": gguf(b"", info() + info(offset=32), tensor_count=2, data=bytes(128)),
}


@pytest.mark.parametrize("message", LIES)
def test_a_file_that_lies_is_refused_before_anything_is_allocated(tmp_path, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(LIES[message])
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message) as e:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "m.gguf" in str(e.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(a whole file, where its last tensor ends)"""
    _, arrays, metadata = tiny_llama()
    kinds = {k: Q.Q8_0 for k in arrays if "norm" not in k}
    data = write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", arrays, metadata, kinds).read_bytes()
    spans = [getattr(t, "lines", t).span for t in _tensors(data, tmp_path_factory)]
    return data, max(s.offset + s.length for s in spans)


def _tensors(data, factory):
    path = factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(data)
    return read_gguf(path).tensors.values()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_refused(whole, tmp_path_factory, share):
    data, end = whole
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    path.write_bytes(data[: int(share * end)])
    with pytest.raises(WeightsError, match=r"m\.gguf"):
        load_gguf(path)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_changed_byte_of_the_header_is_refused_or_harmless(whole, tmp_path_factory, place, byte):
    data = bytearray(whole[0])
    start = min(getattr(t, "lines", t).span.offset for t in _tensors(bytes(data), tmp_path_factory))
    data[int(place * start)] = byte
    path = tmp_path_factory.mktemp("flip") / "m.gguf"
    path.write_bytes(data)
    try:
        model = load_gguf(path)
    except MonographError as e:
        assert str(e)
    else:
        for tensor in model.weights.values():
            with np.errstate(all="ignore"):
                assert tensor.numpy().shape == tensor.shape


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_is_read_lazily_and_keeps_its_blocks():
    tracemalloc.start()
    try:
        model = load(real_weights("smollm2"), tokenizer=False)
        # Metadata of 49152 tokens with their merges stays under this; the weights are 538 MB in f32.
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    kinds = [t.source_format or str(t.type.encoding or t.dtype) for t in model.weights.values()]
    assert {k: kinds.count(k) for k in set(kinds)} == {"q4_1": 210, "q8_0": 1, "f32": 61}
    assert sum(int(np.prod(t.shape)) for t in model.weights.values()) == 134_515_008
    assert model.config.tied
    assert (model.config.heads, model.config.kv_heads, model.config.eps, model.config.theta) == (9, 3, 1e-5, 1e5)


# -- keys and parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        {"llama.rope.scale_linear": 4.0},
        {"llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0},
    ],
)
def test_a_factor_without_a_type_is_linear(tmp_path, extra):
    _, arrays, metadata = tiny_llama()
    model = load(write_gguf(tmp_path / "m.gguf", arrays, {**metadata, **extra}))
    assert model.config.rope_scaling == {"rope_type": "linear", "factor": 4.0}


def test_a_type_that_says_no_scaling_wins_over_a_factor(tmp_path):
    _, arrays, metadata = tiny_llama()
    metadata |= {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert load(write_gguf(tmp_path / "m.gguf", arrays, metadata)).config.rope_scaling is None


def test_attention_that_is_not_causal_is_refused(tmp_path):
    _, arrays, metadata = tiny_llama()
    load(write_gguf(tmp_path / "m.gguf", arrays, metadata | {"llama.attention.causal": True}))
    with pytest.raises(ConfigError, match=r"'llama\.attention\.causal' = False: only True is"):
        load(write_gguf(tmp_path / "m.gguf", arrays, metadata | {"llama.attention.causal": False}))


def test_gemma3_without_window_and_rotary_base_is_read_as_llama_cpp_reads_it():
    unsaid = load_family("gemma3_text").gguf.unsaid
    said = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "head_dim": 16}
    assert unsaid(said) == {
        "head_dim": 16,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 16,
        "rope_theta": 1e4,
        "layer_types": ["full_attention"] * 3,
        "sliding_window": None,
    }
    assert unsaid({**said, "sliding_window": 4, "rope_theta": 1e6}) == {
        "head_dim": 16,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 16,
        "rope_theta": 1e6,
    }


def test_keys_that_are_not_understood_are_refused_by_name(tmp_path):
    _, arrays, metadata = tiny_llama()
    harmless = {"llama.expert_count": 0, "llama.attention.value_length": 8, "llama.vocab_size": 64}
    load(write_gguf(tmp_path / "m.gguf", arrays, metadata | harmless))
    strange = {"llama.expert_count": 8, "llama.attention.value_length": 16, "llama.rope.scaling.atn_factor": 2.0}
    with pytest.raises(ConfigError, match="has 3 keys that are not understood") as e:
        load(write_gguf(tmp_path / "m.gguf", arrays, metadata | strange))
    assert "'llama.expert_count' = 8: it is not understood" in str(e.value)
    assert "'llama.attention.value_length' = 16: only 8 is computed here" in str(e.value)
    assert "did you mean 'rope.scaling.attn_factor'" in str(e.value)


GENERAL = {"general.name": "me", "general.file_type": 0, "general.sampling.temp": 0.5, "quantize.imatrix.file": "x"}
NOTED = {
    **GENERAL, "general.base_model.0.name": "it", "llama.expert_count": 0, "llama.rope.scaling.attn_factor": 1.0,
    "llama.attention.value_length": 8, "llama.rope.scaling.finetuned": True, "llama.attention.causal": True,
    "llama.pooling_type": 0, "mistral.block_count": 7,
}  # fmt: skip


def test_each_key_that_changes_nothing_is_noted_with_the_reason(tmp_path):
    _, arrays, metadata = tiny_llama()
    notes = load(write_gguf(tmp_path / "m.gguf", arrays, metadata | NOTED)).notes
    assert {n.key for n in notes} >= {*NOTED}
    assert all(n.why and n.place.endswith("m.gguf") for n in notes)
    with pytest.raises(ConfigError, match=r"general\.type' = 'adapter': a file of the type adapter is not a model"):
        load(write_gguf(tmp_path / "m.gguf", arrays, metadata | {"general.type": "adapter"}))


@pytest.mark.parametrize("name", ["context_length", "block_count", "attention.layer_norm_rms_epsilon"])
def test_what_llama_cpp_needs_is_needed(tmp_path, name):
    _, arrays, metadata = tiny_llama()
    lost = {k: v for k, v in metadata.items() if k != f"llama.{name}"}
    with pytest.raises(ConfigError, match=f"does not say llama.{name}"):
        load(write_gguf(tmp_path / "m.gguf", arrays, lost))


def test_yarn_begins_at_the_length_of_the_model_where_none_is_said(tmp_path):
    _, arrays, metadata = tiny_llama()
    yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    config = load(write_gguf(tmp_path / "m.gguf", arrays, metadata | yarn)).config
    assert config.rope_scaling["original_max_position_embeddings"] == config.max_positions


def test_heads_of_gemma3_are_those_of_llama_cpp_where_nothing_is_said():
    said = load_family("gemma3_text").gguf.unsaid({"hidden_size": 32, "num_attention_heads": 4})
    assert (said["head_dim"], said["num_key_value_heads"], said["query_pre_attn_scalar"]) == (8, 4, 8)


def split_gguf(folder, parts=3):
    """A tiny model in several files, as the package of the format splits it; its whole weights."""
    weights, arrays, metadata = tiny_llama()
    w = GGUFWriter(str(folder / "m.gguf"), "llama", split_max_tensors=-(-len(arrays) // parts))
    for key, value in metadata.items():
        (w.add_uint32 if isinstance(value, int) else w.add_float32)(key, value)
    for name, x in arrays.items():
        w.add_tensor(name, x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return weights


def test_a_model_in_parts_is_one_model(tmp_path):
    weights = split_gguf(tmp_path)
    second = tmp_path / "m-00002-of-00003.gguf"
    for source in (tmp_path, tmp_path / "m-00001-of-00003.gguf", second):
        model = load(source)
        assert set(model.weights) == set(weights)
        for name in weights:
            np.testing.assert_array_equal(model.weights.numpy(name), weights.numpy(name))
    first = (tmp_path / "m-00001-of-00003.gguf").read_bytes()
    (tmp_path / "odd.gguf").write_bytes(first)
    with pytest.raises(WeightsError, match=r"odd\.gguf: is one of 3 parts, but is not called like name-00001"):
        load(tmp_path / "odd.gguf")
    third = second.read_bytes()
    second.write_bytes(first)
    with pytest.raises(WeightsError, match=r"m-00002-of-00003\.gguf: does not say that it is part 2 of 3"):
        load(tmp_path / "m-00001-of-00003.gguf")
    second.write_bytes(third)
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(WeightsError, match=r"m-00003-of-00003\.gguf: is missing: part 3 of 3, beside m-00002-of"):
        load(second)
    lone = tmp_path / "m-00003-of-00003.gguf"
    _, arrays, metadata = tiny_llama()
    write_gguf(lone, arrays, metadata)
    with pytest.raises(WeightsError, match=r"m-00003-of-00003\.gguf: is called part 3 of 3, but has no split.count"):
        load(lone)


def test_gemma3_from_gguf_equals_its_checkpoint(tmp_path):
    family = load_family("gemma3_text")
    settings = {"vocab": 64, "dim": 32, "ffn": 64, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 32, "window": 4}
    config = family.config_class(**settings, max_positions=128, theta=1e6, scalar=32, tied=True)
    model = family(config)
    weights = Weights.initialize(model.graph(), 3)
    back = {v: k for k, v in family.gguf.names.items()}
    arrays = {}
    for path in weights:
        stem = path.removesuffix(".weight").split(".")
        number = next((p for p in stem if p.isdigit()), "")
        name = back[".".join("{}" if p.isdigit() else p for p in stem)].format(number)
        arrays[f"{name}.weight"] = weights.numpy(path) + np.float32("norm" in path)
    metadata = {
        "gemma3.embedding_length": 32,
        "gemma3.feed_forward_length": 64,
        "gemma3.block_count": 3,
        "gemma3.context_length": 128,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.key_length": 32,
        "gemma3.attention.value_length": 32,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": 4,
        "gemma3.rope.freq_base": 1e6,
    }
    kinds = {"token_embd.weight": Q.Q8_0}
    loaded = load(write_gguf(tmp_path / "m.gguf", arrays, metadata, kinds, architecture="gemma3"))
    assert loaded.config == config
    assert str(loaded.weights["model.embed_tokens.weight"].type) == "f32[64,32]<q8_0>"
    for name in weights:
        if "embed" not in name:
            np.testing.assert_allclose(loaded.weights.numpy(name), weights.numpy(name), atol=1e-7)
