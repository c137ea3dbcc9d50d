"""Methods are added to an earlier comparison of the same case, and to no other."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from benchmarks import compare
from benchmarks.comparison import contestants, grids
from benchmarks.comparison.contestants import chosen
from benchmarks.comparison.earlier import added_to
from benchmarks.comparison.models import MODELS
from benchmarks.comparison.sweep import Row
from benchmarks.schedules import Schedule
from tests.benchmarks.small_digits import SmallDigits

HEAD: dict[str, Any] = {
    "commit": "bbb",
    "versions": {"torch": "2.13.0"},
    "machine": {"cpu": "some", "cores": 2},
    "case": {
        "model": "digits", "samples": 4, "rounds": 2, "steps": 8, "few_step": False, "inner": "eager", "device": "cpu"
    },
}  # fmt: skip


def key(schedule: Schedule) -> dict[str, Any]:
    return dataclasses.asdict(schedule)


THRESHOLDS = [Schedule("threshold", 8, threshold=value) for value in (0.1, 0.2, 0.3)]


def wanted() -> list[Row]:
    """Two thresholds of one method."""
    (contestant,) = chosen(["fxcache"], ())
    return [Row(contestant, schedule) for schedule in THRESHOLDS[1:]]


def earlier(path: Path, **differ: Any) -> Path:
    """The JSON of a comparison of two methods; of fxcache it has two thresholds."""
    found = copy.deepcopy(HEAD) | {"commit": "aaa"}
    found["versions"] = {"torch": "2.13.0", "cache-dit": "1.5.3"}
    for name, value in differ.items():
        part = next(part for part in ("versions", "machine", "case") if name in HEAD[part])
        found[part][name] = value
    plain = key(Schedule("steps", 8))
    rows = [{"method": "inductor", **plain}, {"method": "cache-dit", **key(THRESHOLDS[0])}]
    rows += [{"method": "fxcache", **key(schedule), "psnr_db": 1.0} for schedule in THRESHOLDS[:2]]
    path.write_text(json.dumps({**found, "rows": rows}))
    return path


def test_what_is_there_is_kept_and_the_rest_measured(tmp_path: Path) -> None:
    added = added_to(earlier(tmp_path / "run.json"), HEAD, wanted())
    # the first threshold of fxcache is in no grid any more
    assert [(row["method"], row["threshold"]) for row in added.kept] == [
        ("inductor", None), ("cache-dit", 0.1), ("fxcache", 0.2)
    ]  # fmt: skip
    assert [row.schedule.threshold for row in added.rows] == [0.3]
    assert added.head["versions"] == {"torch": "2.13.0", "cache-dit": "1.5.3"}
    assert added.head["commit"] == "bbb" and added.head["commits"] == ["aaa", "bbb"]


@pytest.mark.parametrize(
    ("differ", "words"),
    [
        ({"samples": 40}, "--add, samples 4: expected 40, that of "),
        ({"model": "scenes"}, "--add, model digits: expected scenes, that of "),
        ({"inner": "inductor"}, "--add, inner eager: expected inductor, that of "),
        ({"torch": "2.11.0"}, "--add: expected torch 2.11.0 as in "),
        ({"cpu": "other"}, "--add: expected the machine of "),
    ],
)
def test_another_case_machine_or_version(differ: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        added_to(earlier(tmp_path / "run.json", **differ), HEAD, wanted())


@pytest.mark.parametrize("more", [["--methods", "fxcache", "--schedules", "fast"], ["--best-of", "x.json"]])
def test_add_wants_quality(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--model", "digits", "--add", *more])
    assert "--add: expected a comparison of quality, no --best-of or --schedules" in capsys.readouterr().err


def test_nothing_to_add_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--add", "--methods", "fewer-steps", "--json", str(tmp_path / "run.json")])
    assert "run.json: expected the JSON of a comparison" in capsys.readouterr().err


def test_a_method_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "SHARES", (0.5,))
    monkeypatch.setattr(contestants, "INTERVALS", (3,))
    monkeypatch.setitem(MODELS, "digits", SmallDigits())
    path = tmp_path / "run.json"
    arguments = ["--model", "digits", "--in-process", "--inner-backend", "eager", "--steps", "4", "--samples", "2"]
    first = compare.main([*arguments, "--methods", "fewer-steps", "--json", str(path)])
    again = compare.main(
        [*arguments, "--add", "--methods", "fewer-steps", "diffusers-taylorseer-lite", "--json", str(path)]
    )
    assert [row["method"] for row in again["rows"]] == ["inductor", "eager", "fewer-steps", "diffusers-taylorseer-lite"]
    assert json.loads(path.read_text())["rows"][:3] == json.loads(json.dumps(again["rows"][:3]))
    assert again["rows"][2]["psnr_db"] == pytest.approx(first["rows"][2]["psnr_db"], abs=1e-3)
    own, others = (again["summary"]["fastest"][side] for side in ("own", "others"))
    assert own is None and others is not None
