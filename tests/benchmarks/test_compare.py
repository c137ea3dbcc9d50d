"""The comparison counts work that is really done, is fair, and reports what it says; its times are not looked at."""

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
from torch.profiler import ProfilerActivity, profile

from benchmarks import compare
from benchmarks.comparison import contestants, grids
from benchmarks.comparison.contestants import all_contestants, chosen
from benchmarks.comparison.costs import Costs, costs_of, operations_by_letter
from benchmarks.comparison.entries import Entry, Stage
from benchmarks.comparison.grids import Frame, preset_mask
from benchmarks.comparison.measure import draw
from benchmarks.comparison.models import MODELS, twin
from benchmarks.comparison.readme import section, section_in, write_readme
from benchmarks.comparison.seats import Refused, Seat
from benchmarks.report import ROOT
from benchmarks.schedules import Schedule

STEPS, SAMPLES, ROUNDS, BLOCKS = 8, 4, 2, 12
MASK = Schedule("mask", STEPS, mask="11010011")
PEER = ("cache-dit",) if contestants.find_spec("cache_dit") else ()
FOLLOWERS = ("fxcache", *PEER, "diffusers-fbc", "diffusers-taylorseer-lite")
METHODS = ("fewer-steps", "fxcache-dbprune", *PEER, "diffusers-magcache", "diffusers-pab", "diffusers-fastercache")


@pytest.fixture(scope="module")
def digits() -> Stage:
    model = MODELS["digits"]
    return Stage(model, "cpu", model.load("cpu"), "eager")


@pytest.fixture(scope="module")
def flux() -> Stage:
    model = MODELS["flux-tiny"]
    return Stage(model, "cpu", model.load("cpu"), "eager")


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place in (grids, contestants):
            patch.setattr(place, "THRESHOLDS", (0.4,))
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


def opened(stage: Stage, name: str, schedule: Schedule) -> Entry:
    (contestant,) = chosen([name], ())
    entry = contestant.open(stage)
    with torch.no_grad():
        draw(entry, contestant.fit(schedule), 0, 1)
    return entry


def blocks_run(entry: Entry, schedule: Schedule) -> int:
    """Executions of a block as the profiler counts them: each has one attention."""
    with torch.no_grad():
        for _ in range(2):
            # what is traced on the way to a graph is counted as well: the second time there is nothing to trace
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                draw(entry, schedule, 0, 1)
    return sum(event.name == "aten::_scaled_dot_product_flash_attention_for_cpu" for event in profiler.events())


# --- fairness


def test_contestants_share_weights_and_nothing_else(digits: Stage) -> None:
    one, other = (twin(digits.source) for _ in range(2))
    storages = [[each.data_ptr() for each in pipe.transformer.parameters()] for pipe in (digits.source, one, other)]
    assert storages[0] == storages[1] == storages[2]
    parts = [{id(each) for each in (*pipe.transformer.modules(), pipe.scheduler)} for pipe in (one, other)]
    parts += [{id(each) for each in pipe.transformer.parameters()} for pipe in (one, other)]
    assert not parts[0] & parts[1] and not parts[2] & parts[3]


@pytest.fixture(scope="module")
def followers(digits: Stage) -> Iterator[dict[str, Entry]]:
    entries = {name: opened(digits, name, MASK) for name in FOLLOWERS}
    yield entries
    for entry in entries.values():
        entry.close()


@pytest.mark.parametrize("name", FOLLOWERS[1:])
def test_without_reuse_all_draw_the_uncached_pictures(digits: Stage, followers: dict[str, Entry], name: str) -> None:
    with torch.no_grad():
        wanted = draw(Entry(digits), Schedule("steps", 4), 3, 2)
        found = draw(followers[name], Schedule("mask", 4, mask="1111"), 3, 2)
    assert found.decisions == ("CCCC", "CCCC")
    torch.testing.assert_close(found.pictures, wanted.pictures, atol=1e-4, rtol=0)


def test_the_same_method_draws_the_same_pictures_whoever_has_written_it(followers: dict[str, Entry]) -> None:
    with torch.no_grad():
        found = {name: draw(followers[name], MASK, 3, 2).pictures for name in ("fxcache", *PEER, "diffusers-fbc")}
    for pictures in found.values():
        torch.testing.assert_close(pictures, found["fxcache"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", FOLLOWERS)
def test_the_steps_of_a_mask_are_computed_and_no_others(followers: dict[str, Entry], name: str) -> None:
    (contestant,) = chosen([name], ())
    schedule = contestant.fit(MASK)
    # computed steps run all blocks, the others those that always run, in both branches
    assert blocks_run(followers[name], schedule) == 2 * (5 * BLOCKS + 3 * schedule.first_blocks)
    assert followers[name].decisions() == ("CC.C..CC",) * 2


def test_a_generation_is_not_told_by_an_earlier_one(followers: dict[str, Entry]) -> None:
    with torch.no_grad():
        draw(followers["fxcache"], MASK, 0, 1)
    followers["fxcache"].begin(MASK)
    with pytest.raises(RuntimeError, match=r"expected 2 branches of 8 steps, found \(\)"):
        followers["fxcache"].decisions()


def test_few_steps_keep_a_quarter_of_the_blocks_at_either_end(digits: Stage) -> None:
    given = type("Given", (), {"steps": 4, "few_step": True})()
    frame = compare.frame_of(given, digits.model, digits)
    assert frame == Frame(4, 3, 3)
    for name in ("fxcache", *PEER):
        schedule = preset_mask("medium", frame)
        assert schedule.mask == "1101"
        entry = opened(digits, name, schedule)
        assert blocks_run(entry, schedule) == 2 * (3 * BLOCKS + 6)
        entry.close()


def test_another_schedule_than_that_of_the_mask_is_an_error(flux: Stage) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"expected the steps CC\.C\.\.CC in .*, found CCCCCCCC"):
        draw(Entry(flux), MASK, 0, 1)


@pytest.mark.parametrize("steps", [8, 28, 50])
def test_the_presets_are_those_of_cache_dit(steps: int) -> None:
    cache_dit = pytest.importorskip("cache_dit")
    for preset in grids.PRESETS:
        wanted = cache_dit.steps_mask(total_steps=steps, mask_policy=preset)
        assert preset_mask(preset, Frame(steps)).mask == "".join(map(str, wanted))


def test_everybody_has_as_many_settings() -> None:
    frame = Frame(50)
    for contestant in all_contestants():
        if contestant.grid is not None:
            families = [schedule.family for schedule in contestant.grid(frame)]
            for family in set(families):
                assert families.count(family) == (4 if family == "mask" else 6), contestant.name


# --- work


def test_operations_are_those_that_run(digits: Stage) -> None:
    costs = costs_of(digits.model, digits.source)
    assert len(costs.blocks) == BLOCKS and 0.9 * costs.call < sum(costs.blocks) < costs.call
    for name in (*PEER, "diffusers-fbc"):
        (contestant,) = chosen([name], ())
        schedule = contestant.fit(MASK)
        entry = opened(digits, name, MASK)
        with torch.no_grad():
            by_letter = operations_by_letter(entry, schedule)
        entry.close()
        assert by_letter["C"] == costs.call
        assert 2 * (5 * by_letter["C"] + 3 * by_letter["."]) == costs.of(schedule, ("CC.C..CC",) * 2)


def test_operations_by_hand() -> None:
    costs = Costs(100, (10, 20, 30, 20))
    schedule = Schedule("mask", 3, 1, "101", last_blocks=1)
    assert costs.of(schedule, ("C.C",)) == 300 - (20 + 30)
    assert costs.of(schedule, ("C.C",), skipped_blocks=3) == 300 - 3 * 25
    with pytest.raises(ValueError, match=r"expected steps that are computed or reused as a whole"):
        costs.of(schedule, ("CmC",))


def test_the_operations_of_a_linear_layer_and_of_attention() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.comparison.costs import _MORE

    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter, torch.no_grad():
        torch.nn.Linear(8, 4)(torch.ones(2, 8))
        torch.nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 2, 16, 8))
    assert counter.get_total_flops() == 2 * 2 * 8 * 4 + 2 * 2 * (2 * 16 * 16 * 8)


# --- the report


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
    compare.main([*arguments, "--methods", "eager", "ideal", *FOLLOWERS[1:], "--rounds", "2", "--json", str(path)])
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


def test_a_seat_says_what_went_wrong(flux: Stage) -> None:
    (contestant,) = chosen(["diffusers-pab"], ())
    seat = Seat(contestant, flux)
    with pytest.raises(Refused, match="NotImplementedError: Pyramid follows no mask"):
        seat.ask("prepare", MASK, 1)
    seat.close()


# --- arguments


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
        (["--readme", "--json", "/nowhere.json"], "--readme: expected /nowhere.json, which a comparison writes"),
        (["--model", "flux-tiny", "--methods", "inductor+tuned"], "expected no +tuned together with --in-process"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--in-process", *arguments])
    assert words in capsys.readouterr().err


def test_names_and_groups() -> None:
    assert [each.name for each in chosen(["eager", "eager", "ideal"], ())] == ["eager", "ideal"]
    assert {each.group for each in chosen(["diffusers-all"], ())} == {"diffusers"}
    (tuned,) = chosen(["inductor+tuned"], ())
    assert tuned.tuned and tuned.name == "inductor+tuned"


# --- the README


def test_the_readme_has_what_the_json_gives() -> None:
    given = type("Given", (), {"few_step": False, "model": "digits", "device": "cpu", "steps": None})()
    source = compare.default_path(given)
    found = section_in((ROOT / "README.md").read_text())
    if source.exists():
        wanted = section(json.loads(source.read_text()), str(source.relative_to(ROOT)), "docs/images/compare.png")
        assert found.strip() == wanted.strip(), "run python -m benchmarks.compare --readme"
    else:
        assert not found.strip()


def test_writing_the_readme(folder: Path, tmp_path: Path, report: dict[str, Any]) -> None:
    readme, picture = tmp_path / "README.md", tmp_path / "images" / "compare.png"
    readme.write_text((ROOT / "README.md").read_text())
    for _ in range(2):
        write_readme(folder / "run.json", readme, picture)
    text = section_in(readme.read_text())
    assert picture.exists() and "(images/compare.png)" in text and "4 pictures per setting, 8 steps" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| fewer-steps |"))
    assert len(line.split("|")) == 9 and "- `diffusers-fastercache`: `RuntimeError: permute" in text
    readme.write_text("no place")
    with pytest.raises(ValueError, match=r"README\.md: expected one <!-- compare"):
        write_readme(folder / "run.json", readme, picture)
