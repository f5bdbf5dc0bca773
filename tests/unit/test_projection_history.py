"""Going through a log again: up to a place, to its end if that comes first, and never silently less."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from evsync.errors import StoreUnavailable
from evsync.projections.checking import history
from evsync.projections.checking.history import end_of, read_history
from evsync.records import Ancestor, StoredEvent
from tests.projection_logs import bank_events

pytestmark = pytest.mark.anyio


class Reader:
    """A log of which so much can be read, and that says that it ends at `head`."""

    log = "bank.main"
    incarnation: str | None = None
    ancestry: Sequence[Ancestor] = ()

    def __init__(self, events: Sequence[StoredEvent], *heads: int | None) -> None:
        self.events, self.heads = events, list(heads)

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        return list(self.events[after : after + 7])

    async def head(self) -> int | None:
        return self.heads.pop(0) if len(self.heads) > 1 else self.heads[0]

    async def close(self) -> None:
        return None


async def positions(reader: Reader, until: int, after: int = 0) -> list[int]:
    return [e.position async for part in read_history(reader, until, after=after) for e in part]


async def test_a_log_is_read_up_to_a_place_or_to_its_end() -> None:
    """Batches that go beyond the place are cut, and one that is not known to end is asked again."""
    events = bank_events(20, 1)
    assert await positions(Reader(events, 20), 10) == list(range(1, 11))
    assert await positions(Reader(events, 20), 18, after=15) == [16, 17, 18]
    assert await positions(Reader(events, None, None, 20), 30) == list(range(1, 21))


@pytest.mark.parametrize(("head", "known"), [(30, "its end is 30"), (None, "its end is not known")])
async def test_a_log_that_neither_goes_on_nor_ends_is_not_taken_for_a_short_one(
    monkeypatch: pytest.MonkeyPatch, head: int | None, known: str
) -> None:
    """Whoever compares would else find that everything behind is missing."""
    monkeypatch.setattr(history, "PATIENCE_S", 0.0)
    with pytest.raises(StoreUnavailable, match=f"behind position 20: .* {known}"):
        await positions(Reader(bank_events(20, 1), head), 30)


async def test_the_end_of_a_log_is_asked_for_until_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is taken to be where one has been already, if nobody can tell."""
    monkeypatch.setattr(history, "_PAUSE_S", 0.0)
    assert await end_of(Reader([], None, None, 7), 3) == 7
    assert await end_of(Reader([], None), 3) == 3
