from __future__ import annotations

import pytest

from fxcache import errors
from fxcache.errors import FxcacheError, OptionError, Refusal, RefusalError, RefusalWarning, StateError


def test_every_public_error_has_the_one_base():
    found = [getattr(errors, name) for name in errors.__all__]
    raised = [kind for kind in found if issubclass(kind, Exception) and not issubclass(kind, Warning)]
    assert set(raised) == {FxcacheError, OptionError, RefusalError, StateError}
    assert all(issubclass(kind, FxcacheError) for kind in raised)


def test_children_are_also_what_python_calls_them():
    assert issubclass(OptionError, ValueError)
    assert issubclass(RefusalError, RuntimeError)
    assert issubclass(StateError, RuntimeError)
    assert issubclass(RefusalWarning, UserWarning)


def test_option_error_names_option_value_and_what_is_allowed():
    assert str(OptionError.of("max_contexts", 0, "an integer >= 1")) == "max_contexts=0: expected an integer >= 1"


def test_option_error_shortens_a_long_value():
    sentence = str(OptionError.of("trunk", "x" * 1000, "a sequence"))
    assert len(sentence) < 120
    assert "..." in sentence


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ((), "no repeated blocks"),
        (("add_3",), "no repeated blocks (at add_3)"),
        (("a", "b", "c"), "no repeated blocks (at a, b, c)"),
        (("a", "b", "c", "d", "e"), "no repeated blocks (at a, b, c and 2 more)"),
    ],
)
def test_refusal_reads_as_a_sentence(nodes: tuple[str, ...], sentence: str):
    assert str(Refusal("no repeated blocks", nodes)) == sentence


def test_refusal_is_a_value():
    assert Refusal("reason", ("node",)) == Refusal("reason", ("node",))
    assert len({Refusal("reason"), Refusal("reason")}) == 1
    with pytest.raises(AttributeError):
        Refusal("reason").reason = "other"  # type: ignore[misc]


def test_refusal_error_keeps_the_refusal():
    refusal = Refusal("gradients are needed", ("mul",))
    error = RefusalError(refusal)
    assert error.refusal is refusal
    assert str(error) == "fxcache cannot cache this graph: gradients are needed (at mul)"
