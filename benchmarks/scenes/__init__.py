"""A diffusion transformer trained on drawn scenes with captions: deep enough to cache, small enough to ship."""
