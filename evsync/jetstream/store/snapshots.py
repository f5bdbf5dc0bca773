"""Snapshots beside a stream that is the store: a stream of their own, the last one of each aggregate."""

from __future__ import annotations

import json

from evsync.codec.values import pack, unpack
from evsync.errors import DecodingError, EventTooLarge
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.gets import leader_get
from evsync.jetstream.client.refusals import Refused
from evsync.jetstream.messages import escape
from evsync.jetstream.stream_settings import name_beside
from evsync.records import LogIdentity, Snapshot

_TIMEOUT_S = 2.0
_OVERHEAD_BYTES = 1_024


class SnapshotStream:
    """Keeps the latest snapshot of each stream of one log. The JetStream stream is made with the first of them."""

    def __init__(self, conn: Connection, identity: LogIdentity, replicas: int) -> None:
        self.name = name_beside(identity.service, identity.shard, "snapshots")
        self._conn, self._identity, self._replicas = conn, identity, replicas
        self._prefix = f"evsync-snapshots.{identity.service}.{identity.shard}."

    async def put(self, snapshot: Snapshot) -> None:
        """Keep it in place of an older one, or one of another shape. Raises BrokerError, EventTooLarge."""
        data = pack([self._identity.incarnation, *snapshot])
        limit = self._conn.max_payload
        if limit is not None and len(data) + _OVERHEAD_BYTES > limit:
            raise EventTooLarge(f"the snapshot ({snapshot.type})", snapshot.stream, len(data) + _OVERHEAD_BYTES, limit)
        while True:
            kept, sequence = await self._last(snapshot.stream)
            if kept is not None and kept.shape == snapshot.shape and kept.version >= snapshot.version:
                return
            refused = await self._publish(snapshot.stream, data, sequence)
            if refused is None:
                return
            if not refused.is_final:
                raise refused.error(f"a message to stream {self.name}")

    async def get(self, stream: str) -> Snapshot | None:
        """The snapshot of a stream, if one is kept. Raises BrokerError, DecodingError."""
        return (await self._last(stream))[0]

    async def _publish(self, stream: str, data: bytes, after: int) -> Refused | None:
        """Publish, if the one that is kept is still the same. Returns what the server has against it."""
        if after == 0:
            await self._ensure()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(after)}
        message = await self._conn.request(self._subject(stream), data, headers=headers, timeout_s=_TIMEOUT_S)
        error = json.loads(message.body).get("error")
        return Refused.of(error) if error else None

    async def _last(self, stream: str) -> tuple[Snapshot | None, int]:
        """The snapshot that is kept, if it is of this incarnation, and its sequence."""
        message = await leader_get(
            self._conn, self.name, {"last_by_subj": self._subject(stream)}, timeout_s=_TIMEOUT_S, may_be_missing=True
        )
        if message is None:
            return None, 0
        incarnation, *fields = unpack(message.body)
        if len(fields) != len(Snapshot._fields):
            raise DecodingError(f"the snapshot of stream {stream!r} was written by another evsync")
        return Snapshot(*fields) if incarnation == self._identity.incarnation else None, message.sequence

    async def _ensure(self) -> None:
        config = {
            "name": self.name,
            "subjects": [f"{self._prefix}*"],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "max_msgs_per_subject": 1,
            "num_replicas": self._replicas,
            "metadata": {"evsync.snapshots": self._identity.name},
            "description": f"snapshots of {self._identity.name}; may be deleted at any time",
        }
        if await streams.info(self._conn, self.name) is None:
            await streams.create(self._conn, config)

    def _subject(self, stream: str) -> str:
        return self._prefix + escape(stream)
