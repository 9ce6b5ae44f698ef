"""Every code block of README and docs: run, compared with what the page says it prints, or told why it is not run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from page_runner import Runner, parse, parse_options
from pages import ROOT, blocks, commands, pages, unlike

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Runner(page).run()
