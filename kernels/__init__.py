"""Kernels of fxcache, imported as ``fxcache.kernels``.

Each operator is one file: plain-torch reference, Triton kernel, launcher, operator registration.
"""

__all__: list[str] = []

if __name__ != "fxcache.kernels":
    # With the repository root on sys.path this folder also answers to "kernels", the import name of another package
    # that diffusers and transformers look for. Under a second name our files would register their operators twice,
    # so nothing can be imported from here; raising instead would break "import diffusers" in this folder, because
    # transformers imports what it finds and compares its version.
    __path__: list[str] = []
    __version__ = "0"
