"""Exporting contracts in tests: services made of annotations, and the module that was generated, imported."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

from evsync.codec.events import EventCodec
from evsync.contracts.document import Document, document_of
from evsync.contracts.python import python_of
from evsync.domain import Aggregate

NO_DEFAULT = object()
_number = count()


def codec_with(fields: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, **options: Any) -> EventCodec:
    """The codec of a service `art` whose only event, art.Picture.Made, has these fields."""
    defaults = defaults or {}
    ordered = sorted(fields, key=lambda name: name in defaults)

    def body(namespace: dict[str, Any]) -> None:
        namespace["__annotations__"] = {name: fields[name] for name in ordered}
        namespace |= defaults

    made = types.new_class("Made", (Aggregate.Event,), exec_body=body)
    picture = types.new_class("Picture", (Aggregate,), exec_body=lambda namespace: namespace.update(Made=made))
    return EventCodec("art", [picture], **options)


def document_with(fields: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, **options: Any) -> Document:
    """The document of that service."""
    return document_of(codec_with(fields, defaults, **options))


@contextmanager
def contracts_from(document: Document) -> Iterator[types.ModuleType]:
    """The module that is generated from a document, imported for as long as the block lasts."""
    module = types.ModuleType(f"contracts_of_a_test_{next(_number)}")
    sys.modules[module.__name__] = module
    try:
        exec(compile(python_of(document), module.__name__, "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules[module.__name__]
