"""A library that is not installed is named, with how to install it."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

pytest.importorskip("torchmetrics")

from fxcache.metrics import UnavailableError, clip_score, fid, image_reward, lpips
from tests.metrics.samples import picture


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
