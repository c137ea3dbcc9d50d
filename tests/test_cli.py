"""The command line: what it prints, what it passes on, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fxcache.cli import main
from fxcache.errors import FxcacheError
from fxcache.option_table import options_table
from fxcache.options import Options

ROOT = Path(__file__).resolve().parent.parent


class Explanation:
    def __str__(self) -> str:
        return "trunk: blocks"

    def to_dict(self) -> dict[str, str]:
        return {"trunk": "blocks"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Replace the explain module by one that records its calls."""
    recorded: list[tuple[object, ...]] = []

    def explain_class(name: str, config: object, options: Options) -> Explanation:
        recorded.append((name, config, options))
        if name == "Unknown":
            raise FxcacheError("diffusers has no class 'Unknown'")
        return Explanation()

    module = types.ModuleType("fxcache.explain")
    module.explain_class = explain_class  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fxcache.explain", module)
    return recorded


def test_options_lists_every_option(capsys: pytest.CaptureFixture[str]):
    assert main(["options"]) == 0
    printed = capsys.readouterr().out
    for row in options_table():
        assert f"{row.name}: {row.type} = {row.default}\n" in printed


def test_options_as_json(capsys: pytest.CaptureFixture[str]):
    assert main(["options", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row._asdict() for row in options_table()]


def test_explain_passes_class_config_and_options(calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "config.json"
    config.write_text('{"num_layers": 4}')
    words = ["Fn_compute_blocks=1", "residual_diff_threshold=1e-1", "trunk=a, b", "on_refusal=raise", "dump_dir=None"]
    assert main(["explain", "Some", "--config", str(config), *words]) == 0
    wanted = Options(Fn_compute_blocks=1, residual_diff_threshold=0.1, trunk=("a", "b"), on_refusal="raise")
    assert calls == [("Some", {"num_layers": 4}, wanted)]
    assert capsys.readouterr().out == "trunk: blocks\n"


@pytest.mark.parametrize("words", [["options", "a=1"], ["explain", "Some", "--jsn"], ["explain"], []])
def test_wrong_usage_exits_with_status_2(calls, words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: python -m fxcache" in capsys.readouterr().err
    assert calls == []


def test_explain_as_json_with_defaults(calls, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", "Some", "--json"]) == 0
    assert calls == [("Some", None, Options())]
    assert json.loads(capsys.readouterr().out) == {"trunk": "blocks"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["Unknown"], "diffusers has no class 'Unknown'"),
        (["Some", "Fn_compute_blocks"], "'Fn_compute_blocks': expected OPTION=VALUE, such as Fn_compute_blocks=1"),
        (["Some", "max_contexts=1", "max_contexts=2"], "max_contexts=2: given twice"),
        (["Some", "max_contexts=none"], "max_contexts='none': expected an integer >= 1"),
        (["Some", "max_context=2"], "unknown option 'max_context': did you mean 'max_contexts'?"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(calls, words, sentence, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"fxcache: {sentence}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "expected JSON, Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[1]", "expected a JSON object, found list"),
    ],
)
def test_a_wrong_config_file_is_named(calls, text, sentence, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "config.json"
    config.write_text(text)
    assert main(["explain", "Some", "--config", str(config)]) == 2
    assert capsys.readouterr().err == f"fxcache: --config {config}: {sentence}\n"


def test_a_missing_config_file_is_named(calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", "Some", "--config", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_runs_as_a_module_in_the_checkout():
    """The checkout is first on sys.path there, with a folder that has the name of another package."""
    script = "import runpy, sys; sys.argv = ['fxcache', 'options', '--json']; sys.path.insert(0, '')\n"
    script += "try:\n    runpy.run_module('fxcache', run_name='__main__')\n"
    script += "finally:\n    import importlib.util; assert importlib.util.find_spec('kernels') is None\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)] == [row.name for row in options_table()]
