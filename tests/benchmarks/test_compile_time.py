"""The benchmark of compile times runs and reports what it says; its times are not looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.fx import GraphModule

pytest.importorskip("tqdm")

from benchmarks import block_ways, compile_time
from benchmarks.block_ways import WAYS
from benchmarks.compile_time import FXCACHE, preset_of, print_report
from benchmarks.flux import PRESETS, Loop, new_transformer
from benchmarks.report import RESULTS, Spread
from fxcache.inner import lower
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


def test_a_warm_start_is_the_median_one_and_its_ratio_that_of_the_turns() -> None:
    mine, plain = ([{"compile_s": second} for second in seconds] for seconds in ([30, 9, 4, 5], [40, 3, 2, 10]))
    of = compile_time._of_starts(mine, plain)
    assert (of["cold"]["compile_s"], of["cold_to_plain"]) == (30, 0.75)
    assert (of["warm"]["compile_s"], of["warm_to_plain"], of["warm_starts"]) == (5, 2, [9, 4, 5])


@pytest.mark.parametrize("number", ["0", "2"])
def test_the_number_of_warm_starts_has_a_median(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compile_time.main(["--warm-starts", number])
    assert f"--warm-starts: {number}; expected an odd number" in capsys.readouterr().err


def test_blocks_are_double_and_single_ones() -> None:
    preset = preset_of(57, 16, "small")
    assert (preset.layers, preset.single_layers, preset.image_tokens) == (19, 38, 256)


@pytest.mark.parametrize("name", FXCACHE)
def test_the_contestants_are_what_they_are_called(name: str) -> None:
    options = Options.from_mapping(FXCACHE[name])
    assert options.can_reuse == (name == "fxcache-f1b0")
    assert bool(options.share_blocks) == (name in ("fxcache-once", "fxcache-traced"))
    assert options.trace_once == (name != "fxcache-traced")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_other_ways_give_what_the_plain_model_gives(way: str) -> None:
    preset = PRESETS["tiny"]
    plain, loop = new_transformer(preset, "cpu"), Loop(preset, "cpu")
    asked: list[GraphModule] = []

    def looked_at(gm: GraphModule, *rest: Any, **known: Any) -> Any:
        asked.append(gm)
        return lower(gm, *rest, **known)

    with torch.no_grad(), patch.object(block_ways, "lower", looked_at):
        other = compile_time.compiled(new_transformer(preset, "cpu"), way)
        for step in range(2):
            inputs = loop.step(step, 2)
            torch.testing.assert_close(other(**inputs, return_dict=False)[0], plain(**inputs, return_dict=False)[0])
    (graph,) = asked
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert "invoke_subgraph" not in called
    counts = called.count("fxcache_ways.call.default"), called.count("while_loop")
    assert counts == ((4, 0) if way == "callee" else (0, 2))


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


def test_the_committed_results_of_the_other_ways_are_on_the_page() -> None:
    report = json.loads((RESULTS / "compile-ways-cpu.json").read_text())
    assert {"plain", "fxcache-once", *WAYS} == {entry["contestant"] for entry in report["rows"]}
    page = (RESULTS.parents[1] / "docs" / "compile-time.md").read_text()
    for entry in report["rows"]:
        cold, warm = (f"{entry[name]['compile_s']:.1f}" for name in ("cold", "warm"))
        step = f"{entry['step_ms']['median']:.0f} | {entry['step_to_plain']['median']:.3f}"
        ratios = f"{entry['cold_to_plain']:.2f}", f"{entry['warm_to_plain']:.2f}"
        assert f"| {entry['contestant']} | {cold} | {ratios[0]} | {warm} | {ratios[1]} | {step} |" in page


def test_the_committed_results_of_tracing_once_are_on_the_page() -> None:
    report = json.loads((RESULTS / "compile-once-cpu.json").read_text())
    assert {"plain", "fxcache-traced", "fxcache-once"} <= {entry["contestant"] for entry in report["rows"]}
    page = (RESULTS.parents[1] / "docs" / "compile-time.md").read_text()
    for entry in report["rows"]:
        cold, warm = (f"{entry[name]['compile_s']:.1f}" for name in ("cold", "warm"))
        ratios = f"{entry['cold_to_plain']:.2f}", f"{entry['warm_to_plain']:.2f}"
        assert f"| {entry['contestant']} | {cold} | {ratios[0]} | {warm} | {ratios[1]} |" in page


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path) -> None:
    path = tmp_path / "compile.json"
    arguments = [
        "--preset",
        "tiny",
        "--grid",
        "4",
        "--blocks",
        "6",
        "--steps",
        "2",
        "--warm-starts",
        "1",
        "--json",
        str(path),
    ]
    compile_time.main([*arguments, "--contestants", "plain", "regional", "fxcache"])
    rows = json.loads(path.read_text())["rows"]
    assert [entry["contestant"] for entry in rows] == ["plain", "regional", "fxcache"]
    assert rows[2]["relative_error"] == 0 and rows[2]["step_ms"]["count"] == 2
