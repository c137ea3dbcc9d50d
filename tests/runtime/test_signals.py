"""What pipelines of diffusers say while they run, and that listening changes nothing for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from fxcache.runtime import signals
from fxcache.runtime.generation import Branch, current_run


@pytest.fixture
def fakes(monkeypatch) -> Iterator[ModuleType]:
    """Modules that look like those of diffusers."""
    for name, owner in (("models.cache_utils", "CacheMixin"), ("pipelines.pipeline_utils", "DiffusionPipeline")):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, f"diffusers.{name}", module)
        setattr(module, owner, {"CacheMixin": Mixin, "DiffusionPipeline": Pipeline}[owner])
    monkeypatch.setitem(sys.modules, "diffusers.modular_pipelines.modular_pipeline", ModuleType("empty"))
    signals.uninstall()
    signals.install()
    yield sys.modules["diffusers.pipelines.pipeline_utils"]
    signals.uninstall()


class Mixin:
    entered: list[str]

    @contextmanager
    def cache_context(self, name: str, **kwargs: object) -> Iterator[str]:
        """The original."""
        self.entered = [name, *kwargs]
        yield "value"


class Pipeline:
    bar: type | None = None

    def progress_bar(self, iterable=None, total=None):
        """The original."""
        return (self, iterable, total) if self.bar is None else self.bar()

    def maybe_free_model_hooks(self):
        return "freed"


ORIGINALS = [Mixin.cache_context, Pipeline.progress_bar, Pipeline.maybe_free_model_hooks]


def test_originals_are_called_and_answer(fakes):
    pipe, mixin = Pipeline(), Mixin()
    assert pipe.progress_bar([1, 2]) == (pipe, [1, 2], None)
    assert pipe.progress_bar(total=5) == (pipe, None, 5)
    assert pipe.maybe_free_model_hooks() == "freed"
    with mixin.cache_context("cond", step_index=1) as value:
        assert value == "value"
    assert mixin.entered == ["cond", "step_index"]
    assert Pipeline.progress_bar.__doc__ == "The original."
    assert Pipeline.progress_bar.__name__ == "progress_bar"


def test_names_of_branches(fakes):
    mixin = Mixin()
    assert signals.current_cache_context() is None
    with mixin.cache_context("cond", step_index=3, num_inference_steps=9, sigma=0.5):
        assert signals.current_cache_context() == Branch("cond", 3, 9, None, 0.5)
        with mixin.cache_context("inner", step_index="three"):
            assert signals.current_cache_context() == Branch("inner")
        assert signals.current_cache_context() == Branch("cond", 3, 9, None, 0.5)
    with pytest.raises(ZeroDivisionError), mixin.cache_context("uncond"):
        raise ZeroDivisionError
    assert signals.current_cache_context() is None


@pytest.mark.parametrize(
    ("arguments", "hint"), [({"total": 7}, 7), ({"iterable": [1, 2]}, 2), ({"iterable": iter([1])}, None)]
)
def test_bar_begins_a_run_and_the_end_ends_it(fakes, arguments, hint):
    pipe = Pipeline()
    assert not current_run().bounded
    pipe.progress_bar(**arguments)
    first = current_run()
    assert first.bounded and first.num_inference_steps == hint
    pipe.progress_bar(total=3)
    second = current_run()
    assert first.over and not second.over and second.serial != first.serial
    pipe.maybe_free_model_hooks()
    assert second.over and not current_run().bounded


class Bar:
    """Looks like a progress bar."""

    closed = 0

    def close(self) -> str:
        self.closed += 1
        return "closed"

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PipelineWithBars(Pipeline):
    bar = Bar


def test_a_bar_that_closes_ends_its_run_and_no_other(fakes):
    outer_pipe, inner_pipe = PipelineWithBars(), PipelineWithBars()
    with outer_pipe.progress_bar(total=5) as outer_bar:
        outer = current_run()
        with pytest.raises(ZeroDivisionError), inner_pipe.progress_bar(total=3) as bar:
            inner = current_run()
            assert inner is not outer
            raise ZeroDivisionError
        assert bar.closed == 1 and inner.over and not outer.over
        inner_pipe.maybe_free_model_hooks()
        inner_pipe.maybe_free_model_hooks()
        assert current_run() is outer
        last = inner_pipe.progress_bar(total=3)
        assert current_run() not in (outer, inner)
        del last  # a loop that was broken off, without `with`
        assert current_run() is outer
    assert outer.over and outer_bar.close() == "closed"
    assert not current_run().bounded


def test_wrapped_once_and_put_back(fakes):
    ours = [Mixin.cache_context, Pipeline.progress_bar, Pipeline.maybe_free_model_hooks]
    signals.install()
    assert ours == [Mixin.cache_context, Pipeline.progress_bar, Pipeline.maybe_free_model_hooks]
    signals.uninstall()
    assert [Mixin.cache_context, Pipeline.progress_bar, Pipeline.maybe_free_model_hooks] == ORIGINALS


def test_wrapper_of_somebody_else_stays(fakes, monkeypatch):
    theirs = lambda self: "theirs"  # noqa: E731
    monkeypatch.setattr(Pipeline, "maybe_free_model_hooks", theirs)
    signals.uninstall()
    assert Pipeline.maybe_free_model_hooks is theirs


def test_nothing_to_wrap(monkeypatch):
    signals.uninstall()
    for module, *_ in signals._WRAPPED:
        monkeypatch.setitem(sys.modules, module, None)
    signals.install()
    assert signals._wrapped == {}


def test_diffusers_has_what_is_wrapped():
    pytest.importorskip("diffusers")
    pytest.importorskip("peft.utils.hotswap")
    import diffusers.loaders.peft
    import diffusers.models.cache_utils as cache_utils
    import diffusers.modular_pipelines.modular_pipeline as modular
    import diffusers.pipelines.pipeline_utils as utils

    signals.install()
    try:
        assert len(signals._wrapped) == len(signals._WRAPPED)
        pipe = utils.DiffusionPipeline()
        with pipe.progress_bar(total=4) as bar:
            assert current_run().num_inference_steps == 4
            bar.update()
        assert type(bar).__module__.startswith("tqdm")
        assert hasattr(modular.LoopSequentialPipelineBlocks.progress_bar, "__wrapped__")
        assert hasattr(cache_utils.CacheMixin.cache_context, "__wrapped__")
        assert hasattr(diffusers.loaders.peft.PeftAdapterMixin.fuse_lora, "__wrapped__")
    finally:
        signals.uninstall()
