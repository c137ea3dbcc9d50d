"""fxcache: a ``torch.compile`` backend that reuses the trunk of a diffusion transformer between steps."""

from fxcache.version import __version__

__all__ = ["__version__"]
