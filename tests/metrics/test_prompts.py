"""CLIP score is that of float64, ImageReward that of its package; which prompt belongs to which picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("torchmetrics")

from fxcache.errors import OptionError
from fxcache.metrics import UnavailableError, clip_score, image_reward
from fxcache.metrics.clip import DEFAULT_MODEL
from tests.metrics.samples import picture, save_clip, save_folder

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


@pytest.mark.parametrize(("download", "local"), [(False, True), (True, False)])
def test_only_download_lets_the_hub_be_asked(download: bool, local: bool, monkeypatch: pytest.MonkeyPatch):
    import transformers

    asked: list[object] = []

    def from_pretrained(name: str, *, local_files_only: bool) -> None:
        asked.append(local_files_only)
        raise OSError("not here")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(UnavailableError):
        clip_score(PICTURES, TEXTS, download=download)
    assert asked == [local]


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
