"""`python -m fxcache metrics`: what it prints, and one sentence for everything that is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pytest.importorskip("torchmetrics")

from fxcache.cli import main
from fxcache.metrics import clip_score, mse, psnr, ssim
from tests.metrics.samples import noisy, picture, save_clip, save_folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Folders A and B in the working directory."""

    monkeypatch.chdir(tmp_path)
    images = [picture(seed, (30, 30, 3)) for seed in (1, 2)]
    save_folder(tmp_path / "A", images)
    save_folder(tmp_path / "B", [noisy(image) for image in images])
    return "A", "B"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip")))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["metrics", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["metrics", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    line = [line for line in err.splitlines() if line.startswith("fxcache: ")]
    assert len(line) == 1
    return line[0].removeprefix("fxcache: ")


def test_a_table_of_several_metrics(folders, capsys: pytest.CaptureFixture[str]):
    lines = printed(capsys, "psnr", "ssim", "mse", "-i1", "A", "-i2", "B").splitlines()
    assert [line.split()[0] for line in lines] == ["psnr", "ssim", "mse"]
    for line, metric in zip(lines, (psnr, ssim, mse), strict=True):
        found = metric("A", "B")
        assert f" {found.value:.6g} " in line
        assert ("higher is better" in line) is found.higher_is_better
        assert "  2 pairs" in line
    assert " dB " in lines[0]
    assert "mean_of_differing" not in lines[0]  # with none identical it would repeat the value


def test_json_has_every_pair_and_the_versions(folders, capsys: pytest.CaptureFixture[str]):
    import torchmetrics

    found = json.loads(printed(capsys, "psnr", "-i1", "A", "-i2", "B", "--json"))
    assert found["results"] == [psnr("A", "B").to_dict()]
    assert [item["name"] for item in found["results"][0]["items"]] == [str(Path("A", f"0{n}.png")) for n in (0, 1)]
    assert found["versions"]["torchmetrics"] == torchmetrics.__version__
    assert (found["first"], found["second"], found["not_computed"]) == ("A", "B", {})


def test_json_of_identical_pictures_is_valid(folders, capsys: pytest.CaptureFixture[str]):
    def forbidden(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = printed(capsys, "psnr", "-i1", "A", "-i2", "A", "--json")
    (found,) = json.loads(text, parse_constant=forbidden)["results"]
    assert found["value"] == found["items"][0]["value"] == "inf"
    assert found["details"]["identical"] == 2
    assert float(found["value"]) == float("inf")


def test_all_says_what_is_left_out_and_why(folders, capsys: pytest.CaptureFixture[str]):
    found = json.loads(printed(capsys, "all", "-i1", "A", "-i2", "B", "--json"))
    assert [result["metric"] for result in found["results"]] == ["psnr", "ssim", "mse"]
    assert list(found["not_computed"]) == ["lpips", "fid", "clip_score", "image_reward"]
    for name, reason in found["not_computed"].items():
        assert reason.startswith(f"{name} needs ")
    lines = printed(capsys, "all", "-i1", "A", "-i2", "B").splitlines()
    assert lines[3:] == [f"not computed: {reason}" for reason in found["not_computed"].values()]


def test_all_with_one_argument_and_no_prompts(folders, capsys: pytest.CaptureFixture[str]):
    sentence = refused(capsys, "all", "-i1", "A")
    assert sentence.startswith(
        "no metric can be computed: psnr compares two arguments: expected both -i1 and -i2; ssim "
    )


def test_all_does_not_hide_what_does_not_fit(folders, capsys: pytest.CaptureFixture[str]):
    assert refused(capsys, "all", "-i1", "A", "-i2", "B/00.png") == (
        "-i1='A' holds 2 and -i2='B/00.png' holds 1: expected the same number of pictures or videos"
    )


def test_clip_score_of_both_arguments(folders, clip: str, capsys: pytest.CaptureFixture[str]):
    Path("prompts.txt").write_text("abc\nxyz\n\n")
    words = ["clip_score", "-i1", "A", "-i2", "B", "--prompts", "prompts.txt", "--weights", clip]
    first, second = json.loads(printed(capsys, *words, "--json"))["results"]
    assert (first["of"], second["of"]) == ("A", "B")
    assert first["value"] == clip_score("A", ["abc", "xyz"], weights=clip).value
    assert second["value"] == clip_score("B", ["abc", "xyz"], weights=clip).value
    lines = printed(capsys, *words).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["clip_score of -i1", "clip_score of -i2"]
    with_name = printed(
        capsys, "psnr", "clip_score", "-i1", "A", "-i2", "B", "--prompt", "abc", "--weights", f"clip_score={clip}"
    )
    assert [line.split("  ")[0] for line in with_name.splitlines()] == [
        "psnr",
        "clip_score of -i1",
        "clip_score of -i2",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("psrn -i1 A -i2 B", "METRIC='psrn': expected psnr, ssim, mse, lpips, fid, clip_score, image_reward or all"),
        ("psnr", "-i1 and -i2: expected the paths of two pictures, videos or folders, found none"),
        ("psnr -i1 A", "psnr compares two arguments: expected both -i1 and -i2"),
        ("psnr -i1 A -i2 C", "-i2='C': there is no such file or folder"),
        ("psnr -i1 A -i2 B --prompt x", "--prompt='x': expected one of clip_score, image_reward as METRIC"),
        ("psnr -i1 A -i2 B --prompts x", "--prompts='x': expected one of clip_score, image_reward as METRIC"),
        ("clip_score -i1 A --prompt x --prompts y", "--prompts='y': expected not together with --prompt"),
        ("clip_score -i1 A --prompts absent", "--prompts='absent': No such file or directory"),
        ("clip_score -i1 A --prompts gap", "--prompts='gap': expected one prompt per line, line 2 is empty"),
        ("clip_score -i1 A --prompts nothing", "--prompts='nothing': expected one prompt per line, it has none"),
        (
            "clip_score -i1 A --prompts latin",
            "--prompts='latin': expected text in UTF-8, unexpected end of data at byte 3",
        ),
        ("psnr -i1 A -i2 B --net vgg", "--net='vgg': expected lpips as METRIC"),
        (
            "psnr -i1 A -i2 B --weights x",
            "--weights='x': expected METRIC=PATH with one of lpips, fid, clip_score, image_reward",
        ),
        (
            "lpips fid -i1 A -i2 B --weights x",
            "--weights='x': expected METRIC=PATH with one of lpips, fid, clip_score, image_reward",
        ),
        ("lpips -i1 A -i2 B --weights fid=x", "--weights='fid=x': expected one of the metrics asked for: lpips"),
        (
            "lpips -i1 A -i2 B --weights a --weights b",
            "--weights='b': expected one path for lpips; 'a' was given before",
        ),
        ("lpips -i1 A -i2 B --net resnet", "net='resnet': expected one of alex, vgg, squeeze"),
    ],
)
def test_wrong_arguments(folders, capsys: pytest.CaptureFixture[str], words: str, sentence: str):
    Path("gap").write_text("abc\n\nxyz\n")
    Path("nothing").write_text("\n")
    Path("latin").write_bytes("abc\xe9".encode("latin-1"))
    assert refused(capsys, *words.split()) == sentence


def test_a_device_that_is_not_there(folders, capsys: pytest.CaptureFixture[str]):
    sentence = refused(capsys, "psnr", "-i1", "A", "-i2", "B", "--device", "gpu")
    assert sentence.startswith("--device='gpu': expected a device of torch that is here, such as cpu (")


def test_as_a_program_with_a_progress_bar_on_the_terminal(folders):
    """The bar goes to stderr where that is a terminal; what is printed is the table alone."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "fxcache", "metrics", "psnr", "-i1", "A", "-i2", "B"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True)
    os.set_blocking(mine, False)
    shown = os.read(mine, 10_000).decode()
    os.close(theirs)
    os.close(mine)
    assert done.stdout == printed_line(psnr("A", "B").value)
    assert "psnr:" in shown
    assert "/2" in shown
    silent = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (silent.stdout, silent.stderr) == (done.stdout, "")


def printed_line(value: float) -> str:
    together = psnr("A", "B").details["of_all_pixels"]
    return (
        f"psnr  {value:.6g} dB  higher is better  2 pairs, identical 0, of_all_pixels {together:.6g}, data_range 255\n"
    )


def test_the_other_commands_do_not_load_it():
    check = "import sys, fxcache.cli; fxcache.cli.main(['options', '--json']); "
    check += "sys.exit(bool({'fxcache.metrics', 'torch', 'torchmetrics', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0
    check = "import fxcache, sys; before = 'fxcache.metrics' in sys.modules; fxcache.metrics.psnr; sys.exit(before)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0
