"""What is one of some words is checked where a method is made, for every method alike."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from sidestep.methods import METHODS, method_class

CHOICES = [
    (name, field, get_args(kind))
    for name in METHODS
    for field, kind in get_type_hints(method_class(name)).items()
    if get_origin(kind) is Literal
]


@pytest.mark.parametrize(("name", "field", "words"), CHOICES, ids=[f"{name}.{field}" for name, field, _ in CHOICES])
def test_a_word_that_is_none_of_them_is_refused(name: str, field: str, words: tuple[str, ...]) -> None:
    made: Any = method_class(name)
    with pytest.raises(ValueError, match=f"^got {field}='neither', expected one of {', '.join(words)}.$"):
        made(**{field: "neither"})
