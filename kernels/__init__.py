"""Kernels of fxcache, imported as ``fxcache.kernels``.

Each operator is one file: plain-torch reference, Triton kernels, launcher, operator registration.
"""

if __name__ == "fxcache.kernels":
    from fxcache.kernels._forecast import (
        MAX_ENTRIES,
        Forecaster,
        Window,
        forecast_error,
        forecaster,
        register_forecaster,
    )
    from fxcache.kernels.commit import commit_reference
    from fxcache.kernels.decide import CONTROL_SIZE, MAX_SIZES, Ask, Control, clock_restarted, decide_reference
    from fxcache.kernels.decide_blocks import BLOCK_CONTROL_SIZE, BlockControl, decide_blocks_reference
    from fxcache.kernels.extrapolate import extrapolate_reference
    from fxcache.kernels.note_change import note_change
    from fxcache.kernels.residual_diff import residual_diff_reference
    from fxcache.kernels.residual_products import residual_products_by_pairs, residual_products_reference
    from fxcache.kernels.window_products import window_products_reference

    __all__ = [
        "BLOCK_CONTROL_SIZE",
        "CONTROL_SIZE",
        "MAX_ENTRIES",
        "MAX_SIZES",
        "Ask",
        "BlockControl",
        "Control",
        "Forecaster",
        "Window",
        "clock_restarted",
        "commit_reference",
        "decide_blocks_reference",
        "decide_reference",
        "extrapolate_reference",
        "forecast_error",
        "forecaster",
        "note_change",
        "register_forecaster",
        "residual_diff_reference",
        "residual_products_by_pairs",
        "residual_products_reference",
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
