"""Appending to a stream that is the store: what is known of the streams' ends, one attempt, and what became of it.

Every message expects the sequence at which its aggregate's stream ends, so a commit can be sent again: wherever the
first try arrived, the second one is refused, and the other way round. What is remembered of the streams' ends is a
hint; the server refuses what was decided on a wrong one, and only what the stream's leader says makes a Conflict.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from evsync.errors import BrokerError, Conflict, OutcomeUnknown, SlotMoved, StoreFull, StoreUnavailable
from evsync.jetstream.client.backoff import Backoff
from evsync.jetstream.client.refusals import Refused
from evsync.jetstream.faults import passes
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.store import checkpoints
from evsync.jetstream.store.reads import StreamReads, Top
from evsync.jetstream.store.sends import Answer, Sender, drafts_of
from evsync.jetstream.store.slots import Slots
from evsync.records import Commit, LogIdentity, StoredEvent
from evsync.stores.plan import CheckpointKey, Plan, doubtful, key_of, plan, streams_of

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.5
_ANSWER_S = 2.0


class Ends:
    """Where aggregates' streams end, as far as is remembered: the ones that were used last."""

    def __init__(self, most: int = 65_536) -> None:
        self._most = most
        self._tops: OrderedDict[str, Top] = OrderedDict()

    def get(self, stream: str) -> Top | None:
        """What is remembered of a stream."""
        return self._tops.get(stream)

    def learn(self, stream: str, top: Top) -> None:
        """Remember; late news of an earlier end are passed over."""
        known = self._tops.pop(stream, None)
        self._tops[stream] = top if known is None or known.sequence < top.sequence else known
        while len(self._tops) > self._most:
            self._tops.popitem(last=False)

    def forget(self, streams: Iterable[str]) -> None:
        """It turned out that this is not so any more."""
        for stream in streams:
            self._tops.pop(stream, None)


class _Try(NamedTuple):
    """What to look for when it is not known what became of a commit that was sent."""

    first: StoredEvent
    size: int


_NOT_SENT = Refused(0, 0, "it was not sent")


class Appending:
    """One append on its way into the store: parts of it, one after the other, that fit into one batch each."""

    def __init__(
        self,
        identity: LogIdentity,
        form: MessageFormat,
        reads: StreamReads,
        sender: Sender,
        ends: Ends,
        slots: Slots,
        *,
        deadline: float,
    ) -> None:
        self.touched = False
        """Whether something of the append is stored."""
        self.last: tuple[StoredEvent, int] | None = None
        """The last event that was stored, and its position."""
        self._identity, self._form, self._reads, self._sender = identity, form, reads, sender
        self._ends, self._slots, self._deadline = ends, slots, deadline
        self._begin()

    def _begin(self) -> None:
        self._tries: dict[int, _Try] = {}  # commits of which no answer says whether they are stored
        self._looked_up: set[str] = set()  # streams whose end is what the leader said
        self._suspects: set[str] = set()  # streams whose end turned out to be another
        self._backoff = Backoff(SHORTEST_PAUSE_S, LONGEST_PAUSE_S)

    async def part(self, commits: Sequence[Commit]) -> list[int | Conflict | None]:
        """The outcome of each commit, None for one that has nothing to store.

        Raises StoreUnavailable, StoreFull, EventTooLarge or EncodingError when nothing of the part was stored,
        OutcomeUnknown when that is not so, or not certain.
        """
        self._begin()
        outcomes: dict[int, int | Conflict | None] = {}
        while left := [n for n in range(len(commits)) if n not in outcomes]:
            try:
                for n in self._tries.keys() & set(left):
                    if (position := await self._found(n)) is not None:
                        outcomes[n] = position
                await self._attempt(commits, [n for n in left if n not in outcomes], outcomes)
            except BrokerError as e:
                if not passes(e):
                    raise self._failure(str(e)) from e
                await self._pause(str(e))
        return [outcomes[n] for n in range(len(commits))]

    async def _attempt(
        self, commits: Sequence[Commit], left: Sequence[int], outcomes: dict[int, int | Conflict | None]
    ) -> None:
        """Decide on the commits that are left, and send those that nothing is known to stand in the way of."""
        behind = await self._slots.fence(a.slot for n in left for a in commits[n].appends)
        chosen, planned, tops = await self._planned([commits[n] for n in left])
        refused = [
            commit
            for commit, outcome in zip(chosen, planned.outcomes, strict=True)
            if isinstance(outcome, Conflict) and not isinstance(outcome, SlotMoved)
        ]
        if unsure := {*streams_of(refused)} - self._looked_up:
            self._suspects |= unsure
            return  # to look: what is remembered makes no Conflict
        start, sending = 0, []
        judged: dict[int, int | Conflict] = {}
        for n, commit, outcome in zip(left, chosen, planned.outcomes, strict=True):
            if isinstance(outcome, Conflict):
                # A try of before may have arrived between the look for it and this.
                position = await self._found(n)
                judged[n] = outcome if position is None else position
            elif not commit.size:
                outcomes[n] = None
            else:
                sending.append((n, planned.rows[start : start + commit.size]))
                start += commit.size
        if not sending:
            outcomes |= judged
            return
        unsent: str | None = None
        for (n, rows), answer in zip(sending, await self._send(sending, tops, behind), strict=True):
            if isinstance(answer, int):
                outcomes[n] = answer
                self._stored(rows, answer, tops)
            else:
                streams = {row.stream for row in rows}
                self._ends.forget(streams)
                self._suspects |= streams
                self._looked_up -= streams
                unsent = self._reason(answer) or unsent or ("the log has gone on" if behind is not None else None)
        if all(n in outcomes for n, _ in sending):
            outcomes |= judged  # else they may have been judged by a neighbour that is itself kept out in the end
        if unsent is not None:
            await self._pause(unsent)

    async def _send(
        self, sending: Sequence[tuple[int, list[StoredEvent]]], tops: dict[str, Top], behind: int | None
    ) -> Sequence[Answer]:
        """Send the commits; for each the position of its last event, or what the server said, or None."""
        drafts = drafts_of(self._form, [row for _, rows in sending for row in rows], tops)
        new = {n: _Try(rows[0], len(rows)) for n, rows in sending if n not in self._tries}
        self._tries |= new  # also if this task is cancelled now
        answers: Sequence[Answer] = [_NOT_SENT] * len(sending)
        try:
            if behind is None and len(drafts) == len(sending) == len({draft.event.stream for draft in drafts}):
                answers = await self._sender.one_by_one(drafts, _ANSWER_S)
            else:
                last = await self._sender.batch(drafts, _ANSWER_S, behind=behind)
                ends = accumulate(len(rows) for _, rows in sending)
                answers = [last - len(drafts) + end if isinstance(last, int) else last for end in ends]
        finally:
            for (n, _), answer in zip(sending, answers, strict=True):
                if isinstance(answer, int) or (isinstance(answer, Refused) and n in new):
                    del self._tries[n]
        return answers

    def _stored(self, rows: Sequence[StoredEvent], last: int, tops: Mapping[str, Top]) -> None:
        self.touched = True
        self._slots.appended()
        for position, row in enumerate(rows, last - len(rows) + 1):
            self._ends.learn(row.stream, Top(tops[row.stream].version, position))
        self.last = rows[-1], last

    def _reason(self, answer: Refused | None) -> str | None:
        """Why a commit must wait before it is sent again; None if it need not. Raises if that is in vain."""
        if answer is None:
            return "the server did not answer"
        if answer.is_full and not (self.touched or self._tries):
            raise StoreFull(
                f"the stream of {self._identity.name} is full: {answer.text}; nothing was stored. Raise its limits, or "
                "the server's, then save again."
            )
        if answer.is_full or not (answer.is_conflict or answer.passes):
            raise self._failure(f"the server refused: {answer.text} ({answer.err_code})")
        return None if answer.is_final else answer.text

    async def _found(self, n: int) -> int | None:
        """The position of a commit's last event, if an earlier try of it was stored after all."""
        if (sent := self._tries.get(n)) is None:
            return None
        row, size = sent
        stored = await self._reads.at(row.stream, row.version)
        if stored is None or stored.id != row.id:
            return None
        del self._tries[n]
        self.touched = True
        return stored.position + size - 1

    async def _pause(self, why: str) -> None:
        if asyncio.get_running_loop().time() >= self._deadline:
            raise self._failure(why)
        await self._backoff.pause()

    def _failure(self, text: str) -> OutcomeUnknown | StoreUnavailable:
        where = f"the stream of {self._identity.name}"
        if self.touched or self._tries:
            return OutcomeUnknown(
                f"{where}: {text}. What was appended may or may not be stored. Look for the command's id in its "
                "streams before you save again; execute() does."
            )
        return StoreUnavailable(f"{where}: {text}; nothing was stored")

    # ---- what is known

    async def _planned(self, commits: Sequence[Commit]) -> tuple[Sequence[Commit], Plan, dict[str, Top]]:
        """The commits, those with a checkpoint with an event more, and what is to become of them."""
        positions: dict[CheckpointKey, int] = {}
        chosen = []
        for commit in commits:
            key, whole = key_of(commit), commit
            if key is not None:
                stored, top = await self._checkpoints(key[0])
                if (kept := stored.get(key[1:])) is not None:
                    positions[key] = kept.position
                service, slots = self._identity.service, self._identity.slots
                whole = checkpoints.with_checkpoint(commit, stored, top.version, service, slots)
            chosen.append(whole)
        tops = await self._tops(chosen)
        versions = {stream: top.version for stream, top in tops.items()}
        doubts = doubtful(chosen, versions)
        held = await asyncio.gather(*(self._slots.at(*place) for place in doubts))
        taken = {place for place, event in zip(doubts, held, strict=True) if event is not None}
        return chosen, plan(self._identity, 0, versions, positions, chosen, taken, self._slots.states), tops

    async def _checkpoints(self, follower: str) -> tuple[checkpoints.Checkpoints, Top]:
        stream = checkpoints.stream_of(follower)
        found = await self._reads.last(stream)
        self._looked_up.add(stream)
        self._suspects.discard(stream)
        if found is None:
            self._ends.forget([stream])
            return {}, Top(0, 0)
        self._ends.learn(stream, found[1])
        return checkpoints.read(found[0]), found[1]

    async def _tops(self, commits: Sequence[Commit]) -> dict[str, Top]:
        """Where the streams end: as remembered, else as the leader says; a new stream is taken for new."""
        tops: dict[str, Top] = {}
        unknown: dict[str, None] = {}
        for a in (a for commit in commits for a in commit.appends):
            top = self._ends.get(a.stream)
            if (
                top is None
                and a.versions is None
                and a.expected_version == 0
                and not await self._slots.imported(a.slot)
            ):
                top = Top(0, 0)
            # Without an event there is no message that the server would refuse.
            if top is None or a.stream in self._suspects or not (a.events or a.stream in self._looked_up):
                unknown[a.stream] = None
            else:
                tops[a.stream] = top
        for stream, found in zip(unknown, await asyncio.gather(*map(self._slots.last, unknown)), strict=True):
            tops[stream] = found[1] if found is not None else Top(0, 0)
            self._ends.forget([stream])
            if found is not None and found[1].sequence:  # no server would refuse what is remembered of imports
                self._ends.learn(stream, found[1])
            self._looked_up.add(stream)
            self._suspects.discard(stream)
        return tops
