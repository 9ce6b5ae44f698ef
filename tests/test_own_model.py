"""The model of one's own in examples/own_model.py: trained, exported, built, verified and decoded as the file says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from monograph.ir.slots import Growth
from monograph.passes.state import add_state

pytestmark = pytest.mark.slow

FILE = Path(__file__).parent.parent / "examples" / "own_model.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    if "own_model" not in sys.modules:
        spec = importlib.util.spec_from_file_location("own_model", FILE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["own_model"] = module
        spec.loader.exec_module(module)
    return sys.modules["own_model"]


def test_it_trains_and_all_ways_to_run_it_agree(example: ModuleType, tmp_path: Path) -> None:
    found = example.main(tmp_path, 12)
    assert found["last loss"] < 0.8 * found["first loss"]
    assert found["verify"] < 1e-4
    assert found["decode"] < 1e-4


def test_what_it_remembers_is_of_three_kinds(example: ModuleType) -> None:
    graph = example.hybrid().graph()
    assert set(graph.outputs) == {"logits", "forecast"}
    assert str(graph.inputs["readings"].type) == "f32[B,S,4]"
    add_state(graph)
    counts = {growth: sum(s.growth is growth for s in graph.slots) for growth in Growth}
    assert counts == {Growth.replace: 1, Growth.window: 2, Growth.append: 2, Growth.once: 0}
    assert str(graph.inputs["readings"].type) == "f32[B,S,4]"


def test_the_readings_matter(example: ModuleType) -> None:
    module = example.mg.to_torch(example.hybrid()).eval()
    given = example.batch(2, 5, 0)
    inputs = {k: example.torch.from_numpy(v[:, :5]) for k, v in given.items()}
    before = module(**inputs)["logits"].detach().numpy()
    after = module(**inputs | {"readings": inputs["readings"] + 1})["logits"].detach().numpy()
    assert np.abs(before - after).max() > 1e-2


def test_it_is_one_short_file() -> None:
    assert len(FILE.read_text().splitlines()) < 150
