"""The benchmark of the kernels runs, checks before it measures, and says what it moved; its times are not looked at."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tqdm")

from benchmarks import kernels, operators
from benchmarks.report import Spread

REPEATS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    path = tmp_path_factory.mktemp("kernels") / "deep" / "kernels.json"
    arguments = ["--device", "cpu", "--preset", "tiny", "--repeats", str(REPEATS), "--json", str(path)]
    return kernels.main([*arguments, "--without-inductor"]), path


def test_a_row_for_every_operator_and_case(run: tuple[dict[str, Any], Path]) -> None:
    content = json.loads(run[1].read_text())
    names = [(row["case"], row["operator"]) for row in content["rows"]]
    assert names == [(case.name, operator) for case in kernels.PRESETS["tiny"] for operator in operators.OPERATORS]
    for row in content["rows"]:
        assert row["implementation"] == "reference"
        assert row["gb_per_s"].keys() == row["time_us"].keys() == {"ours", "copy"}
        assert row["share_of"]["copy"]["count"] == row["gb_per_s"]["ours"]["count"] == REPEATS
        assert 0 < row["gb_per_s"]["ours"]["q20"] <= row["gb_per_s"]["ours"]["q80"]
        assert row["relative_error"] == 0
    assert {"commit", "versions", "machine", "preset", "goals"} <= content.keys()
    assert content["versions"]["torch"] == torch.__version__


def test_the_bytes_are_those_of_the_docstrings(run: tuple[dict[str, Any], Path]) -> None:
    count = 2 * 33 * 65
    moved = {row["operator"]: row["moved_bytes"] for row in run[0]["rows"] if row["case"] == "tiny"}
    assert moved == {
        "extrapolate, 1 entry": 3 * 4 * count,
        "extrapolate, 3 of 4": 5 * 4 * count,
        "commit": 3 * 4 * count,
        "residual_diff": 3 * 4 * count,
        "residual_diff, important": 3 * 4 * count,
        "residual_diff, every 2nd": 2 * 4 * count + 4 * 2 * 33 * 33,
        "residual_products": 6 * 4 * count,
        "window_products": 4 * 4 * count,
    }


def test_inductor_is_measured_beside_it(tmp_path: Path) -> None:
    arguments = ["--repeats", "1", "--operators", "commit", "--json", str(tmp_path / "kernels.json")]
    for row in kernels.main(arguments)["rows"]:
        assert row["gb_per_s"].keys() == {"ours", "copy", "inductor"}
        assert row["inductor_compile_s"] > 0
        assert row["share_of"]["inductor"].median > 0


def test_a_wrong_operator_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> operators.Work:
        work = operators.residual_diff(*arguments)
        return replace(work, operator=lambda *given: work.function(*given) * 1.01)

    monkeypatch.setitem(operators.OPERATORS, "residual_diff", wrong)
    with pytest.raises(
        SystemExit, match=r"residual_diff, tiny: differs from its reference by 0\.01, allowed is 0\.0001"
    ):
        kernels.measure(kernels.PRESETS["tiny"][0], "residual_diff", "cpu", 1, False)


def test_the_table_marks_what_misses_a_goal(run: tuple[dict[str, Any], Path], capsys: Any) -> None:
    row = {**run[0]["rows"][0], "goals_met": {"copy": False, "inductor": True}}
    row["share_of"] = {"copy": Spread(0.85, 0.8, 0.9, 3), "inductor": Spread(1.2, 1.1, 1.3, 3)}
    kernels.print_rows([row])
    shown = capsys.readouterr().out
    assert "85% !" in shown and "120%" in shown and "120% !" not in shown
    assert "goals: of copy >= 90%, of Inductor >= 98%" in shown
