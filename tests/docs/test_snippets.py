"""Every ``python`` block of the documentation runs as it stands.

After ``<!-- norun -->`` it is only compiled, and after ``<!-- continued -->`` it runs behind the block above it.
"""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<how>norun|continued) -->\s*\n)?^(?P<indent>[ ]*)```python\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)


class Snippet(NamedTuple):
    page: str
    line: int
    runs: bool
    code: str
    blocks: int = 1


def snippets(text: str, page: str) -> list[Snippet]:
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.M)
        if match["how"] == "continued":
            above = found.pop()
            gap = line - above.line - above.code.count("\n")  # a traceback shows the line in the page
            found.append(above._replace(code=above.code + "\n" * gap + code, blocks=above.blocks + 1))
        else:
            found.append(Snippet(page, line, match["how"] is None, code))
    return found


ALL = [entry for page in PAGES for entry in snippets(page.read_text(), page.relative_to(ROOT).as_posix())]


@pytest.mark.parametrize("snippet", ALL, ids=lambda snippet: f"{snippet.page}:{snippet.line}")
def test_snippet(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    padded = "\n" * (snippet.line - 1) + snippet.code
    name = f"{snippet.page}, python"
    # Dynamo and tracebacks look up the source, and the page itself goes on with words
    monkeypatch.setitem(linecache.cache, name, (len(padded), None, padded.splitlines(keepends=True), name))
    program = compile(padded, name, "exec")
    if snippet.runs:
        monkeypatch.chdir(tmp_path)
        exec(program, {"__name__": "__main__"})


def test_no_block_is_missed():
    fences = sum(len(re.findall(r"^ *```python", page.read_text(), re.M)) for page in PAGES)
    assert sum(snippet.blocks for snippet in ALL) == fences


def test_blocks_are_found():
    text = "a\n```python\nx = 1\n```\n<!-- norun -->\n```python\ny = 2\n```\n"
    text += "- b\n  ```python\n  if z:\n      z = 3\n  ```\n"
    assert snippets(text, "p") == [
        Snippet("p", 3, True, "x = 1\n"),
        Snippet("p", 7, False, "y = 2\n"),
        Snippet("p", 11, True, "if z:\n    z = 3\n"),
    ]


def test_a_continued_block_keeps_its_line():
    (found,) = snippets("a\n```python\nx = 1\n```\nb\n<!-- continued -->\n```python\nx += 1\nassert y\n```\n", "p")
    assert found == Snippet("p", 3, True, "x = 1\n\n\n\n\nx += 1\nassert y\n", blocks=2)
    with pytest.raises(NameError) as caught:
        exec(compile("\n" * (found.line - 1) + found.code, "p", "exec"), {})
    assert caught.traceback[-1].lineno + 1 == 9
