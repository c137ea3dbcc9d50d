"""Every method and calibrator has its page, and the tables of options say what belongs to whom, with its default."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import fxcache
from fxcache.calibrators import CALIBRATORS
from fxcache.configs import CalibratorConfig
from fxcache.options import Options
from fxcache.policies import POLICIES
from fxcache.runtime.interface import Reason
from tests.docs.pages import DOCS, all_pages, option_rows, options_named, tables

CONFIGS = [getattr(fxcache, name) for name in fxcache.__all__ if name.endswith("Config")]
OF_CALIBRATOR = {cls.calibrator: cls for cls in CONFIGS if issubclass(cls, CalibratorConfig)}
OF_METHOD = {
    getattr(cls, "method", None) or cls().to_mapping()["method"]: cls
    for cls in CONFIGS
    if not issubclass(cls, CalibratorConfig)
}
TOPICS = ("contexts.md", "cfg.md", "policies/masks.md")
"""Pages about options that all methods have: the page of a method may leave these out."""
IN_WORDS = ("as in DBCache",)
"""What may stand in place of a default."""


def fields(cls: type) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


def own(cls: type) -> set[str]:
    """The options that a config does not share with the class it is made from."""
    return {name for name in fields(cls) if name in cls.__annotations__}


def page_of(cls: type) -> Path:
    for folder, table in (("policies", OF_METHOD), ("calibrators", OF_CALIBRATOR)):
        for name, known in table.items():
            if known is cls:
                return DOCS / folder / f"{name}.md"
    raise AssertionError(f"{cls.__name__} belongs to no method and no calibrator")


def named_in(page: Path) -> set[str]:
    return options_named(page.read_text())


def shown_default(default: object) -> object:
    """What a cell should be read as."""
    if default is dataclasses.MISSING:
        return "none"  # it must be given
    return list(default) if isinstance(default, tuple) else default


def read_default(cell: str) -> object:
    """The value that a cell shows; what stands behind a colon explains it."""
    word = cell.partition(":")[0].replace("`", "").replace('"', "").strip()
    if word in ("on", "off"):
        return word == "on"
    try:
        value = ast.literal_eval(word)
    except (SyntaxError, ValueError):
        return word
    return list(value) if isinstance(value, tuple) else value


def test_every_method_and_calibrator_has_a_config():
    assert OF_METHOD.keys() == POLICIES.keys()
    assert OF_CALIBRATOR.keys() == CALIBRATORS.keys()


@pytest.mark.parametrize("method", POLICIES)
def test_the_page_of_a_method_names_its_options(method):
    cls = OF_METHOD[method]
    named = named_in(page_of(cls))
    elsewhere = set().union(*(named_in(DOCS / topic) for topic in TOPICS))
    for base in OF_METHOD.values():
        if base is not cls and issubclass(cls, base):
            elsewhere |= named_in(page_of(base))
    assert named <= fields(cls).keys(), "options that this method does not have"
    assert fields(cls).keys() - elsewhere <= named, "options that no page names"
    assert own(cls) - elsewhere <= named


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_the_page_of_a_calibrator_names_its_own_options(calibrator):
    cls = OF_CALIBRATOR[calibrator]
    assert named_in(page_of(cls)) == own(cls)
    assert fields(cls).keys() == own(cls) | fields(CalibratorConfig).keys()


def test_the_overview_of_the_calibrators_names_what_they_share():
    assert named_in(DOCS / "calibrators.md") == fields(CalibratorConfig).keys()


@pytest.mark.parametrize("name", [*POLICIES, *CALIBRATORS])
def test_the_defaults_on_a_page_are_those_of_its_config(name):
    cls = OF_METHOD.get(name) or OF_CALIBRATOR[name]
    compared = 0
    for row in option_rows(page_of(cls).read_text()):
        cells = row.default.split(", ") if row.default.count(", ") == len(row.names) - 1 else [row.default]
        for option, cell in zip(row.names, cells * (len(row.names) // len(cells)), strict=True):
            if option != "Fn_compute_blocks" and cell not in IN_WORDS:  # what it is by default depends on the method
                assert (option, read_default(cell)) == (option, shown_default(fields(cls)[option]))
                compared += 1
    assert compared or not own(cls)


@pytest.mark.parametrize("page", ["README.md", "calibrators.md", *TOPICS])
def test_the_defaults_on_other_pages_are_those_of_the_options(page):
    rows = option_rows((DOCS / page).read_text())
    defaults = Options().to_dict()
    for (name,), cell in rows:
        assert (name, read_default(cell)) == (name, shown_default(defaults[name]))
    assert rows


def test_every_option_stands_in_a_table():
    named = set().union(*(options_named(page.read_text()) for page in all_pages()))
    assert named == Options().to_dict().keys()


def test_every_reason_is_explained():
    (table,) = tables((DOCS / "contexts.md").read_text(), "reason")
    assert sorted(row[0].strip("`") for row in table) == sorted(reason.value for reason in Reason)
    assert all(len(row) == 3 and all(row) for row in table)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("8", 8), ("None: 8, at most", None), ("`dynamic`", "dynamic"), ("off", False), ("(1.0, 0.0)", [1.0, 0.0])],
)
def test_a_default_is_read(cell, value):
    assert read_default(cell) == value
