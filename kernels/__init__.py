"""Kernels of fxcache, imported as ``fxcache.kernels``.

Each operator is one file: plain-torch reference, Triton kernel, launcher, operator registration.
"""

if __name__ != "fxcache.kernels":
    # Under a second name the same files would register their operators twice.
    raise ImportError(f"this folder is the package fxcache.kernels; it was imported as {__name__!r}")

__all__: list[str] = []
