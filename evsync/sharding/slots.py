"""Key → slot: a fixed hash that every language has."""

from __future__ import annotations

import re
from zlib import crc32

SLOTS = 256
"""Slots of a new service: chosen once, stored with the log, never changed."""

_TAG = re.compile(r"\{([^{}]+)\}")


def slot_of(key: str, slots: int = SLOTS) -> int:
    """The slot of a stream id: CRC-32 (IEEE 802.3, as in zlib) of its UTF-8 bytes, modulo the number of slots.

    An id with a tag in braces is hashed by the first non-empty tag alone: `{c42}.order7` and `{c42}.order8` share a
    slot, so that what must be saved together lives together.
    """
    if "{" in key and (tag := _TAG.search(key)):
        key = tag[1]
    return crc32(key.encode()) % slots
