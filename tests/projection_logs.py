"""A log over a list, and a ledger projected from it: what the tests of projections share.

The ledger is made so that whatever goes wrong shows: an event that is lost or applied twice in its counts and sums, one
that is out of order in its versions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from evsync.codec.values import pack, unpack
from evsync.ports import LogReader, Share, Stretch
from evsync.projections import Contract, Event, Projection, SqlModel, Tables
from evsync.records import Ancestor, StoredEvent, event_id
from evsync.sharding.slots import slot_of

INCARNATION = "3f9a2b1c7d5e"


class Opened(Contract, type="bank.Account.Opened"):
    """An account was opened."""

    owner: str


class Paid(Contract, type="bank.Account.Paid"):
    """An amount was paid in, or out if it is negative."""

    amount: int


class Closed(Contract, type="bank.Account.Closed"):
    """An account was closed: its row goes, and comes back anew if it is ever opened again."""


def stored(position: int, type: str, stream: str, version: int, /, *, remaining: int = 0, **data: Any) -> StoredEvent:
    """An event at a position of a log; its id follows from the position."""
    return StoredEvent(
        position=position,
        stream=stream,
        version=version,
        slot=slot_of(stream),
        type=type,
        time_us=1_700_000_000_000_000 + position,
        id=event_id(UUID(int=position << 16).bytes, 0),
        remaining=remaining,
        incarnation=INCARNATION,
        data=pack(data),
        meta=None,
    )


def bank_events(size: int, seed: int, *, accounts: int = 50) -> list[StoredEvent]:
    """So many events of a bank, the same for the same seed; now and then of a type that nobody handles."""
    chance = random.Random(seed)
    versions: dict[str, int] = {}
    events = []
    for position in range(1, size + 1):
        account = f"account-{chance.randrange(accounts)}"
        version = versions[account] = versions.get(account, 0) + 1
        match chance.randrange(20):
            case 0 | 1:
                event = stored(position, "bank.Account.Opened", account, version, owner=f"owner {position}", colour="x")
            case 2:
                event = stored(position, "bank.Account.Closed", account, version)
            case 3:
                event = stored(position, "bank.Account.Audited", account, version)
            case _:
                amount = chance.randrange(-100, 1_000)
                event = stored(position, "bank.Account.Paid", account, version, amount=amount)
        events.append(event)
    return events


class ListSource:
    """The one log of a service, over a list that may grow. Implements LogSource."""

    def __init__(
        self,
        service: str,
        events: Iterable[StoredEvent] = (),
        *,
        cut: Callable[[int], int] = lambda limit: limit,
        again: Callable[[int], int] = lambda after: after,
    ) -> None:
        """`cut` chooses the size of a batch, `again` where it begins: at or before what was asked for."""
        self.service, self.events = service, list(events)
        self.cut, self.again = cut, again
        self.grew = asyncio.Event()
        self.failure: Exception | None = None
        self.incarnation: str | None = None
        self.ancestry: Sequence[Ancestor] = ()

    def append(self, *events: StoredEvent) -> None:
        """Let the log grow."""
        self.events += events
        self.grew.set()
        self.grew = asyncio.Event()

    def add(self, type: str, stream: str, /, **data: Any) -> StoredEvent:
        """Append an event at the next position and version."""
        version = sum(e.stream == stream for e in self.events) + 1
        event = stored(len(self.events) + 1, type, stream, version, **data)
        self.append(event)
        return event

    async def readers(self) -> Sequence[LogReader]:
        """One reader."""
        return [ListReader(self)]


class ListReader:
    """Implements LogReader."""

    def __init__(self, source: ListSource) -> None:
        self._source = source
        self.log = f"{source.service}.main"
        self.incarnation = source.incarnation
        self.ancestry = source.ancestry

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        source = self._source
        await asyncio.sleep(0)
        if source.failure is not None:
            raise source.failure
        if len(source.events) <= after and timeout_s > 0:
            try:
                async with asyncio.timeout(timeout_s):
                    await source.grew.wait()
            except TimeoutError:
                return []
        if len(source.events) <= after:
            return []
        return source.events[source.again(after) : after + max(1, source.cut(limit))]

    async def read_share(self, after: int, limit: int, share: Share) -> Stretch:
        events = [e for e in await self.read(after, limit, 0.0) if e.position > after]
        return Stretch(events).cut_to(share) if events else Stretch(())

    async def head(self) -> int | None:
        return len(self._source.events)

    async def close(self) -> None:
        return None


class Ledger:
    """A projection of a bank into two tables. Payments at the positions in `bad` are refused."""

    def __init__(self, *, bad: Collection[int] = (), **options: Any) -> None:
        self.bad = set(bad)
        self.metadata = sa.MetaData()
        self.accounts = sa.Table(
            "accounts",
            self.metadata,
            sa.Column("id", sa.String, primary_key=True),
            sa.Column("owner", sa.String),
            sa.Column("balance", sa.Integer, server_default="0"),
            sa.Column("payments", sa.Integer, server_default="0"),
            sa.Column("version", sa.Integer),
        )
        self.daily = sa.Table(
            "daily",
            self.metadata,
            sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("kind", sa.String, primary_key=True),
            sa.Column("events", sa.Integer),
        )
        self.projection = Projection("ledger", model=SqlModel(self.metadata), **options)
        self.projection.on(Opened)(self.opened)
        self.projection.on(Paid)(self.paid)
        self.projection.on(Closed)(self.closed)

    def opened(self, e: Event[Opened], db: Tables) -> None:
        db.upsert(self.accounts, id=e.stream_id, owner=e.data.owner, version=e.version)
        db.increment(self.daily, day=e.position.number // 100, kind="opened", events=1)

    def paid(self, e: Event[Paid], db: Tables) -> None:
        if e.position.number in self.bad:
            raise ValueError(f"{e.position.number} is bad")
        db.increment(self.accounts, id=e.stream_id, balance=e.data.amount, payments=1)
        db.upsert(self.accounts, id=e.stream_id, version=e.version)

    def closed(self, e: Event[Closed], db: Tables) -> None:
        db.delete(self.accounts, id=e.stream_id)

    def rows(self, connection: sa.Connection) -> dict[str, list[tuple[Any, ...]]]:
        """What the tables hold."""
        return {
            table.name: sorted(tuple(row) for row in connection.execute(sa.select(table)))
            for table in (self.accounts, self.daily)
        }


def fold_bank(events: Iterable[StoredEvent]) -> dict[str, list[tuple[Any, ...]]]:
    """What the ledger must hold after these events, worked out with dicts alone."""
    accounts: dict[str, dict[str, Any]] = {}
    daily: dict[int, int] = {}
    for e in events:
        data = unpack(e.data)
        new = {"owner": None, "balance": 0, "payments": 0, "version": None}
        match e.type.rpartition(".")[2]:
            case "Opened":
                row = accounts.setdefault(e.stream, new)
                row.update(owner=data["owner"], version=e.version)
                daily[e.position // 100] = daily.get(e.position // 100, 0) + 1
            case "Paid":
                row = accounts.setdefault(e.stream, new)
                row["balance"] += data["amount"]
                row["payments"] += 1
                row["version"] = e.version
            case "Closed":
                accounts.pop(e.stream, None)
    return {
        "accounts": sorted((id, *row.values()) for id, row in accounts.items()),
        "daily": sorted((day, "opened", count) for day, count in daily.items()),
    }
