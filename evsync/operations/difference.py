"""Which rows a projection's code makes otherwise than they are, or than other code does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from evsync.errors import ConfigurationError, EvsyncError
from evsync.operations.read_models import look_at, sources_of
from evsync.ports import Progress, unheard
from evsync.projections import Projection, SqlModel
from evsync.projections.checking.applied import applied
from evsync.projections.checking.diff import LIMIT, Side, TableDifference, as_it_is, compare
from evsync.projections.checking.fold import Fold, heads_of
from evsync.projections.checking.scratch import scratch
from evsync.runtime import Runtime


@dataclass(frozen=True, slots=True)
class DiffReport:
    """What two codes make of the same history."""

    projection: str
    old: str
    """What is compared with the service's code: its read model as it is, or another module's code."""
    tables: Sequence[TableDifference]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(table.same for table in self.tables)


async def diff(
    runtime: Runtime, projection: Projection[Any], *, limit: int = LIMIT, advance: Progress = unheard
) -> DiffReport:
    """Compare the read model as it is with what the projection's code makes of the same events.

    Events that are parked or were skipped are left out here as they are there.
    Workers may go on meanwhile: the read model is looked at in one moment. Raises ConfigurationError for a model in
    memory, EvsyncError for an event that the code cannot apply.
    """
    model, views, sources = _tables(projection), runtime.views, sources_of(runtime, projection)
    assert views is not None
    loop = asyncio.get_running_loop()
    seen = await look_at(runtime, projection)
    with scratch(views.place, model) as connection:
        fold = Fold(projection, model, connection, seen.groups or projection.groups)
        # Most of it, before anything is held open.
        await fold.go_on(sources, seen.places, advance, without=seen.left_out)

        def look(live: sa.Connection) -> list[TableDifference]:
            now = applied(live, projection.name)
            if not seen.left_out <= now.left_out or (seen.version, seen.groups) != (now.version, now.groups):
                raise EvsyncError(
                    f"the read model of projection {projection.name!r} was rebuilt, or parked events of it were "
                    "retried, while it was looked at. Nothing was changed; try again"
                )
            rest = fold.go_on(sources, now.places, without=now.left_out)
            asyncio.run_coroutine_threadsafe(rest, loop).result()
            return compare(as_it_is(live, model), Side(connection, model), limit)

        return DiffReport(projection.name, "the read model as it is", await views.read(look))


async def diff_with(
    runtime: Runtime,
    projection: Projection[Any],
    other: Projection[Any],
    *,
    limit: int = LIMIT,
    advance: Progress = unheard,
) -> DiffReport:
    """Compare what another code of the projection makes of the whole history with what this one makes of it."""
    old, new, views = _tables(other), _tables(projection), runtime.views
    assert views is not None
    if unknown := set(other.sources) - runtime.sources.keys():
        raise ConfigurationError(
            f"the other projection {other.name!r} reads the logs of {', '.join(sorted(unknown))}, which service "
            f"{runtime.service.name!r} does not"
        )
    theirs, ours = sources_of(runtime, other), sources_of(runtime, projection)
    end = await heads_of(list({id(s): s for s in (*theirs, *ours)}.values()), 1)
    with scratch(views.place, old) as before, scratch(views.place, new) as after:
        await Fold(other, old, before, 1).go_on(theirs, end, lambda done, total: advance(done, 2 * total))
        await Fold(projection, new, after, 1).go_on(ours, end, lambda done, total: advance(done + total, 2 * total))
        found = await asyncio.to_thread(compare, Side(before, old), Side(after, new), limit)
    return DiffReport(projection.name, f"version {other.version} of the other code", found)


def _tables(projection: Projection[Any]) -> sa.MetaData:
    if isinstance(projection.model, SqlModel):
        return projection.model.metadata
    raise ConfigurationError(f"projection {projection.name!r} keeps its model in memory: there are no rows to compare")
