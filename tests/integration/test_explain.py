"""Which events made a row: told by the handlers themselves, also where they execute statements of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from evsync.errors import ConfigurationError, EvsyncError
from evsync.projections import Event, Projection, SqlModel, Tables
from evsync.projections.checking.applied import Applied
from evsync.projections.checking.explain import Explanation, explain, parse_key
from evsync.projections.models.engines import ViewsPlace
from evsync.records import Checkpoint, StoredEvent
from tests.projection_logs import Closed, Ledger, ListSource, Opened, Paid, bank_events, fold_bank, stored

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Iterator[ViewsPlace]:
    """Both kinds of databases, with nothing in them."""
    if request.param == "sqlite":
        yield ViewsPlace.of("sqlite://")
        return
    url = request.getfixturevalue("postgres_url")
    yield ViewsPlace.of(f"{url}&schema=explained")
    with psycopg.connect(url, autocommit=True) as c:
        left = c.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'explained' OR schemaname LIKE 'pg_temp%'"
        ).fetchone()
        c.execute("DROP SCHEMA IF EXISTS explained CASCADE")
    assert left == (0,)


async def why(
    projection: Projection[Tables], table: sa.Table, key: dict[str, Any], events: list[StoredEvent], place: ViewsPlace,
    *, until: int | None = None, **options: Any,
) -> Explanation:  # fmt: skip
    """The explanation of a row after the first `until` events."""
    end = len(events) if until is None else until
    checkpoints = [Checkpoint("bank.main", group, "", end) for group in range(projection.groups)]
    engine = place.engine(readers=0)
    try:
        return await explain(
            projection, table.metadata, table, key, place=place, dialect=engine.dialect,
            applied=Applied(1, projection.groups, checkpoints),
            sources=[ListSource("bank", events)], **options,
        )  # fmt: skip
    finally:
        engine.dispose()


def numbers(found: Explanation) -> list[int]:
    """The positions of the causes."""
    return [c.event.position.number for c in found.causes]


async def test_exactly_the_events_that_touched_a_row_make_it() -> None:
    """Every account is explained by its own events, and a fold over what they did is the row."""
    log, ledger = bank_events(1_500, 3, accounts=12), Ledger()
    until = 1_200
    rows = {row[0]: row for row in fold_bank(log[:until])["accounts"]}
    for n in range(12):
        account = f"account-{n}"
        found = await why(
            ledger.projection, ledger.accounts, {"id": account}, log, ViewsPlace.of("sqlite://"), until=until
        )
        own = [e.position for e in log[:until] if e.stream == account and not e.type.endswith("Audited")]
        assert (numbers(found), found.executed) == (own, False)
        row: dict[str, Any] = {}
        for change in (c for cause in found.causes for c in cause.changes):
            if change.verb == "delete":
                row = {}
                continue
            row = {"owner": None, "balance": 0, "payments": 0, "version": None} | row
            add = change.verb == "add"
            row |= {name: row[name] + value if add else value for name, value in change.values.items()}
        assert (account, *row.values()) == rows.get(account, (account,))


async def test_a_row_with_a_key_of_two_columns_and_filters() -> None:
    """Counted by many streams; only those asked for are shown."""
    log, ledger = bank_events(900, 4), Ledger()
    key = parse_key(ledger.daily, ["3", "opened"])
    assert key == {"day": 3, "kind": "opened"}
    place = ViewsPlace.of("sqlite://")
    found = await why(ledger.projection, ledger.daily, key, log, place)
    opened = [e for e in log if e.position // 100 == 3 and e.type.endswith("Opened")]
    assert numbers(found) == [e.position for e in opened]
    assert {change.verb for c in found.causes for change in c.changes} == {"add"}
    one = opened[0].stream
    found = await why(ledger.projection, ledger.daily, key, log, place, chosen=lambda e: e.stream == one)
    assert numbers(found) == [e.position for e in opened if e.stream == one]


async def test_statements_of_ones_own_are_known_by_what_they_did_to_the_row(place: ViewsPlace) -> None:
    """They are carried out in a scratch; so are deletions that foreign keys carry on. Neither leaves a trace."""
    metadata = sa.MetaData()
    accounts = sa.Table(
        "accounts", metadata, sa.Column("id", sa.String, primary_key=True), sa.Column("rank", sa.Integer)
    )
    transfers = sa.Table(
        "transfers", metadata, sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("account", sa.ForeignKey(accounts.c.id, ondelete="CASCADE")), sa.Column("total", sa.Integer),
    )  # fmt: skip
    view = Projection("ranks", model=SqlModel(metadata))

    @view.on(Opened)
    def opened(e: Event[Opened], db: Tables) -> None:
        db.upsert(accounts, id=e.stream_id, rank=0)

    @view.on(Paid)
    def paid(e: Event[Paid], db: Tables) -> None:
        many = db.execute(sa.select(sa.func.count()).select_from(accounts)).scalar_one()
        db.upsert(transfers, number=e.position.number, account=e.stream_id, total=many)
        db.execute(sa.text("UPDATE accounts SET rank = rank + 1 WHERE id = :id").bindparams(id=e.stream_id))

    @view.on(Closed)
    def closed(e: Event[Closed], db: Tables) -> None:
        db.delete(accounts, id=e.stream_id)

    log = [
        stored(1, "bank.Account.Opened", "ada", 1, owner="Ada"),
        stored(2, "bank.Account.Opened", "bob", 1, owner="Bob"),
        stored(3, "bank.Account.Paid", "ada", 2, amount=5),
        stored(4, "bank.Account.Paid", "bob", 2, amount=5),
        stored(5, "bank.Account.Paid", "ada", 3, amount=5),
        stored(6, "bank.Account.Closed", "ada", 4),
    ]
    found = await why(view, accounts, {"id": "ada"}, log, place)
    assert found.executed
    assert [(n, [c.verb for c in cause.changes]) for n, cause in zip(numbers(found), found.causes, strict=True)] == [
        (1, ["set"]), (3, ["execute"]), (5, ["execute"]), (6, ["delete"]),
    ]  # fmt: skip
    assert found.causes[2].changes[0].before == {"id": "ada", "rank": 1}
    assert found.causes[2].changes[0].values == {"id": "ada", "rank": 2}
    found = await why(view, transfers, {"number": 3}, log, place)
    assert [(n, c.changes[0].verb) for n, c in zip(numbers(found), found.causes, strict=True)] == [
        (3, "set"),
        (6, "execute"),
    ]
    assert found.causes[0].changes[0].values == {"account": "ada", "total": 2}


async def test_an_event_that_the_handlers_cannot_apply_any_more_is_named() -> None:
    """The code may be another than the one that made the row."""
    ledger = Ledger()
    log = [stored(1, "bank.Account.Opened", "ada", 1, owner=7)]
    with pytest.raises(EvsyncError, match=r"bank\.Account\.Opened at position 1 .* handlers as they are now: .*owner"):
        await why(ledger.projection, ledger.accounts, {"id": "ada"}, log, ViewsPlace.of("sqlite://"))


def test_a_key_that_cannot_be_one_is_refused() -> None:
    """With the columns that name a row, and the type that was needed."""
    ledger = Ledger()
    with pytest.raises(ConfigurationError, match="named by DAY KIND, and 1 values were given"):
        parse_key(ledger.daily, ["3"])
    with pytest.raises(ConfigurationError, match="'three' cannot be a key of table 'daily': its column 'day'"):
        parse_key(ledger.daily, ["three", "opened"])
