"""PSNR, SSIM and mean squared error are those of scikit-image and of float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("torchmetrics")

from fxcache.metrics import UnavailableError, mse, psnr, ssim
from tests.metrics.samples import noisy, picture, psnr_oracle

DTYPES = {np.uint8: 255.0, np.uint16: 65535.0, np.float32: 1.0, np.float64: 1.0}

pairs = st.builds(
    lambda dtype, height, width, channels, seed, sigma: (
        image := picture(seed, (height, width, channels) if channels else (height, width), dtype),
        noisy(image, sigma, seed + 1),
    ),
    st.sampled_from(list(DTYPES)),
    st.integers(11, 40),
    st.integers(11, 40),
    st.sampled_from([0, 1, 3]),
    st.integers(0, 2**16),
    st.sampled_from([3.0, 25.0, 120.0]),
)


@given(pair=pairs)
def test_psnr_and_mse_are_those_of_float64(pair: tuple[np.ndarray, np.ndarray]):
    a, b = pair
    top = DTYPES[a.dtype.type]
    assert psnr(a, b).value == pytest.approx(psnr_oracle(a, b, top), rel=1e-12)
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    assert mse(a, b).value == pytest.approx(error, rel=1e-12)


@given(pair=pairs)
def test_as_in_scikit_image(pair: tuple[np.ndarray, np.ndarray]):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pair
    top = DTYPES[a.dtype.type]
    assert psnr(a, b).value == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=top), rel=1e-6)
    settings: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    units = a.astype(np.float64) / top, b.astype(np.float64) / top
    wanted = metrics.structural_similarity(*units, data_range=1.0, channel_axis=2 if a.ndim == 3 else None, **settings)
    assert ssim(a, b).value == pytest.approx(wanted, abs=1e-10)


def test_uint8_does_not_wrap_around():
    """What cache-dit 1.5.3 says of noise of 25 levels is 28.5 dB."""
    image = np.full((64, 64, 3), 128, np.uint8)
    found = psnr(image, noisy(image, 25.0)).value
    assert found == pytest.approx(20 * math.log10(255 / 25), abs=0.1)


@given(st.sampled_from([psnr, ssim, mse]), pairs)
def test_the_order_of_the_arguments_does_not_matter(metric: Any, pair: tuple[np.ndarray, np.ndarray]):
    a, b = pair
    assert metric(a, b).value == pytest.approx(metric(b, a).value, rel=1e-12)


def test_every_kind_of_picture_is_the_same_picture():
    a, b = picture(0), noisy(picture(0))
    wanted = psnr(a, b).value
    assert psnr(Image.fromarray(a), Image.fromarray(b)).value == wanted
    tensors = [torch.from_numpy(each).permute(2, 0, 1) for each in (a, b)]
    assert psnr(*tensors).value == wanted
    assert mse(*tensors).value == mse(a, b).value  # of tensors that are not contiguous
    assert psnr(*(each.double() / 255 for each in tensors)).value == pytest.approx(wanted, rel=1e-12)
    assert (
        psnr([a], [b]).value == psnr(a[None], b[None]).value == psnr(*(each[None] for each in tensors)).value == wanted
    )
    opaque = [np.dstack([each, np.full(each.shape[:2], 255, np.uint8)]) for each in (a, b)]
    assert psnr(*opaque).value == psnr(*map(Image.fromarray, opaque)).value == wanted


def test_the_value_of_several_pairs_is_their_mean():
    first = [picture(seed) for seed in range(3)]
    second = [noisy(image, sigma) for image, sigma in zip(first, (5.0, 20.0, 60.0), strict=True)]
    for metric in (psnr, ssim, mse):
        found = metric(first, second)
        assert [item.value for item in found.items] == [metric(a, b).value for a, b in zip(first, second, strict=True)]
        assert found.value == pytest.approx(np.mean([item.value for item in found.items]), rel=1e-12)
        assert found.count == 3
    together = psnr(first, second).details["of_all_pixels"]
    assert together == pytest.approx(psnr_oracle(np.stack(first), np.stack(second), 255.0), rel=1e-12)
    assert together < psnr(first, second).value  # the worst picture has more weight in it


def test_identical_pictures_are_infinitely_close():
    a, b = picture(0), noisy(picture(0))
    found = psnr(a, a)
    assert found.value == found.details["mean_of_differing"] == found.details["of_all_pixels"] == math.inf
    assert found.details["identical"] == 1
    mixed = psnr([a, a, a], [a, b, a])
    assert mixed.value == math.inf
    assert mixed.details["identical"] == 2
    assert mixed.details["mean_of_differing"] == psnr(a, b).value
    stacked = psnr_oracle(np.stack([a, a, a]), np.stack([a, b, a]), 255.0)
    assert mixed.details["of_all_pixels"] == pytest.approx(stacked, rel=1e-12)
    assert ssim(a, a).value == 1
    assert mse(a, a).value == 0


def test_ssim_of_a_picture_smaller_than_its_window():
    with pytest.raises(UnavailableError) as caught:
        ssim(picture(0, (10, 32)), picture(1, (10, 32)))
    assert str(caught.value) == "ssim needs pictures of at least 11x11, a is 32x10"


def test_what_a_result_says():
    found = mse(picture(0), noisy(picture(0)))
    assert float(found) == found.value
    assert (found.metric, found.unit, found.higher_is_better) == ("mse", "squared levels", False)
    assert [metric(picture(0), picture(1)).higher_is_better for metric in (psnr, ssim)] == [True, True]
    assert found.details["data_range"] == 255
    assert mse(picture(0, dtype=np.float32), picture(1, dtype=np.float32)).details["data_range"] == 1


def test_arrays_with_negative_strides_and_read_only_ones():
    a, b = picture(0), noisy(picture(0))
    wanted = psnr(a, b).value
    views = a[:, ::-1][:, ::-1], b  # negative strides, which torch does not take
    assert psnr(*views).value == wanted
    a.setflags(write=False)
    assert psnr(a, b).value == wanted
