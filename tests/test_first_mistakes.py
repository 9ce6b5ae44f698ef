"""What somebody who writes a first model of their own gets wrong, and the message that each mistake must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import monograph as mg
import numpy as np
import pytest
from command_line import call
from monograph import MonographError, Value
from monograph.ir.errors import ConfigError


class Small(mg.Config):
    vocab: int = 20
    dim: int = 8
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    names: dict[str, Any] | None = None


def family(body: Callable[[mg.Scope, Value], Any]) -> mg.Family:
    @mg.model
    def mine(m: mg.Scope, c: Small, input_ids: Value) -> Any:
        return body(m, m.embed("embed", input_ids, c.vocab, c.dim))

    return mine


MINE = """
import monograph as mg


class Small(mg.Config):
    dim: int = 8


@mg.model
def mine(m: mg.Scope, c: Small, input_ids):
    return m.linear("head", m.embed("embed", input_ids, 20, c.dim), 20)
"""

PLAIN = family(lambda m, x: m.linear("head", x, 20))

RETURNED = {
    "nothing": (None, r"mine returns nothing as logits"),
    "an array": (np.ones(3), r"mine returns a ndarray as logits"),
    "a tuple": ((1, 2), r"mine returns a tuple as logits"),
    "a dict with an array": ({"logits": np.ones(3)}, r"mine returns a ndarray as logits"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_is_no_value_cannot_be_returned(name: str) -> None:
    given, message = RETURNED[name]
    with pytest.raises(MonographError, match=r"test_first_mistakes.py:\d+: " + message):
        family(lambda m, x: given)().graph()


SETTINGS = {
    "unknown": ({"dmi": 4}, r"no field is called 'dmi', did you mean 'dim'\?"),
    "text": ({"dim": "8"}, r"dim is '8', expected int"),
    "fraction": ({"dim": 2.5}, r"dim is 2.5, expected int"),
    "truth": ({"dim": True}, r"dim is True, expected int"),
    "choice": ({"kind": "c"}, r"kind is 'c', expected Literal"),
    "list": ({"sizes": 3}, r"sizes is 3, expected tuple"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_checked_when_a_model_is_made(name: str) -> None:
    given, message = SETTINGS[name]
    with pytest.raises(ConfigError, match=message):
        PLAIN(**given)
    with pytest.raises(ConfigError, match=message):
        Small().changed(**given)


def test_every_setting_that_does_not_fit_is_listed() -> None:
    with pytest.raises(ConfigError) as e:
        PLAIN(dmi=4, rate="x")
    assert len(e.value.details) == 2


def test_settings_that_fit_are_taken() -> None:
    model = PLAIN(Small(dim=4), rate=1, kind="b", sizes=(3,), names={"a": 1})
    assert model.config == Small(dim=4, rate=1, kind="b", sizes=(3,), names={"a": 1})


def test_a_config_is_a_config() -> None:
    with pytest.raises(ConfigError, match="config of mine is 16, expected Small"):
        PLAIN(16)  # type: ignore[arg-type]


def test_one_name_for_two_layers_names_the_line() -> None:
    def body(m: mg.Scope, x: Value) -> Value:
        return m.linear("layer", m.linear("layer", x, 8), 20)

    with pytest.raises(MonographError, match=r"test_first_mistakes.py:\d+: parameter layer.weight is used as"):
        family(body)().graph()


def test_arrays_are_no_values() -> None:
    with pytest.raises(MonographError, match="a ndarray is not a value of a graph") as e:
        family(lambda m, x: x * np.ones(8))().graph()
    assert "ops.constant" in str(e.value)


def test_unknown_tasks_are_answered_with_the_known_ones() -> None:
    with pytest.raises(MonographError, match="no task is called 'lm'") as e:
        mg.model(task="lm")(PLAIN.function)
    assert "causal-lm" in str(e.value)


def test_weights_can_be_drawn(tmp_path: Any) -> None:
    model = PLAIN()
    with pytest.raises(MonographError, match=r"mg.init\(model\)"):
        mg.build(model, tmp_path / "none")
    model.weights = mg.Weights.initialize(model.graph())
    engine = mg.build(model, tmp_path / "drawn")
    assert mg.verify(model, engine).passed
    assert len(repr(engine.report)) < 1000


def test_text_is_no_source() -> None:
    with pytest.raises(ConfigError, match="a str is not a source of batches") as e:
        mg.train(PLAIN(), "some text", steps=1)  # type: ignore[arg-type]
    assert "Corpus.of" in str(e.value)


def test_the_command_line_names_the_pipelines_there_are(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    result = call("explain", file, "--pipeline", "prefill", code=1)
    assert "known: clean, train, encode, decode" in result.output
    assert "no pass changed what the graph computes" in call("optimize", file, "--check").output


def test_a_file_is_taken_with_its_last_model(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"{MINE}\nmodel = mine(dim=4)\nmodel.weights = mg.Weights.initialize(model.graph())\n")
    assert "are within the tolerance" in call("verify", file).output
