"""What holds for every test: one thread, no network, its own compile cache, fixed hypothesis examples."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the root on sys.path, where the folder kernels/ has the name of another package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# Before torch is imported: the test processes share the cores, and nothing may be fetched.
for variable, value in {
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}.items():
    os.environ.setdefault(variable, value)

# A tenth of the time of tests that trace would go into looking for cycles among the objects of what is imported.
gc.set_threshold(20_000, 20, 50)

settings.register_profile("fixed", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

_COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_made_compile_cache: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    # A refusal that a test does not expect is a failure, wherever its stack level points. Here and not in the
    # settings file, because resolving the name imports fxcache, which must not come before the variables above.
    config.addinivalue_line("filterwarnings", "error::fxcache.errors.RefusalWarning")
    if _COMPILE_CACHE not in os.environ:  # worker processes inherit it from the first one
        _made_compile_cache.append(tempfile.mkdtemp(prefix="fxcache-tests-"))
        os.environ[_COMPILE_CACHE] = _made_compile_cache[0]


def pytest_unconfigure(config: pytest.Config) -> None:
    for folder in _made_compile_cache:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _dynamo_forgets() -> Iterator[None]:
    """Keep what one test compiled, and its recompile counts, away from the next."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(autouse=True)
def _nobody_is_denoising() -> Iterator[None]:
    """Keep what one test said, or what a pipeline that it broke off said, away from the next."""
    yield
    generation, signals = (sys.modules.get(f"fxcache.runtime.{name}") for name in ("generation", "signals"))
    if generation is not None and signals is not None:
        for variable in (generation._entered, generation._branches, generation._loops):
            variable.set(())
        for variable in (generation._ambient, signals._cache_context):
            variable.set(None)
