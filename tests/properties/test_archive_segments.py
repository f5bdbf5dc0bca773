"""Segments come back as they were written, and any damage to one, or to their chain, is found and named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evsync.archive.columns import EventColumns
from evsync.archive.segments import (
    FollowerCheckpoint,
    decode_header,
    decode_segment,
    encode_segment,
    segment_name,
)
from evsync.archive.verification import verify_copy
from evsync.errors import ArchiveDamaged, DecodingError
from evsync.records import Ancestor, Checkpoint, LogIdentity, StoredEvent
from evsync.testing.contracts.samples import HOSTILE
from tests.archiving import IDENTITY, MemoryTarget, archived, copy_of

pytestmark = pytest.mark.anyio
quiet = settings(
    max_examples=80,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

texts = st.one_of(
    st.sampled_from(HOSTILE), st.uuids().map(str), st.uuids().map(lambda u: str(u).upper()), st.text(max_size=40)
).filter(lambda text: text.isascii() or not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
numbers = st.integers(0, 2**62)
shares = st.floats(0, 1, exclude_max=True)  # of a length that differs a little each time: ids are random


@st.composite
def stretches(draw: st.DrawFn) -> list[StoredEvent]:
    """Events at consecutive positions, the last of them the end of a commit."""
    first, size = draw(st.integers(1, 10**15 - 100)), draw(st.integers(1, 12))
    events = []
    for n in range(size):
        fields: dict[str, Any] = {
            "stream": draw(texts),
            "version": draw(numbers),
            "slot": draw(st.integers(0, 65_535)),
            "type": draw(texts),
            "time_us": draw(st.integers(-(2**61), 2**61)),
            "id": draw(st.binary(min_size=16, max_size=16)),
            "remaining": draw(st.integers(0, 65_535)) if n < size - 1 else 0,
            "incarnation": draw(st.sampled_from(["3f9a2b1c7d5e", "000000000000"])),
            "data": draw(st.binary(max_size=60)),
            "meta": draw(st.one_of(st.none(), texts)),
        }
        events.append(StoredEvent(position=first + n, **fields))
    return events


@quiet
@given(events=stretches(), previous=st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)), made_us=numbers)
def test_what_was_archived_is_read_again(events: list[StoredEvent], previous: bytes, made_us: int) -> None:
    """Every field of every event, and everything that the header says."""
    identity = LogIdentity("users", "main", "3f9a2b1c7d5e", 64, (Ancestor("000000000000", 7),))
    checkpoints = (FollowerCheckpoint("billing", Checkpoint("orders.main", 0, "0a", 5, 3, 2**64 - 1)),)
    content = encode_segment(identity, EventColumns(events), previous, made_us=made_us, checkpoints=checkpoints)
    name = segment_name(identity, events[0].position)
    segment = decode_segment(name, content)
    header = segment.header
    assert segment.events() == events
    assert header == decode_header(name, content)
    assert (header.identity, header.first, header.last) == (identity, events[0].position, events[-1].position)
    assert (header.count, header.previous, header.made_us) == (len(events), previous, made_us)
    assert (header.earliest_us, header.latest_us) == (min(e.time_us for e in events), max(e.time_us for e in events))
    assert header.checkpoints == checkpoints
    assert segment.sha256 == content[-32:]


@quiet
@given(events=stretches(), data=st.data())
def test_any_bit_that_is_flipped_is_found(events: list[StoredEvent], data: st.DataObject) -> None:
    """Wherever it is: in the header, the events, or the hash itself."""
    content = bytearray(encode_segment(IDENTITY, EventColumns(events), b"", made_us=1))
    place = data.draw(st.integers(0, len(content) * 8 - 1))
    content[place // 8] ^= 1 << (place % 8)
    with pytest.raises(DecodingError):
        decode_segment(segment_name(IDENTITY, events[0].position), bytes(content))


@quiet
@given(events=stretches(), data=st.data())
def test_a_segment_that_is_cut_or_goes_on_is_found(events: list[StoredEvent], data: st.DataObject) -> None:
    """Wherever it ends."""
    content = encode_segment(IDENTITY, EventColumns(events), b"", made_us=1)
    name = segment_name(IDENTITY, events[0].position)
    for wrong in (content[: data.draw(st.integers(0, len(content) - 1))], content + b"\0", b""):
        with pytest.raises(DecodingError):
            decode_segment(name, wrong)


@quiet
@given(noise=st.binary(max_size=300))
def test_noise_is_refused_in_one_way(noise: bytes) -> None:
    """Whatever is kept under a segment's name."""
    for content in (noise, b"EVSYNCS1" + noise, b"EVSYNCS1\0\0\0\x02" + noise):
        with pytest.raises(DecodingError):
            decode_segment(segment_name(IDENTITY, 1), content)
        with pytest.raises(DecodingError):
            decode_header(segment_name(IDENTITY, 1), content)


async def test_a_whole_chain_is_verified() -> None:
    """Nothing is wrong with what nobody has touched."""
    target = MemoryTarget()
    _, events = await archived(60, target)
    report = await verify_copy(copy_of(target))
    assert (report.problems, report.leftovers) == ([], [])
    assert report.last == report.end == report.events == len(events)
    assert report.segments == len(target.kept) > 4


@quiet
@given(data=st.data())
async def test_damage_to_a_chain_is_found_and_named(data: st.DataObject) -> None:
    """A bit, a cut, a missing, doubled, swapped or foreign segment: each is named, and where what is whole ends."""
    target = MemoryTarget()
    await archived(60, target)
    names = sorted(target.kept)
    which = data.draw(st.integers(0, len(names) - 2))
    name, other = names[which], names[data.draw(st.integers(which + 1, len(names) - 1))]
    content = target.kept[name]
    damage = data.draw(st.sampled_from(["bit", "cut", "missing", "doubled", "swapped", "foreign"]))
    named = name
    if damage == "bit":
        place = int(data.draw(shares) * len(content))
        target.kept[name] = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    elif damage == "cut":
        target.kept[name] = content[: int(data.draw(shares) * len(content))]
    elif damage == "missing":
        del target.kept[name]
    elif damage == "doubled":
        first = decode_segment(other, target.kept[other]).header.first
        named = segment_name(IDENTITY, first + 1 if segment_name(IDENTITY, first + 1) not in names else first + 2)
        target.kept[named] = content
    elif damage == "swapped":
        target.kept[name], target.kept[other] = target.kept[other], content
    else:
        segment = decode_segment(name, content)
        target.kept[name] = encode_segment(IDENTITY, EventColumns(segment.events()), b"\7" * 32, made_us=1)
    report = await verify_copy(copy_of(target))
    found = {e.name for e in report.problems if isinstance(e, ArchiveDamaged)}
    before = decode_segment(names[which - 1], target.kept[names[which - 1]]).header.last if which else 0
    if damage == "foreign" and which:
        assert name in found
        assert report.last == before
    elif damage == "foreign":
        assert {name, names[1]} & found  # the first names a predecessor
    elif damage == "doubled":
        assert found == {named}
    else:
        assert named in found
        assert report.last == before
    if damage == "swapped":
        assert other in found


async def test_a_lost_end_shows_beside_another_copy() -> None:
    """A copy that ends early is whole as far as it reaches; how far others reach says the rest."""
    one, two = MemoryTarget("one"), MemoryTarget("two")
    _, events = await archived(60, one, two)
    del one.kept[max(one.kept)]
    first, second = await verify_copy(copy_of(one)), await verify_copy(copy_of(two))
    assert not first.problems
    assert first.last < second.last == len(events)


async def test_what_is_no_segment_is_named() -> None:
    """A file that somebody else has put there."""
    target = MemoryTarget()
    await archived(30, target)
    target.kept[f"{IDENTITY.name}/{IDENTITY.incarnation}/notes.txt"] = b"hello"
    report = await verify_copy(copy_of(target))
    assert [e.name for e in report.problems if isinstance(e, ArchiveDamaged)] == [
        f"{IDENTITY.name}/{IDENTITY.incarnation}/notes.txt"
    ]
