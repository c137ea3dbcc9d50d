"""LPIPS, FID, CLIP score and ImageReward with random weights in files of the right form, against float64.

What needs torchvision or torch-fidelity is skipped without them: they are in the extra `metrics`, not in `test`.
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("torchmetrics")

from fxcache.errors import OptionError
from fxcache.metrics import UnavailableError, clip_score, fid, image_reward, lpips
from fxcache.metrics.clip import DEFAULT_MODEL
from fxcache.metrics.distribution import INCEPTION
from fxcache.metrics.perceptual import NETWORKS
from tests.metrics.samples import noisy, picture, save_clip, save_folder


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


# ---- FID


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
    floating = [[each / 255 + 0.001 * (each < 255) for each in images] for images in (first, second)]
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


def test_fid_with_inception_weights_from_a_file(inception: Path):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    first, second = ([picture(seed, (40, 48, 3)) // divisor for seed in range(4)] for divisor in (1, 3))
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


# ---- LPIPS


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


# ---- CLIP score

PICTURES = [picture(1, (30, 30, 3)), picture(2, (30, 30, 3)), picture(3, (30, 30))]
TEXTS = ["abc", "xyz", "b"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def clip_oracle(images: list[np.ndarray], texts: list[str], folder: Path) -> list[float]:
    """100 times the cosine in float64; the pictures have the size of the model, so only colours are to be shifted."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).double().eval(), CLIPTokenizer.from_pretrained(folder)
    mean, spread = torch.tensor([0.5, 0.4, 0.3]).double(), torch.tensor([0.2, 0.3, 0.4]).double()
    values = []
    for image, text in zip(images, texts, strict=True):
        pixels = torch.from_numpy(np.dstack([image] * (3 if image.ndim == 2 else 1))).double() / 255
        planes = ((pixels - mean) / spread).permute(2, 0, 1)[None]
        with torch.no_grad():
            output = model(pixel_values=planes, **tokenizer(text, return_tensors="pt"))
        values.append(float(100 * torch.cosine_similarity(output.image_embeds, output.text_embeds)))
    return values


def test_clip_score_with_a_model_from_a_folder(clip: Path):
    found = clip_score(PICTURES, TEXTS, weights=clip)
    wanted = clip_oracle(PICTURES, TEXTS, clip)
    assert min(wanted) > 1
    assert [item.value for item in found.items] == pytest.approx(wanted, rel=1e-4)
    assert found.value == pytest.approx(np.mean(wanted), rel=1e-4)
    assert found.details == {"model": str(clip), "cut_prompts": 0}
    assert found.higher_is_better


def test_a_prompt_for_all_pictures_or_beside_each(clip: Path, tmp_path: Path):
    wanted = clip_score(PICTURES[:2], ["abc", "abc"], weights=clip).value
    assert clip_score(PICTURES[:2], "abc", weights=clip).value == wanted
    folder = save_folder(tmp_path / "a", PICTURES[:2])
    for number, text in enumerate(["abc\n", "xyz"]):
        (folder / f"0{number}.txt").write_text(text)
    assert clip_score(folder, weights=clip).value == clip_score(PICTURES[:2], ["abc", "xyz"], weights=clip).value
    (folder / "01.txt").unlink()
    with pytest.raises(UnavailableError) as caught:
        clip_score(folder, weights=clip)
    assert str(caught.value) == (
        "clip_score needs prompts: one for all (--prompt TEXT, prompts='...'), one per line (--prompts FILE, "
        f"prompts=[...]), or a .txt beside every picture; there is no {folder / '01.txt'}"
    )


def test_a_long_prompt_is_cut_before_its_end_mark(clip: Path):
    found = clip_score(PICTURES[:2], ["a" * 60, "abc"], weights=clip)
    assert found.details["cut_prompts"] == 1
    longest = "a" * 18  # with the marks at both ends: 20
    assert found.items[0].value == clip_score(PICTURES[0], longest, weights=clip).value
    assert clip_score(PICTURES[0], longest, weights=clip).details["cut_prompts"] == 0


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (
            ["abc"],
            "images holds 3 pictures or videos and there are 1 prompts: expected as many, in the order of the names",
        ),
        (" ", "prompt ' ': expected text"),
        (["abc", 7, "b"], "prompt 7: expected text"),
    ],
)
def test_prompts_that_do_not_fit(clip: Path, prompts: Any, sentence: str):
    with pytest.raises(ValueError) as caught:
        clip_score(PICTURES, prompts, weights=clip)
    assert str(caught.value) == sentence


def test_clip_score_without_its_model(tmp_path: Path, clip: Path):
    with pytest.raises(UnavailableError) as caught:
        clip_score(PICTURES, TEXTS)
    assert str(caught.value) == (
        f"clip_score needs the CLIP model {DEFAULT_MODEL} (https://huggingface.co/{DEFAULT_MODEL}: config.json, "
        "model.safetensors, preprocessor_config.json and the files of its tokenizer), read by transformers; "
        "it is not in the cache of the hub, and nothing is downloaded unasked: give its path (weights=PATH, "
        "--weights PATH) or allow the download (download=True, --download)"
    )
    with pytest.raises(OptionError) as caught:
        clip_score(PICTURES, TEXTS, weights=tmp_path / "absent")
    assert str(caught.value).endswith(
        "expected a folder with config.json, model.safetensors, preprocessor_config.json "
        "and the files of its tokenizer, "
        f"or a name such as {DEFAULT_MODEL}"
    )
    with pytest.raises(OptionError, match=r"weights=.*: expected a folder with config\.json, .*; "):
        clip_score(PICTURES, TEXTS, weights=tmp_path)


def test_clip_score_never_goes_on_with_random_weights(clip: Path, tmp_path: Path):
    import shutil

    from safetensors.torch import load_file, save_file

    part = Path(shutil.copytree(clip, tmp_path / "part"))
    tensors = load_file(part / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OptionError, match=r"expected all weights of the model; visual_projection.weight is missing"):
        clip_score(PICTURES, TEXTS, weights=part)
    (part / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OptionError, match=r"expected a CLIP model; its config\.json says 'bert'"):
        clip_score(PICTURES, TEXTS, weights=part)


# ---- ImageReward


@pytest.mark.slow
def test_image_reward_is_that_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    package = pytest.importorskip("ImageReward")
    from ImageReward.ImageReward import ImageReward

    folder, words = tmp_path / "weights", tmp_path / "bert-base-uncased"
    folder.mkdir()
    words.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (words / "vocab.txt").write_text("\n".join([*marks, *letters, *(f"##{letter}" for letter in letters)]) + "\n")
    size = {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 256}
    config = {**size, "model_type": "bert", "vocab_size": 30524, "encoder_width": 768, "add_cross_attention": True}
    for file in (words / "config.json", folder / "med_config.json"):
        file.write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageReward(str(folder / "med_config.json"))
        for tensor in model.mlp.parameters():
            nn.init.normal_(tensor, std=0.3)
        torch.save(model.state_dict(), folder / "ImageReward.pt")
    found = image_reward(PICTURES, TEXTS, weights=folder)
    assert capsys.readouterr().out == ""
    model = package.load(str(folder / "ImageReward.pt"), device="cpu", med_config=str(folder / "med_config.json"))
    wanted = [model.score(text, Image.fromarray(image)) for image, text in zip(PICTURES, TEXTS, strict=True)]
    assert len(set(wanted)) == 3
    assert [item.value for item in found.items] == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(OptionError, match=r"expected a folder with ImageReward\.pt and med_config\.json "):
        image_reward(PICTURES, TEXTS, weights=words)
    (words / "vocab.txt").unlink()
    with pytest.raises(UnavailableError, match="image_reward needs the tokenizer bert-base-uncased "):
        image_reward(PICTURES, TEXTS, weights=folder)


# ---- what is not installed


@pytest.mark.parametrize(
    ("call", "hidden", "sentence"),
    [
        (
            lambda: lpips(picture(0), picture(1)),
            "torchvision",
            "lpips needs torchvision, which cannot be imported (no ",
        ),
        (
            lambda: fid([picture(0)], [picture(1)]),
            "torch_fidelity",
            "fid needs torch-fidelity, which cannot be imported",
        ),
        (
            lambda: clip_score(picture(0), "a"),
            "torchmetrics.functional.multimodal",
            "clip_score needs torchmetrics, which",
        ),
        (
            lambda: image_reward(picture(0), "a"),
            "ImageReward",
            "image_reward needs the package image-reward, which cannot",
        ),
    ],
)
def test_a_library_that_is_missing(call: Any, hidden: str, sentence: str, monkeypatch: pytest.MonkeyPatch):
    import fxcache.metrics.errors as home

    def without(name: str) -> Any:
        if name == hidden:
            raise ImportError(f"no {name}")
        return builtins.__import__(name, fromlist=["x"])

    monkeypatch.setattr(home.importlib, "import_module", without)
    with pytest.raises(UnavailableError) as caught:
        call()
    assert str(caught.value).startswith(sentence)
    wanted = "image-reward==1.5" if hidden == "ImageReward" else '".[metrics]"'
    assert f"): pip install {wanted}" in str(caught.value)
