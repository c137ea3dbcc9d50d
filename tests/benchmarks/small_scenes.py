"""A stand-in for the scenes transformer that runs in milliseconds."""

import torch
from diffusers import FluxTransformer2DModel

from benchmarks.scenes.model import new_transformer


def small_transformer() -> FluxTransformer2DModel:
    """One double and one single block, 16 channels wide, with the real inputs; the same weights on every call."""
    torch.manual_seed(0)
    with torch.device("meta"):
        config = new_transformer().config
    small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16}
    return FluxTransformer2DModel.from_config({**config, **small, "axes_dims_rope": (4, 6, 6)})
