"""The decision about marks: heads are lowered until nothing depends on what is beyond them, and no farther."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.archive.dependence import Dependent, dependents_of, lowered
from evsync.archive.followers import checkpoints_in
from evsync.archive.marks import Mark, MarkedLog, decode_mark, encode_mark
from evsync.archive.segments import FollowerCheckpoint
from evsync.codec.values import pack
from evsync.control import REACTION_TAG, SLOT_OPENED, reaction_tag
from evsync.errors import ArchiveDamaged
from evsync.records import Ancestor, Checkpoint, LogIdentity, StoredEvent, encode_meta, event_id, event_uuid

LOGS = ("a", "b", "c")
dependents = st.lists(
    st.tuples(st.sampled_from(LOGS), st.integers(0, 5), st.sampled_from((*LOGS, "elsewhere")), st.integers(0, 7))
    .filter(lambda d: d[0] != d[2])
    .map(lambda d: Dependent(*d)),
    max_size=12,
)
heads = st.fixed_dictionaries({log: st.integers(0, 6) for log in LOGS})


def holds(marks: dict[str, int], found: Sequence[Dependent]) -> bool:
    """The rule: no commit at or below a mark depends on a position beyond its source's mark."""
    return not any(d.on in marks and d.before < marks[d.log] and d.needs > marks[d.on] for d in found)


@settings(database=None)
@given(heads=heads, found=dependents)
def test_a_mark_is_the_greatest_place_that_keeps_the_rule(heads: dict[str, int], found: list[Dependent]) -> None:
    """Of all places at or below the heads that keep the rule, each log's is the greatest; there is one such mark."""
    marks = lowered(heads, found)
    assert holds(marks, found)
    keeping = [
        dict(zip(LOGS, places, strict=True))
        for places in product(*(range(heads[log] + 1) for log in LOGS))
        if holds(dict(zip(LOGS, places, strict=True)), found)
    ]
    assert marks == {log: max(each[log] for each in keeping) for log in LOGS}
    assert lowered(heads, found[::-1]) == marks
    assert lowered(marks, found) == marks


class Past:
    """Logs that grew in some order, each commit after everything that it depends on."""

    def __init__(self, steps: Sequence[tuple[str, str, int]], looks: Sequence[int]) -> None:
        self.dependents: list[Dependent] = []
        lengths = dict.fromkeys(LOGS, 0)
        self.first, self.last = dict(lengths), dict(lengths)
        # The moments at which each log is looked at: all of them once, then all of them again.
        moments = sorted(looks)
        for now in range(len(steps) + 1):
            for number, log in enumerate(LOGS):
                if moments[number] == now:
                    self.first[log] = lengths[log]
                if moments[len(LOGS) + number] == now:
                    self.last[log] = lengths[log]
            if now < len(steps):
                log, on, back = steps[now]
                if on != log and lengths[on]:
                    self.dependents.append(Dependent(log, lengths[log], on, max(lengths[on] - back, 1)))
                lengths[log] += 1


@settings(database=None, max_examples=300)
@given(data=st.data())
def test_no_mark_is_below_the_first_look(data: st.DataObject) -> None:
    """Two looks at all logs, in any order of commits and looks: only what came since the first may be left out."""
    step = st.tuples(st.sampled_from(LOGS), st.sampled_from(LOGS), st.integers(0, 3))
    steps = data.draw(st.lists(step, max_size=30))
    looks = data.draw(st.lists(st.integers(0, len(steps)), min_size=2 * len(LOGS), max_size=2 * len(LOGS)))
    past = Past(steps, looks)
    marks = lowered(past.last, past.dependents)
    assert all(past.first[log] <= marks[log] <= past.last[log] for log in LOGS)
    # And what was there at the first look need not be looked at again.
    recent = [d for d in past.dependents if d.before >= past.first[d.log]]
    assert lowered(past.last, recent) == marks


SOURCE = LogIdentity("users", "main", "new", ancestry=(Ancestor("old", 10),))


def an_event(type: str = "orders.Order.Placed", meta: dict[str, str] | None = None, **fields: object) -> StoredEvent:
    """The second event of a commit that begins at position 20."""
    id = event_id(bytes(16), 1)
    return StoredEvent(21, "o", 1, 0, type, 0, id, 0, "x", pack(fields), encode_meta(meta))


def needs_of(event: StoredEvent) -> list[Dependent]:
    """What an event of `orders` says, of the users' log; an event of theirs stands at position 12."""
    positions = {event_id(b"c" * 14, 0): ("users.main", 12)}
    return list(dependents_of("orders.main", [event], {"users.main": SOURCE}, positions))


def test_a_commit_depends_on_what_was_answered_moved_or_named_as_its_cause() -> None:
    """From a reaction's tag, a JetStream store's checkpoints, where a slot came from, and a causation id."""
    depends = [Dependent("orders.main", 19, "users.main", 12)]
    at = Checkpoint("users.main", 0, "new", 12, 3, 2**64 - 1)
    answer = an_event(meta={REACTION_TAG: reaction_tag("billing", at)})
    assert needs_of(answer) == depends
    assert checkpoints_in(answer) == [FollowerCheckpoint("billing", at)]
    kept = {"log": at.log, "group": 0, "incarnation": "new", "position": 12, "count": 3, "digest": 5}
    assert needs_of(an_event("orders.evsync.CheckpointsStored", checkpoints=[kept])) == depends
    opened = {"epoch": 2, "from": "users.main", "incarnation": "new", "position": 12}
    assert needs_of(an_event(f"orders.{SLOT_OPENED}", **opened)) == depends
    assert needs_of(an_event(meta={"causation_id": str(event_uuid(event_id(b"c" * 14, 0)))})) == depends
    assert needs_of(an_event(meta={"causation_id": str(event_uuid(event_id(b"d" * 14, 0)))})) == []
    assert needs_of(an_event(meta={"causation_id": "the user's own", REACTION_TAG: "too"})) == []


def test_what_a_source_has_lost_in_a_restore_is_asked_of_no_mark() -> None:
    """Position 12 of the old incarnation is no part of the log any more, 9 still is."""
    for position, found in ((12, 0), (9, 1)):
        tag = reaction_tag("billing", Checkpoint("users.main", 0, "old", position))
        assert len(needs_of(an_event(meta={REACTION_TAG: tag}))) == found


def test_a_mark_is_read_as_it_was_written_and_any_damage_shows() -> None:
    """Every byte of its file counts."""
    kept = (FollowerCheckpoint("billing", Checkpoint("users.main", 0, "new", 12, 3, 2**64 - 1)),)
    mark = Mark(
        "noon", 1_700_000_000_000_000, {"orders.main": MarkedLog("x", 21, kept), "users.main": MarkedLog("y", 1)}
    )
    content = encode_mark(mark)
    assert decode_mark("disk", "orders.main/marks/noon.json", content) == mark
    for n in range(len(content) - 1):
        for damaged in (content[:n], content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :]):
            with pytest.raises(ArchiveDamaged, match=r"noon\.json in disk"):
                decode_mark("disk", "orders.main/marks/noon.json", damaged)
    with pytest.raises(ArchiveDamaged, match="no mark"):
        decode_mark("disk", "orders.main/marks/noon.json", None)
