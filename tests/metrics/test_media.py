"""What may be compared, and the sentence for everything that may not."""

from __future__ import annotations

import struct
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchmetrics")

from fxcache.metrics import InputError, mse, open_media, psnr
from fxcache.metrics.frames import Frame
from fxcache.metrics.pairing import frames
from tests.metrics.samples import noisy, picture, psnr_oracle, save_folder, save_video

A, B = picture(0), noisy(picture(0))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images = [picture(seed) for seed in range(3)]
    return save_folder(tmp_path / "a", images), save_folder(tmp_path / "b", [noisy(image) for image in images])


def refused(a: Any, b: Any) -> str:
    """The sentence with the arguments in this order; in the other order it must be refused as well."""
    with pytest.raises(InputError) as caught:
        mse(a, b)
    with pytest.raises(InputError) as swapped:
        mse(b, a)
    assert str(swapped.value).partition(": expected")[2] == str(caught.value).partition(": expected")[2]
    return str(caught.value)


def shown(value: Any) -> list[Frame]:
    return list(frames(open_media(value, "a")))


# ---- pairs


def test_folders_are_paired_by_name_whatever_the_ending(tmp_path: Path, folders: tuple[Path, Path]):
    a, b = folders
    Image.open(b / "01.png").save(b / "01.bmp")
    (b / "01.png").unlink()
    (a / "notes.txt").write_text("not a picture")
    (b / ".hidden.png").write_text("not a picture either")
    found = psnr(a, b)
    wanted = [psnr_oracle(picture(seed), noisy(picture(seed)), 255.0) for seed in range(3)]
    assert [item.value for item in found.items] == pytest.approx(wanted, rel=1e-12)
    assert [item.name for item in found.items] == [str(a / f"0{number}.png") for number in range(3)]


def test_the_order_is_that_of_the_names_and_not_of_the_disk(tmp_path: Path):
    names = ["c", "a", "b"]
    for folder, change in (("one", lambda image: image), ("two", noisy)):
        (tmp_path / folder).mkdir()
        for place, name in enumerate(names if folder == "one" else names[::-1]):
            seed = names.index(name)
            Image.fromarray(change(picture(seed))).save(tmp_path / folder / f"{name}.png")
            assert place < 3
    found = psnr(tmp_path / "one", tmp_path / "two")
    assert [Path(item.name).stem for item in found.items] == ["a", "b", "c"]
    assert [item.value for item in found.items] == pytest.approx(
        [psnr_oracle(picture(seed), noisy(picture(seed)), 255.0) for seed in (1, 2, 0)], rel=1e-12
    )


def test_missing_names(folders: tuple[Path, Path]):
    a, b = folders
    (b / "00.png").rename(b / "09.png")
    assert refused(a, b) == (
        f"only a={str(a)!r} has 00 and only b={str(b)!r} has 09: "
        "expected the same names in both, whatever their endings"
    )


def test_different_counts(folders: tuple[Path, Path]):
    a, b = folders
    (b / "02.png").unlink()
    assert refused(a, b) == (
        f"a={str(a)!r} holds 3 and b={str(b)!r} holds 2 files: only a={str(a)!r} has 02: "
        "expected the same names in both, whatever their endings"
    )
    assert refused(a, b / "00.png") == (
        f"a={str(a)!r} holds 3 and b={str(b / '00.png')!r} holds 1: expected the same number of pictures or videos"
    )
    assert refused([A, A], [A]) == "a holds 2 and b holds 1: expected the same number of pictures or videos"


def test_many_missing_names_are_counted(tmp_path: Path):
    a = save_folder(tmp_path / "a", [picture(0, (4, 4))] * 6)
    b = save_folder(tmp_path / "b", [picture(0, (4, 4))])
    assert "has 01, 02, 03 and 2 more: expected" in refused(a, b)


def test_one_name_twice(folders: tuple[Path, Path]):
    a, b = folders
    Image.open(a / "01.png").save(a / "01.bmp")
    assert " holds 01.bmp and 01.png: expected every name once" in refused(a, b).replace(
        "01.png and 01.bmp", "01.bmp and 01.png"
    )


def test_different_sizes(tmp_path: Path):
    a = save_folder(tmp_path / "a", [picture(0, (24, 32, 3))]) / "00.png"
    b = save_folder(tmp_path / "b", [picture(0, (24, 30, 3))]) / "00.png"
    assert refused(a, b) == f"{a} is 32x24 and {b} 30x24 (width x height): expected the same size"


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (A[..., 0], "grey uint8"),
        (np.dstack([A, np.full(A.shape[:2], 255, np.uint8)]), "RGBA uint8"),
        (picture(0, dtype=np.uint16), "RGB uint16"),
        (picture(0, dtype=np.float32), "RGB floating"),
        (Image.fromarray(A).convert("LA"), "RGBA uint8"),
        (Image.fromarray(picture(0, (24, 32), np.uint16)), "grey uint16"),
    ],
)
def test_different_formats(image: Any, found: str):
    assert refused(A, image) == f"a is RGB uint8 and b {found}: expected the same format"


def test_pairs_of_different_ranges():
    deep = picture(0, dtype=np.uint16)
    assert refused([A, deep], [A, deep]) == (
        "a[0] is RGB uint8 and a[1] RGB uint16: expected one range of values in all pairs"
    )


# ---- files


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".webp"])
def test_formats_without_loss(tmp_path: Path, suffix: str):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(A).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert psnr(path, str(path)).details["identical"] == psnr(path, A).details["identical"] == 1


def test_sixteen_bit_grey(tmp_path: Path):
    deep = picture(0, (24, 32), np.uint16)
    for suffix in (".png", ".tiff"):
        Image.fromarray(deep).save(tmp_path / f"x{suffix}")
        (frame,) = shown(tmp_path / f"x{suffix}")
        assert np.array_equal(frame.pixels[0].numpy(), deep)
        assert frame.data_range == 65535


def test_sixteen_bit_colour_is_refused_and_not_cut_to_eight(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert refused(path, path) == (
        f"{path} is a 16 bit colour picture, of which pillow reads 8 bit: expected 8 bit, or 16 bit grey"
    )


def test_a_palette_is_looked_up(tmp_path: Path):
    few = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(8, axis=1)
    Image.fromarray(few).quantize(24).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as found:
        assert found.mode == "P"
    assert psnr(tmp_path / "x.png", few).details["identical"] == 1


def test_a_turned_photograph_is_compared_as_it_is_seen(tmp_path: Path):
    turned = Image.fromarray(np.rot90(A, -1))  # shown turned back by 90 degrees
    exif = turned.getexif()
    exif[0x0112] = 8
    turned.save(tmp_path / "x.png", exif=exif)
    assert psnr(tmp_path / "x.png", A).details["identical"] == 1


def test_transparent_pixels_are_refused(tmp_path: Path):
    glass = np.dstack([A, np.full(A.shape[:2], 255, np.uint8)])
    glass[3, 4, 3] = 254
    sentence = (
        "{} has transparent pixels, so what is to be seen depends on what lies behind: "
        "expected an opaque picture (flatten it first)"
    )
    assert refused(glass, glass) == sentence.format("a")
    Image.fromarray(glass).save(tmp_path / "x.png")
    assert refused(tmp_path / "x.png", tmp_path / "x.png") == sentence.format(tmp_path / "x.png")
    keyed = Image.fromarray(np.zeros((12, 12, 3), np.uint8))
    keyed.save(tmp_path / "y.png", transparency=(0, 0, 0))
    assert refused(tmp_path / "y.png", tmp_path / "y.png") == sentence.format(tmp_path / "y.png")


def test_a_mode_that_has_no_levels_to_compare(tmp_path: Path):
    Image.fromarray(A).convert("CMYK").save(tmp_path / "x.tiff")
    assert refused(tmp_path / "x.tiff", tmp_path / "x.tiff") == (
        f"{tmp_path / 'x.tiff'} has the mode CMYK of pillow: expected 1, L, LA, P, RGB, RGBA or I;16 (convert it first)"
    )


def test_files_that_are_none(tmp_path: Path):
    absent, words, cut = (tmp_path / name for name in ("absent.png", "words.png", "cut.png"))
    words.write_text("not a picture")
    Image.fromarray(A).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    assert refused(absent, A) == f"a={str(absent)!r}: there is no such file or folder"
    assert refused(words, A).startswith(
        f"{words} is no picture that pillow can read: expected a picture, or a video that"
    )
    assert refused(cut, A).startswith(f"{cut} cannot be read: ")


def test_a_folder_without_pictures(tmp_path: Path):
    (tmp_path / "a" / "deeper").mkdir(parents=True)
    sentence = refused(tmp_path / "a", A)
    assert sentence.startswith(
        f"a={str(tmp_path / 'a')!r} is a folder without pictures and videos (1 folders inside are not looked into): "
        "expected files that end in .avi, .avif, "
    )


# ---- objects


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.zeros((4, 4, 2), np.uint8), "a is an array of shape [4, 4, 2]: expected [H, W] or [H, W, C], C 1, 3 or 4"),
        (torch.zeros(5, 4, 3), "a is a tensor of shape [5, 4, 3]: expected [H, W] or [C, H, W], C 1, 3 or 4"),
        (
            np.zeros((4, 4), np.int64),
            "a has the dtype int64: expected uint8 (0 to 255), uint16 (0 to 65535) or a floating type (0 to 1)",
        ),
        (
            torch.zeros(4, 4, dtype=torch.int32),
            "a has the dtype int32: expected uint8 (0 to 255), uint16 (0 to 65535) or a floating type (0 to 1)",
        ),
        (torch.linspace(-1, 1, 16).view(4, 4), "a has floating values from -1 to 1: expected 0 to 1"),
        (np.full((4, 4), 255.0), "a has floating values from 255 to 255: expected 0 to 1"),
        (np.full((4, 4), np.nan), "a has floating values from nan to nan: expected 0 to 1"),
        (np.zeros((0, 4), np.uint8), "a has no pixels (shape [1, 0, 4])"),
        (np.zeros((0, 4, 4, 3), np.uint8), "a has no pictures (shape [0, 4, 4, 3])"),
        ([], "a is an empty list: expected at least one picture"),
        ([[A]], "a[0] is a list: expected a picture or a file"),
        (
            [7],
            "a[0] is a int: expected a path, a picture of pillow, an array of numpy, a tensor of torch, "
            "or a list of these",
        ),
    ],
)
def test_objects_that_are_no_pictures(value: Any, sentence: str):
    assert refused(value, A) == sentence


def test_a_folder_in_a_list(tmp_path: Path):
    assert refused([tmp_path], A) == f"a[0]={str(tmp_path)!r} is a folder: expected a picture or a file"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_floating_tensors_of_every_kind(dtype: torch.dtype):
    (frame,) = shown(torch.full((3, 4, 4), 0.5, dtype=dtype))
    assert frame.pixels.dtype == torch.float64
    assert bool((frame.pixels == 0.5).all())


# ---- videos and animations


def test_a_video_frame_by_frame(tmp_path: Path):
    pytest.importorskip("av")
    first = [picture(seed) for seed in range(5)]
    second = [noisy(frame) for frame in first]
    found = psnr(save_video(tmp_path / "a.mkv", first), save_video(tmp_path / "b.mkv", second))
    wanted = [psnr_oracle(a, b, 255.0) for a, b in zip(first, second, strict=True)]
    assert [item.value for item in found.items] == pytest.approx(wanted, rel=1e-12)
    assert found.items[4].name == f"{tmp_path / 'a.mkv'}, frame 5"


def test_a_common_mp4(tmp_path: Path):
    pytest.importorskip("av")
    path = save_video(tmp_path / "a.mp4", [picture(0, (32, 32, 3))] * 3, "mpeg4", "yuv420p")
    assert [tuple(frame.pixels.shape) for frame in shown(path)] == [(3, 32, 32)] * 3
    assert psnr(path, path).details["identical"] == 3


def test_videos_that_do_not_fit(tmp_path: Path):
    pytest.importorskip("av")
    frames = [picture(seed) for seed in range(5)]
    long, short = save_video(tmp_path / "a.mkv", frames), save_video(tmp_path / "b.mkv", frames[:3])
    assert refused(long, short) == f"{long} has 5 frames and {short} 3: expected the same number of frames"
    small = save_video(tmp_path / "c.mkv", [frame[:16] for frame in frames])
    assert refused(long, small) == (
        f"{long}, frame 1 is 32x24 and {small}, frame 1 32x16 (width x height): expected the same size"
    )
    broken = tmp_path / "d.mp4"
    broken.write_text("not a video")
    assert refused(broken, long) == f"{broken} cannot be read: Invalid data found when processing input"


def test_a_folder_of_videos_and_pictures(tmp_path: Path):
    pytest.importorskip("av")
    for folder in ("a", "b"):
        save_folder(tmp_path / folder, [A])
        save_video(tmp_path / folder / "clip.mkv", [A, B])
    assert psnr(tmp_path / "a", tmp_path / "b").count == 3


def test_only_one_frame_of_a_video_is_in_memory(tmp_path: Path):
    pytest.importorskip("av")
    decoded = iter(frames(open_media(save_video(tmp_path / "a.mkv", [A] * 50), "a")))
    alive: list[weakref.ref[Frame]] = []
    most = 0
    for frame in decoded:
        alive.append(weakref.ref(frame))
        del frame
        most = max(most, sum(one() is not None for one in alive))
    assert len(alive) == 50
    assert most <= 2


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_frame_by_frame(tmp_path: Path, suffix: str):
    grey = [np.full((12, 16, 3), 40 * number, np.uint8) for number in range(4)]
    lossless = {"lossless": True} if suffix == ".webp" else {}
    first, *rest = map(Image.fromarray, grey)
    first.save(tmp_path / f"x{suffix}", save_all=True, append_images=rest, duration=50, **lossless)
    found = shown(tmp_path / f"x{suffix}")
    assert [frame.format for frame in found] == ["RGB uint8"] * 4
    for frame, wanted in zip(found, grey, strict=True):
        assert np.array_equal(frame.pixels.permute(1, 2, 0).numpy(), wanted)
    assert found[1].name.endswith(", frame 2")
    first.save(tmp_path / f"y{suffix}", save_all=True, append_images=rest[:2], duration=50, **lossless)
    assert refused(tmp_path / f"x{suffix}", tmp_path / f"y{suffix}").endswith(
        f"x{suffix} has 4 frames and {tmp_path / f'y{suffix}'} 3: expected the same number of frames"
    )
