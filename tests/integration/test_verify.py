"""What `verify` says when events are removed, doubled and altered behind its back: in the log, in the checkpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from evsync.codec.values import pack
from evsync.errors import Halted, HistoryGone
from evsync.ports import LogReader
from evsync.projections import ProjectionRunner, ViewsDatabase
from evsync.projections.batch import digest_of
from evsync.projections.checking.applied import Applied, applied
from evsync.projections.checking.verify import LogReport, Verification
from evsync.records import Checkpoint, StoredEvent
from tests.projection_logs import Ledger, ListReader, ListSource, bank_events

pytestmark = pytest.mark.anyio

EVENTS, GROUPS = 2_000, 16


@pytest.fixture
async def checkpoints(tmp_path: Path) -> AsyncIterator[list[Checkpoint]]:
    """Those that a runner has stored with its batches."""
    database = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
    runner = ProjectionRunner(Ledger().projection, database, [ListSource("bank", bank_events(EVENTS, 7))], batch=300)
    await runner.open()
    while await runner.step():
        pass
    yield list((await runner._session.observe()).checkpoints)
    await runner.close()
    await database.close()


class Table(ListSource):
    """A log whose rows somebody may have deleted: it is read by position, as from a database."""

    async def readers(self) -> Sequence[LogReader]:
        return [Rows(self)]


class Rows(ListReader):
    """Reads what is behind a position, whether that is the next one or not."""

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        return [e for e in self._source.events if e.position > after][:limit]

    async def head(self) -> int | None:
        return self._source.events[-1].position


async def verify(
    events: list[StoredEvent], checkpoints: list[Checkpoint], copy: list[StoredEvent] | None = None
) -> LogReport:
    """The report on the bank's log."""
    copies = [ListSource("bank", copy)] if copy is not None else []
    verification = Verification(Ledger().projection.handlers, Applied(1, GROUPS, checkpoints), copies=copies)
    (report,) = await verification.run([Table("bank", events)])
    return report


def changed(checkpoints: list[Checkpoint], group: int, **by: int) -> list[Checkpoint]:
    """The checkpoints with count, digest or position of one group changed by so much."""
    return [
        replace(c, **{name: (getattr(c, name) + n) % 2**64 for name, n in by.items()}) if c.group == group else c
        for c in checkpoints
    ]


async def test_exactly_these_events_once(checkpoints: list[Checkpoint]) -> None:
    """Also while the log goes on, and by groups that are not equally far."""
    log = bank_events(EVENTS, 7)
    handled = [e for e in log if not e.type.endswith("Audited")]
    report = await verify(bank_events(EVENTS + 500, 7), checkpoints)
    assert (report.ok, report.events, len(report.groups)) == (True, len(handled), GROUPS)
    early = [e for e in log[:800] if e.slot % GROUPS == 3 and not e.type.endswith("Audited")]
    three = Checkpoint("bank.main", 3, log[0].incarnation, 800, len(early), sum(map(digest_of, early)) % 2**64)
    report = await verify(log, [three if c.group == 3 else c for c in checkpoints])
    assert report.ok
    assert report.events < len(handled)


async def test_an_event_removed_from_the_log_leaves_a_hole_and_a_sum(checkpoints: list[Checkpoint]) -> None:
    """The hole says where, the group that an event was applied which nobody has."""
    log = bank_events(EVENTS, 7)
    gone = next(e for e in log[1_000:] if e.type.endswith("Paid"))
    report = await verify([e for e in log if e is not gone], checkpoints)
    assert [(f.kind, list(f.positions)) for f in report.findings] == [("hole", [gone.position]), ("unknown", [])]
    assert report.findings[1].group == gone.slot % GROUPS
    assert f"{digest_of(gone):016x}" in report.findings[1].text


async def test_a_log_that_lost_its_end_is_shorter_than_what_was_applied(checkpoints: list[Checkpoint]) -> None:
    """As after a store was put back to an older copy."""
    report = await verify(bank_events(EVENTS, 7)[:-5], checkpoints)
    assert report.findings[0].kind == "short"
    assert list(report.findings[0].positions) == [1996, 1997, 1998, 1999, 2000]
    assert "the log ends at position 1995, and was applied up to 2000: 5 events are gone" in report.findings[0].text


async def test_an_event_inserted_into_the_log_was_not_applied(checkpoints: list[Checkpoint]) -> None:
    """With the others renumbered behind it, as somebody would who knows the table: it is named."""
    log = bank_events(EVENTS, 7)
    twin = log[500]._replace(position=1_001, id=bytes(16))
    forged = log[:1_000] + [twin] + [e._replace(position=e.position + 1) for e in log[1_000:]]
    report = await verify(forged, [replace(c, position=EVENTS + 1) for c in checkpoints])
    (finding,) = report.findings
    assert (finding.kind, finding.group, [e.id for e in finding.events]) == ("missing", twin.slot % GROUPS, [bytes(16)])


async def test_an_altered_event_is_found_where_another_copy_of_the_log_is(checkpoints: list[Checkpoint]) -> None:
    """The sums say which group; its stream in the broker, if there is one, which event."""
    log = bank_events(EVENTS, 7)
    i = next(i for i, e in enumerate(log) if i > 700 and e.type.endswith("Paid"))
    forged = [*log[:i], log[i]._replace(data=pack({"amount": 10**6})), *log[i + 1 :]]
    report = await verify(forged, checkpoints)
    assert [(f.kind, f.group) for f in report.findings] == [("altered", log[i].slot % GROUPS)]
    assert not report.ok
    report = await verify(forged, checkpoints, copy=log)
    assert [list(f.positions) for f in report.findings if f.kind == "altered"] == [[], [i + 1]]
    assert report.findings[-1].events == [log[i]]


async def test_an_event_doubled_or_missing_in_the_checkpoint_is_named(checkpoints: list[Checkpoint]) -> None:
    """As if a batch had been applied twice, or not at all."""
    e = next(e for e in bank_events(EVENTS, 7)[900:] if e.type.endswith("Paid"))
    group, share = e.slot % GROUPS, digest_of(e)
    for kind, n in (("doubled", 1), ("missing", -1)):
        report = await verify(bank_events(EVENTS, 7), changed(checkpoints, group, count=n, digest=n * share))
        (finding,) = report.findings
        assert (finding.kind, finding.group, finding.events) == (kind, group, [e])
        assert [g.group for g in report.groups if not g.ok] == [group]


async def test_a_checkpoint_that_was_moved_says_what_happens_to_the_events_between(
    checkpoints: list[Checkpoint],
) -> None:
    """Back: they will be applied again. Ahead: they were passed over."""
    log = bank_events(EVENTS + 300, 7)
    (back,) = (await verify(log, changed(checkpoints, 5, position=-400))).findings
    between = [e.position for e in log if 1_600 < e.position <= 2_000 and e.slot % GROUPS == 5]
    between = [p for p in between if not log[p - 1].type.endswith("Audited")]
    assert (back.kind, back.group, list(back.positions)) == ("moved", 5, between)
    assert "will be applied again" in back.text
    (ahead,) = (await verify(log, changed(checkpoints, 5, position=300))).findings
    assert ahead.kind == "moved"
    assert "were passed over" in ahead.text


async def test_checkpoints_that_are_gone_or_of_other_logs_are_told(checkpoints: list[Checkpoint]) -> None:
    """One that no worker has had was never there. Of another log's, nobody knows what it counts.

    A worker that has halted had applied a batch if another of its groups has a checkpoint.
    """
    stranger = Checkpoint("shop.main", 0, "x", 10, 10, 10)
    seen = Applied(1, GROUPS, [*checkpoints[2:], stranger], taken={1: True, 2: True})
    verification = Verification(Ledger().projection.handlers, seen)
    bank, shop = await verification.run([ListSource("bank", bank_events(EVENTS, 7))])
    assert ([f.kind for f in bank.findings], bank.ok) == (["gone", "absent"], False)
    assert "no checkpoint of group 1, which a worker has had" in bank.findings[0].text
    assert "no checkpoint of group 0: no worker" in bank.findings[1].text
    assert not shop.ok
    assert (shop.log, [f.kind for f in shop.findings]) == ("shop.main", ["stranger"])


async def test_a_group_whose_worker_halted_in_its_first_batch_is_no_difference(tmp_path: Path) -> None:
    """Nothing of it was applied, and nothing is missing."""
    database, log = ViewsDatabase(f"sqlite:///{tmp_path}/views.db"), bank_events(100, 7)
    ledgers = Ledger(retries=0), Ledger(retries=0, bad=range(1, 101))
    good, bad = runners = [ProjectionRunner(each.projection, database, [ListSource("bank", log)]) for each in ledgers]
    for runner in runners:
        await runner.open()
        await runner.balance()
    for runner in runners:  # the first gives half of the groups to the second
        await runner.balance()
    theirs = bad.groups
    for runner in runners:
        while await runner.step():
            pass
    assert (isinstance(bad.halted, Halted), len(theirs)) == (True, 8)

    async def look() -> tuple[bool, list[str], list[str]]:
        seen = await database.read(lambda connection: applied(connection, "ledger"))
        (report,) = await Verification(ledgers[0].projection.handlers, seen).run([ListSource("bank", log)])
        return report.ok, [f.kind for f in report.findings], [f.text for f in report.findings]

    named = ", ".join(map(str, theirs))
    halted = f"no checkpoint of group {named}: its worker has halted in its first batch, see `evsync status`"
    assert await look() == (True, ["absent"], [halted])
    await good.close()
    await bad.close()
    await database.close()


async def test_another_history_under_the_same_name_is_told(checkpoints: list[Checkpoint]) -> None:
    """Its positions are of another incarnation."""
    log = [e._replace(incarnation="000000000000") for e in bank_events(EVENTS, 7)]
    report = await verify(log, checkpoints)
    assert {f.kind for f in report.findings} == {"incarnation"}


class Trimmed(Table):
    """A log whose beginning was taken out of its stream."""

    async def readers(self) -> Sequence[LogReader]:
        return [Gone(self)]


class Gone(Rows):
    """Says so when it is read."""

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        raise HistoryGone("the stream begins at position 6, and the next one needed is 1")


async def test_a_log_that_cannot_be_read_accuses_no_group(checkpoints: list[Checkpoint]) -> None:
    """What was not read was not compared: no event was applied too often because of it."""
    verification = Verification(Ledger().projection.handlers, Applied(1, GROUPS, checkpoints))
    (report,) = await verification.run([Trimmed("bank", bank_events(EVENTS, 7))])
    assert not report.ok
    assert [f.kind for f in report.findings] == ["unread"]
