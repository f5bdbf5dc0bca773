"""Key → slot: fixed for ever, the same in every language."""

from __future__ import annotations

import pytest

from evsync.sharding.slots import slot_of

VECTORS = {
    "": 0,
    "a": 67,
    "123456789": 38,
    "12345678-1234-5678-1234-567812345678": 73,
    "Zoë": 42,
    "{c42}.order7": 28,
    "c42": 28,
    "{}": 67,
    "}a{": 67,
}
"""CRC-32 (IEEE) of the UTF-8 bytes, or of the tag in braces, modulo 256. `123456789` is the check value CBF43926."""


@pytest.mark.parametrize(("key", "slot"), VECTORS.items())
def test_the_slot_of_a_key_never_changes(key: str, slot: int) -> None:
    """Stored events carry it, and consumers in other languages compute it."""
    assert slot_of(key) == slot


def test_a_tag_in_braces_is_hashed_alone() -> None:
    """What must be saved together lives together; the first tag that is not empty counts."""
    assert slot_of("{c42}.order7") == slot_of("x{c42}{c43}") == slot_of("c42")
    assert slot_of("{}{c42}") == slot_of("c42")


def test_keys_spread_over_all_slots() -> None:
    """Numbered keys, the worst case for a linear hash, fill every slot to within a third of the average."""
    counts = [0] * 256
    for n in range(256 * 200):
        counts[slot_of(f"order-{n:08d}")] += 1
    assert 133 < min(counts) <= max(counts) < 267
