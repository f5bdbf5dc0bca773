"""The relay beside others: foreign publishers, operators, other relays, stores that were put back, other logs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from evsync.errors import (
    BrokerRefused,
    ConfigurationError,
    OtherIncarnation,
    StreamAhead,
    StreamDiverged,
    StreamMisconfigured,
)
from evsync.jetstream import streams
from evsync.jetstream.flight import Flight
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.relay import RelayState
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import check_config, stream_config, stream_name
from evsync.jetstream.verification import check_stream
from evsync.records import LogIdentity
from evsync.stores.memory import MemoryStore
from tests.relaying import (
    assert_mirrored,
    caught_up,
    connected,
    eventually,
    halted,
    mirrored_again,
    new_log,
    relaying,
    save,
)

pytestmark = pytest.mark.anyio

FOREIGN = "evsync.users.main.7.User.Renamed.ada"


def shortened(log: MemoryStore, length: int) -> MemoryStore:
    """The store put back to an earlier state: the same log, ended after `length` events."""
    earlier = MemoryStore(log.identity)
    for event in log._log[:length]:
        earlier._log.append(event)
        earlier._streams.setdefault(event.stream, []).append(event)
    earlier._tail.moved(length)
    return earlier


def restored(log: MemoryStore, incarnation: str) -> MemoryStore:
    """The same history in a store of a new incarnation, as a restore from a backup makes it."""
    copy = shortened(log, len(log._log))
    copy.identity = LogIdentity("users", "main", incarnation)
    return copy


@pytest.mark.parametrize("headers", [{}, {"evsync": "1 x 11 1 0", "ce-id": "7"}], ids=["bare", "imitated"])
async def test_a_foreign_message_halts_an_idle_relay_until_the_rebuild(
    nats_server: EmbeddedServer, headers: dict[str, str]
) -> None:
    """The error names the sequence and says how to mend it; nothing of the log is lost."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, await save(log, 10))
        await conn.request(FOREIGN, b"I am not an event", timeout_s=5, headers=headers)
        error = await halted(relay)
        assert isinstance(error, StreamDiverged)
        assert error.values["position"] == 11
        assert all(words in str(error) for words in ("no relay published", "Allow only", "evsync stream rebuild"))
        report = await check_stream(log, conn)
        assert [type(p) for p in report.problems] == [StreamDiverged]
        await save(log, 10)  # saves go on meanwhile
        assert relay.halted is error
        assert (await rebuild_stream(log, conn)).ok
        await caught_up(relay, await save(log, 10))
        await assert_mirrored(log, conn)


async def test_a_foreign_message_behind_the_last_event_does_not_hinder_the_rebuild(nats_server: EmbeddedServer) -> None:
    """The stream reaches beyond the log, but not with events of the log: nothing would be lost."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, await save(log, 10))
        await conn.request(FOREIGN, b"I am not an event", timeout_s=5)
        await halted(relay)
        assert (await rebuild_stream(log, conn)).ok
        await caught_up(relay, await save(log, 10))
        await assert_mirrored(log, conn)


async def test_foreign_messages_in_mid_stream_take_no_event_with_them(nats_server: EmbeddedServer) -> None:
    """Whatever the moment: event n is at n, or the relay halts and names the first that is not."""
    log = new_log()
    async with (
        connected(nats_server.url) as conn,
        connected(nats_server.url, "intruder") as intruder,
        relaying(log, conn, window=50) as relay,
    ):
        await save(log, 3000)
        await eventually(lambda: relay.confirmed > 500, "the relay at work")
        for _ in range(5):
            intruder.publish(FOREIGN, "", b"", b"boo")
        error = await halted(relay)
        assert isinstance(error, StreamDiverged)
        report = await check_stream(log, conn)
        assert report.problems[0].values["position"] == error.values["position"]
        assert (await rebuild_stream(log, conn)).ok
        await mirrored_again(log, conn)


@pytest.mark.parametrize("pumping", [False, True], ids=["while idle", "in mid-stream"])
async def test_a_deleted_stream_is_made_anew_and_filled_again(nats_server: EmbeddedServer, pumping: bool) -> None:
    """The server says for certain that there is none: the log has everything."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn, window=50) as relay:
        await save(log, 2000)
        await eventually(lambda: relay.confirmed > (300 if pumping else 1999), "the relay at work")
        created = (await streams.ensure(conn, log.identity)).created
        await streams.delete(conn, stream_name(log.identity))

        async def anew() -> bool:
            state = await streams.info(conn, stream_name(log.identity))
            return state is not None and state.created != created

        await eventually(anew, "the stream made anew")
        await mirrored_again(log, conn)
        await caught_up(relay, await save(log, 10))
        await assert_mirrored(log, conn)


async def test_messages_cannot_be_deleted_or_purged(nats_server: EmbeddedServer) -> None:
    """The stream refuses what would make holes."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, await save(log, 10))
        name = stream_name(log.identity)
        for api, body in ((f"STREAM.MSG.DELETE.{name}", {"seq": 5}), (f"STREAM.PURGE.{name}", {})):
            with pytest.raises(BrokerRefused):
                await conn.api(api, body)
        await assert_mirrored(log, conn)


@pytest.mark.parametrize(
    ("setting", "value", "company"),
    [
        ("subjects", ["evsync.users.main.>", "other"], {}),
        ("retention", "interest", {}),
        ("storage", "memory", {}),
        ("discard", "old", {}),
        ("no_ack", True, {}),
        ("deny_delete", False, {}),
        ("deny_purge", False, {}),
        ("allow_rollup_hdrs", True, {"deny_purge": False}),
        ("allow_direct", False, {}),
        ("duplicate_window", 120_000_000_000, {}),
        ("sources", [{"name": "elsewhere"}], {}),
        ("subject_transform", {"src": "evsync.users.main.>", "dest": "evsync.users.main.x.>"}, {}),
        ("max_msgs_per_subject", 5, {}),
        ("allow_msg_ttl", True, {}),
        (
            "subject_delete_marker_ttl",
            60_000_000_000,
            {"allow_msg_ttl": True, "deny_purge": False, "allow_rollup_hdrs": True},
        ),
        (
            "allow_msg_schedules",
            True,
            {"allow_msg_ttl": True, "deny_purge": False, "allow_rollup_hdrs": True, "discard": "old"},
        ),
        ("allow_msg_counter", True, {"discard": "old"}),
        ("persist_mode", "async", {}),
        ("metadata", {}, {}),
    ],
)
async def test_a_stream_with_settings_that_break_the_law_is_refused(
    nats_server: EmbeddedServer, setting: str, value: Any, company: dict[str, Any]
) -> None:
    """The error names the setting, what it is and what it must be; nothing is published.

    `company` is what the server asks for beside the setting; the pure check that follows does without.
    """
    log = new_log()
    await save(log, 3)
    good = stream_config(log.identity)
    async with connected(nats_server.url) as conn:
        await conn.api(f"STREAM.CREATE.{good['name']}", good | company | {setting: value})
        async with relaying(log, conn) as relay:
            error = await halted(relay)
            assert isinstance(error, StreamMisconfigured)
            named = str(error.values["setting"])
            assert named.split(" ", maxsplit=1)[0] in {setting, *company}
            assert f"{named} = {error.values['found']!r} where evsync needs {error.values['wanted']!r}" in str(error)
            state = await streams.info(conn, good["name"])
            assert state is not None
            assert state.last == 0
    check_config(good, log.identity)
    with pytest.raises(StreamMisconfigured, match=f"has {setting}"):
        check_config(good | {setting: value}, log.identity)


async def test_a_setting_changed_while_the_relay_runs_halts_it_until_it_is_put_back(
    nats_server: EmbeddedServer,
) -> None:
    """An idle relay looks at the stream now and then, a halted one too."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, await save(log, 10))
        config = dict((await streams.ensure(conn, log.identity)).config)
        await conn.api(f"STREAM.UPDATE.{config['name']}", config | {"discard": "old", "max_msgs": 1000})
        error = await halted(relay)
        assert isinstance(error, StreamMisconfigured)
        assert error.values["setting"] == "discard"
        await conn.api(f"STREAM.UPDATE.{config['name']}", config)
        await caught_up(relay, await save(log, 10))
        await assert_mirrored(log, conn)


async def test_a_store_put_back_to_an_earlier_state_is_noticed(nats_server: EmbeddedServer) -> None:
    """The stream holds what the store forgot: nothing is published over it, and no rebuild destroys it by accident."""
    log = new_log()
    async with connected(nats_server.url) as conn:
        async with relaying(log, conn) as relay:
            await caught_up(relay, await save(log, 100))
        earlier = shortened(log, 60)
        async with relaying(earlier, conn) as relay:
            error = await halted(relay)
            assert isinstance(error, StreamAhead)
            assert error.values["position"] == 61
            assert "--allow-loss" in str(error)
            with pytest.raises(StreamAhead):
                await rebuild_stream(earlier, conn)
            await assert_mirrored(log, conn)
            assert (await rebuild_stream(earlier, conn, allow_loss=True)).ok
            await mirrored_again(earlier, conn)


@pytest.mark.parametrize("beyond", [-10, 0, 50], ids=["shorter than", "as long as", "longer than"])
async def test_a_store_put_back_and_written_since_is_noticed(nats_server: EmbeddedServer, beyond: int) -> None:
    """Two histories are never spliced, whatever their lengths: the error names the first position that differs."""
    log = new_log()
    async with connected(nats_server.url) as conn:
        async with relaying(log, conn) as relay:
            await caught_up(relay, await save(log, 100))
        other = shortened(log, 60)
        await save(other, 40 + beyond)
        async with relaying(other, conn) as relay:
            error = await halted(relay)
            assert isinstance(error, StreamDiverged)
            assert error.values["position"] == 61
            await assert_mirrored(log, conn)


async def test_the_stream_of_an_ancestor_is_replaced(nats_server: EmbeddedServer) -> None:
    """A restored log that holds everything the old stream does takes its subjects over."""
    log = new_log("aaaaaaaaaaaa")
    async with connected(nats_server.url) as conn:
        async with relaying(log, conn) as relay:
            await caught_up(relay, await save(log, 100))
        descendant = restored(log, "bbbbbbbbbbbb")
        await save(descendant, 20)
        async with relaying(descendant, conn) as relay:
            await caught_up(relay, 120)
            await assert_mirrored(descendant, conn)
        [found] = await streams.find(conn, "users")
        assert found.identity == descendant.identity


async def test_a_relay_of_another_incarnation_publishes_nothing_into_the_new_stream(
    nats_server: EmbeddedServer,
) -> None:
    """Even where that ends at the very sequence from which the old relay goes on, under the same subjects."""
    log = new_log("aaaaaaaaaaaa")
    async with connected(nats_server.url) as conn:
        async with relaying(log, conn) as relay:
            await caught_up(relay, await save(log, 10))
        descendant = restored(log, "bbbbbbbbbbbb")
        async with relaying(descendant, conn) as relay:
            await caught_up(relay, 10)
        old = Flight(conn, MessageFormat("users.main"), stream_name(log.identity), after=10, epoch=conn.epoch)
        await save(log, 1)
        old.send(await log.read(10, 1))
        await old.until(11, 5)
        old.close()
        assert old.fault is not None
        assert old.confirmed == 10
        await assert_mirrored(descendant, conn)


async def test_the_stream_of_another_history_is_not_replaced(nats_server: EmbeddedServer) -> None:
    """Two services under one name, or a store that was thrown away: a person decides."""
    log, stranger = new_log(), new_log()
    async with connected(nats_server.url) as conn:
        async with relaying(log, conn) as relay:
            await caught_up(relay, await save(log, 10))
        await save(stranger, 20)
        async with relaying(stranger, conn) as relay:
            error = await halted(relay)
            assert isinstance(error, OtherIncarnation)
            assert log.identity.incarnation in str(error)
            with pytest.raises(OtherIncarnation):
                await rebuild_stream(stranger, conn)
            await assert_mirrored(log, conn)
            assert (await rebuild_stream(stranger, conn, allow_loss=True)).ok
            await mirrored_again(stranger, conn)


async def test_subjects_that_another_stream_captures_are_not_taken(nats_server: EmbeddedServer) -> None:
    """The error names that stream; the relay goes on when the subjects are free."""
    log = new_log()
    await save(log, 10)
    async with connected(nats_server.url) as conn:
        await conn.api("STREAM.CREATE.everything", {"name": "everything", "subjects": ["evsync.>"]})
        with pytest.raises(ConfigurationError, match="everything"):
            await rebuild_stream(log, conn)
        async with relaying(log, conn) as relay:
            error = await halted(relay)
            assert isinstance(error, ConfigurationError)
            assert "stream everything captures" in str(error)
            await streams.delete(conn, "everything")
            await caught_up(relay, 10)
            await assert_mirrored(log, conn)


async def test_of_two_relays_one_stands_by_and_takes_over(nats_server: EmbeddedServer) -> None:
    """Together they publish each event once; when the one that works ends, the other goes on."""
    log = new_log()
    await save(log, 500)
    async with connected(nats_server.url) as conn, connected(nats_server.url) as other:
        async with relaying(log, conn) as second:
            async with relaying(log, other) as first:
                for _ in range(200):
                    await save(log, 5)
                    await asyncio.sleep(0)
                await eventually(
                    lambda: {first.state, second.state} == {RelayState.PUMP, RelayState.STANDBY}, "one stands by"
                )
                await caught_up(first, 1500)
                await caught_up(second, 1500)
                await assert_mirrored(log, conn)
            await caught_up(second, await save(log, 100))
            assert second.state is RelayState.PUMP
        await assert_mirrored(log, conn)


def with_user(subjects: str) -> str:
    """Configuration of a server whose only user may publish to these subjects, beside JetStream's own."""
    return f"""
    authorization {{ users: [ {{ user: u, password: geheim, permissions: {{
        publish: {{ allow: ["$JS.API.>", "{subjects}"] }}, subscribe: {{ allow: ["_INBOX_users.>"] }}
    }} }} ] }}
    """


async def test_permissions_that_forbid_publishing_are_told(tmp_path: Path) -> None:
    """The server's words stand in the status, the password never does, and the relay goes on when it may."""
    log = new_log()
    await save(log, 10)
    with EmbeddedServer.start(tmp_path, extra_config=with_user("nothing")) as server:
        url, port = server.url.replace("nats://", "nats://u:geheim@"), int(server.url.rpartition(":")[2])
        async with connected(url) as conn, relaying(log, conn) as relay:
            await eventually(lambda: "Permissions Violation" in relay.status().reason, "the reason")
            assert 'Publish to "evsync.users.main.' in relay.status().reason
            assert "geheim" not in relay.status().reason + repr(conn)
            server.stop()
            with EmbeddedServer.start(tmp_path, port=port, extra_config=with_user("evsync.users.main.>")):
                await caught_up(relay, 10)
                await assert_mirrored(log, conn)
