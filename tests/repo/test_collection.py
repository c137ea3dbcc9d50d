"""A test that is never run is worse than none: everything that looks like a test must be collected."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.repo.files import python_files, relative

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def never_run(source: str, collected_file: bool) -> list[str]:
    """Names of test-like functions that pytest does not collect, each with the reason."""
    found: list[str] = []

    def visit(body: list[ast.stmt], where: str, collected: bool, why: str) -> None:
        tests = [node for node in body if isinstance(node, FUNCTIONS) and node.name.lower().startswith("test")]
        for node in tests:
            if not collected:
                found.append(f"{where}{node.name}: {why}")
            elif not node.name.startswith("test"):
                found.append(f"{where}{node.name}: the name must begin with a small 'test'")
        if collected:
            counts = Counter(node.name for node in tests)
            found.extend(f"{where}{name}: defined {count} times" for name, count in counts.items() if count > 1)
        for node in body:
            if isinstance(node, FUNCTIONS):
                visit(node.body, f"{where}{node.name}.", False, "inside a function")
            elif isinstance(node, ast.ClassDef):
                names = {entry.name for entry in node.body if isinstance(entry, FUNCTIONS)}
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                is_test = "TestCase" in bases or (node.name.startswith("Test") and "__init__" not in names)
                reason = why or "the class must begin with 'Test' and have no __init__"
                visit(node.body, f"{where}{node.name}.", collected and is_test, reason)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                for part in ("body", "orelse", "finalbody"):
                    visit(getattr(node, part, []), where, collected, why)

    visit(ast.parse(source).body, "", collected_file, "" if collected_file else "the file is not tests/**/test_*.py")
    return found


def test_every_test_like_function_is_collected():
    found = []
    for path in python_files():
        name = relative(path)
        collected_file = name.startswith("tests/") and path.name.startswith("test_")
        found += [f"{name}: {entry}" for entry in never_run(path.read_text(), collected_file)]
    assert not found


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f():\n    def test_a(): ...", "f.test_a: inside a function"),
        (
            "class Cases:\n    def test_a(self): ...",
            "Cases.test_a: the class must begin with 'Test' and have no __init__",
        ),
        (
            "class TestA:\n    def __init__(self): ...\n    def test_a(self): ...",
            "TestA.test_a: the class must begin with 'Test' and have no __init__",
        ),
        ("def test_a(): ...\ndef test_a(): ...", "test_a: defined 2 times"),
        ("def Test_a(): ...", "Test_a: the name must begin with a small 'test'"),
        (
            "if True:\n    class X:\n        def test_a(self): ...",
            "X.test_a: the class must begin with 'Test' and have no",
        ),
    ],
)
def test_a_test_that_never_runs_is_seen(source: str, reason: str):
    (found,) = never_run(source, collected_file=True)
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "source",
    [
        "def test_a(): ...",
        "class TestA:\n    def test_a(self): ...",
        "class Case(unittest.TestCase):\n    def test_a(self): ...",
        "def latest(): ...",
    ],
)
def test_a_collected_test_is_fine(source: str):
    assert never_run(source, collected_file=True) == []


def test_a_test_in_another_file_is_seen():
    assert never_run("def test_a(): ...", collected_file=False) == ["test_a: the file is not tests/**/test_*.py"]
