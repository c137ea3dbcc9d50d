"""The overhead benchmark runs and reports what it says; its times are not looked at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tqdm")

from benchmarks import overhead
from benchmarks.flux import PRESETS, Loop, ideal_transformer, new_transformer
from benchmarks.report import Spread, paired_ratio, size, table
from benchmarks.startup import run_task

TINY = PRESETS["tiny"]
STEPS, REPEATS = 3, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    path = tmp_path_factory.mktemp("overhead") / "deep" / "overhead.json"
    arguments = ["--preset", "tiny", "--inner-backend", "eager", "--skip-compile-time", "--json", str(path)]
    report = overhead.main([*arguments, "--steps", str(STEPS), "--repeats", str(REPEATS)])
    return report, path


def test_every_contestant_has_a_row_with_its_decisions(run: tuple[dict[str, Any], Path]) -> None:
    rows = {row["contestant"]: row for row in json.loads(run[1].read_text())["rows"]}
    assert list(rows) == ["plain", "full", "compared", "reused", "ideal"]
    # one loop of two steps compiled, and each loop begins with a computed step
    all_steps = 2 + REPEATS * (1 + STEPS)
    assert {name: (row["reused_steps"], row["all_steps"]) for name, row in rows.items()} == {
        "plain": (None, None),
        "full": (0, all_steps),
        "compared": (0, all_steps),
        "reused": (all_steps - 1 - REPEATS, all_steps),
        "ideal": (None, None),
    }
    for row in rows.values():
        assert row["time_ms"]["count"] == STEPS * REPEATS
        assert 0 < row["time_ms"]["q20"] <= row["time_ms"]["median"] <= row["time_ms"]["q80"]
    assert rows["full"]["relative_error"] == rows["compared"]["relative_error"] == 0


def test_the_ratios_and_their_goals(run: tuple[dict[str, Any], Path]) -> None:
    ratios = {row["ratio"]: row["goal"] for row in json.loads(run[1].read_text())["ratios"]}
    assert ratios["full / plain"] == 1.01 and ratios["reused / ideal"] == 1.05


def test_the_state_is_that_of_one_reference_and_one_live_out(run: tuple[dict[str, Any], Path]) -> None:
    state = run[0]["state"]
    assert state["reference_and_live_outs"] == 2 * TINY.image_tokens * TINY.dim * 4
    # and one number per tensor, for its health
    assert state["bytes"] == state["reference_and_live_outs"] + 2 * 4


def test_the_json_says_where_the_figures_come_from(run: tuple[dict[str, Any], Path]) -> None:
    content = json.loads(run[1].read_text())
    assert content["versions"]["torch"] == torch.__version__
    assert content["machine"]["cores"] >= 1 and content["machine"]["cpu"]
    assert {"commit", "preset", "steps", "repeats", "startup"} <= content.keys()


def test_the_table(run: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]) -> None:
    start = {"compile_s": 2.0, "first_call_s": 3.0, "later_call_s": 1.0, "working_bytes": 1024}
    startup = [{"contestant": name, "caches": "cold", **start} for name in ("plain", "fxcache")]
    overhead.print_report({**run[0], "startup": startup})
    shown = capsys.readouterr().out
    for words in ("3+3 blocks, dim 32, 16+4 tokens, float32", "full / plain", "<= 1.05", "reference + live-outs"):
        assert words in shown
    assert shown.splitlines()[-2].split()[:4] == ["fxcache", "cold", "2.0", "1.00"]


def test_a_process_of_its_own_measures_compilation_and_memory() -> None:
    options = overhead.POLICIES["reused"]
    task = {"contestant": "fxcache", "preset": "tiny", "device": "cpu", "inner": "eager", "options": options}
    found = run_task(task)
    assert found["first_call_s"] > found["compile_s"] > found["later_call_s"] > 0
    assert found["working_bytes"] >= 0


def test_the_ideal_is_the_first_block_with_the_same_weights() -> None:
    transformer = new_transformer(TINY, "cpu")
    ideal = ideal_transformer(transformer, TINY)
    shared = {id(parameter) for parameter in transformer.parameters()}
    assert all(id(parameter) in shared for parameter in ideal.parameters())
    assert (len(ideal.transformer_blocks), len(ideal.single_transformer_blocks)) == (1, 0)
    with torch.no_grad():
        assert ideal(**Loop(TINY, "cpu").step(0, 4), return_dict=False)[0].shape == (1, 16, 16)


def test_spreads_and_ratios() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 1.8, 4.2, 5)
    assert paired_ratio([2.0, 30.0], [1.0, 10.0]).median == 2.5


def test_tables_are_aligned() -> None:
    assert table(("a", "number"), [("long", "1")]).splitlines() == ["a     number", "------------", "long       1"]
    assert (size(None), size(12), size(2048), size(3 << 30)) == ("-", "12 B", "2.0 KiB", "3.00 GiB")
