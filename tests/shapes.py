"""The type checker that tests put behind the shape annotations of ops, models and sampling (see `conftest.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args, runtime_checkable

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number is welcome where a float is asked for


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its types checked; protocols among them are checked by the names of their methods."""
    for hint in getattr(function, "__annotations__", {}).values():
        for part in _parts(hint):
            if getattr(part, "_is_protocol", False):
                runtime_checkable(part)
    return _beartype(function)


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)
