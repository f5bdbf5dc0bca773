"""Filling a JetStream store from a backup: a stream that says that it is none yet, until it is complete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from evsync.errors import BrokerError, BrokerRefused, ConfigurationError, StoreFull, StoreUnavailable
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.refusals import SUBJECTS_OVERLAP, Refused
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.store import checkpoints
from evsync.jetstream.store.sends import Answer, Draft, Sender, draft_of
from evsync.jetstream.store.stream import MAX_COMMIT_EVENTS, StoreUrl, default_name, store_config
from evsync.jetstream.stream_settings import RESTORING_KEY, subjects
from evsync.ports import Arrived
from evsync.records import Checkpoint, LogIdentity, SlotRows, StoredEvent, check_name, new_command, new_incarnation
from evsync.stores.plan import check_follows

NO_SHARDS = (
    "a shard cannot be restored into a JetStream stream in this version: restore it into SQLite or PostgreSQL. Nothing "
    "was restored"
)
_ANSWER_S = 10.0


class JetStreamRestore:
    """Fills the stream of a JetStreamStore. Implements StoreRestore. Made by `begin`.

    The stream's metadata say that it is being restored, until the last step takes that away; a stream that says so is
    opened and followed by nobody.
    """

    @classmethod
    async def begin(
        cls,
        url: str,
        *,
        service: str,
        shard: str,
        slots: int,
        files: Mapping[str, Path] | None = None,
        patience_s: float = 10.0,
    ) -> JetStreamRestore:
        """Begin to fill the stream that the URL names, which must not be there yet.

        Raises ConfigurationError, StoreUnavailable.
        """
        check_name("service", service)
        check_name("shard", shard)
        parsed = StoreUrl.parse(url)
        conn = await Connection.open(NatsSettings(parsed.servers, **(files or {})), service)
        name = parsed.stream or default_name(service, shard)
        try:
            await conn.ready(patience_s)
            restore = cls(conn, name, LogIdentity(service, shard, "restoring", slots), parsed.replicas)
            await restore._begin()
        except BrokerError as e:
            await conn.close()
            raise StoreUnavailable(f"stream {name} at {conn.settings.shown} cannot be restored: {e}") from e
        except BaseException:
            await conn.close()
            raise
        return restore

    def __init__(self, conn: Connection, name: str, identity: LogIdentity, replicas: int) -> None:
        """For `begin`, which everybody else uses."""
        self.stream = name
        self._conn, self._identity, self._replicas = conn, identity, replicas
        self._form = MessageFormat(identity.name)
        self._sender = Sender(conn, name)
        self._tops: dict[str, int] = {}  # the greatest version of each aggregate's stream
        self._head = 0
        self._token = new_incarnation()  # of this restore: another one may have begun at the same name since
        self._completed = False

    async def _begin(self) -> None:
        state = await streams.info(self._conn, self.stream)
        if state is not None and not state.is_restoring:
            raise ConfigurationError(
                f"there is a stream {self.stream} already, and a restore makes a new store: nothing was touched. "
                "Restore to another ?stream=, or keep a copy of the old one (`nats stream backup`) and delete it."
            )
        await streams.delete(self._conn, self.stream)
        try:
            await self._conn.api(f"STREAM.CREATE.{self.stream}", self._config(self._identity, restoring=True))
        except BrokerRefused as e:
            if e.err_code != SUBJECTS_OVERLAP:
                raise
            other = await streams.occupant(self._conn, self._identity)
            raise ConfigurationError(
                f"the subjects {subjects(self._identity)} belong to stream {other.name if other else '?'}: the "
                "older store of this log, or the mirror that a relay fills. Nothing was touched. Keep a copy of it "
                "(`nats stream backup`) and delete it, or restore on another server."
            ) from e

    async def load(self, events: Sequence[StoredEvent]) -> None:
        """Store events behind those that were loaded before."""
        check_follows(self._head, events)
        for start in range(0, len(events), MAX_COMMIT_EVENTS):
            part = events[start : start + MAX_COMMIT_EVENTS]
            answer: Answer = None
            try:
                answer = await self._sender.batch([self._draft(e) for e in part], _ANSWER_S, behind=self._head)
            except BrokerError as e:
                raise StoreUnavailable(f"stream {self.stream} was not restored: {e}. Begin the restore again.") from e
            if answer != part[-1].position:
                raise self._failed(part, answer)
            self._head = part[-1].position

    async def import_events(self, arrived: Sequence[Arrived]) -> None:
        """Refused: what came with slots from other shards is not restored into a stream."""
        raise ConfigurationError(NO_SHARDS)

    async def complete(
        self, identity: LogIdentity, kept: Mapping[str, Sequence[Checkpoint]], slots: SlotRows | None = None
    ) -> None:
        """Store the checkpoints as events, and take away what says that the stream is being restored."""
        if slots is not None:
            raise ConfigurationError(NO_SHARDS)
        stored = [(follower, of_follower) for follower, of_follower in kept.items() if of_follower]
        await self.load([self._event_of(identity, n, item) for n, item in enumerate(stored, self._head + 1)])
        try:
            if not await self._is_mine():
                raise StoreUnavailable(
                    f"stream {self.stream} was not restored: another restore has begun there. Wait for it, or end it, "
                    "then begin again."
                )
            await self._conn.api(f"STREAM.UPDATE.{self.stream}", self._config(identity, restoring=False))
        except BrokerError as e:
            raise StoreUnavailable(
                f"stream {self.stream} is restored, and could not be told so: {e}. Begin the restore again."
            ) from e
        self._completed = True

    async def close(self) -> None:
        """Release everything, and take away what is not complete, as far as the server answers."""
        if not self._completed:
            with contextlib.suppress(BrokerError):
                await asyncio.shield(self._take_away())
        self._sender.close()
        await self._conn.close()

    async def _take_away(self) -> None:
        if await self._is_mine():
            await streams.delete(self._conn, self.stream)

    async def _is_mine(self) -> bool:
        state = await streams.info(self._conn, self.stream)
        return state is not None and state.metadata.get(RESTORING_KEY) == self._token

    def _config(self, identity: LogIdentity, *, restoring: bool) -> dict[str, object]:
        config = store_config(self.stream, identity, self._replicas)
        if restoring:
            config["metadata"] = {**config["metadata"], RESTORING_KEY: self._token}
        return config

    def _draft(self, event: StoredEvent) -> Draft:
        top = self._tops[event.stream] = max(self._tops.get(event.stream, 0), event.version)
        return draft_of(self._form, event, top)

    def _event_of(self, identity: LogIdentity, position: int, item: tuple[str, Sequence[Checkpoint]]) -> StoredEvent:
        follower, kept = item
        return checkpoints.event_of(
            follower, kept, identity, position, self._tops.get(checkpoints.stream_of(follower), 0) + 1, new_command()
        )

    def _failed(self, part: Sequence[StoredEvent], answer: Answer) -> StoreFull | StoreUnavailable:
        where = f"stream {self.stream} was not restored: positions {part[0].position} to {part[-1].position}"
        if isinstance(answer, Refused) and answer.is_full:
            return StoreFull(f"{where} found no room: {answer.text}. Make room, and begin the restore again.")
        what = (
            f"were refused: {answer.text}"
            if isinstance(answer, Refused)
            else "were not acknowledged"
            if answer is None
            else f"were stored up to sequence {answer}: somebody else writes to the stream"
        )
        return StoreUnavailable(f"{where} {what}. Begin the restore again.")
