"""A projection's read model and its logs, for whoever asks about them from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.ports import LogReader, LogSource
from evsync.projections import MemoryModel, Projection
from evsync.projections.checking.applied import Applied, applied
from evsync.projections.failures import DatabaseAway
from evsync.runtime import Runtime

_FOUND_S = 5.0


async def look_at(runtime: Runtime, projection: Projection[Any]) -> Applied:
    """A projection's read model, by its own account. Raises as `verify`."""
    if isinstance(projection.model, MemoryModel) or runtime.views is None:
        raise ConfigurationError(
            f"projection {projection.name!r} keeps its model in the memory of each process, made from the logs' "
            "beginning at every start: nothing of it is stored, so there is nothing to look at from here"
        )
    try:
        return await runtime.views.read(lambda connection: applied(connection, projection.name))
    except DatabaseAway as e:
        raise StoreUnavailable(f"the read model of projection {projection.name!r} cannot be looked at: {e}") from e


def sources_of(runtime: Runtime, projection: Projection[Any]) -> list[LogSource]:
    """Where the projection's logs are read, as its runner reads them; but what is not there soon is an error."""
    return [_There(runtime.sources[service]) for service in projection.sources]


class _There:
    """A source that must be there: for a person who waits for an answer. Implements LogSource."""

    def __init__(self, source: LogSource) -> None:
        self.service, self._source = source.service, source

    async def readers(self) -> Sequence[LogReader]:
        """What the source has. Raises StoreUnavailable if that is nothing for some seconds."""
        try:
            async with asyncio.timeout(_FOUND_S):
                return await self._source.readers()
        except TimeoutError:
            why = getattr(self._source, "waiting_for", "") or "its source says nothing"
            raise StoreUnavailable(
                f"no log of service {self.service!r} was found within {_FOUND_S:.0f} s: {why}. Nothing was changed; "
                "try again when it is there."
            ) from None
