"""Kernels of fxcache, imported as ``fxcache.kernels``.

Each operator is one file: plain-torch reference, Triton kernels, launcher, operator registration.
"""

if __name__ == "fxcache.kernels":
    from fxcache.kernels.commit import commit_reference
    from fxcache.kernels.decide import CONTROL_SIZE, Control, clock_restarted, decide_reference
    from fxcache.kernels.extrapolate import extrapolate_reference
    from fxcache.kernels.residual_diff import residual_diff_reference
    from fxcache.kernels.window_products import window_products_reference

    __all__ = [
        "CONTROL_SIZE",
        "Control",
        "clock_restarted",
        "commit_reference",
        "decide_reference",
        "extrapolate_reference",
        "residual_diff_reference",
        "window_products_reference",
    ]

else:
    __all__ = []
    # With the repository root on sys.path this folder also answers to "kernels", the import name of another package
    # that diffusers and transformers look for. Under a second name our files would register their operators twice,
    # so nothing can be imported from here; raising instead would break "import diffusers" in this folder, because
    # transformers imports what it finds and compares its version.
    __path__ = []
    __version__ = "0"
