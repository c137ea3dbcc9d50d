"""The benchmark of compile times runs and reports what it says; its times are not looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tqdm")

from benchmarks import compile_time
from benchmarks.compile_time import FXCACHE, preset_of, print_report
from benchmarks.report import RESULTS, Spread
from fxcache.options import Options


def row(contestant: str, cold: float, warm: float, step: float) -> dict[str, Any]:
    times = {"first_call_s": 1.0, "compile_s": 1.0, "compile_cpu_s": 1.0}
    spread = Spread(step, step, step, 3)
    return {
        "contestant": contestant, "blocks": 12, "cold": times, "warm": times, "cold_to_plain": cold,
        "warm_to_plain": warm, "step_ms": spread, "step_to_plain": spread, "relative_error": 0.0,
    }  # fmt: skip


def test_every_goal_has_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    print_report([row("plain", 1, 1, 1), row("fxcache-once", 0.6, 1.3, 1.004)])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "12 blocks: cold 0.60 <= 1.1 met, warm 1.30 <= 1.2 MISSED, step 1.00 <= 1.01 met"
    )


def test_blocks_are_double_and_single_ones() -> None:
    preset = preset_of(57, 16, "small")
    assert (preset.layers, preset.single_layers, preset.image_tokens) == (19, 38, 256)


@pytest.mark.parametrize("name", FXCACHE)
def test_the_contestants_are_what_they_are_called(name: str) -> None:
    options = Options.from_mapping(FXCACHE[name])
    assert options.can_reuse == (name == "fxcache-f1b0")
    assert bool(options.share_blocks) == (name == "fxcache-once")


def test_cache_dit_runs_apart() -> None:
    assert compile_time.side_by_side(["plain", "cache-dit", "fxcache"]) == [
        ["plain", "cache-dit"],
        ["plain", "fxcache"],
    ]
    assert compile_time.side_by_side(["plain", "fxcache"]) == [["plain", "fxcache"]]


def test_plain_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compile_time.main(["--contestants", "fxcache"])
    assert "plain is what the others are compared with" in capsys.readouterr().err


def test_the_committed_results_are_complete() -> None:
    report = json.loads((RESULTS / "compile-time-cpu.json").read_text())
    names = {entry["contestant"] for entry in report["rows"]}
    assert {"plain", "regional", "fxcache-once", "fxcache-f1b0"} <= names
    page = (RESULTS.parents[1] / "docs" / "compile-time.md").read_text()
    for entry in report["rows"]:
        cells = [entry["contestant"], f"{entry['cold']['compile_s']:.1f}", f"{entry['warm']['compile_s']:.1f}"]
        assert any(all(f" {cell} |" in line for cell in cells) for line in page.splitlines()), cells


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path) -> None:
    path = tmp_path / "compile.json"
    arguments = ["--preset", "tiny", "--grid", "4", "--blocks", "6", "--steps", "2", "--json", str(path)]
    compile_time.main([*arguments, "--contestants", "plain", "regional", "fxcache"])
    rows = json.loads(path.read_text())["rows"]
    assert [entry["contestant"] for entry in rows] == ["plain", "regional", "fxcache"]
    assert rows[2]["relative_error"] == 0 and rows[2]["step_ms"]["count"] == 2
