"""What the README says about options is what the options say."""

from __future__ import annotations

import re
from pathlib import Path

from fxcache.options import Options

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_options_in_the_table_exist_with_their_defaults():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, re.M)
    assert len(rows) >= 5
    defaults = Options().to_dict()
    computed = {"Fn_compute_blocks", "trunk"}  # described in words
    for name, shown in rows:
        assert name in defaults
        if name not in computed:
            assert shown.strip("` ").split(" (")[0] == str(defaults[name])
