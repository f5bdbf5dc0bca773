"""Imports beside a stream that is the store: a stream of their own, copies of events that were appended elsewhere.

A message is the event as its own log's message would be, with the version behind the subject and one line more: what
has arrived of its slot with it. A message expects that the slot's last one is what the importer believes, so imports
are a compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evsync.errors import DecodingError, WrongStore
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import parse_headers
from evsync.jetstream.client.gets import Stored, leader_get
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.store.reads import StreamReads
from evsync.jetstream.store.sends import Draft, Sender, expectation, stored
from evsync.jetstream.store.stream import MAX_COMMIT_EVENTS, REQUIRED
from evsync.jetstream.stream_settings import metadata_of, name_beside
from evsync.records import History, LogIdentity, StoredEvent

ROOT = "evsync-imports"
_ARRIVED = "evsync-arrived"
_ANSWER_S = 2.0


class _Arrival(NamedTuple):
    """The last import of a slot."""

    sequence: int
    history: History


class ImportStream:
    """The imports of one store. The JetStream stream is made with the first of them."""

    def __init__(self, conn: Connection, identity: LogIdentity, replicas: int) -> None:
        self.name = name_beside(identity.service, identity.shard, "imports")
        self._conn, self._identity, self._replicas = conn, identity, replicas
        self._form = MessageFormat(identity.name, ROOT)
        self.reads = _ImportReads(conn, self.name, identity, self._form)
        """Of streams' imports: of a slot that has some."""
        self._sender = Sender(conn, self.name)

    def close(self) -> None:
        """Listen no more."""
        self.reads.close()
        self._sender.close()

    async def arrived(self, slot: int) -> History:
        """What has arrived of a slot, as the stream's leader knows it."""
        return (await self._last(slot)).history

    async def bring(self, events: Sequence[StoredEvent], expected: Mapping[int, History]) -> bool:
        """Store copies, if what is expected is what has arrived of their slots. Raises BrokerError, EncodingError,
        EventTooLarge."""
        await self._ensure()
        for start in range(0, len(events), MAX_COMMIT_EVENTS):
            part = events[start : start + MAX_COMMIT_EVENTS]
            slots = list(dict.fromkeys(e.slot for e in part))
            found = dict(zip(slots, await asyncio.gather(*map(self._last, slots)), strict=True))
            if any(found[slot].history != expected[slot] for slot in slots):
                return False
            expected = {**expected, **await self._publish(part, found)}
        return True

    async def _publish(self, events: Sequence[StoredEvent], after: Mapping[int, _Arrival]) -> Mapping[int, History]:
        """Publish one batch; what has arrived then. Raises BrokerUnavailable where it has to be looked at again."""
        histories = {slot: arrival.history for slot, arrival in after.items()}
        drafts: list[Draft] = []
        begun: set[int] = set()
        for event in events:
            subject, lines, body = self._form.encode(event)
            history = histories[event.slot] = histories[event.slot].with_ids((event.id,))
            lines += f"{_ARRIVED}: {history.length} {history.digest}\r\n".encode()
            if event.slot not in begun:
                begun.add(event.slot)
                lines += expectation(after[event.slot].sequence, self._filter(event.slot))
            drafts.append(Draft(event, f"{subject}.{event.version}", lines, body))
        stored(await self._sender.batch(drafts, _ANSWER_S), f"imports into stream {self.name}")
        return histories

    async def _last(self, slot: int) -> _Arrival:
        message = await leader_get(
            self._conn, self.name, {"last_by_subj": self._filter(slot)}, timeout_s=_ANSWER_S, may_be_missing=True
        )
        if message is None:
            return _Arrival(0, History())
        try:
            length, digest = map(int, parse_headers(message.headers).get(_ARRIVED, "").split())
        except ValueError as e:
            raise DecodingError(f"message {message.sequence} of stream {self.name} is not an import of evsync") from e
        return _Arrival(message.sequence, History(length, digest))

    async def _ensure(self) -> None:
        config = {
            "name": self.name,
            "subjects": [self._form.subjects],
            "num_replicas": self._replicas,
            "metadata": metadata_of(self._identity),
            "description": f"events of {self._identity.service} that were appended before their slots moved to "
            f"{self._identity.name}: the store needs them",
            **REQUIRED,
        }
        state = await streams.info(self._conn, self.name) or await streams.create(self._conn, config)
        if state.identity != self._identity:
            raise WrongStore(
                f"stream {self.name} holds imports of another incarnation of {self._identity.name}: if that store is "
                f"gone for good, delete the stream. Nothing was touched."
            )

    def _filter(self, slot: int) -> str:
        """The subjects of a slot's imports. All importers state expectations with this very text."""
        return f"{self._form.subjects[:-1]}{slot}.>"


class _ImportReads(StreamReads):
    """Reads copies: their positions are those of the logs that they were appended to."""

    async def some(self, after: int, limit: int) -> list[StoredEvent]:
        """The imports that came in behind the first so many, in order."""
        return self._events(await self._direct_get({"seq": after + 1, "batch": limit}))

    def _event(self, message: Stored) -> StoredEvent:
        try:
            return self._form.decode(message.subject.rpartition(".")[0], message.headers, message.body)
        except DecodingError as e:
            raise self._foreign(message.sequence, str(e)) from e
