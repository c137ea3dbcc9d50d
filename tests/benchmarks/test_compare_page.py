"""Comparisons that the README does not show: of few steps, and of other models."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks.compare import default_path
from benchmarks.comparison.readme import BEST, COMPARE, Places, marks_of, page_section, section_in, write_readme
from benchmarks.report import RESULTS


def is_elsewhere(source: Path) -> bool:
    case = json.loads(source.read_text())["case"]
    return case.get("few_step", False) or case["model"] == "scenes"


ELSEWHERE = [source for source in sorted(RESULTS.glob("compare-*.json")) if is_elsewhere(source)]


@pytest.mark.parametrize("source", ELSEWHERE, ids=lambda source: source.stem)
def test_the_page_has_what_the_json_gives(source: Path) -> None:
    report = json.loads(source.read_text())
    wanted, found = page_section(report, source, Places()), section_in(Places().page, marks_of(report, source))
    assert found.strip() == wanted.strip(), f"run python -m benchmarks.compare --readme --json {source}"


def row(method: str, setting: str, speedup: float, psnr_db: float) -> dict[str, Any]:
    numbers = {"psnr_db": psnr_db, "accuracy": 0.975, "factor": 2 * speedup, "graph_breaks": 6, "refusal": None}
    return {
        "method": method,
        "group": "plain",
        "setting": setting,
        "speedup_to_inductor": {"median": speedup},
        **numbers,
    }


ROWS = [
    row("inductor", "all steps", 1.0, 99.0),
    row("one", "slow", 1.2, 40.0),
    row("one", "slower and worse", 1.1, 39.0),
    row("one", "fast", 2.5, 30.0),
    row("two", "some", 2.1, 35.0),
]


def written(folder: Path, **case: Any) -> str:
    """What the page says after the JSON of such a comparison was put there."""
    said = {"model": "digits", "few_step": False, "best_of": None, "steps": 8, "samples": 40, "rounds": 2, **case}
    report = {"case": said, "machine": {"cores": 2, "cpu": "some CPU"}, "rows": ROWS}
    source, places = folder / "other.json", Places(folder / "README.md", folder / "page.md", folder / "compare.png")
    source.write_text(json.dumps(report))
    begin, end = marks_of(report, source)
    places.page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    write_readme(source, places)
    assert not places.picture.exists() and not places.readme.exists()
    text = places.page.read_text()
    assert text.startswith(f"before\n{begin}\n") and text.endswith(f"{end}\nafter\n") and "old" not in text
    return text


def test_of_few_steps_the_page_has_the_front_of_every_method(tmp_path: Path) -> None:
    text = written(tmp_path, model="digits-distilled", few_step=True)
    assert "--model digits-distilled --steps 8 --few-step --samples 40 --rounds 2`\non 2 cores, some CPU" in text
    lines = [line for line in text.splitlines() if line.startswith(("| one", "| two", "| inductor"))]
    assert lines == [
        "| inductor | all steps | 1.00x | 2.00x | - | 97.5 % |",
        "| one | slow | 1.20x | 2.40x | 40.0 | 97.5 % |",
        "| one | fast | 2.50x | 5.00x | 30.0 | 97.5 % |",
        "| two | some | 2.10x | 4.20x | 35.0 | 97.5 % |",
    ]


def test_of_another_model_the_page_has_all_methods(tmp_path: Path) -> None:
    text = written(tmp_path, model="scenes")
    assert "`python -m benchmarks.compare --model scenes` on 2 cores" in text
    lines = [line for line in text.splitlines() if line.startswith(("| one", "| two", "| inductor"))]
    assert lines == ["| one | 30.0 | - | - | - | 2.50x | 6 |", "| two | 35.0 | - | - | - | 2.10x | 6 |"]


@pytest.mark.parametrize("model", ["digits", "scenes"])
def test_every_json_has_one_place(model: str) -> None:
    case = {"model": model, "few_step": False, "best_of": None}
    marks = [
        marks_of({"case": {**case, **changed}}, Path(name))
        for changed, name in [({}, "a.json"), ({"few_step": True}, "b.json"), ({"few_step": True}, "c.json")]
    ]
    assert len(set(marks)) == 3 and (marks[0] == COMPARE) == (model == "digits") and BEST not in marks
    best = marks_of({"case": {**case, "best_of": "some.json"}}, Path("d.json"))
    assert best not in marks and (best == BEST) == (model == "digits")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "compare-digits-cpu"),
        ({"schedules": ["slow"]}, "compare-digits-schedules-cpu"),
        ({"schedules": ["slow"], "model": "flux-tiny", "device": "cuda:0"}, "compare-flux-tiny-cuda"),
        ({"best_of": "some.json"}, "compare-digits-best-cpu"),
        ({"few_step": True, "steps": 4}, "compare-digits-4-steps-cpu"),
        ({"inner_backend": "eager"}, "compare-digits-eager-cpu"),
    ],
)
def test_no_comparison_writes_over_another_kind(arguments: dict[str, Any], name: str) -> None:
    asked = {"model": "digits", "device": "cpu", "steps": None, "few_step": False, "best_of": None, "schedules": None}
    asked["inner_backend"] = "inductor"
    assert default_path(Namespace(**{**asked, **arguments})).stem == name


def test_a_comparison_of_speed_is_shown_nowhere(tmp_path: Path) -> None:
    places = Places(tmp_path / "README.md", tmp_path / "page.md", tmp_path / "compare.png")
    with pytest.raises(ValueError, match=r"--readme: expected a comparison of quality, found none in .*schedules-cpu"):
        write_readme(RESULTS / "compare-digits-schedules-cpu.json", places)
    assert not list(tmp_path.iterdir())
