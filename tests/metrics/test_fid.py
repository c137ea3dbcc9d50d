"""FID of random features and of Inception with random weights is that of float64.

What needs torchvision or torch-fidelity is skipped without them: they are in the extra `metrics`, not in `test`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchmetrics")

from fxcache.errors import OptionError
from fxcache.metrics import UnavailableError, fid
from fxcache.metrics.distribution import INCEPTION
from tests.metrics.samples import noisy, picture, save_folder


class Corners(nn.Module):
    """Eight features of a picture: means of its corners and channels."""

    num_features = 8

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        pixels = images.double() / 64
        corners = [pixels[..., :5, :5], pixels[..., :5, 5:], pixels[..., 5:, :5], pixels[..., 5:, 5:]]
        return torch.stack(
            [*(each.mean((1, 2, 3)) for each in corners), *pixels.mean((2, 3)).T, pixels.std((1, 2, 3))], 1
        )


def frechet_oracle(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of two Gaussians by a root of a symmetric matrix: tr (A^1/2 B A^1/2)^1/2."""
    (m1, c1), (m2, c2) = ((each.mean(0), np.cov(each, rowvar=False)) for each in (a, b))
    values, vectors = np.linalg.eigh(c1)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross)


def features_of(module: nn.Module, images: list[np.ndarray]) -> np.ndarray:
    return torch.cat([module(torch.from_numpy(image).permute(2, 0, 1)[None]) for image in images]).double().numpy()


def test_fid_of_two_sets_of_different_numbers_and_sizes():
    first = [picture(seed) for seed in range(20)]
    second = [noisy(picture(seed, (20, 36, 3)) // 2, 40.0, seed) for seed in range(30, 43)]
    found = fid(first, second, features=Corners())
    assert found.value == pytest.approx(
        frechet_oracle(*(features_of(Corners(), each) for each in (first, second))), rel=1e-6
    )
    assert found.details == {"first": 20, "second": 13, "features": "Corners"}
    assert found.count == 33
    assert (found.items, found.higher_is_better) == ((), False)
    assert fid(first, first, features=Corners()).value == pytest.approx(0, abs=1e-5)


def test_fid_reads_grey_and_floating_pictures_as_rgb_bytes():
    first, second = ([picture(seed, (24, 32)) for seed in range(start, start + 9)] for start in (0, 20))
    wanted = fid(*([np.dstack([each] * 3) for each in images] for images in (first, second)), features=Corners()).value
    assert fid(first, second, features=Corners()).value == wanted
    floating = [[each / 255 + np.where(each < 128, 0.001, -0.001) for each in images] for images in (first, second)]
    assert fid(*floating, features=Corners()).value == wanted


def test_fid_of_too_few(tmp_path: Path):
    folder = save_folder(tmp_path / "a", [picture(0)])
    with pytest.raises(UnavailableError) as caught:
        fid([picture(0), picture(1)], folder, features=Corners())
    assert str(caught.value) == f"fid needs at least 2 pictures or frames in each set, b={str(folder)!r} has 1"
    with pytest.raises(UnavailableError) as caught:
        fid([picture(0)], [picture(0), picture(1)], features=Corners())
    assert str(caught.value) == "fid needs at least 2 pictures or frames in each set, a has 1"


def test_fid_of_sixteen_bit():
    deep = [picture(seed, (24, 32), np.uint16) for seed in range(2)]
    with pytest.raises(UnavailableError) as caught:
        fid(deep, deep, features=Corners())
    assert str(caught.value) == "a[0] has 16 bit per channel, and the network of this metric reads 8 bit"


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception under the names of torch-fidelity; the batch norms keep features apart."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(nn.Module, "load_state_dict", lambda self, *_: None)
        model = extractor.FeatureExtractorInceptionV3("random", ["2048"], str(path))
    torch.save(model.state_dict(), path)
    return path


def large(seed: int) -> np.ndarray:
    """A picture larger than Inception's 299 pixels, so that the way of making it smaller shows."""
    return picture(seed, (330, 640, 3))


def test_fid_with_inception_weights_from_a_file(inception: Path):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    first, second = ([large(seed) // divisor for seed in range(4)] for divisor in (1, 3))
    found = fid(first, second, weights=inception)
    model = extractor.FeatureExtractorInceptionV3(
        "own", ["2048"], str(inception), feature_extractor_internal_dtype="float64"
    )
    features = [
        torch.cat([model(torch.from_numpy(each).permute(2, 0, 1)[None])[0] for each in images]).numpy()
        for images in (first, second)
    ]
    assert found.value == pytest.approx(frechet_oracle(*features), rel=2e-3)
    assert found.details["features"] == "Inception"


def test_fid_without_weights(tmp_path: Path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UnavailableError) as caught:
        fid([picture(0)], [picture(1)])
    assert str(caught.value) == (
        f"fid needs the file {INCEPTION.file} ({INCEPTION.url}, 91 MB, read by torch-fidelity); "
        f"it is not in {tmp_path / 'hub' / 'checkpoints'}, and nothing is downloaded unasked: give its path "
        "(weights=PATH, --weights PATH) or allow the download (download=True, --download)"
    )


def test_fid_with_another_file(tmp_path: Path):
    pytest.importorskip("torch_fidelity")
    wanted = f"expected the tensors of {INCEPTION}"
    path = tmp_path / "x.pth"
    for content, reason in (
        ({"a": torch.zeros(1)}, "the file has no Conv2d_1a_3x3.conv.weight"),
        (
            {"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3), "fc.weight": torch.zeros(1000, 2048)},
            "its fc.weight has the shape [1000, 2048], not [1008, 2048]",
        ),
        ([1], "the file holds a list"),
        (
            {"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3), "fc.weight": torch.zeros(1008, 2048)},
            "Error(s) in loading state_dict for NoTrainInceptionV3:",
        ),
    ):
        torch.save(content, path)
        with pytest.raises(OptionError) as caught:
            fid([picture(0)], [picture(1)], weights=path)
        assert str(caught.value).startswith("weights=")
        assert str(caught.value).endswith(f"{wanted}; {reason}")
    path.write_text("not a file of torch")
    with pytest.raises(OptionError, match=r"; torch\.load says: "):
        fid([picture(0)], [picture(1)], weights=path)
    with pytest.raises(OptionError) as caught:
        fid([picture(0)], [picture(1)], weights="absent.pth")
    assert str(caught.value) == f"weights='absent.pth': expected the path of the file {INCEPTION}"
