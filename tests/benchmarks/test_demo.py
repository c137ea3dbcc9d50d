"""The demo runs, writes its pictures and reports speed beside quality; its times are not looked at."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks import demo
from fxcache.options import Options

CACHED = Options(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CONFIGS", {"plain": None, "cached": CACHED})
        arguments = ["--inner-backend", "eager", "--out", str(folder), "--json", str(folder / "demo.json")]
        demo.main([*arguments, "--digits", "10", "--rounds", "2", "--steps", "6"])
    return folder


def test_speed_and_quality_are_in_one_row(folder: Path) -> None:
    content = json.loads((folder / "demo.json").read_text())
    plain, cached = content["rows"]
    assert (plain["contestant"], cached["contestant"]) == ("plain", "cached")
    # two rounds of six steps with two branches; two steps of each are warmup
    assert (plain["reused_steps"], cached["reused_steps"], cached["all_steps"]) == (0, 16, 24)
    assert plain["psnr_db"] is None and 5 < cached["psnr_db"] < 99
    for row in content["rows"]:
        assert row["wall_s"]["count"] == row["speedup"]["count"] == 2
        assert row["pictures"] == 20 and 0.5 < row["accuracy"] <= 1
    assert cached["policy"] == {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 1.0}
    assert content["case"]["steps"] == 6 and content["versions"]["torch"] == torch.__version__


def test_the_pictures(folder: Path) -> None:
    with Image.open(folder / "demo.png") as grids, Image.open(folder / "decisions.png") as decisions:
        assert grids.width > 2 * 10 * 32 and grids.height > 32
        assert len(grids.getcolors(256) or ()) > 20
        assert decisions.width > 500


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "contestant": "cached", "wall_s": demo.Spread(1.0, 1.0, 1.0, 2), "speedup": demo.Spread(2.5, 2.4, 2.6, 2),
        "compile_s": 3.0, "reused_steps": 16, "all_steps": 24, "psnr_db": 30.0, "accuracy": 0.995,
    }  # fmt: skip
    demo.print_rows([row], demo.Plan(10, 2, 6, 2.0))
    shown = capsys.readouterr().out
    for words in ("10 digits, 6 steps, guidance 2, 2 rounds", "2.50x", "16 of 24", "30.0", "99.5 %", "PSNR dB"):
        assert words in shown


def test_the_configurations_shown_are_plain_inductor_the_default_and_the_best_calibrator() -> None:
    plain, default, one_block, no_block = demo.CONFIGS.values()
    assert plain is None and default == Options()
    assert one_block is not None and no_block == one_block.replace(Fn_compute_blocks=0)
    assert (one_block.calibrator, one_block.Fn_compute_blocks, one_block.Bn_compute_blocks) == ("regression", 1, 0)


def test_psnr_is_the_mean_over_pictures_and_bounded() -> None:
    wanted = torch.zeros(2, 16, 16)
    images = torch.stack([torch.full((16, 16), 0.1), wanted[1]])
    assert demo.psnr(images, wanted) == pytest.approx((20 + demo.BEST_PSNR) / 2)


def test_one_branch_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--guidance", "1"])
    assert "--guidance: expected more than 1" in capsys.readouterr().err
