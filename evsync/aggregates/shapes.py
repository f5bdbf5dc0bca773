"""What code does, written the same in every process: what was made by code that has changed since is known by it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any

from evsync.domain import AnyAggregate, event_types

_NAMED_ALIKE = (str, bytes, int, float, complex, tuple, type(None), type(...))
"""Types of constants whose repr is the same in every process."""


@cache
def shape_of(cls: type[AnyAggregate]) -> str:
    """What a snapshot of this class depends on: a digest of its functions' code, its events' fields, `class_version`.

    Functions outside of the class are not looked at: when one changes that decides on state, raise the class attribute
    `class_version`. Another Python version compiles to other code, and so has other shapes.
    """
    digest = blake2b(digest_size=8)
    for part in _parts(cls):
        digest.update(repr(part).encode())
    return digest.hexdigest()


def _parts(cls: type[AnyAggregate]) -> Iterator[Any]:
    yield sys.version_info[:2], getattr(cls, "class_version", 1)
    for name, event in sorted(event_types(cls).items()):
        yield name, event.kind, {field: str(annotation) for field, annotation in event.fields.items()}
        yield from _functions(event.cls)
    for parent in cls.__mro__:
        if parent.__module__.partition(".")[0] not in ("eventsourcing", "evsync", "builtins", "typing"):
            yield from _functions(parent)


def _functions(cls: type[Any]) -> Iterator[Any]:
    for name, value in vars(cls).items():
        # A function as it is, under @event, @property, @property with @event on its setter, @staticmethod, …
        candidates = [value, *(getattr(value, inner, None) for inner in ("fget", "fset", "__func__"))]
        for found in [getattr(c, "decorated_func", c) for c in candidates]:
            if isinstance(found, FunctionType):
                yield name, compiled_form(found.__code__), _constants(found.__defaults__ or ())


def compiled_form(code: CodeType) -> tuple[Any, ...]:
    """What a function does, whatever file and line it stands in. Its repr is the same in every process."""
    return code.co_code, code.co_names, code.co_varnames, _constants(code.co_consts)


def _constants(values: Iterable[Any]) -> list[Any]:
    """Written the same in every process: the order of a set is not, nor is the address of an object."""
    return [
        compiled_form(v) if isinstance(v, CodeType)
        else sorted(map(repr, v)) if isinstance(v, frozenset)
        else repr(v) if isinstance(v, _NAMED_ALIKE)
        else type(v).__qualname__
        for v in values
    ]  # fmt: skip
