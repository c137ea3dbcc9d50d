"""The calibrators' benchmark runs, counts the work it says, and measures quality; its times are not looked at."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg
import torch

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks import calibrators, quality, schedules
from benchmarks.curves import best
from benchmarks.digits.judge import load_judge
from benchmarks.methods import NOT_COMPILED, CachedRun, Run, Setting, blocks_of, open_uncached
from benchmarks.peers import PeerRun, count_blocks, peer_methods
from benchmarks.schedules import Schedule, block_factor

STEPS, SAMPLES = 6, 4
MASK = Schedule("mask", STEPS, mask="110101")
SETTING = Setting(STEPS, inner="eager")


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "FACTORS", (3.0,))
        patch.setattr(schedules, "THRESHOLDS", (1.0,))
        patch.setattr(schedules, "WARMUPS", (2,))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    folder = tmp_path_factory.mktemp("calibrators")
    arguments = ["--samples", str(SAMPLES), "--steps", str(STEPS), "--inner-backend", "eager", "--skip-peers"]
    arguments += ["--methods", "fewer-steps", "fxcache", "--json", str(folder / "deep" / "run.json")]
    calibrators.main([*arguments, "--plot", str(folder / "deep" / "run.png")])
    return folder / "deep"


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    content = json.loads((folder / "run.json").read_text())
    assert content["case"]["steps"] == STEPS and content["versions"]["torch"] == torch.__version__
    return {(row["method"], row["schedule"]): row for row in content["rows"]}


def draw(run: Run, plan: calibrators.Plan) -> torch.Tensor:
    row = calibrators.Row(calibrators.Method("any", lambda _: [], None), Schedule("steps", STEPS), run)
    return row.draw(plan, 0)[0]


def test_every_method_and_schedule_has_a_row(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert set(rows) == {
        ("uncached, eager", "6 steps"),
        ("fewer-steps", "2 steps"),
        ("fxcache", "mask 3 of 6, F1"),
        ("fxcache", "mask 3 of 6, F0"),
        ("fxcache", "residual < 1, W2, F1"),
    }
    factors = [row["factor"] for row in rows.values()]
    assert factors == sorted(factors)


def test_the_factor_is_that_of_the_decisions(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    # two rounds of two branches
    assert rows["uncached, eager", "6 steps"]["block_runs"] == 2 * 2 * STEPS * 12
    assert rows["fewer-steps", "2 steps"]["factor"] == 3
    masked = rows["fxcache", "mask 3 of 6, F1"]
    assert masked["decisions"] == ["CC...C", "CC...C"]
    assert (masked["computed_steps"], masked["reused_steps"]) == (12, 12)
    assert masked["factor"] == pytest.approx(block_factor(6, 3, 12, 1), rel=1e-5)
    assert rows["fxcache", "mask 3 of 6, F0"]["factor"] == 2
    compared = rows["fxcache", "residual < 1, W2, F1"]
    assert compared["decisions"] == ["CC....", "CC...."] and compared["threshold"] == 1


def test_quality_is_in_the_same_row_as_speed(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    uncached = rows["uncached, eager", "6 steps"]
    assert uncached["psnr_db"] == 99 and uncached["ssim"] == 1 and uncached["frechet_uncached"] < 1e-6
    assert uncached["speedup"]["median"] == 1
    for row in rows.values():
        assert row["wall_s"]["count"] == row["speedup"]["count"] == 2
        if row is not uncached:
            assert 5 < row["psnr_db"] < 99 and 0 < row["ssim"] < 1
            assert row["frechet_uncached"] > 0 and row["frechet_real"] > 0 and 0 <= row["accuracy"] <= 1


def test_the_picture(folder: Path) -> None:
    with Image.open(folder / "run.png") as picture:
        assert picture.width > 800 and picture.height > 400


def test_an_uncached_run_counts_what_hooks_count() -> None:
    plan = calibrators.Plan(2, 1, SETTING)
    run = open_uncached(SETTING, NOT_COMPILED)
    counts = count_blocks(run.pipeline)
    draw(run, plan)
    assert sum(counts) == run.work(STEPS).block_runs == 2 * STEPS * blocks_of(run.pipeline)


def test_cache_dit_runs_the_blocks_that_the_factor_of_the_same_mask_says() -> None:
    pytest.importorskip("cache_dit")
    plan = calibrators.Plan(2, 1, SETTING)
    peer, own = PeerRun(SETTING, MASK), CachedRun(SETTING, MASK)
    try:
        # the second generation must not begin with the state of the first
        pictures = [draw(run, plan) for run in (peer, peer, own)]
        assert torch.equal(pictures[0], pictures[1])
        torch.testing.assert_close(pictures[2], pictures[0], atol=1e-3, rtol=0)
        assert peer.work(STEPS) == own.work(STEPS)
        assert 2 * STEPS * 12 / peer.work(STEPS).block_runs == block_factor(STEPS, 4, 12, 1)
    finally:
        peer.close()
        own.close()


def test_without_cache_dit_the_others_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.peers.find_spec", lambda _: None)
    assert peer_methods() == []
    assert "fxcache-foca" in [method.name for method in calibrators.chosen(None, skip_peers=False)]
    assert "bench,peers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "magic"], "--methods magic: expected some of fewer-steps, fxcache,"),
        (["--samples", "5"], "--samples=5, --rounds=2: expected a multiple of the rounds"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        calibrators.main(["--skip-peers", *arguments])
    assert words in capsys.readouterr().err


def test_the_frechet_distance_of_gaussians_with_known_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(64, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    # the distance of one Gaussian to itself, moved, and scaled: C2 = 9 C1, so tr(C1 + C2 - 6 C1) is 4 tr C1
    assert quality.frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    assert quality.frechet_distance(one, one + 2) == pytest.approx(5 * 4)
    scaled = 3 * (one - one.mean(0)) + one.mean(0)
    assert quality.frechet_distance(one, scaled) == pytest.approx(4 * one.T.cov().trace().item())
    # and the formula as it is printed
    covariances = [torch.cov(each.T).numpy() for each in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = (one.mean(0) - other.mean(0)).square().sum().item()
    wanted += float((covariances[0] + covariances[1] - 2 * root).trace())
    assert quality.frechet_distance(one, other) == pytest.approx(wanted)


def test_the_judges_margins_are_those_of_all_pairs() -> None:
    margins = load_judge().margins(torch.rand(3, 16, 16))
    assert margins.shape == (3, 45) and margins.dtype == torch.float64


def test_equal_pictures_are_alike_and_noise_is_not() -> None:
    images = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert quality.ssim(images, images) == pytest.approx(1)
    assert quality.ssim(images, images.flip(1)) < 0.5


def test_a_line_joins_the_rows_that_no_other_beats() -> None:
    points = [(1.0, 50.0), (2.0, 40.0), (2.0, 45.0), (3.0, 42.0), (4.0, 44.0)]
    found = best([{"factor": factor, "psnr_db": psnr} for factor, psnr in points])
    assert [(row["factor"], row["psnr_db"]) for row in found] == [(1.0, 50.0), (2.0, 45.0), (4.0, 44.0)]
