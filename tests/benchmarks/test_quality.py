"""How close pictures are to others, against formulas as they are printed."""

import pytest
import scipy.linalg
import torch

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")

from benchmarks import quality
from benchmarks.digits.judge import load_judge


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
