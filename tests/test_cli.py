"""The command line on tiny random models: results, valid JSON, exit codes, one error without a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from monograph import console
from monograph.cli import app
from monograph.ir import parse
from typer.testing import CliRunner

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SOURCE = """
import monograph as mg

class Two(mg.Config):
    dim: int = 8

@mg.model(task="feature-extraction")
def two(m: mg.Scope, c: Two, input_ids, attention_mask, position_ids):
    x = m.embed("embed", input_ids, 20, c.dim)
    return m.rms_norm("norm", x, 1e-5)
"""
COMMANDS = ("show", "explain", "optimize", "build", "verify", "run", "bench", "train", "doctor")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def value(*arguments: object, code: int = 0) -> Any:
    """What the command prints with --json, which must be one JSON value and nothing else."""
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama with a byte-level tokenizer, as a Hugging Face folder."""
    from monograph.data.byte_level import train_tokenizer
    from monograph.frontends.dsl import Model, load_family
    from monograph.frontends.huggingface import save_pretrained
    from monograph.ir.weights import Weights

    family = load_family("llama")
    model = Model(family, family.config_class.from_dict(CONFIG))
    model.weights = Weights.initialize(model.graph(), seed=1)
    model.tokenizer = train_tokenizer(["the cat sat on the mat and the dog sat on the log\n" * 20], 280)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(model, folder)
    return folder


@pytest.mark.slow
def test_every_command_has_help() -> None:
    assert all(name in call("--help").stdout for name in COMMANDS)
    for name in COMMANDS:
        result = call(name, "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout


def test_show_prints_a_graph_that_parses_back(config: Path) -> None:
    for more in ([], ["--pipeline", "decode"], ["--decompose"], ["--pipeline", "encode", "--decompose"]):
        text = call("show", config, *more).stdout
        assert str(parse(text)) == text


def test_show_counts_and_pipelines(config: Path) -> None:
    plain, decode = value("show", config), value("show", config, "--pipeline", "decode", "--counts")
    assert plain["counts"]["attention"] == 2
    assert "cache_append" not in plain["counts"]
    assert str(parse(plain["text"])) == plain["text"]
    assert decode["counts"]["cache_append"] == 4
    assert "text" not in decode
    assert len(decode["slots"]) == 4
    assert decode["slots"][0] == "slot past_key_values.0.key -> present.0.key: append(axis=2)"
    assert decode["slots"][0] in call("show", config, "--pipeline", "decode", "--counts").stdout
    assert "slots" not in plain
    assert "attention" in call("show", config, "--counts").stdout


def test_show_prints_how_processes_share_the_layers(config: Path) -> None:
    found = value("show", config, "--shard", 2)
    kinds = {row["parameter"]: (row["cut"], row["axis"]) for row in found["plan"]}
    assert kinds["model.layers.1.self_attn.o_proj.weight"] == ("row", 1)
    assert kinds["model.layers.0.mlp.up_proj.weight"] == ("column", 0)
    assert kinds["lm_head.weight"] == ("whole", None)
    assert "self_attn.k_proj" in call("show", config, "--shard", 2).stdout
    assert "2 heads cannot be shared equally by 4 ranks" in call("show", config, "--shard", 4).output
    assert call("show", config, "--shard", 1).exit_code == 1


def test_explain_says_what_was_fused_and_what_was_not(config: Path, tmp_path: Path) -> None:
    assert value("explain", config, "--decompose")["fused"]["fuse_attention"] == 2
    assert "nothing that looked like a layer was left unfused" in call("explain", config, "--decompose").stdout
    source = tmp_path / "odd.py"
    source.write_text(SOURCE.replace('return m.rms_norm("norm", x, 1e-5)', ODD_NORM))
    found = value("explain", source, "--pipeline", "encode")
    (miss,) = [m for m in found["misses"] if m["rewrite"] == "fuse_rms_norm"]
    line = source.read_text().splitlines().index("    return y * m.param('norm.weight', c.dim)") + 1
    assert (Path(miss["file"]).name, miss["line"]) == ("odd.py", line)
    assert "also used outside" in miss["reason"]
    assert miss["reason"] in call("explain", source, "--pipeline", "encode").stdout


ODD_NORM = """r = mg.ops.rsqrt(mg.ops.mean(x * x, axis=-1) + 1e-5)
    y = x * r
    m.graph.output("scale", r)
    return y * m.param('norm.weight', c.dim)"""


@pytest.mark.slow
def test_optimize_reports_every_pass_and_checks_numbers(config: Path, tmp_path: Path) -> None:
    found = value("optimize", config, "--decompose", "--check", "--dump", tmp_path / "dump", "-o", tmp_path / "g.txt")
    names = [s["name"] for s in found["steps"]]
    assert "canonicalize" in names
    assert "add_state" in names
    assert len(list((tmp_path / "dump").glob("*.txt"))) == len(names)
    assert "past_key_values.0.key" in parse((tmp_path / "g.txt").read_text()).inputs
    assert "add_state" in call("optimize", config).stdout


def test_a_python_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(SOURCE)
    assert value("show", path)["counts"] == {"embedding": 1, "rms_norm": 1}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["show", "missing.json"], "ConfigError", "missing.json: there is no such file"),
        (["show", "nowhere"], "ConfigError", "there is no such file or folder"),
        (["show", "nothing.py"], "MonographError", "there is no such file"),
        (["show", "{config}", "--pipeline", "decod"], "MonographError", "did you mean 'decode'?"),
        (["explain", "{config}", "--pipeline", "x"], "MonographError", "no pipeline is called 'x'"),
        (["build", "{config}", "{out}"], "WeightsError", "has no weights"),
        (["build", "{config}", "{out}", "--target", "onxx"], "MonographError", "did you mean 'onnx'?"),
        (["build", "{config}", "{out}", "--target", "gpu"], "MonographError", "did you mean 'cuda'?"),
        (["train", "{config}", "{out}", "--steps", "0"], "ConfigError", "--steps is 0, expected 1 to"),
        (["build", "{config}", "{out}", "--target", "onnx", "--strict"], "MonographError", "does not take --strict"),
        (["train", "{config}", "{out}", "--text", "nowhere.txt"], "CorpusError", "nowhere.txt"),
    ],
)
@pytest.mark.slow
def test_errors_are_printed_once(arguments: list[str], kind: str, message: str, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [a.format(config=config, out=out) for a in arguments]
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stderr.count(message) == 1
    assert "Traceback" not in result.output
    found = value(*arguments, code=1)
    assert found["kind"] == kind
    assert message in found["error"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"model_type": "\xff"}', "can't decode byte 0xff"),
        (b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}", "has 5000 digits"),
        (b"[1]", "is a JSON list, not an object"),
    ],
)
def test_a_config_that_is_no_json_is_one_error(config: Path, content: bytes, what: str) -> None:
    config.write_bytes(content)
    found = value("show", config, code=1)
    assert found["kind"] == "ConfigError" and found["error"].startswith(f"{config}: ") and what in found["error"]


def test_a_broken_config_lists_everything_wrong(config: Path) -> None:
    config.write_text(json.dumps({**CONFIG, "hidden_sise": 3, "num_hidden_layers": "2"}))
    error = value("show", config, code=1)["error"]
    assert "num_hidden_layers" in error
    config.write_text("{")
    assert "is not JSON" in value("show", config, code=1)["error"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_build_states_its_bound_and_stays_correct(checkpoint: Path, tmp_path: Path, target: str) -> None:
    out, dump = tmp_path / target, tmp_path / "dump"
    found = value("build", checkpoint, out, "--target", target, "--check", "--dump", dump)
    assert found["bound_bytes"] == 300_000_000 + 3 * 4 * 300 * 32
    assert found["peak_bytes"] > 0
    assert found["check"]["passed"] is True
    assert all(parse(p.read_text()).inputs for p in dump.glob("*/*.txt"))
    assert next(p.name for p in sorted(dump.iterdir())) == "0-graph"
    assert {"config.json", "tokenizer.json", "model.onnx"} <= {p.name for p in out.iterdir()}
    if target == "cpu":
        assert found["fused"] == found["attentions"]["total"] == 2
        assert (len(found["slots"]), found["alone"], found["through_float"]) == (4, "", {})
        assert found["state_bytes"] == 2 * 2 * 2 * 8 * 64 * 4
    assert value("verify", checkpoint, out, "--no-torch")["passed"] is True


@pytest.mark.slow
def test_build_prints_the_bound_before_anything_else(checkpoint: Path, tmp_path: Path) -> None:
    lines = call("build", checkpoint, tmp_path / "out", "--explain", "--strict").stdout.splitlines()
    assert lines[0].startswith("llama: at most 300.1 MB")
    assert "2 of 2 attentions fused" in lines[1]
    assert any("remembers 4 slots, 16.4 kB a row at 64 tokens" in line for line in lines)
    assert any("peak memory" in line for line in lines)


@pytest.mark.slow
def test_verify_fails_above_its_tolerance(checkpoint: Path) -> None:
    found = value("verify", checkpoint)
    backends = {r["backend"] for r in found["rows"]}
    assert backends == {"torch", "onnx", "ort", "ort session", "ort chunks"}
    assert len(found["rows"]) == 5 * len({r["case"] for r in found["rows"]})
    assert all(r["argmax"] == 1.0 for r in found["rows"])
    assert value("verify", checkpoint, "--no-torch", "--tolerance", "0", code=1)["passed"] is False
    assert call("verify", checkpoint, "--no-torch", "--tolerance", "0").exit_code == 1


@pytest.mark.slow
def test_verify_sees_other_weights(checkpoint: Path, tmp_path: Path) -> None:
    """A folder built from something else must not pass."""
    from monograph.building import export
    from monograph.frontends.load import load
    from monograph.ir.weights import Weights

    other = load(checkpoint)
    other.weights = Weights.initialize(other.graph(), seed=2)
    export(other, tmp_path / "other")
    found = value("verify", checkpoint, tmp_path / "other", "--no-torch", code=1)
    assert not any(r["passed"] for r in found["rows"])


@pytest.mark.slow
def test_run_gives_the_same_from_a_folder_and_from_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    assert call("build", checkpoint, tmp_path / "out").exit_code == 0
    first = value("run", tmp_path / "out", "the cat", "--max-new-tokens", 5)
    again = value("run", checkpoint, "the cat", "--max-new-tokens", 5)
    assert first["ids"] == again["ids"]
    assert first["timing"]["new_tokens"] == len(first["ids"])
    shown = call("run", tmp_path / "out", "the cat", "--max-new-tokens", 5)
    assert shown.stdout.rstrip("\n") == first["text"].rstrip("\n")
    assert "tokens/s" in shown.stderr
    assert "no chat template" in value("run", tmp_path / "out", "hi", "--chat", code=1)["error"]


@pytest.mark.slow
def test_run_refuses_a_portable_export(checkpoint: Path, tmp_path: Path) -> None:
    assert call("build", checkpoint, tmp_path / "out", "--target", "onnx").exit_code == 0
    assert "portable" in value("run", tmp_path / "out", "the cat", code=1)["error"]


@pytest.mark.slow
def test_train_writes_a_checkpoint_that_builds(config: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of the text\n\n" for i in range(400)))
    out = tmp_path / "run"
    found = value("train", config, out, "--text", text, "--steps", 3, "--batch", 2, "--length", 16)
    assert [s["step"] for s in found["measured"]] == [1, 2, 3]
    assert found["measured"][-1]["held_out"] < found["measured"][0]["loss"]
    assert found["train_tokens"] > found["held_out_tokens"] > 0
    assert value("verify", out, "--no-torch")["passed"] is True


@pytest.mark.slow
def test_bench_has_all_variants_and_sane_numbers(checkpoint: Path) -> None:
    found = value("bench", checkpoint, "--prompt", 8, "--new-tokens", 4, "--rounds", 1, "--threads", 1)
    apart, portable, fused = found["rows"]
    assert apart["nodes"] > portable["nodes"] > fused["nodes"]
    assert all(r["prefill"] > 0 and r["decode"] > 0 for r in found["rows"])
    assert found["bytes_per_token"] == 4 * (WEIGHTS + 2 * 2 * 2 * 8 * 10)
    assert found["ceilings"]["threads"] == 1


WEIGHTS = 300 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32) + 32
"""Numbers that one token multiplies with: the head, two layers, the last norm; not the embedding, of which it reads
one row."""


@pytest.mark.slow
def test_doctor_tells_available_from_working() -> None:
    found = value("doctor")
    working = {p["provider"]: p["works"] for p in found["providers"]}
    assert working["CPUExecutionProvider"] is True
    for provider in found["providers"]:
        assert provider["works"] == (provider["provider"] == provider["got"])
        assert provider["works"] or provider["reason"]
    assert found["packages"]["torch"]
    attention = next(r for r in found["kernels"]["rows"] if r["op"] == "GroupQueryAttention")
    assert "f32" in attention["cpu"]
    assert "f32" not in attention["cuda"]


def test_names_out_of_a_file_do_not_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in a table nor in an error: they are printed as they would be written in a string."""
    name = "layers.0\x1b[2J\r\u202e"
    console.out().print(console.table("", [{"node": name}]))
    console.tell(f"error: {name}")
    said = capsys.readouterr()
    assert "layers.0\\x1b[2J\\r\\u202e" in said.out
    assert "error: layers.0\\x1b[2J\\r\\u202e" in said.err
    assert not set("\x1b\r\u202e") & set(said.out + said.err)
