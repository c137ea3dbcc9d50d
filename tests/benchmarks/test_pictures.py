"""The page about metrics shows what the benchmark prints."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("torchmetrics")

from benchmarks import pictures
from tests.docs.pages import DOCS
from tests.repo.files import ROOT


def test_the_page_shows_what_is_printed():
    for module in pictures.NEEDED:
        pytest.importorskip(module)
    (block,) = re.findall(r"^```text\n(.*?)^```$", (DOCS / "metrics.md").read_text(), re.M | re.S)
    command = [sys.executable, "-m", "benchmarks.pictures"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == block


def test_without_the_others_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("benchmarks.pictures.find_spec", lambda _: None)
    assert pictures.main() == 1
    assert "bench,peers" in capsys.readouterr().out
