"""Which events made a row of a read model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from evsync.definition import tables_of
from evsync.errors import ConfigurationError
from evsync.operations.read_models import look_at, sources_of
from evsync.ports import Progress, unheard
from evsync.projections import SqlModel
from evsync.projections.checking import explain as checking
from evsync.projections.checking.explain import Chosen, Explanation, parse_key
from evsync.runtime import Runtime


@dataclass(frozen=True, slots=True)
class RowReport:
    """A row of a read model, and what made it."""

    projection: str
    row: Mapping[str, Any] | None
    """As it is now; None if there is none."""
    explanation: Explanation


async def explain(
    runtime: Runtime,
    table: str,
    key: Sequence[str],
    *,
    chosen: Chosen = lambda event: True,
    advance: Progress = unheard,
) -> list[RowReport]:
    """Which events made the row of a table whose primary key is this, one report for each projection with the table.

    Raises ConfigurationError for a table that there is not, and a key that cannot be one.
    """
    reports = []
    for projection in runtime.service.projections:
        model = projection.model
        if not isinstance(model, SqlModel) or table not in model.metadata.tables or runtime.views is None:
            continue
        found = model.metadata.tables[table]
        parsed = parse_key(found, key)
        where = [found.c[name] == value for name, value in parsed.items()]
        seen = await look_at(runtime, projection)
        row = await runtime.views.read(partial(_row_of, table=found, where=where))
        explanation = await checking.explain(
            projection,
            model.metadata,
            found,
            parsed,
            applied=seen,
            sources=sources_of(runtime, projection),
            place=runtime.views.place,
            dialect=runtime.views.dialect,
            chosen=chosen,
            advance=advance,
        )
        reports.append(RowReport(projection.name, row, explanation))
    if not reports:
        tables = sorted({t for p in runtime.service.projections for t in tables_of(p)})
        raise ConfigurationError(
            f"no projection of service {runtime.service.name!r} has a table {table!r}; there are "
            f"{', '.join(tables) or 'none'}"
        )
    return reports


def _row_of(connection: sa.Connection, table: sa.Table, where: Sequence[Any]) -> Mapping[str, Any] | None:
    """The row as it is; None also where the table is not made yet, or was dropped by `evsync reset`."""
    if not sa.inspect(connection).has_table(table.name, schema=table.schema):
        return None
    row = connection.execute(sa.select(table).where(*where)).mappings().one_or_none()
    return None if row is None else dict(row)
