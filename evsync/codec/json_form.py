"""Values as JSON, for those who read no msgpack: what the command line prints, and what exported schemas describe."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import to_json


def as_json(value: Any) -> str:
    """A value as JSON on one line.

    What JSON lacks becomes text: UUIDs and decimals as they are written, dates and times in ISO 8601, durations too
    (PT1M30S), bytes in base64 (of URLs), NaN and the infinities by name, an object of an unknown class by its repr.
    Sets and tuples become lists, keys text.
    """
    try:
        written = to_json(value, bytes_mode="base64", timedelta_mode="iso8601", inf_nan_mode="strings", fallback=repr)
        return written.decode()
    except ValueError:  # it contains itself, or text that is not Unicode
        return json.dumps(repr(value))


def in_json(value: Any) -> Any:
    """The same, as Python's json reads it."""
    return json.loads(as_json(value))
