"""What follows events through the public face: wait, query, log, status, reactions and their causes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from evsync import (
    Contract,
    Event,
    Halted,
    MemoryModel,
    NotVisible,
    Position,
    Projection,
    Reaction,
    Service,
    SqlModel,
    Tables,
    metadata,
)
from evsync.errors import ConfigurationError, OtherIncarnation, StreamAhead, StreamDiverged
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.server import EmbeddedServer
from evsync.records import command_of
from evsync.stores.sqlite.store import SqliteStore
from tests.relaying import connected, eventually
from tests.spine_services import Account, AccountMoved, AccountOpened, Note

pytestmark = pytest.mark.anyio

tables = sa.MetaData()
balances = sa.Table("balances", tables, sa.Column("id", sa.String, primary_key=True), sa.Column("cents", sa.Integer))
others = sa.Table("others", sa.MetaData(), sa.Column("id", sa.String, primary_key=True))


def showing(name: str = "balances", **options: Any) -> Projection[Tables]:
    """A projection of the bank's accounts that does not take to the token "bad"."""
    projection = Projection(name, model=SqlModel(tables), **options)

    @projection.on(AccountMoved)
    def moved(e: Event[AccountMoved], db: Tables) -> None:
        db.increment(balances, id=e.stream_id, cents=e.data.amount)
        if e.data.token == "bad":
            raise ValueError("not to my taste")

    return projection


def pair(
    *projections: Projection[Any], reactions: tuple[Reaction, ...] = ()
) -> tuple[Service, Service, dict[str, Any]]:
    """A bank, a desk that follows it in the same process, and how to open the desk."""
    bank = Service("bank", aggregates=[Account], store="memory://")
    desk = Service("desk", aggregates=[Note], projections=projections, reactions=reactions, store="memory://")
    return bank, desk, {"views": "sqlite://", "sources": {"bank": bank}}


async def moved(bank: Service, id: str, amount: int, token: str = "t") -> Position:
    """Save a new account that was moved once."""
    account = Account(id, f"owner of {id}")
    account.move(amount, token)
    return await bank.save(account)


# ---- wait and query


@pytest.mark.parametrize(
    "select",
    [
        sa.select(balances.c.id),
        sa.select(balances.alias("b").c.id),
        sa.select(sa.select(balances.c.id).subquery().c.id),
        sa.select(sa.select(balances.c.id).cte("x").c.id),
        sa.select(sa.select(sa.func.max(balances.c.id)).scalar_subquery()),
        sa.select(sa.literal("ada")).where(sa.exists().where(balances.c.id == "ada")),
        sa.select(sa.func.max(balances.c.id)),
        sa.select(sa.literal("ada")).select_from(balances),
    ],
    ids=["columns", "alias", "subquery", "cte", "scalar subquery", "exists", "aggregate", "from"],
)
async def test_a_query_finds_out_itself_which_projection_to_wait_for(select: Any) -> None:
    """Wherever in the select the table stands: what was just written is in the rows."""
    bank, desk, where = pair(showing())
    async with bank.open(), desk.open(**where):
        rows = await desk.query(select, after=await moved(bank, "ada", 5))
        assert rows.scalars().all() == ["ada"]


async def test_a_query_that_no_projection_stands_behind_cannot_wait() -> None:
    """Without a position it is answered; with one there is nothing to wait for, and that is an error."""
    bank, desk, where = pair(showing())
    async with bank.open(), desk.open(**where):
        position = await moved(bank, "ada", 5)
        await desk.wait(position)
        assert (await desk.query(sa.select(sa.literal(1)))).scalar_one() == 1
        for select in (sa.select(sa.literal(1)), sa.select(others)):
            with pytest.raises(ConfigurationError, match="no projection behind this select reads"):
                await desk.query(select, after=position)
        with pytest.raises(ConfigurationError, match="no projection with tables to query"):
            await bank.query(sa.select(balances))
        with pytest.raises(ConfigurationError, match=r"'desk' reads the log of ghost\.main:x:1"):
            await desk.wait(Position("ghost.main", "x", 1))
        with pytest.raises(NotVisible, match="nothing of that log is visible yet"):  # it may be a shard that joins
            await desk.wait(Position("bank.west", "x", 1), timeout_s=0.01)
        with pytest.raises(ConfigurationError, match="is not a projection of service 'desk'"):
            await desk.wait(position, showing())
        with pytest.raises(OtherIncarnation, match="restored from a backup"):
            await desk.wait(Position("bank.main", "x", 1))
        with pytest.raises(NotVisible, match="1 events short of 3") as late:
            await desk.wait(bank.runtime.store.identity.at(3), timeout_s=0.01)
        assert isinstance(late.value, TimeoutError)
        await desk.wait(bank.runtime.store.identity.at(0), timeout_s=0)


async def test_a_halted_projection_is_told_at_once_to_whoever_waits() -> None:
    """Before and after: wait, query, state and serve; status names type, stream and position. Others go on."""
    model: MemoryModel[dict[str, int]] = MemoryModel(dict)
    other = Projection("other", model=model)

    @other.on(AccountMoved)
    def count(e: Event[AccountMoved], counts: dict[str, int]) -> None:
        counts[e.stream_id] = e.position.number

    view = showing(retries=0)
    bank, desk, where = pair(view, other)
    async with asyncio.timeout(20), bank.open(), desk.open(**where):
        await desk.wait(await moved(bank, "ada", 5))
        waiting = asyncio.create_task(desk.wait(bank.runtime.store.identity.at(99), view, timeout_s=3600))
        await eventually(lambda: desk.runtime.projections["balances"]._visibility._waiters, "the wait begun")
        position = await moved(bank, "bob", 5, "bad")
        with pytest.raises(Halted):
            await waiting
        for operation in (
            lambda: desk.wait(position, timeout_s=3600),
            lambda: desk.query(sa.select(balances), after=position, timeout_s=3600),
            desk.serve,
        ):
            with pytest.raises(Halted, match="not to my taste") as halted:
                await operation()
            assert (halted.value.event_type, halted.value.stream) == ("bank.Account.Moved", "bob")
            assert (halted.value.position, halted.value.version, halted.value.follower) == (4, 2, "balances")
        assert (await desk.query(sa.select(balances))).all() == [("ada", 5)]
        await desk.wait(position, other)
        assert desk.state(model) == {"ada": 2, "bob": 4}
        found = {f.name: f for f in (await desk.status()).followers}
        assert (found["balances"].state, found["other"].state) == ("halted", "running")
        assert "bank.Account.Moved (version 2 of stream 'bob')" in str(found["balances"].reason)
        assert [(log.position, log.head, log.lag_events) for log in found["balances"].logs] == [(2, 4, 2)]


async def test_a_halt_is_noted_for_other_processes_even_if_this_one_ends_at_once(tmp_path: Path) -> None:
    """`serve()` ends the process as soon as it sees the halt, while the projection may still wait for its turn to
    write the note and to give its place back."""
    view, release = showing(retries=0), asyncio.Event()
    bank, desk, where = pair(view)
    where["views"] = f"sqlite:///{tmp_path}/views.db"
    loop, holding = asyncio.get_running_loop(), []

    async def hold() -> None:
        async with desk.runtime.projections["balances"]._lock:  # as a batch of another log does
            await release.wait()

    @view.on(AccountOpened)
    def opened(e: Event[AccountOpened], db: Tables) -> None:
        if e.stream_id == "bob":  # its other event fails
            loop.call_soon_threadsafe(lambda: holding.append(loop.create_task(hold())))

    async with bank.open():
        opening = desk.open(**where)
        await opening.__aenter__()
        runner = desk.runtime.projections["balances"]
        position = await moved(bank, "bob", 5, "bad")
        await eventually(lambda: runner.halted, "the halt")
        closing = asyncio.create_task(opening.__aexit__(None, None, None))
        for _ in range(5):
            await asyncio.sleep(0)
        release.set()
        await closing
        async with asyncio.timeout(20), desk.open(**where, run="none"):
            with pytest.raises(Halted, match="not to my taste"):
                await desk.wait(position, timeout_s=3600)


# ---- log, history, metadata


async def test_the_log_is_followed_from_any_position() -> None:
    """Everything once, in commit order; what is saved later comes as it is saved."""
    bank = Service("bank", aggregates=[Account])
    async with bank.open(store="memory://"):
        first = await moved(bank, "ada", 1)
        assert [e.position.number async for e in bank.log()] == [1, 2]
        assert [e async for e in bank.log(after=first)] == []
        seen: list[int] = []

        async def follow() -> None:
            async for e in bank.log(after=first, follow=True):
                seen.append(e.position.number)  # noqa: PERF401  (what came so far is to be seen)

        following = asyncio.create_task(follow())
        for n in range(3):
            await moved(bank, f"a{n}", 1)
            await eventually(partial(_has, seen, 2 * (n + 1)), "what was saved")
        assert seen == [3, 4, 5, 6, 7, 8]
        for other in (Position("bank.main", "x", 1), Position("cash.main", first.incarnation, 1)):
            with pytest.raises(ConfigurationError, match=r"is not a position of log 'bank\.main'"):
                await anext(bank.log(after=other))
    await asyncio.wait_for(following, 10)


def _has(items: list[int], count: int) -> bool:
    return len(items) == count


async def test_tags_reach_the_events_saved_inside_and_no_others() -> None:
    """Nested blocks add and replace; a task takes the tags of where it was started; none leak."""
    bank = Service("bank", aggregates=[Account])
    async with bank.open(store="memory://"):
        with metadata(actor="ada", tenant="x"):
            started = asyncio.create_task(moved(bank, "task", 1))
            with metadata(actor="bob"):
                await moved(bank, "inner", 1)
            await moved(bank, "outer", 1)
            await bank.execute(Account, "outer", Account.move, 1, "t")
        await moved(bank, "plain", 1)
        await started
        found = {
            id: [e.metadata for e in await bank.history(Account, id)] for id in ("task", "inner", "outer", "plain")
        }
    ada, bob = {"actor": "ada", "tenant": "x"}, {"actor": "bob", "tenant": "x"}
    assert found == {"task": [ada] * 2, "inner": [bob] * 2, "outer": [ada] * 3, "plain": [{}] * 2}


async def test_history_tells_what_happened_with_its_data() -> None:
    """Types, versions, positions, times and unique ids; one commit's events share their command."""
    bank = Service("bank", aggregates=[Account])
    async with bank.open(store="memory://"):
        before = datetime.now(UTC)
        position = await moved(bank, "ada", 5, "t")
        opened, changed = await bank.history(Account, "ada")
        assert (opened.type, opened.data, opened.version) == ("bank.Account.Opened", {"owner": "owner of ada"}, 1)
        assert (changed.type, changed.data) == ("bank.Account.Moved", {"amount": 5, "token": "t"})
        assert (changed.position, changed.stream_id) == (position, "ada")
        assert before <= opened.time <= changed.time <= datetime.now(UTC)
        assert opened.id != changed.id
        assert command_of(opened.id.bytes) == command_of(changed.id.bytes)


# ---- reactions


class NoteTaken(Contract, type="desk.Note.Taken"):
    """A note of the desk's."""

    token: str


async def test_a_chain_of_reactions_carries_correlation_and_causation(nats_server: EmbeddedServer) -> None:
    """From a command in one service over a reaction in another to a reaction to that: one correlation id, and each
    event names the one that caused it."""
    note_it, note_the_note = Reaction("first", since="beginning"), Reaction("second", since="beginning")

    @note_it.on(AccountOpened)
    async def first(e: Event[AccountOpened], desk: Service) -> Note:
        return Note(e.stream_id, "first")

    @note_the_note.on(NoteTaken)
    async def second(e: Event[NoteTaken], desk: Service) -> Note | None:
        return Note(e.stream_id, "second") if e.data.token == "first" else None

    bank, desk, _ = pair(reactions=(note_it, note_the_note))
    async with bank.open(nats=nats_server.url), desk.open(nats=nats_server.url):
        with metadata(actor="ada", correlation_id="request 7 ✓"):
            await bank.save(Account("ada", "o"))
        await bank.save(Account("bob", "o"))
        causes = [e async for e in bank.log()]

        async def chained() -> list[Event[Any]]:
            events = [e async for e in desk.log()]
            return events if len(events) == 4 else []

        notes = await eventually(chained, "two chains of two notes")
        for cause, correlation in zip(
            causes, ("request 7 ✓", str(UUID(bytes=command_of(causes[1].id.bytes)))), strict=True
        ):
            [one] = [n for n in notes if n.data == {"account": cause.stream_id, "token": "first"}]
            [two] = [n for n in notes if n.data == {"account": one.stream_id, "token": "second"}]
            for note, before, reaction in ((one, cause, "first"), (two, one, "second")):
                assert note.metadata["reaction"].startswith(f"{reaction} {before.position.log} ")
                tags = {"correlation_id": correlation, "causation_id": str(before.id)}
                assert note.metadata == tags | {"reaction": note.metadata["reaction"]}


async def test_a_reaction_that_saves_and_executes_itself_tags_what_it_causes() -> None:
    """The service that a handler is given is the open one; its saves carry the cause too."""
    answer = Reaction("answer", since="beginning")

    @answer.on(AccountOpened)
    async def react(e: Event[AccountOpened], desk: Service) -> None:
        await desk.save(note := Note(e.stream_id, "saved"))
        assert (await desk.get(Note, note.id)).account == e.stream_id

    bank, desk, where = pair(reactions=(answer,))
    async with bank.open(), desk.open(**where):
        await bank.save(Account("ada", "o"))
        [cause] = [e async for e in bank.log()]

        async def saved() -> list[Event[Any]]:
            return [e async for e in desk.log()]

        [event] = await eventually(saved, "the note")
        assert event.metadata["causation_id"] == str(cause.id)
        assert event.metadata["correlation_id"] == str(UUID(bytes=command_of(cause.id.bytes)))


async def test_a_reaction_that_raises_halts_with_its_place_and_resumes_there(tmp_path: Path) -> None:
    """What it answered before is kept, and nothing is answered twice."""
    answer, closed = Reaction("answer", since="beginning", retries=1), ["bob"]

    @answer.on(AccountOpened)
    async def react(e: Event[AccountOpened], desk: Service) -> Note:
        if e.stream_id in closed:
            raise RuntimeError("the post office is closed")
        return Note(e.stream_id, "t")

    bank, _, _ = pair()
    desk = Service("desk", aggregates=[Note], reactions=[answer], store=f"sqlite:///{tmp_path}/desk.db")

    async def answered() -> list[str]:
        return [e.data["account"] async for e in desk.log()]

    async with bank.open():
        for id in ("ada", "bob", "eve"):
            await bank.save(Account(id, "o"))
        async with desk.open(sources={"bank": bank}):
            with pytest.raises(Halted, match="the post office is closed") as halted:
                await desk.serve()
            assert (halted.value.follower, halted.value.position, halted.value.stream) == ("answer", 2, "bob")
            assert await answered() == ["ada"]
        closed.clear()
        async with desk.open(sources={"bank": bank}):

            async def all_of_them() -> bool:
                return await answered() == ["ada", "bob", "eve"]

            await eventually(all_of_them, "the other two answered")


# ---- status


async def test_the_status_tells_how_far_everybody_is(nats_server: EmbeddedServer) -> None:
    """Heads, positions, lags, and what is waited for, whether it runs here or elsewhere or not at all."""
    bank, desk, _ = pair(showing())
    async with desk.open(views="sqlite://", nats=nats_server.url):

        async def waiting() -> bool:
            status = await desk.status()
            return list(status.followers[0].waiting_for) == ["bank"]

        await eventually(waiting, "the bank waited for")
        async with bank.open(nats=nats_server.url):
            position = await moved(bank, "ada", 5)
            await desk.wait(position)
            status = await desk.status()
            [follower] = status.followers
            assert (status.service, list(status.logs), status.nats) == ("desk", ["desk.main"], nats_server.url)
            assert status.logs["desk.main"].head == 0
            assert (follower.state, follower.reason, list(follower.waiting_for)) == ("running", None, [])
            assert [(log.log, log.position, log.head) for log in follower.logs] == [("bank.main", 2, 2)]
            of_bank = (await bank.status()).logs["bank.main"]
            assert of_bank.relay is not None
            assert (of_bank.head, of_bank.relay.confirmed, of_bank.relay.lag, of_bank.relay.reason) == (2, 2, 0, "")
            nats_server.stop()
            await moved(bank, "bob", 5)

            async def behind() -> bool:
                relay = (await bank.status()).logs["bank.main"].relay
                assert relay is not None
                return relay.lag == 2 and bool(relay.reason)

            await eventually(behind, "the relay's lag, and why")
            assert "not connected" in str((await bank.status()).nats)
            assert (await desk.status()).followers[0].logs[0].head is None
            nats_server.restart()
            await desk.wait(bank.runtime.store.identity.at(4), timeout_s=15)


# ---- a relay inside an application


async def test_a_relay_that_halts_inside_an_application_goes_on_by_itself_after_the_mend(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Saves go on meanwhile; the status says what to do."""
    bank = Service("bank", aggregates=[Account], store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url)
    async with bank.open(), connected(nats_server.url, "stranger") as conn:
        relay = bank.runtime.relay
        assert relay is not None
        relay._policy = replace(relay._policy, look_s=0.1)
        await moved(bank, "ada", 5)
        await eventually(lambda: relay.confirmed == 2, "the events published")
        await conn.request("evsync.bank.main.7.Account.Moved.ada", b"boo", timeout_s=5)
        position = await moved(bank, "bob", 5)
        await eventually(lambda: relay.halted, "the relay halted")
        status = (await bank.status()).logs["bank.main"].relay
        assert status is not None
        assert "sequence 3" in status.reason
        assert "`evsync stream rebuild`" in status.reason
        assert (await rebuild_stream(bank.runtime.store, conn)).ok
        await eventually(lambda: relay.halted is None and relay.confirmed == position.number, "the relay at work again")


async def test_a_rebuild_does_not_destroy_what_the_store_has_forgotten(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """A store that was put back to an older copy, and written to since beyond the stream's end: the stream holds the
    only copy of the events between, and nothing deletes it without being told."""
    url, file = f"sqlite:///{tmp_path}/bank.db", tmp_path / "bank.db"
    bank = Service("bank", aggregates=[Account], store=url, nats=nats_server.url)

    async def published(*ids: str) -> None:
        async with bank.open():
            for id in ids:
                position = await moved(bank, id, 5)
            relay = bank.runtime.relay
            assert relay is not None
            await eventually(lambda: relay.confirmed == position.number, "the events published")

    await published("ada")
    copy = file.read_bytes()
    await published("bob", "cyd")
    file.write_bytes(copy)
    async with bank.open(), connected(nats_server.url, "bank") as conn:
        for id in ("dan", "eve", "fay"):
            await moved(bank, id, 5)
        relay, store = bank.runtime.relay, bank.runtime.store
        assert relay is not None
        assert isinstance(store, SqliteStore)
        await eventually(lambda: relay.halted, "the relay halted")
        assert isinstance(relay.halted, (StreamAhead, StreamDiverged))  # it may have looked before the saves
        assert relay.halted.values["position"] == 3
        for _ in range(2):  # also when a stranger's message stands at the end
            with pytest.raises(StreamDiverged, match="put back to an earlier state"):
                await rebuild_stream(store, conn)
            await conn.request("evsync.bank.main.7.Account.Moved.ada", b"boo", timeout_s=5)
        assert (await rebuild_stream(store, conn, allow_loss=True)).ok
