"""The tables of the pages about calibrators and policies."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks.comparison.contestants import all_contestants, find_spec
from benchmarks.comparison.pages import PICTURE, TABLES, by_threshold, by_work, command, section
from benchmarks.comparison.readme import DOCS, Places, section_in, write_readme
from benchmarks.report import RESULTS

SOURCE = RESULTS / "compare-digits-eager-cpu.json"
CASE = {
    "model": "digits", "inner": "eager", "samples": 8, "rounds": 1, "in_process": True, "examine": False,
    "few_step": False, "best_of": None,
}  # fmt: skip


def row(method: str, setting: str, factor: float, psnr_db: float | None, family: str = "mask") -> dict[str, Any]:
    return {"method": method, "setting": setting, "factor": factor, "psnr_db": psnr_db, "family": family}


ROWS = [
    row("one", "mask", 1.6, 50.0),
    row("one", "other mask", 2.5, 41.0),
    row("one", "threshold 0.1", 2.5, 40.0, "threshold"),
    row("one", "threshold 0.2", 3.5, 30.0, "threshold"),
    row("two", "threshold 0.1", 2.0, 45.0, "threshold"),
    row("two", "threshold 0.2", 9.0, None, "threshold"),
]


def test_a_line_has_the_best_that_saves_enough_and_bold_is_the_best_of_all() -> None:
    assert by_work(["one", "two", "three"])(ROWS) == [
        ("", "1.5x", "2x", "3x", "4x", "5x", "6x"),
        ("one", "**50.0**", "41.0", "**30.0**", "-", "-", "-"),
        ("two", "45.0", "**45.0**", "-", "-", "-", "-"),
        ("three", "-", "-", "-", "-", "-", "-"),
    ]


def test_a_line_per_threshold() -> None:
    assert by_threshold(["one", "two"])(ROWS) == [
        ("", "one", "two"),
        ("threshold 0.1", "40.0 (2.50x)", "45.0 (2.00x)"),
        ("threshold 0.2", "30.0 (3.50x)", "-"),
    ]


@pytest.mark.parametrize(
    ("changed", "ending"), [({}, " --in-process --no-examine"), ({"in_process": False, "examine": True}, "")]
)
def test_the_command(changed: dict[str, Any], ending: str) -> None:
    words = "python -m benchmarks.compare --model digits --inner-backend eager --samples 8 --rounds 1"
    assert command({**CASE, **changed}) == words + ending


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_pages_have_what_the_json_gives(table: Any) -> None:
    wanted = section(table, json.loads(SOURCE.read_text()), SOURCE)
    assert section_in(DOCS / table.page, table.marks).strip() == wanted.strip(), f"--readme --json {SOURCE}"


def test_every_method_of_a_table_takes_part() -> None:
    known = {each.name for each in all_contestants()}
    for table in TABLES:
        names = [line[0] for line in table.lines([])[1:]] or list(table.lines([])[0][1:])
        # without cache-dit its methods are not there to be checked
        installed = {name for name in names if find_spec("cache_dit") or not name.startswith("cache-dit")}
        assert installed <= known and len(names) > 2


def test_writing_the_pages(tmp_path: Path) -> None:
    source, places = tmp_path / "run.json", Places(docs=tmp_path)
    some = [row("fewer-steps", "4 of 8 steps", 2.0, 40.0), row("fxcache-foca", "mask", 2.0, 45.0)]
    some.append(row("fxcache", "threshold 0.1", 1.5, 50.0, "threshold"))
    source.write_text(json.dumps({"case": CASE, "rows": some}))
    for table in TABLES:
        page = tmp_path / table.page
        page.parent.mkdir(exist_ok=True)
        text = page.read_text() if page.exists() else "before\n"
        page.write_text(f"{text}{table.marks[0]}\nold\n{table.marks[1]}\n")
    write_readme(source, places)
    texts = [section_in(tmp_path / table.page, table.marks) for table in TABLES]
    assert "| fxcache-foca | 45.0 | **45.0** | - | - | - | - |" in texts[0] and "\nold\n" not in "".join(texts)
    assert "| threshold 0.1 | 50.0 (1.50x) | - | - | - | - |" in texts[2]
    with Image.open(tmp_path / PICTURE) as picture:
        assert picture.width > 1200
