"""The table of all options, read from the fields of `Options` and the docstrings under them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import NamedTuple

from fxcache.options import Options

__all__ = ["OptionRow", "options_table"]


class OptionRow(NamedTuple):
    """One line of the table of options."""

    name: str
    type: str
    default: str
    meaning: str


def options_table() -> list[OptionRow]:
    """Return every option with its type, default and meaning, read from :class:`Options` itself."""
    meanings = _field_docstrings(Options)
    defaults = Options().to_dict()
    return [
        OptionRow(entry.name, str(entry.type), repr(defaults[entry.name]), meanings[entry.name])
        for entry in dataclasses.fields(Options)
    ]


def _field_docstrings(cls: type) -> dict[str, str]:
    """Return the docstring under each annotated field; Python itself does not keep them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[statement.target.id] = " ".join(str(below.value.value).split())
    return found
