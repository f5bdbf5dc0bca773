"""Which events made a row: by running the handlers over history again, into tables that note what they do."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from evsync.codec.values import unpack
from evsync.errors import ConfigurationError
from evsync.ports import LogSource, Progress, unheard
from evsync.projections.checking.applied import Applied
from evsync.projections.checking.fold import cannot_go_through
from evsync.projections.checking.history import opened_readers, read_history
from evsync.projections.checking.recorder import Change, NeedsDatabase, Recorder
from evsync.projections.checking.scratch import scratch
from evsync.projections.contracts import explain as say
from evsync.projections.event import Event
from evsync.projections.models.engines import ViewsPlace
from evsync.projections.models.table_plan import Values
from evsync.projections.models.tables import Catalog
from evsync.projections.projection import Projection
from evsync.records import StoredEvent

Chosen = Callable[[StoredEvent], bool]


@dataclass(frozen=True, slots=True)
class Cause:
    """An event whose handler touched the row."""

    event: Event[Mapping[str, Any]]
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The events that made a row, those of each log in its order, several logs merged by time."""

    table: str
    key: Mapping[str, Any]
    causes: Sequence[Cause]
    executed: bool
    """Whether handlers executed statements of their own: such a one is among the causes if the row was another after
    it. What it wrote to a row that held the same already cannot be seen."""


def parse_key(table: sa.Table, texts: Sequence[str]) -> Values:
    """The key that somebody typed, a text for each column of the primary key. Raises ConfigurationError."""
    columns = list(table.primary_key.columns)
    if len(texts) != len(columns):
        names = " ".join(c.key.upper() for c in columns)
        raise ConfigurationError(
            f"a row of table {table.name!r} is named by {names}, and {len(texts)} values were given"
        )
    return {column.key: _parse(table, column, text) for column, text in zip(columns, texts, strict=True)}


async def explain(
    projection: Projection[Any],
    metadata: sa.MetaData,
    table: sa.Table,
    key: Values,
    *,
    applied: Applied,
    sources: Sequence[LogSource],
    place: ViewsPlace,
    dialect: sa.Dialect,
    chosen: Chosen = lambda event: True,
    advance: Progress = unheard,
) -> Explanation:
    """Run the handlers over the events that were applied, and tell which of them touched the row.

    Only `chosen` events are told of. While no handler asks the database for anything, the others are not even decoded,
    and there is no table. Raises EvsyncError for an event that the handlers, as they are now, cannot apply.
    """
    again = _Again(projection, applied, sources, chosen, advance)
    try:
        recorder = Recorder(None, Catalog(metadata, dialect), table, key)
        causes = await again.run(recorder, everything=False)
    except NeedsDatabase:
        with scratch(place, metadata) as connection:
            recorder = Recorder(connection, Catalog(metadata, dialect), table, key)
            causes = await again.run(recorder, everything=True)
    return Explanation(table.name, key, causes, recorder.executed)


class _Again:
    """History once more, as far as the read model has come."""

    def __init__(
        self,
        projection: Projection[Any],
        applied: Applied,
        sources: Sequence[LogSource],
        chosen: Chosen,
        advance: Progress,
    ) -> None:
        self._handlers, self._applied, self._left_out = projection.handlers, applied, applied.left_out
        self._sources, self._chosen, self._advance = sources, chosen, advance

    async def run(self, recorder: Recorder, *, everything: bool) -> list[Cause]:
        """The causes; with `everything`, events that were not chosen are applied too, since later ones may see it."""
        causes: dict[str, list[Cause]] = {}
        done = 0
        async with opened_readers(self._sources) as readers:
            positions = {r.log: self._applied.places.get(r.log, {}) for r in readers}
            total = sum(max(found.values(), default=0) for found in positions.values())
            for reader in readers:
                found = causes[reader.log] = []
                until = positions[reader.log]
                async for events in read_history(reader, max(until.values(), default=0)):
                    work = asyncio.to_thread(self._apply, recorder, reader.log, events, until, everything)
                    found += await work
                    self._advance(done + events[-1].position, total)
                done += max(until.values(), default=0)
        return list(heapq.merge(*causes.values(), key=lambda cause: cause.event.time))

    def _apply(
        self, recorder: Recorder, log: str, events: Sequence[StoredEvent], until: Mapping[int, int], everything: bool
    ) -> list[Cause]:
        causes, groups = [], self._applied.groups
        for stored in events:
            steps = self._handlers.steps(stored.type)
            if not steps or stored.position > until.get(stored.slot % groups, 0):
                continue
            if (log, stored.position) in self._left_out:
                continue
            chosen = self._chosen(stored)
            if not (chosen or everything):
                continue
            try:
                data = unpack(stored.data)
                for decode, handle in steps:
                    handle(Event.of(stored, decode(data), log), recorder)
            except ValidationError as e:
                raise cannot_go_through(log, stored, f"it does not meet the contract: {say(e)}") from e
            except Exception as e:
                raise cannot_go_through(log, stored, f"{type(e).__name__}: {e}") from e
            if (changes := recorder.take()) and chosen:
                causes.append(Cause(Event.of(stored, data, log), changes))
        recorder.flush()
        return causes


def _parse(table: sa.Table, column: sa.Column[Any], text: str) -> Any:
    try:
        wanted = column.type.python_type
    except NotImplementedError:
        return text
    if isinstance(column.type, sa.types.TypeDecorator) or wanted is str:
        return text
    try:
        return TypeAdapter(wanted).validate_strings(text)
    except ValidationError as e:
        raise ConfigurationError(
            f"{text!r} cannot be a key of table {table.name!r}: its column {column.key!r} is of type {column.type!r}, "
            f"and {say(e)}"
        ) from e
