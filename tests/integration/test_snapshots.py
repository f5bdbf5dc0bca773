"""Snapshots change how long a load takes, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.aggregates.repository import Repository
from evsync.aggregates.shapes import shape_of
from evsync.aggregates.snapshots import COMMANDS, SnapshotPolicy, Snapshots
from evsync.codec.events import EventCodec
from evsync.codec.state import freeze, thaw
from evsync.errors import ConfigurationError, DecodingError, EncodingError, NotFound, OutcomeUnknown
from evsync.homes import OneStore
from evsync.records import LogIdentity, Snapshot, new_incarnation
from evsync.stores.group_commit import GroupCommit
from evsync.stores.memory import MemoryStore
from evsync.stores.sqlite.store import SqliteStore
from tests.aggregates import Account, Address, Basket, Card, Colour, Hoard, Level, Savings

pytestmark = pytest.mark.anyio


CODEC = EventCodec("bank", [Account, Savings, Basket, Hoard])


class Bank:
    """A repository with snapshots, and one without, on the same store."""

    def __init__(self, store: Any = None, every: int = 3) -> None:
        self.store = store or MemoryStore(LogIdentity("bank", "main", new_incarnation()))
        self.snapshots = Snapshots(SnapshotPolicy(every_events=every), CODEC, self.store)
        commits = GroupCommit(self.store)
        self.with_snapshots = Repository(CODEC, OneStore(self.store, commits), lambda append: None, self.snapshots)
        self.without = Repository(CODEC, OneStore(self.store, commits), lambda append: None)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 4), st.data())
def test_loading_with_a_snapshot_is_a_full_replay(saves: list[int], every: int, data: st.DataObject) -> None:
    """Whatever was saved in whatever portions: the same aggregate, now, at any version, at any time."""

    async def check() -> None:
        bank, account = Bank(every=every), Account("ada", 0)
        for portion in saves:
            for n in range(portion):
                account.deposit(n)
                account.audit(f"by {n}")
            await bank.with_snapshots.save([account], {})
            await bank.snapshots.close()
        kept = await bank.store.snapshot(str(account.id))
        # One at each boundary that was crossed, at the version at which the save left the stream.
        assert (kept.version // every if kept else 0) == account.version // every
        assert (
            await bank.with_snapshots.get(Account, account.id) == await bank.without.get(Account, account.id) == account
        )
        version = data.draw(st.integers(1, account.version))
        then = await bank.with_snapshots.get(Account, account.id, version=version)
        assert then == await bank.without.get(Account, account.id, version=version)
        at = then.modified_on
        same = await bank.without.get(Account, account.id, at=at)
        assert await bank.with_snapshots.get(Account, account.id, at=at) == same

    asyncio.run(check())


async def test_only_the_events_behind_the_snapshot_are_read() -> None:
    """That is what it is for."""
    bank, account = Bank(every=10), Account("ada", 0)
    for n in range(25):
        account.deposit(n)
    await bank.with_snapshots.save([account], {})
    await bank.snapshots.close()
    read: list[int] = []
    read_stream = bank.store.read_stream

    async def counting(stream: str, **limits: Any) -> list[Any]:
        found = await read_stream(stream, **limits)
        read.append(len(found))
        return found  # type: ignore[no-any-return]

    bank.store.read_stream = counting
    account.deposit(1)
    await bank.with_snapshots.save([account], {})
    await bank.with_snapshots.execute(Account, account.id, Account.deposit, (1,), {}, {})
    assert await bank.with_snapshots.get(Account, account.id) == await bank.without.get(Account, account.id)
    assert read == [1, 2, 28]


async def test_a_save_of_several_events_does_not_step_over_a_boundary() -> None:
    """From version 2 to version 9 passes 5, though neither is a multiple of it."""
    policy = SnapshotPolicy(every_events=5)
    assert policy.crossed(2, 9)
    assert policy.crossed(4, 5)
    assert not policy.crossed(5, 9)
    with pytest.raises(ConfigurationError, match="use 1 or more"):
        SnapshotPolicy(every_events=0)


async def test_a_snapshot_of_another_shape_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that computes its state in another way must not begin with what the old way has left."""
    bank, account = Bank(every=2), Account("ada", 1)
    account.deposit(2)
    await bank.with_snapshots.save([account], {})
    await bank.snapshots.close()
    kept = await bank.store.snapshot(str(account.id))
    lie = kept._replace(state=freeze({**thaw(kept.state), "balance": 1_000}))
    await bank.store.put_snapshot(lie._replace(version=kept.version + 1))  # newer: kept in its place
    assert (await bank.with_snapshots.get(Account, account.id)).balance == 1_000
    monkeypatch.setattr(Account, "class_version", 2, raising=False)
    shape_of.cache_clear()
    assert (await bank.with_snapshots.get(Account, account.id)).balance == 3
    shape_of.cache_clear()


def test_the_shape_of_a_class_is_the_same_in_every_process() -> None:
    """Else each process would throw the others' snapshots away."""
    script = "from tests.aggregates import Account; import evsync.aggregates.shapes as s; print(s.shape_of(Account))"
    shapes = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert shapes == {shape_of(Account)}
    assert shape_of(Account) != shape_of(Savings)


async def test_an_aggregate_whose_state_cannot_be_kept_loads_the_long_way(caplog: pytest.LogCaptureFixture) -> None:
    """No save fails or waits for it; the reason is logged once."""
    bank, hoard = Bank(every=1), Hoard()
    with caplog.at_level(logging.WARNING, "evsync"):
        for _ in range(3):
            hoard.grow()
            await bank.with_snapshots.save([hoard], {})
            await bank.snapshots.close()
    assert await bank.store.snapshot(str(hoard.id)) is None
    assert (await bank.with_snapshots.get(Hoard, hoard.id)).things == {"x": 3}
    assert [r.message for r in caplog.records if "defaultdict" in r.message] == [caplog.records[0].message]


async def test_a_damaged_snapshot_is_passed_over() -> None:
    """It costs time, not the aggregate."""
    bank, account = Bank(every=1), Account("ada", 1)
    await bank.with_snapshots.save([account], {})
    await bank.snapshots.close()
    kept = await bank.store.snapshot(str(account.id))
    await bank.store.put_snapshot(kept._replace(version=9, state=b"\xc1"))
    assert await bank.with_snapshots.get(Account, account.id) == account


async def test_a_command_is_found_in_a_snapshot_after_an_unknown_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """The append was stored and a snapshot taken over it before execute() could look."""
    bank, account = Bank(every=1), Account("ada", 0)
    await bank.with_snapshots.save([account], {})
    append, lost = bank.store.append, [True]

    async def losing(commits: Any) -> Any:
        outcome = await append(commits)
        if lost and lost.pop():
            bank.snapshots.saved(str(account.id), 1, 2)
            await bank.snapshots.close()
            raise OutcomeUnknown("the reply was lost")
        return outcome

    bank.store.append = losing
    position = await bank.with_snapshots.execute(Account, account.id, Account.deposit, (7,), {}, {})
    assert position.number == 2
    assert (await bank.without.get(Account, account.id)).balance == 7


async def test_a_snapshot_carries_the_last_commands_only() -> None:
    """Its size stays bounded."""
    bank, account = Bank(every=COMMANDS + 20), Account("ada", 0)
    for _ in range(COMMANDS + 20):
        account.deposit(1)
        await bank.with_snapshots.save([account], {})
    await bank.snapshots.close()
    kept = await bank.store.snapshot(str(account.id))
    events = await bank.store.read_stream(str(account.id), to_version=kept.version)
    assert kept.commands == b"".join(e.id[:14] + b"\0\0" for e in events[-COMMANDS:])


async def test_snapshots_last_in_a_file_and_old_ones_are_replaced(tmp_path: Path) -> None:
    """One per stream; an older one never takes a newer one's place, one of another shape is replaced."""
    store = await SqliteStore.open(tmp_path / "bank.db", service="bank")
    first = Snapshot("s", 5, "bank.Account", "a", 1, b"", b"one")
    for kept in (first, first._replace(version=4, state=b"older"), first._replace(version=6, state=b"newer")):
        await store.put_snapshot(kept)
    await store.close()
    store = await SqliteStore.open(tmp_path / "bank.db", service="bank")
    assert await store.snapshot("s") == first._replace(version=6, state=b"newer")
    await store.put_snapshot(first._replace(version=2, shape="b"))
    assert (await store.snapshot("s")) == first._replace(version=2, shape="b")
    assert await store.snapshot("t") is None
    await store.close()


async def test_what_does_not_exist_is_not_found_with_snapshots_either() -> None:
    """The errors are the same."""
    bank, account = Bank(every=1), Account("ada", 0)
    await bank.with_snapshots.save([account], {})
    await bank.snapshots.close()
    with pytest.raises(NotFound, match="is at version 1; there is no version 2"):
        await bank.with_snapshots.get(Account, account.id, version=2)
    with pytest.raises(NotFound, match="is a Account, not a Basket"):
        await bank.with_snapshots.get(Basket, account.id)
    with pytest.raises(NotFound, match="there is no Account"):
        await bank.with_snapshots.get(Account, uuid4())
    with pytest.raises(NotFound, match="did not exist at"):
        await bank.with_snapshots.get(Account, account.id, at=datetime.now(UTC) - timedelta(days=1))


def test_state_holds_enums_dataclasses_and_models_wherever_they_stand() -> None:
    """And gives them back as they were, without calling them."""
    card = Card(number="1", limit=Decimal("2.50"), owner=uuid4())
    state = {
        "a": [Colour.RED, (Level.HIGH, Address("x", Colour.BLUE, ("t",)))],
        "b": {Colour.BLUE: card},
        "c": {Address("y")},
        "d": frozenset({Colour.RED}),
    }
    back = thaw(freeze(state))
    assert back == state
    assert type(back["a"][1][0]) is Level
    assert back["b"][Colour.BLUE].model_fields_set == card.model_fields_set


@pytest.mark.parametrize("value", [object(), defaultdict(int), lambda: 1, print, subprocess.Popen])
def test_state_refuses_what_is_more_than_data(value: object) -> None:
    """Objects of other kinds, functions, classes."""
    with pytest.raises(EncodingError):
        freeze({"x": value})


@pytest.mark.parametrize("shared", [[1], {"x": 1}, {1}, Card(number="1", limit=Decimal(2), owner=uuid4())])
def test_state_refuses_what_would_come_back_as_two(shared: object) -> None:
    """One object under two names: a change of the one changes the other. What cannot be changed may be shared."""
    address = Address("x", tags=("t",))
    assert thaw(freeze({"a": address, "b": [address, 1.5, (address,)]}))["a"] == address
    with pytest.raises(EncodingError, match="stands in the state twice"):
        freeze({"a": shared, "b": (Address("y", tags=(shared,)),)})  # type: ignore[arg-type]


def test_a_snapshot_cannot_name_a_class_that_is_no_data() -> None:
    """What is stored can never make a program import or call something."""
    import msgpack

    for module, name in (("subprocess", "Popen"), ("not_imported_yet", "Thing"), ("os", "system")):
        forged = msgpack.ExtType(20, msgpack.packb([module, name, {}]))
        with pytest.raises(DecodingError, match=r"is gone|neither an enum"):
            thaw(msgpack.packb({"x": forged}))


async def test_closing_hears_that_it_was_cancelled() -> None:
    """A close that a timeout has cut short does not pretend to have come to its end."""
    asked = asyncio.Event()

    class Slow(MemoryStore):
        async def snapshot(self, stream: str) -> Snapshot | None:
            asked.set()
            await asyncio.Event().wait()
            return None

    bank = Bank(Slow(LogIdentity("bank", "main", new_incarnation())), every=1)
    await bank.without.save([account := Account("ada", 0)], {})
    bank.snapshots.saved(str(account.id), 0, 1)
    closing = asyncio.create_task(bank.snapshots.close())
    await asked.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
