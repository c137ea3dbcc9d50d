"""The page about metrics has every metric, every file of weights, and every option of the command."""

from __future__ import annotations

import re

from fxcache.metrics.clip import DEFAULT_MODEL
from fxcache.metrics.distribution import INCEPTION
from fxcache.metrics.media import VIDEO_SUFFIXES
from fxcache.metrics.perceptual import NETWORKS
from fxcache.metrics.reward import FILES
from fxcache.metrics_command import METRICS
from tests.docs.pages import DOCS, tables

PAGE = (DOCS / "metrics.md").read_text()


def test_every_metric_has_a_line():
    first, second = tables(PAGE, "metric")
    assert [row[0].strip("`") for row in first] == list(METRICS)
    assert {re.match(r"`(\w+)`", row[0])[1] for row in second} == {"lpips", "fid", "clip_score", "image_reward"}


def test_every_file_of_weights_is_named():
    for weights in (INCEPTION, *(network.weights for network in NETWORKS.values())):
        assert f"| `{weights.file}`, {weights.megabytes} MB | {weights.url} | {weights.reader} |" in PAGE
    assert all(f"`{file}`" in PAGE for file in (DEFAULT_MODEL, *FILES))
    sides = [network.smallest for network in NETWORKS.values()]
    assert f"{sides[0]}, {sides[1]} or {sides[2]} pixels a side" in PAGE


def test_every_ending_of_a_video_is_named():
    assert ", ".join(f"`{suffix}`" for suffix in VIDEO_SUFFIXES) in PAGE
