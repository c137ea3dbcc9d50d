"""What may not stand in the files: model names in the package, escapes from the compiler, paths of one machine."""

from __future__ import annotations

import re

import diffusers
import pytest

from tests.repo.files import PACKAGE, python_files, relative, repository_files

LONGEST_FILE = 350
TEXT = {".cfg", ".ini", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}

MODEL_CLASS = re.compile(r"(Transformer\w*Model|Pipeline)$")
BASE_CLASSES = {"DiffusionPipeline"}  # what every pipeline is; naming it says nothing about a model
ESCAPE = re.compile(
    r"\b(compiler|_?dynamo)\s*\.\s*disable\b|\bfrom\s+torch\.(compiler|_dynamo)\s+import\b.*\bdisable\b"
)
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(work|root|home|Users|mnt)/\w")


def model_classes() -> set[str]:
    return {name for name in dir(diffusers) if MODEL_CLASS.search(name)} - BASE_CLASSES


def lines_with(pattern: re.Pattern[str], text: str) -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def test_no_model_class_is_named_in_the_package():
    known = model_classes()
    assert len(known) > 100, "diffusers lists its classes in another way now"
    found = {
        relative(path): sorted(names)
        for path in python_files(PACKAGE)
        if (names := known & set(re.findall(r"\w+", path.read_text())))
    }
    assert not found


def test_nothing_is_hidden_from_the_compiler():
    found = {relative(path): lines_with(ESCAPE, path.read_text()) for path in python_files(PACKAGE)}
    assert not {name: lines for name, lines in found.items() if lines}


def test_no_path_of_one_machine():
    texts = [path for path in repository_files() if path.suffix in TEXT and path.name != "LICENSE"]
    found = {relative(path): lines_with(MACHINE_PATH, path.read_text()) for path in texts}
    assert not {name: lines for name, lines in found.items() if lines}


def test_files_stay_short():
    found = {relative(path): len(path.read_text().splitlines()) for path in python_files()}
    assert not {name: length for name, length in found.items() if length > LONGEST_FILE}


@pytest.mark.parametrize(
    "line",
    ["@torch.compiler.disable", "torch._dynamo.disable(f)", "from torch.compiler import allow_in_graph, disable"],
)
def test_an_escape_is_seen(line: str):
    assert lines_with(ESCAPE, f"import torch\n{line}\n") == [2]


@pytest.mark.parametrize(
    ("line", "seen"), [("open('/" + "home/me/x')", True), ("~/home/x", False), ("a/root/b", False)]
)
def test_a_machine_path_is_seen(line: str, seen: bool):
    assert bool(lines_with(MACHINE_PATH, line)) is seen
