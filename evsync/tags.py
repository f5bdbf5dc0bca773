"""Tags for the events saved inside a block of code: who acted, on whose behalf, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})
_tags: ContextVar[Mapping[str, str]] = ContextVar("evsync_tags", default=_NONE)


@contextmanager
def metadata(**tags: str) -> Iterator[None]:
    """Tag the events that are saved inside: `with metadata(actor="ada"): await users.save(…)`.

    Blocks nest; the inner value of a tag wins. A task that is started inside inherits the tags. `correlation_id` and
    `causation_id` are set by reactions. Raises TypeError for a value that is not text, ValueError for the tag `schema`,
    which is evsync's own: the version that an event's fields are written in.
    """
    if "schema" in tags:
        raise ValueError("the tag 'schema' says which upcasters an event needs, and evsync sets it: use another name")
    for name, value in tags.items():
        if not isinstance(value, str):
            raise TypeError(f"the tag {name!r} must be text, not {value!r}: use {name}=str(…)")
    token = _tags.set(MappingProxyType({**_tags.get(), **tags}))
    try:
        yield
    finally:
        _tags.reset(token)


def current_tags() -> Mapping[str, str]:
    """The tags of the enclosing `metadata()` blocks; empty outside of any."""
    return _tags.get()
