"""The page for those who come from cache-dit says what the benchmark prints, and has a line for each of its options."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from benchmarks import differences
from tests.docs.pages import DOCS, tables
from tests.repo.files import ROOT

PAGE = (DOCS / "coming-from-cache-dit.md").read_text()
VERDICTS = {"same", "differs", "not needed"}


def printed() -> str:
    (block,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    return block


def test_the_page_shows_every_case():
    assert [line for line in printed().splitlines() if not line.startswith(" ")] == list(differences.CASES)


@pytest.mark.slow
def test_the_page_shows_what_is_printed():
    pytest.importorskip("cache_dit")
    # in a process of its own: cache-dit leaves the classes that it has wrapped as they are
    command = [sys.executable, "-m", "benchmarks.differences"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == printed()


def test_without_cache_dit_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("benchmarks.differences.find_spec", lambda _: None)
    assert differences.main() == 1
    assert "bench,peers" in capsys.readouterr().out


def test_every_option_of_cache_dit_has_a_verdict():
    (table,) = tables(PAGE, "of cache-dit")
    assert {row[1] for row in table} == VERDICTS
    named = [row[0].strip("`") for row in table]
    assert len(named) == len(set(named))
    cache_dit = pytest.importorskip("cache_dit")
    calibrators = (cache_dit.TaylorSeerCalibratorConfig, cache_dit.FoCaCalibratorConfig, cache_dit.DMDCalibratorConfig)
    configs = (cache_dit.DBCacheConfig, cache_dit.DBPruneConfig, *calibrators)
    assert set(named) == {field.name for config in configs for field in dataclasses.fields(config)}
    rest = inspect.signature(cache_dit.enable_cache).parameters.keys() - {"pipe_or_adapter", "kwargs"}
    assert all(f"`{name}`" in PAGE or f"{name}=" in PAGE for name in rest)
