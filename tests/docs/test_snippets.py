"""Every ``python`` block of the documentation runs as it stands; after ``<!-- norun -->`` it is only compiled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(
    r"(?P<norun><!-- norun -->\s*\n)?^(?P<indent>[ ]*)```python\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)


class Snippet(NamedTuple):
    page: str
    line: int
    runs: bool
    code: str


def snippets(text: str, page: str) -> list[Snippet]:
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.M)
        found.append(Snippet(page, line, match["norun"] is None, code))
    return found


ALL = [entry for page in PAGES for entry in snippets(page.read_text(), page.relative_to(ROOT).as_posix())]


@pytest.mark.parametrize("snippet", ALL, ids=lambda snippet: f"{snippet.page}:{snippet.line}")
def test_snippet(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    padded = "\n" * (snippet.line - 1) + snippet.code  # a traceback shows the line in the page
    program = compile(padded, str(ROOT / snippet.page), "exec")
    if snippet.runs:
        monkeypatch.chdir(tmp_path)
        exec(program, {"__name__": "__main__"})


def test_no_block_is_missed():
    fences = sum(len(re.findall(r"^ *```python", page.read_text(), re.M)) for page in PAGES)
    assert len(ALL) == fences


def test_blocks_are_found():
    text = "a\n```python\nx = 1\n```\n<!-- norun -->\n```python\ny = 2\n```\n"
    text += "- b\n  ```python\n  if z:\n      z = 3\n  ```\n"
    assert snippets(text, "p") == [
        Snippet("p", 3, True, "x = 1\n"),
        Snippet("p", 7, False, "y = 2\n"),
        Snippet("p", 11, True, "if z:\n    z = 3\n"),
    ]
