"""LPIPS with random weights in a file of the right form is that of float64.

What needs torchvision or torch-fidelity is skipped without them: they are in the extra `metrics`, not in `test`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics")

from fxcache.errors import OptionError
from fxcache.metrics import UnavailableError, lpips
from fxcache.metrics.perceptual import NETWORKS
from tests.metrics.samples import noisy, picture

BACKBONES = {"squeeze": ("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12)), "alex": ("alexnet", (1, 4, 7, 9, 11))}
"""Name in torchvision, and the layers whose outputs are compared."""


def save_backbone(path: Path, net: str) -> Path:
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(getattr(models, BACKBONES[net][0])(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("squeezenet") / "random.pth", "squeeze")


@torch.no_grad()
def lpips_oracle(a: np.ndarray, b: np.ndarray, weights: Path, net: str) -> float:
    """The distance in float64, from the paper, with the layers of torchvision and the weighting of torchmetrics."""
    import torchmetrics.functional.image as home
    from torchvision import models

    name, compared = BACKBONES[net]
    model = getattr(models, name)(weights=None).double().eval()
    model.load_state_dict(torch.load(weights))
    heads = torch.load(Path(home.__file__).parent / "lpips_models" / f"{net}.pth", map_location="cpu")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    maps: list[list[Tensor]] = []
    for image in (a, b):
        pixels = torch.from_numpy(image).permute(2, 0, 1).double() / 127.5 - 1
        x = ((pixels - shift[:, None, None]) / scale[:, None, None])[None]
        maps.append([])
        for number, layer in enumerate(model.features[: compared[-1] + 1]):
            x = layer(x)
            if number in compared:
                maps[-1].append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
    return sum(
        float((heads[f"lin{number}.model.1.weight"].double()[0] * (one - other).square()[0]).sum(0).mean())
        for number, (one, other) in enumerate(zip(*maps, strict=True))
    )


@pytest.mark.parametrize("net", ["squeeze", pytest.param("alex", marks=pytest.mark.slow)])
def test_lpips_with_weights_from_a_file(net: str, tmp_path: Path):
    weights = save_backbone(tmp_path / "random.pth", net)
    first = [picture(seed, (48, 64, 3)) for seed in range(2)]
    second = [noisy(image) for image in first]
    before = torch.hub.get_dir()
    found = lpips(first, second, net=net, weights=weights)
    wanted = [lpips_oracle(a, b, weights, net) for a, b in zip(first, second, strict=True)]
    assert [item.value for item in found.items] == pytest.approx(wanted, rel=1e-4)
    assert found.value == pytest.approx(np.mean(wanted), rel=1e-4)
    assert wanted[0] > 1e-3
    assert (found.details, found.higher_is_better) == ({"net": net}, False)
    assert torch.hub.get_dir() == before
    assert lpips(first, first, net=net, weights=weights).value == 0


def test_lpips_finds_the_cache_of_torch(squeezenet: Path, tmp_path: Path):
    cached = tmp_path / "hub" / "checkpoints" / NETWORKS["squeeze"].weights.file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(squeezenet.read_bytes())
    images = picture(0, (48, 64, 3)), picture(1, (48, 64, 3))
    assert lpips(*images, net="squeeze").value == lpips(*images, net="squeeze", weights=squeezenet).value


@pytest.mark.parametrize("net", list(NETWORKS))
def test_the_smallest_picture_of_every_network(net: str):
    models = pytest.importorskip("torchvision.models")
    name = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[net]
    layers = getattr(models, name)(weights=None).features[: {"alex": 12, "vgg": 30, "squeeze": 13}[net]]
    smallest = NETWORKS[net].smallest
    layers(torch.zeros(1, 3, smallest, smallest))
    with pytest.raises(RuntimeError):
        layers(torch.zeros(1, 3, smallest - 1, smallest - 1))


def test_lpips_of_a_small_picture(squeezenet: Path):
    side = NETWORKS["squeeze"].smallest
    small = picture(0, (side - 1, 64, 3))
    with pytest.raises(UnavailableError) as caught:
        lpips(small, small, net="squeeze", weights=squeezenet)
    assert str(caught.value) == f"lpips with squeeze needs pictures of at least {side}x{side}, a is 64x{side - 1}"


def test_lpips_with_another_file(squeezenet: Path, tmp_path: Path):
    with pytest.raises(
        OptionError, match=r"its features.0.weight has the shape \[64, 3, 3, 3\], not \[64, 3, 11, 11\]"
    ):
        lpips(picture(0), picture(1), weights=squeezenet)
    with pytest.raises(OptionError, match=r"; Error\(s\) in loading state_dict for VGG"):
        lpips(picture(0), picture(1), net="vgg", weights=squeezenet)
    with pytest.raises(UnavailableError) as caught:
        lpips(picture(0), picture(1))
    assert str(caught.value).startswith(
        "lpips needs the file alexnet-owt-7be5be79.pth (https://download.pytorch.org/models/alexnet-owt-7be5be79.pth, "
        f"233 MB, read by torchvision); it is not in {tmp_path / 'hub' / 'checkpoints'}, and nothing is downloaded"
    )


def test_the_files_are_those_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    for net, home in (("alex", "AlexNet"), ("vgg", "VGG16"), ("squeeze", "SqueezeNet1_1")):
        wanted = getattr(models, f"{home}_Weights").DEFAULT
        assert NETWORKS[net].weights.url == wanted.url
        assert NETWORKS[net].weights.megabytes == round(wanted.meta["_file_size"])


def test_an_unknown_network():
    with pytest.raises(OptionError) as caught:
        lpips(picture(0), picture(1), net="resnet")
    assert str(caught.value) == "net='resnet': expected one of alex, vgg, squeeze"
