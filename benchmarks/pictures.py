"""What cache-dit 1.5.3, scikit-image and fxcache say of the same pictures.

`python -m benchmarks.pictures` prints it; `pip install -c constraints.txt -e ".[bench,peers]"` adds the other two.
What it prints stands in `docs/metrics.md`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers import INSTALL
from fxcache.metrics import psnr

NEEDED = ("cache_dit", "cv2", "skimage")
SIDE = 256
SIGMAS = (6, 12, 25, 60)


def grey() -> np.ndarray:
    """A picture of one colour in the middle of the range, so that hardly any noise is cut off."""
    return np.full((SIDE, SIDE, 3), 128, np.uint8)


def noisy(sigma: float) -> np.ndarray:
    """The same picture with Gaussian noise of so many levels."""
    noise = np.random.default_rng(0).normal(0, sigma, (SIDE, SIDE, 3))
    return (grey() + noise).clip(0, 255).round().astype(np.uint8)


def save(folder: Path, **pictures: np.ndarray) -> str:
    """Save pictures under their names; return the folder as a string, which is what cache-dit takes."""
    folder.mkdir(parents=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return str(folder)


def said(compute: Callable[[], Any]) -> str:
    """Return a value and a count in words, or the kind of the error."""
    try:
        value, count = compute()
    except Exception as error:
        return type(error).__name__
    return f"{value:.2f} dB of {count}"


def by_each(first: str, second: str) -> dict[str, str]:
    """Return what cache-dit and fxcache say of two folders."""
    from cache_dit.metrics import compute_psnr

    def own() -> tuple[float, int]:
        found = psnr(first, second)
        return found.value, found.count

    return {
        f"cache-dit {version('cache-dit')}": said(lambda: compute_psnr(first, second)),
        "fxcache": said(own),
    }


def cases(folder: Path) -> dict[str, dict[str, str]]:
    """Return every case with what each library says of it."""
    from skimage.metrics import peak_signal_noise_ratio

    found = {}
    for sigma in SIGMAS:
        pair = [save(folder / f"{sigma}" / name, x=image) for name, image in (("a", grey()), ("b", noisy(sigma)))]
        wanted = f"{peak_signal_noise_ratio(grey(), noisy(sigma)):.2f} dB"
        found[f"PSNR, noise of {sigma} levels"] = {"scikit-image": wanted, **by_each(*pair)}
    same = save(folder / "same" / "a", x=grey(), y=grey()), save(folder / "same" / "b", x=grey(), y=noisy(6))
    found["PSNR, two pairs, one of them identical"] = by_each(*same)
    missing = save(folder / "gap" / "a", x=grey(), y=grey()), save(folder / "gap" / "b", x=noisy(6), z=noisy(6))
    found["PSNR, pictures x and y, pictures x and z"] = by_each(*missing)
    return found


def main() -> int:
    """Print all cases."""
    if not all(find_spec(name) for name in NEEDED):
        print(INSTALL)
        return 1
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    with TemporaryDirectory() as folder:
        for case, rows in cases(Path(folder)).items():
            print(case)
            for name, words in rows.items():
                print(f"    {name:<16}{words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
