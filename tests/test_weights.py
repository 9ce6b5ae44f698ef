"""Weights: what is written is read back, nothing is loaded early, and no damaged file gets past its header."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.ir import Graph, Init, tensor
from monograph.ir.errors import WeightsError
from monograph.ir.ops import concat, dropout, iota, transpose
from monograph.ir.safetensors import Unreadable
from monograph.ir.types import DType, bf16, f16, f32, i64
from monograph.ir.weights import Computed, Mapped, Weights, is_computed, param_only


def some_weights() -> Weights:
    rng = np.random.default_rng(0)
    return Weights.of(
        {
            "b": np.array([True, False, True]),
            "a": rng.normal(size=(3, 4)).astype(np.float32),
            "half": rng.normal(size=(5,)).astype(np.float16),
            "brain": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
            "scalar": np.array(2.5),
            "empty": np.zeros((0, 4), np.float32),
            "ids": np.arange(4),
        }
    )


@pytest.mark.parametrize("limit", [10**9, 40])
def test_saved_weights_are_read_back_bit_for_bit(tmp_path, limit):
    w = some_weights()
    written = w.save(tmp_path / "out", max_shard_bytes=limit)
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert (len(written) == 1) == (limit > 100)
    back = Weights.open(tmp_path / "out")
    assert set(back) == set(w)
    for name in w:
        assert back[name].type == w[name].type
        assert back.numpy(name).tobytes() == w.numpy(name).tobytes()
    assert back.bytes == w.bytes == 3 + 48 + 10 + 12 + 8 + 32


def test_the_library_of_the_format_reads_our_files_and_we_read_its(tmp_path):
    from safetensors.numpy import load_file, save_file

    w = some_weights()
    w.save(tmp_path)
    theirs = load_file(tmp_path / "model.safetensors")
    assert set(theirs) == set(w)
    for name in set(w) - {"brain"}:
        np.testing.assert_array_equal(theirs[name], w.numpy(name))
    save_file({k: w.numpy(k) for k in ("a", "half", "ids")}, tmp_path / "theirs.safetensors", {"who": "them"})
    back = Weights.open(tmp_path / "theirs.safetensors")
    assert back.metadata == {"who": "them"}
    for name in back:
        np.testing.assert_array_equal(back.numpy(name), w.numpy(name))


def test_saving_over_a_checkpoint_leaves_no_shard_of_the_old_one(tmp_path):
    w = some_weights()
    w.save(tmp_path, max_shard_bytes=40)
    (tmp_path / "config.json").write_text("{}")
    w.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    w.save(tmp_path, max_shard_bytes=40)
    assert not (tmp_path / "model.safetensors").exists()
    assert Weights.open(tmp_path).numpy("ids").tolist() == [0, 1, 2, 3]


def test_a_checkpoint_can_be_rewritten_onto_itself(tmp_path):
    some_weights().save(tmp_path)
    old = Weights.open(tmp_path)
    old.cast(f16).save(tmp_path)
    np.testing.assert_array_equal(Weights.open(tmp_path).numpy("a"), some_weights().numpy("a").astype(np.float16))
    with pytest.raises(WeightsError, match="tensor a cannot be read: the file was changed after it was opened"):
        old.numpy("a")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    def fail(x):
        raise WeightsError("broken source")

    w = some_weights()
    bad = w | {"bad": Mapped(w["a"], w["a"].type, fail)}
    with pytest.raises(WeightsError, match="broken source"):
        bad.save(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    w.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(WeightsError, match="broken source"):
        bad.save(tmp_path, max_shard_bytes=20)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_reading_and_rewriting_hold_one_tensor_in_memory(tmp_path):
    one = 4 * 256 * 1024
    Weights.of({f"t{i}": np.full((256, 1024), i, np.float32) for i in range(16)}).save(tmp_path / "in")
    tracemalloc.start()
    try:
        w = Weights.open(tmp_path / "in").cast(f16)
        assert tracemalloc.get_traced_memory()[1] < one / 2
        w.save(tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 2 * one
    finally:
        tracemalloc.stop()
    assert Weights.open(tmp_path / "out").numpy("t7")[3, 5] == 7


def test_conversion_is_explicit_and_never_crosses_floats_and_integers(tmp_path):
    w = some_weights()
    np.testing.assert_array_equal(w.numpy("brain", f32), w.numpy("brain").astype(np.float32))
    assert w.numpy("a", bf16).dtype == ml_dtypes.bfloat16
    assert w.numpy("ids", DType.i32).tolist() == [0, 1, 2, 3]
    with pytest.raises(WeightsError, match="a tensor of i64 is not converted to f32"):
        w.numpy("ids", f32)
    assert w.cast(bf16)["ids"].dtype == i64
    assert w.cast(bf16)["a"].bytes == 24


def test_an_unknown_name_is_a_key_error_with_a_suggestion():
    w = Weights.of({"model.norm.weight": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"no tensor is called 'model.nrm.weight', did you mean 'model.norm.weight'"):
        w["model.nrm.weight"]
    assert w.get("nothing") is None
    assert "nothing" not in w


def test_check_lists_every_difference_at_once():
    g = Graph("g")
    for name, shape in (("norm.weight", (4,)), ("up.weight", (8, 4)), ("ids", (2,)), ("gone", (2, 2))):
        g.param(name, tensor(f32, *shape))
    w = Weights.of(
        {
            "norm.weights": np.zeros(4, np.float32),
            "up.weight": np.zeros((4, 8), np.float16),
            "ids": np.zeros(2, np.int64),
            "head.weight": np.zeros(1, np.float32),
        }
    )
    with pytest.raises(WeightsError) as e:
        w.check(g, ignore=["head.*"])
    assert e.value.details == (
        "missing: norm.weight: f32[4]",
        "missing: gone: f32[2,2]",
        "unexpected: norm.weights: f32[4], did you mean 'norm.weight'?",
        "wrong: up.weight is f16[4,8], expected f32[8,4]",
        "wrong: ids is i64[2], expected f32[2]",
    )
    good = Weights.of({k: np.zeros(v.shape, np.float16) for k, v in g.params.items()})
    good.check(g)


def test_initial_values_depend_on_name_and_seed_only():
    def graph(*names):
        g = Graph("g")
        for n in names:
            g.param(n, tensor(f32, 64, 64), Init("normal", 0.02))
        g.param("one", tensor(f32, 3), Init("ones"))
        return g

    w, other = Weights.initialize(graph("a", "b"), 1), Weights.initialize(graph("c", "b"), 1)
    np.testing.assert_array_equal(w.numpy("b"), other.numpy("b"))
    np.testing.assert_array_equal(w.numpy("b"), w.numpy("b"))
    assert not np.array_equal(w.numpy("a"), w.numpy("b"))
    assert not np.array_equal(w.numpy("a"), Weights.initialize(graph("a"), 2).numpy("a"))
    assert 0.018 < w.numpy("a").std() < 0.022
    assert w.numpy("one").tolist() == [1, 1, 1]
    g = graph("a")
    g.param("unsaid", tensor(f32, 2))
    with pytest.raises(WeightsError, match=r"1 parameters of g do not say how they start\n  unsaid"):
        Weights.initialize(g)
    assert Weights.initialize(g, default=Init("zeros")).numpy("unsaid").tolist() == [0, 0]


# -- expressions over parameters -----------------------------------------------------------------------------------


def test_a_computed_tensor_is_the_expression_above_it():
    g = Graph("g")
    a, b = g.param("a", tensor(f32, 3, 4)), g.param("b", tensor(f32, 2, 4))
    x = g.input("x", tensor(f32, "B", 4))
    packed = transpose(concat(a, b * 2.0, axis=0), permutation=(1, 0))
    y = x @ packed
    w = Weights.of({"a": np.ones((3, 4), np.float16), "b": np.full((2, 4), 3, np.float16)})
    t = Computed(packed, w)
    assert str(t.type) == "f32[4,5]"
    np.testing.assert_array_equal(t.numpy(), np.tile(np.array([1, 1, 1, 6, 6], np.float32), (4, 1)))
    np.testing.assert_array_equal(Computed(a, w).numpy(), np.ones((3, 4), np.float32))
    assert is_computed(packed)
    assert not is_computed(y)
    assert not is_computed(a)
    with pytest.raises(WeightsError, match="depends on more than parameters"):
        Computed(y, w)


def test_param_only_leaves_out_inputs_randomness_and_symbols():
    g = Graph("g")
    a = g.param("a", tensor(f32, 3))
    x = g.input("x", tensor(f32, "B", 3))
    doubled = a * 2.0
    noisy = dropout(doubled, p=0.5)
    both = x + doubled
    with g.at(None):
        fixed, open_ended = iota(start=0, length=3), iota(start=0, length=x.shape[0])
    found = param_only(g)
    assert {a, doubled, fixed} <= found
    assert not found & {noisy, both, open_ended, x}
    assert not is_computed(noisy)
    assert not is_computed(fixed)


def test_a_computed_tensor_frees_what_is_no_longer_read():
    n = 1 << 20
    g = Graph("g")
    y = g.param("p0", tensor(f32, n))
    for i in range(1, 12):
        y = (y + g.param(f"p{i}", tensor(f32, n))) * 0.5
    w = Weights({k: Weights.initialize(g, 0, Init("normal", 1.0))[k] for k in g.params})
    expected = w.numpy("p0")
    for i in range(1, 12):
        expected = (expected + w.numpy(f"p{i}")) * np.float32(0.5)
    tracemalloc.start()
    try:
        result = Computed(y, w).numpy()
        assert tracemalloc.get_traced_memory()[1] < 5 * 4 * n
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(result, expected)


# -- files that lie ------------------------------------------------------------------------------------------------


def raw(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("kind", ["int16", "uint16", "uint32"])
def test_integers_without_a_counterpart_are_widened(tmp_path, kind):
    from safetensors.numpy import save_file

    info = np.iinfo(kind)
    values = np.array([[info.min, info.max, 7]], kind)
    save_file({"t": values, "u": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    found = Weights.open(tmp_path).numpy("t")
    assert found.dtype == (np.int64 if kind == "uint32" else np.int32)
    np.testing.assert_array_equal(found, values)


def test_metadata_may_be_null(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(raw({"t": entry(), "__metadata__": None}, bytes(8)))
    assert list(Weights.open(tmp_path)) == ["t"]


LIES = {
    "is 3 bytes long": b"abc",
    "says its header is 1152921504606846976 bytes long, but the file has 10 bytes": (1 << 60).to_bytes(8, "little")
    + b"{}",
    "has a header that is not JSON": raw(b"{nonsense", b""),
    "has a header that is a JSON list, not an object": raw([], b""),
    "names 't' twice": raw(b'{"t": {}, "t": {}}', b""),
    "tensor t: needs dtype, shape and data_offsets, but its entry is 3": raw({"t": 3}, b""),
    r"its entry is .*-2": raw({"t": entry(shape=(-2,))}, bytes(8)),
    r"its entry is .*True": raw({"t": entry(shape=(True,))}, bytes(8)),
    r"its entry is .*1e\+30": raw({"t": entry(shape=(1e30,))}, bytes(8)),
    "tensor t: has element type F12": raw({"t": entry("F12", (8,))}, bytes(8)),
    "tensor t: has bytes 0 to 8, but the file has 7 bytes of data": raw({"t": entry()}, bytes(7)),
    "tensor t: has bytes 8 to 0": raw({"t": entry(offsets=(8, 0))}, bytes(8)),
    r"tensor t: has 8 bytes, but f32\[1099511627776\] needs 4398046511104": raw(
        {"t": entry(shape=(1 << 40,))}, bytes(8)
    ),
    "tensor u: starts at byte 4 of the data and overlaps t, which ends at 8": raw(
        {"t": entry(), "u": entry(offsets=(4, 12))}, bytes(12)
    ),
    "tensor u: starts at byte 12 of the data and leaves a hole after t, which ends at 8": raw(
        {"t": entry(), "u": entry(offsets=(12, 20))}, bytes(20)
    ),
    "has 9 bytes of data, but its tensors end at 8": raw({"t": entry()}, bytes(9)),
    "has __metadata__ that is not a map": raw({"t": entry(), "__metadata__": {"a": 1}}, bytes(8)),
}


@pytest.mark.parametrize("message", LIES)
def test_a_file_that_lies_is_refused_before_anything_is_allocated(tmp_path, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[message])
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message) as e:
            Weights.open(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "model.safetensors" in str(e.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_truncation_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    some_weights().save(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        Weights.open(folder)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_byte_of_the_header_is_refused_or_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    some_weights().save(folder)
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    length = 8 + int.from_bytes(whole[:8], "little")
    whole[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        w = Weights.open(folder)
    except WeightsError as e:
        assert "model.safetensors" in str(e)
    else:
        for name in w:
            if isinstance(w[name], Unreadable):
                with pytest.raises(WeightsError, match="has no counterpart in the IR"):
                    w.numpy(name)
            else:
                assert w.numpy(name).nbytes == w[name].bytes


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", 3, None])
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    Weights.of({"t": np.zeros(2)}).save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": shard}}))
    with pytest.raises(WeightsError, match="not the name of a file in the same folder"):
        Weights.open(folder)


def test_an_index_must_agree_with_its_shards(tmp_path):
    some_weights().save(tmp_path, max_shard_bytes=40)
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    first = index["weight_map"]["a"]
    index["weight_map"]["ghost"] = first
    index_path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=f"places tensor ghost in {first}, which does not have it"):
        Weights.open(tmp_path)
    index["weight_map"].pop("ghost")
    index["weight_map"]["copy"] = "copy.safetensors"
    a = Weights.open(tmp_path / first).numpy("a")
    for values, message in ((a + 1, r"a is in copy\.safetensors and in another shard, with other values"), (a, None)):
        Weights.of({"a": values, "copy": a}).save(tmp_path / "copy")
        (tmp_path / "copy" / "model.safetensors").rename(tmp_path / "copy.safetensors")
        index_path.write_text(json.dumps(index))
        if message is None:
            np.testing.assert_array_equal(Weights.open(tmp_path).numpy("a"), a)
        else:
            with pytest.raises(WeightsError, match=message):
                Weights.open(tmp_path)
    (tmp_path / first).unlink()
    with pytest.raises(WeightsError, match=f"{first}: there is no such file"):
        Weights.open(tmp_path)
    index_path.write_text("[]")
    with pytest.raises(WeightsError, match="is not an index with a weight_map"):
        Weights.open(tmp_path)


def test_a_pickle_is_never_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin is a pickle, which is never read"):
        Weights.open(tmp_path)
    with pytest.raises(WeightsError, match="is a pickle, which can run code"):
        Weights.open(tmp_path / "pytorch_model.bin")
