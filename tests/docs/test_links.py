"""Links inside of the repository lead somewhere, and the index of the documentation leads to every page."""

from __future__ import annotations

import os

import pytest

from tests.docs.pages import DOCS, all_pages, anchors, links
from tests.repo.files import ROOT

LOCAL = [
    (page, target) for page in all_pages() for target in links(page.read_text()) if not target.startswith("https://")
]


@pytest.mark.parametrize(
    ("page", "target"), LOCAL, ids=[f"{page.relative_to(ROOT)}:{target}" for page, target in LOCAL]
)
def test_a_link_leads_somewhere(page, target):
    path, _, anchor = target.partition("#")
    found = page.parent / path if path else page
    assert found.exists()
    assert ROOT in found.resolve().parents
    if anchor:
        assert anchor in anchors(found.read_text())


def test_the_index_has_one_line_for_every_page():
    listed = [target for target in links((DOCS / "README.md").read_text()) if not target.startswith("https://")]
    below = [os.path.normpath(target) for target in listed if not target.startswith("..")]
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.glob("**/*.md")} - {"README.md"}
    assert sorted(below) == sorted(pages)


def test_links_and_anchors_are_seen():
    text = "# A `b`, c\n[x](y.md#z) ![p](q.png)\n```python\na[0](1)\n```\n"
    assert links(text) == ["y.md#z", "q.png"]
    assert anchors(text) == {"a-b-c"}
