"""Marks of several services: taken under load, restored together, and run on as if nothing had happened."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import BackupPolicy, Contract, Event, Projection, Service, SqlModel, Tables
from evsync.archive.copies import Archive
from evsync.archive.marking import MarkReport, ToMark, decide, make_mark
from evsync.archive.marks import file_of, find_mark, marks_in
from evsync.archive.restore import Until
from evsync.archive.targets import open_target
from evsync.codec.values import unpack
from evsync.errors import ArchiveIncomplete, ConfigurationError
from evsync.operations.recovery import restore_log
from evsync.operations.verification import verify
from evsync.ports import BackupTarget, Store
from evsync.records import Checkpoint, Commit, StoredEvent, decode_meta, event_uuid, new_command
from tests.archiving import MemoryTarget, away, fill, memory_store, read_all
from tests.relaying import eventually
from tests.saga import saga_modules

pytestmark = pytest.mark.anyio

CUSTOMERS, CENTS = 3, 20_000


class AnyOrder(Contract, type="orders.Order.*"):
    """What happens to orders."""


class AnyAccount(Contract, type="payments.Account.*"):
    """What happens to accounts."""


class Shop:
    """The saga's two services, and one that counts what they do; their stores in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.orders_module, self.payments_module = saga_modules()
        self.orders: Service = self.orders_module.orders
        self.payments: Service = self.payments_module.payments
        tables = sa.MetaData()
        columns = (sa.Column("what", sa.String, primary_key=True), sa.Column("n", sa.Integer))
        self.counted = sa.Table("counted", tables, *columns)
        view = Projection("counts", model=SqlModel(tables))
        for contract in (AnyOrder, AnyAccount):
            view.on(contract)(self._count)
        self.view = view
        self.office = Service("office", projections=[view])

    def _count(self, e: Event[Any], db: Tables) -> None:
        db.increment(self.counted, what=e.type, n=1)

    @asynccontextmanager
    async def open(self, stores: str = "", *, counting: bool = True) -> AsyncIterator[None]:
        """All of them, their stores in files that begin with `stores`."""
        at = f"sqlite:///{self.directory}/{stores}"
        office = f"sqlite:///{self.directory}/office.db"
        async with (
            self.orders.open(store=f"{at}orders.db", sources={"payments": self.payments}),
            self.payments.open(store=f"{at}payments.db", sources={"orders": self.orders}),
            self.office.open(
                store=office,
                sources={"orders": self.orders, "payments": self.payments},
                run="all" if counting else "none",
            ),
        ):
            yield

    async def order(self, chance: random.Random, n: int) -> None:
        """Place orders, and cancel some."""
        order_of = self.orders_module.Order
        for _ in range(n):
            order = order_of(f"customer-{chance.randrange(CUSTOMERS)}", chance.randint(50, 900))
            await self.orders.save(order)
            if chance.random() < 0.3:
                await self.orders.execute(order_of, order.id, order_of.cancel, "changed my mind")

    async def is_settled(self) -> bool:
        """Whether each has answered all that the other has to say."""
        for one, other, reaction in ((self.orders, self.payments, "charge"), (self.payments, self.orders, "settle")):
            answered = await store_of(other).checkpoints(reaction)
            if [c.position for c in answered] != [await store_of(one).head()]:
                return False
        return True

    async def check(self) -> None:
        """Each order was asked to be paid for once, each answer was settled once, and the money adds up."""
        orders, payments = await read_all(store_of(self.orders)), await read_all(store_of(self.payments))
        causes = Counter(decode_meta(e.meta).get("causation_id") for e in [*orders, *payments])
        del causes[None]
        assert max(causes.values()) == 1, "no event is answered twice"
        asked = {str(event_uuid(e.id)): e.stream for e in orders if e.type.endswith("Placed")}
        answers = [e for e in payments if e.type.endswith(("Charged", "Declined"))]
        assert {decode_meta(e.meta)["causation_id"] for e in answers} == asked.keys(), "and none is left out"
        assert Counter(unpack(e.data)["order"] for e in answers) == Counter(asked.values())
        for stream in asked.values():
            assert (await self.orders.get(self.orders_module.Order, stream)).state != "placed"
        for n in range(CUSTOMERS):
            account = await self.payments.get(self.payments_module.Account, f"customer-{n}")
            assert account.cents + sum(account.charges.values()) == CENTS

    async def counts(self) -> dict[str, int]:
        """What the read model says."""
        rows = await self.office.query(sa.select(self.counted.c.what, self.counted.c.n))
        return {row.what: row.n for row in rows}

    async def in_the_logs(self) -> dict[str, int]:
        """And what the logs do."""
        events = [*await read_all(store_of(self.orders)), *await read_all(store_of(self.payments))]
        return dict(Counter(e.type for e in events if ".evsync." not in e.type))


def store_of(service: Service) -> Store:
    """Its open store."""
    assert service.store is not None
    return service.store


class Late:
    """A log whose head is told late: when the other service has answered what was not there yet."""

    def __init__(self, store: Store, other: Store, reaction: str) -> None:
        self._store, self._other, self._reaction = store, other, reaction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def head(self) -> int:
        head = await self._store.head()

        async def answered() -> bool:
            return any(c.position > head for c in await self._other.checkpoints(self._reaction))

        await eventually(answered, f"nothing beyond {head} was answered")
        return head


def late(shop: Shop, *targets: BackupTarget) -> list[ToMark]:
    """Both logs, the first looked at in the worst way."""
    orders, payments, policy = store_of(shop.orders), store_of(shop.payments), BackupPolicy(targets=["x"], loss=0.01)
    first: Any = Late(orders, payments, "charge")
    return [ToMark(first, targets, policy, ["settle"]), ToMark(payments, targets, policy, ["charge"])]


async def test_services_restored_to_a_mark_answer_nothing_twice_and_leave_nothing_out(tmp_path: Path) -> None:
    """Marked while both work, restored, run on: each event has one answer, the read model made before needs no
    rebuild, holds exactly the logs' events, and equals what they fold to."""
    shop, chance, target = Shop(tmp_path), random.Random(5), open_target(str(tmp_path / "backups"))
    async with shop.open():
        for n in range(CUSTOMERS):
            await shop.payments.save(shop.payments_module.Account(f"customer-{n}", CENTS))
        await shop.order(chance, 20)
    async with shop.open(counting=False):  # the read model stays where it is
        marked = asyncio.Event()

        async def order() -> None:
            while not marked.is_set():
                await shop.order(chance, 3)
                await eventually(shop.is_settled, "settled")

        ordering = asyncio.create_task(order())

        async def lowered() -> MarkReport | None:
            """A mark that had to leave something out."""
            made = await make_mark(f"mark-{len(await marks_in(target, 'orders.main'))}", late(shop, target))
            return made if any(log.position < log.head for log in made.logs) else None

        made = await eventually(lowered, "no mark under load left anything out")
        marked.set()
        await ordering
        await shop.order(chance, 10)
        await eventually(shop.is_settled, "settled")
        before = await shop.in_the_logs()
    for log in ("orders", "payments"):
        part = (await find_mark([target], f"{log}.main", made.name)).logs[f"{log}.main"]
        archive = await Archive.find([target], f"{log}.main", part.incarnation)
        report = await restore_log(archive, f"sqlite:///{tmp_path}/restored-{log}.db", Until(), marked=part)
        assert report.position == part.position
    async with shop.open("restored-"):
        assert sum((await shop.in_the_logs()).values()) < sum(before.values())
        await shop.order(chance, 20)
        await eventually(shop.is_settled, "settled again")
        for service in (shop.orders, shop.payments):
            await shop.office.wait(store_of(service).identity.at(await store_of(service).head()))
        await shop.check()
        assert await shop.counts() == await shop.in_the_logs()
        assert (await verify(shop.office.runtime, shop.view)).ok


# ---- what is restored, and what is refused


def to_mark(store: Store, *targets: BackupTarget, followers: Sequence[str] = (), copies: int = 1) -> ToMark:
    """One log and its places."""
    places = [t.url for t in targets]
    return ToMark(store, targets, BackupPolicy(targets=places, loss=0.01, importance=1 - 0.01**copies), followers)


async def test_a_reaction_is_restored_to_where_it_was_at_the_mark(tmp_path: Path) -> None:
    """Though it has seen more since, and a segment that ends at the mark says so."""
    store, target = memory_store(), MemoryTarget()
    events: list[StoredEvent] = await fill(store, 30)

    async def seen(position: int, after: int) -> None:
        kept = Checkpoint("users.main", 0, "x", position)
        await store.append([Commit(new_command(), (), "writer", kept, after)])

    await seen(7, 0)
    log = to_mark(store, target, followers=["writer"])
    mark, _ = await decide("noon", [log])
    await seen(9, 7)
    await make_mark("later", [log])
    part = mark.logs["bank.main"]
    assert part.position == len(events)
    archive = await Archive.find([target], "bank.main")
    url = f"sqlite:///{tmp_path}/restored.db"
    report = await restore_log(archive, url, Until(), marked=part)
    assert (report.position, report.checkpoints) == (len(events), 1)
    later = (await find_mark([target], "bank.main", "later")).logs["bank.main"]
    assert [c.checkpoint.position for c in (*part.checkpoints, *later.checkpoints)] == [7, 9]


async def test_a_mark_is_in_as_many_places_as_the_log_or_it_is_none() -> None:
    """A place that is away, that fails, or that has one of the name."""
    store, one, two = memory_store(), MemoryTarget("one"), MemoryTarget("two")
    await fill(store, 30)
    log = to_mark(store, one, two, copies=2)
    two.fail = away
    with pytest.raises(ArchiveIncomplete, match="in 1 places, and its policy needs 2; nothing was marked"):
        await make_mark("noon", [log])
    assert not [n for n in one.kept if "marks" in n]

    def no_marks(what: str, name: str) -> None:
        if what == "put" and "marks" in name:
            away()

    two.fail = no_marks
    with pytest.raises(ArchiveIncomplete, match="under another name"):
        await make_mark("noon", [log])
    two.fail = lambda _what, _name: None
    with pytest.raises(ConfigurationError, match="already"):
        await make_mark("noon", [log])
    report = await make_mark("evening", [log])
    assert [p.places for p in report.logs] == [["one", "two"]]
    spare = to_mark(store, one, two)
    two.fail = away
    assert [p.places for p in (await make_mark("night", [spare])).logs] == [["one"]]


async def test_names_and_logs_of_a_mark_are_looked_at_first() -> None:
    """A name that is no part of a file's, and one log twice."""
    target, store = MemoryTarget(), memory_store()
    for name in ("", "a/b", "..", "x" * 101):
        with pytest.raises(ConfigurationError, match="cannot be the name of a mark"):
            await make_mark(name, [to_mark(store, target)])
    with pytest.raises(ConfigurationError, match="named twice"):
        await make_mark("noon", [to_mark(store, target), to_mark(store, target)])
    with pytest.raises(ArchiveIncomplete, match="there is none"):
        await find_mark([target], "bank.main", "noon")
    assert target.kept == {}
    assert file_of("bank.main", "noon") == "bank.main/marks/noon.json"
