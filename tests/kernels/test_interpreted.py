"""Every assertion of this folder once more, on the kernels instead of the references: in Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.kernels.conftest import INTERPRETED, OPERATORS
from tests.processes import PYTHON

FOLDER = Path(__file__).parent
KERNELS = {
    "add_up_kernel",
    "combine_kernel",
    "commit_kernel",
    "extrapolate_kernel",
    "fill_matrix_kernel",
    "mark_healthy_kernel",
    "multiply_kernel",
    "multiply_pairs_kernel",
    "sum_tiles_kernel",
    "sum_tokens_kernel",
}


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_pass_the_tests_of_the_references():
    pytest.importorskip("triton")
    files = [FOLDER / f"test_{name}.py" for name in (*OPERATORS, "launched")]
    chosen = ["-k", "not compiled", "-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
    done = subprocess.run(
        [*PYTHON, "-m", "pytest", *chosen, *map(str, files)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    launches = dict(re.findall(r"(\w+_kernel)=(\d+)", done.stdout))
    assert launches.keys() == KERNELS
    assert all(int(count) >= 40 for count in launches.values()), launches
