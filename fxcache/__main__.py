"""``python -m fxcache``."""

import sys
from pathlib import Path

from fxcache.cli import main

# Started in a checkout, Python puts the checkout first on sys.path, where the folder kernels/ hides the package that
# diffusers and transformers know by this name.
CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]

sys.exit(main())
