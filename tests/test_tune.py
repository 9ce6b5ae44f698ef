"""Measured choice: shorter graphs add up, times decide beyond the noise, wrong candidates are dropped, caches hold."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph.backends.onnxruntime import build, tune, tune_cache, tune_whole
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.choices import CHOICES, Choices, choices_of
from monograph.backends.onnxruntime.contract import FILE, Contract
from monograph.backends.onnxruntime.tune_fields import PORTABLE, fields
from monograph.backends.onnxruntime.tune_loads import Load
from monograph.backends.onnxruntime.tune_result import Final, Trial, Tuning
from monograph.backends.onnxruntime.tune_timing import ROUNDS, Timing, compared
from monograph.backends.target import Target
from monograph.frontends.dsl import Model, load_family
from monograph.ir import interpret, parse, verify
from monograph.ir.errors import ConfigError, MonographError
from monograph.ir.weights import Weights
from monograph.passes.differential import Case, random_params, sample_inputs
from monograph.passes.shorten import layers_of, shortened, without
from small_models import FAMILIES, OWN, SMALL, small

CPU = Target.of("cpu")


FEW = [f for f in fields() if f.name in ("all", "attention", "pack_gates", "skip_layer_norm", "bias_gemm")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from other runs, few fields, as few rounds as there may be: no test waits for a clock."""
    monkeypatch.setenv("MONOGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "_TURN", 0.0)
    monkeypatch.setattr(tune, "fields", lambda: FEW)
    monkeypatch.setattr(tune, "whole_model", lambda *given: tune_whole.whole_model(*given[:-1], 0.0))


def weighted(model: Model) -> Model:
    return replace(model, weights=Weights.of(random_params(model.graph())))


def deep(family: str, layers: int) -> Model:
    found = load_family(family)
    sizes = {**SMALL, **OWN.get(family, {}), "layers": layers, "decoder_layers": layers}
    return found(**{k: v for k, v in sizes.items() if k in {f.name for f in fields_of(found.config_class)}})


WHOLE = {"gru_lm", "lstm_lm", "lstm_seq2seq", "rnn_lm"}
"""Families without numbered layers."""


# -- shorter graphs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_short_versions_that_are_graphs(family: str) -> None:
    graph = deep(family, 4).graph()
    layers = layers_of(graph)
    if family in WHOLE:
        assert layers == []
        return
    assert {layer.index for layer in layers} == {0, 1, 2, 3}
    found = shortened(layers)
    assert found is not None
    assert len(found.base) + sum(n for _, n in found.more) == len(layers)
    base = verify(without(graph, found.base))
    for layer, _ in found.more:
        longer = verify(without(graph, {*found.base, layer}))
        assert len(base) < len(longer) < len(graph)
        assert any(k.startswith(f"{layer.stack}.{layer.index}.") for k in longer.params)


@pytest.mark.parametrize(
    ("family", "kept"), [("llama", (0, 2)), ("llama", (2,)), ("bert", (1, 2)), ("gpt2", (0, 1, 2))]
)
def test_what_is_left_computes_what_a_model_of_those_layers_does(family: str, kept: tuple[int, ...]) -> None:
    long, short = deep(family, 3), deep(family, len(kept)).graph()
    graph = long.graph()
    stack = layers_of(graph)[0].stack
    params = random_params(graph)
    renamed = {k: params[_moved(k, stack, kept)] for k in short.params}
    cut = without(graph, [layer for layer in layers_of(graph) if layer.index in kept])
    inputs = sample_inputs(short, Case("right-padded", 3))
    for name, wanted in interpret(short, inputs, renamed).items():
        np.testing.assert_array_equal(interpret(cut, inputs, params)[name], wanted)


def _moved(path: str, stack: str, kept: tuple[int, ...]) -> str:
    if not path.startswith(f"{stack}."):
        return path
    number, _, rest = path.removeprefix(f"{stack}.").partition(".")
    return f"{stack}.{kept[int(number)]}.{rest}"


def test_layers_of_two_kinds_are_told_apart_and_all_are_counted() -> None:
    found = shortened(layers_of(deep("gemma3_text", 12).graph()))
    assert found is not None and len(found.more) == 2
    assert len(found.base) + sum(n for _, n in found.more) == 12


def test_a_layer_that_others_read_from_stays() -> None:
    layers = layers_of(deep("t5", 4).graph())
    assert not next(layer for layer in layers if layer.index == 0).removable  # Its table of positions is everybody's.


def test_a_graph_without_numbered_layers_is_measured_whole() -> None:
    graph = parse("graph g(%x: f32[B,4]) {\n  param @w: f32[4,4]\n  %0 = linear(%x, @w) : f32[B,4]\n  return y=%0\n}")
    assert layers_of(graph) == [] and shortened([]) is None


# -- choices --------------------------------------------------------------------------------------------------------


def candidates() -> list[tuple[str, Choices]]:
    """Every candidate of every field, from the shipped choices, and some together."""
    found = [(f"{f.name} {name}", c) for f in fields() for name, c in f.candidates(CHOICES["cpu"])]
    portable = replace(CHOICES["cpu"], **PORTABLE)
    return [*found, ("portable, packed", replace(portable, pack_projections=True, pack_gates=True))]


@pytest.mark.parametrize("family", ["llama", "bert", "gemma3_text", "t5"])
def test_every_choice_computes_the_same(family: str, tmp_path: Path) -> None:
    model = weighted(small(family))
    graph = model.graph()
    assert model.weights is not None
    inputs = sample_inputs(graph, Case("right-padded", 2))
    stream = model.task.stream
    assert stream is not None
    wanted = interpret(graph, inputs, {k: t.numpy() for k, t in model.weights.items()})[model.task.output]
    kept = inputs[stream.mask] != 0 if stream.mask in graph.inputs else np.ones(wanted.shape[:2], bool)
    seen = set[str]()
    for i, (name, choices) in enumerate(candidates()):
        report = build(model, None, tmp_path / str(i), choices=choices)
        assert Contract.read(report.folder).choices == choices
        session = open_session(report.folder, threads=1)
        known = {k for types in session.contract.inputs.values() for k in types} | {*stream.names}
        got = session.run({k: v for k, v in inputs.items() if k in known})[model.task.output]
        np.testing.assert_allclose(got[kept], wanted[kept], atol=2e-5 * np.abs(wanted).max(), err_msg=name)
        seen.add(str(report.nodes))
    assert len(seen) > 1


def test_gates_side_by_side_are_one_product(tmp_path: Path) -> None:
    model = weighted(small("llama"))
    counts = [
        build(model, None, tmp_path / str(packed), choices=replace(CHOICES["cpu"], pack_gates=packed)).nodes[
            "model.onnx"
        ]
        for packed in (False, True)
    ]
    assert counts[0]["MatMul"] - counts[1]["MatMul"] == 2 and counts[1]["Slice"] == 4


def test_choices_survive_json_and_damage_is_named() -> None:
    for _, choices in candidates():
        assert Choices.of(json.loads(json.dumps(choices.said()))) == choices
    damage = {"flash": 1, "threads": -1, "int4_level": 3, "attention": "best", "disabled_optimizers": [1], "more": 2}
    for name, value in damage.items():
        with pytest.raises(ConfigError, match=name):
            Choices.of({**CHOICES["cpu"].said(), name: value})
    with pytest.raises(
        ConfigError, match=r"flash is None, expected true or false(.|\n)*threads is True, expected a whole"
    ):
        Choices.of({"flash": None, "threads": True})


def test_a_contract_with_damaged_choices_is_refused(tmp_path: Path) -> None:
    folder = build(weighted(small("llama")), None, tmp_path / "m").folder
    said = json.loads((folder / FILE).read_text())
    said["choices"]["spinning"] = "yes"
    (folder / FILE).write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="spinning is 'yes', expected true or false"):
        Contract.read(folder)


def test_without_tuning_the_shipped_choices_say_so(tmp_path: Path) -> None:
    report = build(weighted(small("llama")), None, tmp_path / "m")
    why = Contract.read(report.folder).why
    assert why[0] == "the shipped choices for cpu: nothing was measured on this machine"
    assert any("QuickGelu" in line for line in why) and why[0] in report.table().text()
    assert choices_of(CPU) is CHOICES["cpu"]


def test_sessions_obey_the_settings_of_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monograph.backends.onnxruntime import options

    opened: list[tuple[dict[str, Any], str | None]] = []
    real = options.Loaded

    def watched(path: Path, provider: str, **given: Any) -> Any:
        import os

        opened.append((given, os.environ.get(options.FLASH_OFF)))
        return real(path, provider, **given)

    monkeypatch.setattr(options, "Loaded", watched)
    settings = {"threads": 1, "spinning": False, "flash": False, "prepacked": False}
    choices = replace(CHOICES["cpu"], **settings, disabled_optimizers=("TransposeOptimizer",))
    folder = build(weighted(small("llama")), None, tmp_path / "m", choices=choices).folder
    open_session(folder)
    open_session(folder, threads=2)
    (first, flash), (second, _) = opened
    assert first["threads"] == 1 and second["threads"] == 2 and flash == "1"
    assert first["settings"]["session.intra_op.allow_spinning"] == "0"
    assert first["settings"]["session.disable_prepacking"] == "1"
    assert set(first["disabled_optimizers"]) == {"SkipLayerNormFusion", "BiasGeluFusion", "TransposeOptimizer"}


# -- times ----------------------------------------------------------------------------------------------------------


class Clock:
    """Subjects whose runs take what they are told, and noise that is the same for whoever runs side by side."""

    loads = ("one",)

    def __init__(self, seconds: tuple[float, ...], weights: tuple[int, ...] = (1,), own_noise: float = 0.0) -> None:
        self.each, self.weights, self.own = seconds, weights, own_noise
        self.rng, self.calls = np.random.default_rng(len(seconds)), 0

    def seconds(self, load: int, version: int) -> float:
        self.calls += 1
        return self.each[version] + self.own * abs(self.rng.standard_normal())


def test_layers_are_composed() -> None:
    # Eight layers: the base has one, the longer one two.
    first, other = Clock((2.0, 3.0), (-6, 7)), Clock((2.0, 2.5), (-6, 7))
    a, b = compared([first, other], 0.0)
    assert a.seconds == (9.0,) and b.seconds == (5.5,)
    assert a.ratio == 1 and b.ratio == pytest.approx(5.5 / 9) and b.faster and not a.faster


@pytest.mark.parametrize(("seconds", "noise", "faster"), [(0.9, 0.0, True), (0.995, 0.0, False), (0.99, 0.3, False),
                                                          (1.1, 0.0, False), (0.5, 0.02, True)])  # fmt: skip
def test_only_what_is_faster_beyond_the_noise_is_taken(seconds: float, noise: float, faster: bool) -> None:
    _, found = compared([Clock((1.0,), own_noise=noise), Clock((seconds,), own_noise=noise)], 0.0)
    assert found.faster == faster and len(found.ratios) >= ROUNDS


def test_composed_noise_that_makes_no_sense_is_no_gain() -> None:
    assert not Timing((1.0,), (-0.2, -0.1, 0.0, 0.1), 0.9).faster
    assert not Timing((1.0,), (0.5, 0.6, 0.9, 0.95), 0.9).faster  # The rounds do not agree.
    assert not Timing((1.0,), (0.9, 0.9, 0.9), 1.05).faster  # Faster only after composing.


def test_hopeless_candidates_are_given_up() -> None:
    first, slow = Clock((1.0,)), Clock((2.0,))
    compared([first, slow], 0.0)
    assert slow.calls < first.calls
    first, far = Clock((1.0,)), Clock((20.0,))
    assert compared([first, far], 0.0)[1].ratio == 20 and far.calls == 1


def test_time_that_is_left_is_used_up_to_a_number_of_rounds() -> None:
    ticks = itertools.count()
    found = compared([Clock((1.0,)), Clock((1.0,))], 12, clock=lambda: float(next(ticks)))
    assert ROUNDS < len(found[0].ratios) < 25


# -- the tuner ------------------------------------------------------------------------------------------------------

LOADS = [Load(1, 8, 2)]


def tuned(model: Model, **settings: Any) -> Tuning:
    assert model.weights is not None
    return tune.tune(model, model.weights, CPU, **{"loads": LOADS, "budget": 1e4, "threads": 1, **settings})


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_model_is_tuned_once_a_machine(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weighted(small(family))
    shown: list[float] = []
    found = tuned(model, progress=lambda share, what: shown.append(share))
    assert found.trials and shown == sorted(shown) and 0 <= shown[0] <= shown[-1] <= 1
    assert {r.candidate for r in found.final.rows} >= {"shipped"}
    assert found.why[0].startswith("measured on ") and not found.cached
    monkeypatch.setattr(tune, "Workshop", None)
    again = tuned(model)
    assert again.cached and again == replace(found, cached=True)
    with pytest.raises(TypeError):
        tuned(model, again=True)
    with pytest.raises(TypeError):
        tuned(model, loads=[Load(2, 8, 2)])


def test_a_build_keeps_what_was_measured(tmp_path: Path) -> None:
    model = weighted(small("llama"))
    with mg.build(model, tmp_path / "m", tune=True, loads=["1x8+2"], tune_seconds=1e4, threads=1) as engine:
        report = engine.report
        assert report is not None and report.tuning is not None
        assert "tuned on" in report.tuning.table().text()
        kept = json.loads((tmp_path / "m" / "tuning.json").read_text())
        assert kept["choices"] == report.contract.choices.said() and len(kept["trials"]) == len(report.tuning.trials)
        assert report.contract.why[0].startswith("measured on")
        assert engine.session.contract.choices == report.contract.choices
    mg.build(model, tmp_path / "m")  # An older build, its measurements too, may be replaced.
    assert not (tmp_path / "m" / "tuning.json").exists()


def test_a_candidate_that_is_not_equal_is_dropped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "EQUAL", -1.0)
    real = tune._Search.allowed
    monkeypatch.setattr(tune._Search, "allowed", lambda self: min(0.0, real(self)) - 1)
    found = tuned(weighted(small("llama")))
    assert found.trials and all(t.outcome.startswith("not equal: off by") for t in found.trials)
    assert found.choices == replace(CHOICES["cpu"], evidence=())


def test_tuned_choices_that_are_slower_as_a_whole_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Timing((0.1,), (0.5,) * 5, 0.5)
    monkeypatch.setattr(
        tune, "compared", lambda subjects, seconds: [Timing((0.2,), (1.0,) * 5, 1.0), *[found] * (len(subjects) - 1)]
    )
    slow = [Timing((0.2,), (1.0,) * 5, 1.0), Timing((0.3,), (1.5,) * 5, 1.5), Timing((0.1,), (0.5,) * 5, 0.5)]
    monkeypatch.setattr(tune_whole, "compared", lambda subjects, seconds: slow)
    result = tuned(weighted(small("llama")))
    assert result.final.fell_back and result.choices == result.shipped
    assert "no choice here reaches it" in result.final.note


def test_a_budget_that_is_spent_leaves_the_shipped_choices(tmp_path: Path) -> None:
    found = tuned(weighted(small("llama")), budget=0.01)
    assert found.choices == found.shipped and found.missed[0] == "all"
    assert any("not reached within the budget" in line for line in found.why)


DAMAGE = ["", "{", "[]", "null", '{"key": {}}', '{"key": KEY, "tuning": {}}', '{"key": KEY, "tuning": []}', "\x00" * 64,
          "[" * 5000, '{"key": KEY, "tuning": {"choices": {"flash": 3}}}']  # fmt: skip


@pytest.mark.parametrize("text", DAMAGE)
def test_a_damaged_cache_is_measured_again(text: str) -> None:
    key: dict[str, Any] = {"format": 1}
    trial = Trial("flash", "off", (1.0,), 0.9, 0.01, "chosen")
    result = Tuning(CHOICES["cpu"], CHOICES["cpu"], (trial,), (), Final((trial,)), False, ("1x8+2",), "here")
    tune_cache.write(key, result)
    assert tune_cache.read(key) == replace(result, cached=True)
    file = tune_cache._file(key)
    file.write_text(text.replace("KEY", json.dumps(key)))
    assert tune_cache.read(key) is None
    tune_cache.write(key, result)
    assert tune_cache.read(key) is not None and tune_cache.read({"format": 2}) is None


@pytest.mark.parametrize(("text", "load"), [("1x512+128", Load(1, 512, 128)), ("32x128", Load(32, 128)),
                                            ("2 x 3 + 4", Load(2, 3, 4))])  # fmt: skip
def test_loads_are_read(text: str, load: Load) -> None:
    assert Load.parse(text) == load and Load.parse(str(load)) == load


@pytest.mark.parametrize("text", ["", "x", "0x5", "1x0", "1x-5", "1x5+", "axb", "1x5+2+3", "1.5x3"])
def test_loads_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(MonographError, match="rows x tokens"):
        Load.parse(text)


def test_loads_fit_into_the_positions_of_a_model() -> None:
    for limit in (1, 2, 8, 20, 64, 600, 5000):
        load = Load(1, 512, 128).within(limit)
        assert load.prompt >= 1 and load.prompt + load.new <= limit


REFUSED = [
    ({"tune": "more"}, "tune is 'more'"),
    ({"loads": ["1x8"]}, "nothing is measured"),
    ({"tune": True, "loads": ["x"]}, "no load is called"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_means_nothing_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MonographError, match=message):
        mg.build(weighted(small("llama")), tmp_path / "m", **given)
    assert not (tmp_path / "m").exists()


def test_the_command_tunes_and_shows_what_it_measured(tmp_path: Path) -> None:
    from command_line import call
    from monograph.frontends.huggingface import save_pretrained

    save_pretrained(weighted(small("llama")), tmp_path / "model")
    options = ("--load", "1x8+2", "--tune-seconds", 10000)
    shown = call("build", tmp_path / "model", tmp_path / "out", "--tune", *options).output
    assert "tuned on" in shown and "ratio" in shown and "times are composed from layers" in shown
    said = json.loads(call("build", tmp_path / "model", tmp_path / "out", "--tune", *options, "--json").stdout)
    assert said["tuning"]["cached"] and said["choices"][0].startswith("measured on")
    again = json.loads(call("build", tmp_path / "model", tmp_path / "out", "--retune", *options, "--json").stdout)
    assert not again["tuning"]["cached"]
    plain = call("build", tmp_path / "model", tmp_path / "out").output
    assert "nothing was measured on this machine" in " ".join(plain.split())
    assert (
        "no load is called"
        in call("build", tmp_path / "model", tmp_path / "o2", "--tune", "--load", "x", code=1).output
    )
