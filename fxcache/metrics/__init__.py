"""How close pictures and videos are to others, or to their prompts: ``psnr(a, b)`` and the other metrics.

Nothing here has a formula of its own: torchmetrics computes, with networks of torchvision, torch-fidelity and
transformers (the extra ``metrics``). Arguments are paths of pictures, folders or videos, or objects of pillow, numpy or
torch; see ``open_media``. ``docs/metrics.md`` has every metric with what it needs.

>>> import torch
>>> print(psnr(torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.5)).value)
6.0205...
"""

from __future__ import annotations

from fxcache.metrics.clip import clip_score
from fxcache.metrics.distribution import fid
from fxcache.metrics.errors import InputError, UnavailableError
from fxcache.metrics.media import Media, open_media
from fxcache.metrics.perceptual import lpips
from fxcache.metrics.pixels import mse, psnr, ssim
from fxcache.metrics.result import ItemValue, MetricResult
from fxcache.metrics.reward import image_reward

__all__ = [
    "InputError",
    "ItemValue",
    "Media",
    "MetricResult",
    "UnavailableError",
    "clip_score",
    "fid",
    "image_reward",
    "lpips",
    "mse",
    "open_media",
    "psnr",
    "ssim",
]
