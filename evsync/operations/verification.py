"""Whether a read model holds exactly the events of its logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evsync.jetstream.source import JetStreamSource
from evsync.operations.read_models import look_at, sources_of
from evsync.ports import LogReader, LogSource, Progress, unheard
from evsync.projections import Projection
from evsync.projections.checking.verify import LogReport, Verification
from evsync.runtime import Runtime
from evsync.urls import shards_on_nats

_CONNECT_S = 3.0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A projection's checkpoints beside its logs."""

    projection: str
    logs: Sequence[LogReport]
    parked: int
    """Events up to the checkpoints that are parked, in all logs: counted in their reports, not applied."""
    skipped: int
    """And such as a person has skipped."""

    @property
    def ok(self) -> bool:
        """Whether exactly the logs' events were applied, once."""
        return all(log.ok for log in self.logs)


async def verify(runtime: Runtime, projection: Projection[Any], advance: Progress = unheard) -> VerifyReport:
    """Compare what a projection's checkpoints count with its logs.

    Raises as `look_at`.
    """
    seen = await look_at(runtime, projection)
    verification = Verification(projection.handlers, seen, copies=_copies(runtime, projection), advance=advance)
    logs = await verification.run(sources_of(runtime, projection))
    return VerifyReport(projection.name, logs, len(seen.parked), len(seen.skipped))


def _copies(runtime: Runtime, projection: Projection[Any]) -> list[LogSource]:
    """The service's own logs are in its stores, and in streams beside these; but those that are streams themselves."""
    name, connection = runtime.service.name, runtime.connection
    mirrored = runtime.stores.keys() - shards_on_nats(runtime.settings["store"]).keys()
    if name not in projection.sources or connection is None or not mirrored:
        return []
    return [_IfThere(JetStreamSource(connection, name))]


class _IfThere:
    """A source that may not exist: no readers then. Implements LogSource."""

    def __init__(self, source: LogSource) -> None:
        self.service, self._source = source.service, source

    async def readers(self) -> Sequence[LogReader]:
        """What is there within a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                return await self._source.readers()
        return []
