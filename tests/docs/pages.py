"""The pages of the documentation as the tests of this folder read them: text, links, headings, tables of options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.repo.files import ROOT

DOCS = ROOT / "docs"
_FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


class Row(NamedTuple):
    """One line of a table of options; a line may be about several."""

    names: tuple[str, ...]
    default: str


def all_pages() -> list[Path]:
    """The pages in the root of the repository and all below `docs`."""
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("**/*.md"))]


def links(text: str) -> list[str]:
    """Targets of links and pictures outside of code."""
    return _LINK.findall(_FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """What a link may name behind its `#`: the headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def tables(text: str, first_heading: str) -> list[list[list[str]]]:
    """The cells of every table whose first column has this heading, without head and rule."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", _FENCE.sub("", text), re.M):
        rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in block.splitlines()]
        if rows[0][0] == first_heading:
            found.append(rows[2:])
    return found


def option_rows(text: str) -> list[Row]:
    """The lines of the tables of options of a page."""
    return [
        Row(tuple(re.findall(r"`(\w+)`", cells[0])), cells[1]) for table in tables(text, "option") for cells in table
    ]


def options_named(text: str) -> set[str]:
    """The options that the tables of a page are about."""
    return {name for row in option_rows(text) for name in row.names}
