"""The comparison reports what it measures; its times are not looked at."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from PIL import Image

from benchmarks import compare
from benchmarks.comparison import contestants, fronts, grids, sweep
from benchmarks.comparison.contestants import chosen
from benchmarks.comparison.entries import Stage
from benchmarks.comparison.fronts import best_of_groups
from benchmarks.comparison.models import MODELS
from benchmarks.comparison.readme import BEST, Places, best_methods, best_section, section_in, sections, write_readme
from benchmarks.comparison.seats import Refused, Seat
from benchmarks.report import RESULTS, ROOT
from benchmarks.schedules import Schedule
from tests.benchmarks.small_digits import SmallDigits

STEPS, SAMPLES, ROUNDS = 8, 4, 2
PEER = ("cache-dit",) if contestants.find_spec("cache_dit") else ()
METHODS = ("fewer-steps", "fxcache-dbprune", *PEER, "diffusers-magcache", "diffusers-pab", "diffusers-fastercache")
FOLLOWERS = (*PEER, "diffusers-fbc", "diffusers-taylorseer-lite")


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place in (grids, contestants):
            patch.setattr(place, "THRESHOLDS", (0.4,))
        patch.setitem(MODELS, "digits", SmallDigits())
        patch.setattr(contestants, "ERRORS", (0.5,))
        patch.setattr(contestants, "INTERVALS", (3,))
        patch.setattr(grids, "SHARES", (0.5,))
        patch.setattr(grids, "PRESETS", ("ultra",))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "deep"
    arguments = ["--model", "digits", "--in-process", "--inner-backend", "eager", "--steps", str(STEPS)]
    arguments += ["--samples", str(SAMPLES), "--rounds", str(ROUNDS), "--abreast", "4"]
    compare.main([*arguments, "--methods", *METHODS, "--json", str(folder / "run.json")])
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


@pytest.fixture(scope="module")
def rows(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["method"], row["setting"]): row for row in report["rows"]}


def test_every_setting_has_a_row(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    wanted = {("inductor", "all steps"), ("eager", "all steps"), ("fewer-steps", "4 of 8 steps")}
    wanted |= {("fxcache-dbprune", "threshold 0.4"), ("diffusers-magcache", "error 0.5")}
    wanted |= {("diffusers-pab", "every 3"), ("diffusers-fastercache", "every 3")}
    if PEER:
        wanted |= {("cache-dit", "threshold 0.4"), ("cache-dit", "mask ultra, 4 of 8")}
    assert set(rows) == wanted


def test_uncached_models_are_perfect_and_as_fast_as_themselves(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    for name in compare.BASES:
        row = rows[name, "all steps"]
        assert row["psnr_db"] > 90 and row["ssim"] > 0.9999 and row["factor"] == 1 and row["reused_share"] == 0
        assert row[f"speedup_to_{name}"]["median"] == 1


def test_quality_is_in_the_same_row_as_speed(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    for (method, setting), row in rows.items():
        if row["refusal"] is None and setting != "all steps":
            assert 5 < row["psnr_db"] < 99 and 0 < row["ssim"] < 1 and 0 <= row["accuracy"] <= 1, method
            assert row["factor"] > 1 and row["image_s"]["count"] == row["speedup_to_eager"]["count"] == ROUNDS
            assert row["peak_bytes"] >= 0 and (row["state_bytes"] > 0) == (method != "fewer-steps")
            # too few pictures for a distance of distributions
            assert row["frechet_uncached"] is row["frechet_real"] is None
    assert rows["fewer-steps", "4 of 8 steps"]["factor"] == 2


def test_a_refusal_is_a_row_with_its_reason(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    row = rows["diffusers-fastercache", "every 3"]
    assert row["refusal"].startswith("RuntimeError: permute") and "psnr_db" not in row


def test_the_json_says_where_the_figures_come_from(report: dict[str, Any]) -> None:
    assert report["versions"]["torch"] == torch.__version__ and report["machine"]["cores"] >= 1
    assert ("cache-dit" in report["versions"]) == bool(PEER)
    assert report["case"]["samples"] == SAMPLES and report["case"]["steps"] == STEPS


def test_the_plot(folder: Path) -> None:
    with Image.open(folder / "run.png") as picture:
        assert picture.width > 800 and picture.height > 400


def test_speed_at_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.json"
    arguments = ["--model", "flux-tiny", "--in-process", "--inner-backend", "eager", "--steps", str(STEPS)]
    compare.main([*arguments, "--methods", "eager", "ideal", *FOLLOWERS, "--rounds", "2", "--json", str(path)])
    content = json.loads(path.read_text())
    found = {(row["method"], row["preset"]): row for row in content["rows"]}
    assert {preset for _, preset in found} == {"slow", "fast", "ultra"}
    for (method, preset), row in found.items():
        cached = method not in ("eager", "ideal")
        wanted = row["mask"].replace("1", "C").replace("0", ".") if cached else "C" * STEPS
        assert row["decisions"] == [wanted], (method, preset)
        assert row["reused_steps"] == (row["mask"].count("0") if cached else 0)
        assert row["wall_s"]["count"] == row["speedup_to_eager"]["count"] == 2
        assert ("reused_to_ideal" in row) == cached and (row["reused_step_ms"] is not None) == cached
    assert found["diffusers-fbc", "ultra"]["flops"] < found["diffusers-fbc", "slow"]["flops"]
    assert "11101001" in capsys.readouterr().out


def test_contestants_sit_in_processes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    command = [sys.executable, "-m", "benchmarks.compare", "--model", "flux-tiny", "--steps", "8", "--json", str(path)]
    command += ["--methods", "diffusers-fbc", "--schedules", "fast", "--rounds", "1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (row,) = json.loads(path.read_text())["rows"]
    assert row["refusal"] is None and row["decisions"] == ["CCC.C..C"] and row["state_bytes"] > 0


def test_a_seat_says_what_went_wrong() -> None:
    model = MODELS["flux-tiny"]
    (contestant,) = chosen(["diffusers-pab"], ())
    seat = Seat(contestant, Stage(model, "cpu", model.load("cpu"), "eager"))
    with pytest.raises(Refused, match="NotImplementedError: Pyramid follows no mask"):
        seat.ask("prepare", Schedule("mask", 3, mask="101"), 1)
    seat.close()


# --- the best once more


@pytest.fixture(scope="module")
def best(folder: Path) -> list[dict[str, Any]]:
    arguments = ["--model", "digits", "--in-process", "--inner-backend", "eager", "--steps", str(STEPS)]
    arguments += ["--samples", str(SAMPLES), "--rounds", str(ROUNDS), "--best-of", str(folder / "run.json")]
    with pytest.MonkeyPatch.context() as patch:
        # everything is fast enough, and so many pictures are enough
        patch.setattr(fronts, "SPEEDUPS", (0.01,))
        patch.setattr(sweep, "ENOUGH", SAMPLES)
        content = compare.main([*arguments, "--json", str(folder / "best.json")])
    assert content["case"]["best_of"] == "run.json" and not (folder / "best.png").exists()
    written: list[dict[str, Any]] = json.loads((folder / "best.json").read_text())["rows"]
    return written


def test_the_best_of_every_project_are_measured_again(
    best: list[dict[str, Any]], rows: dict[tuple[str, str], dict[str, Any]]
) -> None:
    assert [row["method"] for row in best[:2]] == list(compare.BASES)
    cached = [row for row in rows.values() if row["refusal"] is None and row["setting"] != "all steps"]
    wanted = {}
    for row in sorted(cached, key=lambda row: row["psnr_db"]):
        wanted[row["group"]] = row["method"], row["setting"]
    assert {row["group"]: (row["method"], row["setting"]) for row in best[2:]} == wanted
    for row in best:
        earlier = rows[row["method"], row["setting"]]
        # the same noise and the same decisions give the same pictures
        assert row["psnr_db"] == pytest.approx(earlier["psnr_db"], abs=0.01) and row["factor"] == earlier["factor"]
        assert row["frechet_uncached"] >= 0 and row["frechet_real"] > 0


def test_the_page_of_the_best(best: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    places = Places(tmp_path / "README.md", tmp_path / "page.md", tmp_path / "compare.png")
    places.readme.write_text("left alone")
    places.page.write_text(Places().page.read_text())
    write_readme(folder / "best.json", places)
    shown, before = section_in(places.page, BEST), section_in(Places().page)
    assert section_in(places.page) == before and places.readme.read_text() == "left alone"
    assert "--best-of benchmarks/results/run.json --samples 4 --rounds 2" in shown and not places.picture.exists()
    for row in best:
        quality = "-" if row["setting"] == "all steps" else f"{row['psnr_db']:.1f}"
        speedup = f"{row['speedup_to_inductor']['median']:.2f}x"
        assert f"| {row['method']} | {row['setting']} | {speedup} | {row['factor']:.2f}x | {quality} |" in shown


def test_the_best_are_found_once() -> None:
    rows = [*row("one", "peer", (3.5, 50.0), (6.5, 20.0)), *row("two", "peer", (6.5, 19.0), (2.5, 51.0))]
    found = [(each["method"], each["psnr_db"]) for each in best_of_groups(rows)]
    assert found == [("two", 51.0), ("one", 50.0), ("one", 20.0)]
    # faster by the clock than by its work: what is fast enough by its work is among the best too
    factors = {50.0: 3.5, 20.0: 5.6, 19.0: 6.1, 51.0: 2.5}
    by_work = best_of_groups([{**each, "factor": factors[each["psnr_db"]]} for each in rows], ("time", "work"))
    assert [each["psnr_db"] for each in by_work] == [51.0, 50.0, 20.0, 19.0]


# --- arguments


def test_without_cache_dit_the_others_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contestants, "find_spec", lambda name: None)
    found = [each.name for each in contestants.chosen([], ["inductor", "cache-dit", "cache-dit-compile", "fxcache"])]
    assert found == ["inductor", "fxcache"]
    assert '-e ".[bench,peers]" adds it' in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--methods cache-dit: expected that cache-dit is installed\. .*pip install"):
        contestants.chosen(["cache-dit"], [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "magic"], "--methods magic: expected some of eager, inductor,"),
        (["--methods", "fxcache+fast"], "--methods fxcache+fast: expected some of eager,"),
        (["--samples", "5"], "--samples=5, --rounds=2: expected a multiple of the rounds"),
        (["--rounds", "0"], "--rounds=0: expected at least 1"),
        (["--steps", "3"], "--steps=3: expected at least 4"),
        (["--few-step"], "--few-step: expected --steps as well, such as --steps 8"),
        (["--abreast", "0"], "--abreast=0: expected at least 1"),
        (["--model", "flux-tiny", "--methods", "diffusers-pab"], "--methods diffusers-pab: expected contestants that"),
        (["--best-of", "/nowhere.json"], "--best-of /nowhere.json: expected the JSON of a comparison"),
        (["--best-of", "/nowhere.json", "--few-step", "--steps", "8"], "--best-of: expected no --methods, --sche"),
        (["--readme", "--json", "/nowhere.json"], "--readme: expected /nowhere.json, which a comparison writes"),
        (["--model", "flux-tiny", "--methods", "inductor+tuned"], "expected no +tuned together with --in-process"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--in-process", *arguments])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "9"], "--steps 9: expected 8, that of "),
        (["--model", "scenes"], "--model scenes: expected digits, that of "),
        ([], "expected rows that are faster than plain Inductor"),
    ],
)
def test_the_best_of_another_comparison(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"case": {"model": "digits", "steps": STEPS}, "rows": []}))
    with pytest.raises(SystemExit):
        compare.main(["--best-of", str(path), "--steps", str(STEPS), *arguments])
    assert words in capsys.readouterr().err


def test_names_and_groups() -> None:
    assert [each.name for each in chosen(["eager", "eager", "ideal"], ())] == ["eager", "ideal"]
    assert {each.group for each in chosen(["diffusers-all"], ())} == {"diffusers"}
    (tuned,) = chosen(["inductor+tuned"], ())
    assert tuned.tuned and tuned.name == "inductor+tuned"


# --- the README


def test_readme_and_page_have_what_the_json_gives() -> None:
    source = RESULTS / "compare-digits-cpu.json"
    for file, wanted in sections(json.loads(source.read_text()), source, Places()).items():
        assert section_in(file).strip() == wanted.strip(), "run python -m benchmarks.compare --readme"


def test_the_page_has_what_the_json_of_the_best_gives_and_nothing_without_one() -> None:
    source, wanted = RESULTS / "compare-digits-best-cpu.json", ""
    if source.exists():
        wanted = best_section(json.loads(source.read_text()), source, Places())
    assert section_in(Places().page, BEST).strip() == wanted.strip()


def row(method: str, group: str, *points: tuple[float, float]) -> list[dict[str, Any]]:
    made = {"method": method, "group": group, "setting": "some"}
    return [{**made, "speedup_to_inductor": {"median": speedup}, "psnr_db": db} for speedup, db in points]


def test_the_readme_shows_the_best_of_every_project() -> None:
    rows = [
        *row("slow", "peer", (1.9, 70.0)),
        *row("good", "peer", (2.1, 50.0), (6.5, 29.0)),
        *row("fast", "peer", (6.5, 28.0), (4.4, 31.0)),
        *row("worse", "peer", (4.3, 28.0), (3.0, 30.5)),
        *row("fxcache", "fxcache", (2.0, 30.0)),
        *row("fxcache-new", "fxcache", (2.0, 40.0)),
        *row("fxcache-old", "fxcache", (2.0, 35.0)),
    ]
    assert best_methods(rows) == {"good", "fast", "fxcache", "fxcache-new"}
    assert best_methods(rows[:1]) == {"slow", "fxcache"}


def test_writing_readme_and_page(folder: Path, tmp_path: Path) -> None:
    places = Places(tmp_path / "README.md", tmp_path / "docs" / "page.md", tmp_path / "images" / "compare.png")
    places.page.parent.mkdir()
    places.readme.write_text(Places().readme.read_text())
    places.page.write_text(Places().page.read_text())
    source = tmp_path / "run.json"
    content = json.loads((folder / "run.json").read_text())
    # as if its times meant something
    source.write_text(json.dumps({**content, "case": {**content["case"], "inner": "inductor"}}))
    for _ in range(2):
        write_readme(source, places)
    text, full = section_in(places.readme), section_in(places.page)
    assert places.picture.exists() and "(images/compare.png)" in text and "[all of them](docs/page.md)" in text
    for shown in (text, full):
        assert "4 pictures per setting, 8 steps" in shown
        (line,) = (line for line in shown.splitlines() if line.startswith("| fewer-steps |"))
        assert len(line.split("|")) == 9
    assert "- `diffusers-fastercache`: `RuntimeError: permute" in full and "permute" not in text
    assert "| diffusers-pab |" in full
    before = places.readme.read_text()
    places.page.write_text("no place")
    with pytest.raises(ValueError, match=r"page\.md: expected one <!-- compare"):
        write_readme(source, places)
    assert places.readme.read_text() == before
