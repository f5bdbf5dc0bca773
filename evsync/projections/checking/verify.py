"""Whether a read model's checkpoints count exactly the events of the logs, once: by going through the logs again."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evsync.errors import RelayError
from evsync.ports import LogReader, LogSource, Progress, unheard
from evsync.projections.batch import digest_of
from evsync.projections.checking.applied import Applied
from evsync.projections.checking.difference import Difference, Kind, difference
from evsync.projections.checking.history import end_of, opened_readers, read_history
from evsync.projections.handlers import Handlers
from evsync.records import Checkpoint, StoredEvent

NAMED = 10
"""So many events of a difference are named."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind | str
    """Of a group: see Difference. Of a log: hole, short, incarnation, absent, gone, unread, stranger."""
    text: str
    group: int | None = None
    events: Sequence[StoredEvent] = ()
    """Those that the sums name: NAMED of them at most."""
    positions: Sequence[int] = ()
    """Of all of them."""


@dataclass(frozen=True, slots=True)
class GroupReport:
    """What a group's checkpoint says, and what the log has up to there."""

    group: int
    position: int
    count: int
    digest: int
    count_of_log: int
    digest_of_log: int

    @property
    def ok(self) -> bool:
        """Whether these are the same events."""
        return (self.count, self.digest) == (self.count_of_log, self.digest_of_log)


@dataclass(frozen=True, slots=True)
class LogReport:
    """One log of a projection."""

    log: str
    groups: Sequence[GroupReport]
    findings: Sequence[Finding]

    @property
    def ok(self) -> bool:
        """Whether the checkpoints count exactly the log's events, once."""
        # With several workers a group may not have begun: that its checkpoint is absent is told, and is no difference.
        return all(f.kind == "absent" for f in self.findings) and all(g.ok for g in self.groups)

    @property
    def events(self) -> int:
        """How many events the log has for this projection, up to its checkpoints."""
        return sum(g.count_of_log for g in self.groups)


@dataclass(slots=True)
class _Tally:
    """Counts one log's events as a runner would."""

    handlers: Handlers
    groups: int
    checkpoints: Mapping[int, Checkpoint]
    taken: Mapping[int, bool]
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    digests: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    incarnations: dict[int, str] = field(default_factory=dict)
    holes: list[tuple[int, int]] = field(default_factory=list)
    place: int = 0

    def add(self, events: Sequence[StoredEvent]) -> None:
        """The next ones of the log."""
        steps_of, groups, counts, digests = self.handlers.steps, self.groups, self.counts, self.digests
        positions = {g: c.position for g, c in self.checkpoints.items()}
        wanted = set(positions.values())
        for stored in events:
            position = stored.position
            if position != self.place + 1:
                self.holes.append((self.place + 1, position - 1))
            self.place = position
            if position in wanted:
                self.incarnations[position] = stored.incarnation
            if not steps_of(stored.type):
                continue
            group = stored.slot % groups
            if position <= positions.get(group, 0):
                counts[group] += 1
                digests[group] += digest_of(stored)

    def findings(self, *, complete: bool) -> list[Finding]:
        """What is wrong with the log, whatever the sums say; `complete` if it could be read to its end."""
        found = []
        for a, b in self.holes[:NAMED]:
            text = f"the log has no event at position {a}" + (f" to {b}" if b > a else "")
            found.append(Finding("hole", text, positions=range(a, b + 1)))
        if complete and self.place < (end := _end(self.checkpoints)):
            lost = range(self.place + 1, end + 1)
            text = f"the log ends at position {self.place}, and was applied up to {end}: {len(lost):,} events are gone"
            found.append(Finding("short", text, positions=lost))
        for group, c in sorted(self.checkpoints.items()):
            incarnation = self.incarnations.get(c.position, c.incarnation)
            if incarnation != c.incarnation:
                text = (
                    f"group {group}: what was applied is of incarnation {c.incarnation}, and position {c.position} of "
                    f"the log is of incarnation {incarnation}"
                )
                found.append(Finding("incarnation", text, group))
        return found + self._missing()

    def _missing(self) -> list[Finding]:
        """Groups without a checkpoint, where others have one.

        A batch stores those of all groups of its worker. So where a worker that has halted has none at all, it did so
        in its first one.
        """
        missing = [g for g in range(self.groups) if self.checkpoints and g not in self.checkpoints]
        halted = {g for g, halted in self.taken.items() if halted}
        if not halted.isdisjoint(self.checkpoints):
            halted.clear()
        found = []
        if gone := ", ".join(str(g) for g in missing if g in self.taken and g not in halted):
            text = (
                f"no checkpoint of group {gone}, which a worker has had: it was deleted, unless that worker has not "
                "got past its first batch (look again in a moment; `evsync status` says what stands in its way)"
            )
            found.append(Finding("gone", text))
        if stopped := ", ".join(str(g) for g in missing if g in halted):
            text = f"no checkpoint of group {stopped}: its worker has halted in its first batch, see `evsync status`"
            found.append(Finding("absent", text))
        if absent := ", ".join(str(g) for g in missing if g not in self.taken):
            found.append(Finding("absent", f"no checkpoint of group {absent}: no worker has had it yet"))
        return found

    def reports(self) -> list[GroupReport]:
        """By group."""
        return [
            GroupReport(g, c.position, c.count, c.digest, self.counts[g], self.digests[g] % 2**64)
            for g, c in sorted(self.checkpoints.items())
        ]


class Verification:
    """Goes through logs again, up to the checkpoints of one moment; what is applied meanwhile does no harm."""

    def __init__(
        self,
        handlers: Handlers,
        applied: Applied,
        *,
        copies: Sequence[LogSource] = (),
        advance: Progress = unheard,
    ) -> None:
        """`applied` is what the read model says; events that are parked or were skipped, which its checkpoints do not
        count, are taken here as if they did. `copies` are other places that hold the logs, looked at where the sums
        alone do not tell."""
        self._handlers, self._groups, self._taken = handlers, applied.groups, applied.taken
        self._copies, self._advance = copies, advance
        self._checkpoints: dict[str, dict[int, Checkpoint]] = defaultdict(dict)
        for c in applied.checkpoints:
            self._checkpoints[c.log][c.group] = c
        for parked in (*applied.parked, *applied.skipped):
            if (at := self._checkpoints[parked.log].get(parked.group)) is not None:
                digest = (at.digest + digest_of(parked.event)) % 2**64
                self._checkpoints[parked.log][parked.group] = replace(at, count=at.count + 1, digest=digest)
        self._done = self._total = 0

    async def run(self, sources: Sequence[LogSource]) -> list[LogReport]:
        """Compare counts and digests, log by log.

        Raises what a source raises before anything could be read; what is wrong with a log itself is a finding.
        """
        async with opened_readers(sources) as readers:
            self._total = sum(_end(self._checkpoints[r.log]) for r in readers)
            reports = [await self._log(reader) for reader in readers]
        for log in sorted(self._checkpoints.keys() - {r.log for r in readers}):
            tally = _Tally(self._handlers, self._groups, self._checkpoints[log], self._taken)
            text = f"there are checkpoints of log {log!r}, and no source of this projection has that log"
            reports.append(LogReport(log, tally.reports(), [Finding("stranger", text)]))
        return reports

    async def _log(self, reader: LogReader) -> LogReport:
        checkpoints = self._checkpoints[reader.log]
        tally = _Tally(self._handlers, self._groups, checkpoints, self._taken)
        end = min(_end(checkpoints), await end_of(reader, _end(checkpoints)))
        findings: list[Finding] = []
        try:
            async for events in read_history(reader, end):
                tally.add(events)
                self._advance(self._done + tally.place, self._total)
        except RelayError as e:
            findings.append(Finding("unread", f"the log cannot be read behind position {tally.place}: {e}"))
        self._done += _end(checkpoints)
        findings += tally.findings(complete=not findings)
        reports = tally.reports()
        unread = any(f.kind == "unread" for f in findings)  # then sums say nothing of what lies beyond
        if differing := [] if unread else [r for r in reports if not r.ok]:
            findings += await self._differences(reader, differing)
        return LogReport(reader.log, reports, findings)

    # ---- which events

    async def _differences(self, reader: LogReader, reports: Sequence[GroupReport]) -> list[Finding]:
        members = await self._members(reader, [r.group for r in reports])
        findings, altered = [], []
        for report in reports:
            found = members[report.group]
            due = sum(p <= report.position for p in found.positions)
            what = difference(found.shares, due, report.count, report.digest)
            if what is None:  # the log was read twice, and is another by now
                continue
            if what.kind in ("altered", "unknown", "unexplained"):
                altered.append(report.group)
            findings.append(await _finding(reader, report, what, found))
        for source in self._copies if altered else ():
            for copy in await source.readers():
                if copy.log == reader.log:
                    findings += await self._compare(copy, {g: members[g] for g in altered})
                await copy.close()
        return findings

    async def _members(self, reader: LogReader, groups: Sequence[int]) -> dict[int, _Members]:
        """The events of these groups, of the whole log."""
        members = {g: _Members() for g in groups}
        try:
            async for events in read_history(reader, await end_of(reader, 0)):
                for e in self._handled(events, members):
                    members[e.slot % self._groups].add(e)
        except RelayError:
            pass  # told already, where the log was read the first time
        return members

    async def _compare(self, copy: LogReader, members: Mapping[int, _Members]) -> list[Finding]:
        """Events that another copy of the log has otherwise."""
        others: dict[int, list[StoredEvent]] = defaultdict(list)
        known = {g: dict(zip(m.positions, m.shares, strict=True)) for g, m in members.items()}
        try:
            async for events in read_history(copy, await end_of(copy, 0)):
                for e in self._handled(events, members):
                    if known[e.slot % self._groups].get(e.position) != digest_of(e):
                        others[e.slot % self._groups].append(e)
        except RelayError as e:
            return [Finding("unread", f"the other copy of the log cannot be read to its end: {e}")]
        return [
            Finding(
                "altered",
                f"group {g}: {len(found):,} events are not the same in the log and in its stream, shown here as the "
                "stream has them. What was applied is the one or the other",
                g,
                found[:NAMED],
                [e.position for e in found],
            )
            for g, found in sorted(others.items())
        ]

    def _handled(self, events: Iterable[StoredEvent], groups: Mapping[int, object]) -> Iterable[StoredEvent]:
        return (e for e in events if e.slot % self._groups in groups and self._handlers.steps(e.type))


class _Members:
    """Positions and shares of a group's events: 16 bytes an event."""

    def __init__(self) -> None:
        self.positions, self.shares = array("Q"), array("Q")

    def add(self, event: StoredEvent) -> None:
        self.positions.append(event.position)
        self.shares.append(digest_of(event))


def _end(checkpoints: Mapping[int, Checkpoint]) -> int:
    return max((c.position for c in checkpoints.values()), default=0)


async def _finding(reader: LogReader, report: GroupReport, what: Difference, members: _Members) -> Finding:
    positions = [members.positions[i] for i in what.events]
    too_many = report.count - report.count_of_log
    match what.kind:
        case "missing":
            text = f"{len(positions):,} events were not applied"
        case "doubled":
            text = f"{len(positions):,} events were applied twice"
        case "exchanged":
            text = "the first of these events was applied twice, and the second not at all"
        case "moved":
            real = members.positions[what.count - 1] if what.count else 0
            between = [p for p in members.positions if min(real, report.position) < p <= max(real, report.position)]
            positions = between
            becomes = "will be applied again" if real > report.position else "were passed over"
            text = (
                f"the checkpoint is at position {report.position}, and what was applied is everything up to position "
                f"{real}: it was moved, and {len(between):,} events {becomes}"
            )
        case "count":
            text = (
                f"the digest is right and the count is not: it says {report.count:,} of {report.count_of_log:,} events"
            )
        case "unknown":
            share = (report.digest - report.digest_of_log) % 2**64
            text = f"one event was applied that the log does not have (its share of the digest is {share:016x})"
        case "altered":
            text = (
                "as many events were applied as the log has, and not the same ones: at least one was altered since, in "
                "the log or in the checkpoint. Sums cannot tell which"
            )
        case _:
            more = f"{abs(too_many):,} events {'too many' if too_many > 0 else 'too few'} were applied"
            text = f"{more}, and no single cause explains it. Sums cannot tell which"
    events = await _named(reader, positions[:NAMED])
    return Finding(what.kind, f"group {report.group}: {text}", report.group, events, positions)


async def _named(reader: LogReader, positions: Sequence[int]) -> list[StoredEvent]:
    """The events at these positions."""
    found = []
    for position in positions:
        async for events in read_history(reader, position, after=position - 1):
            found += [e for e in events if e.position == position]
    return found
