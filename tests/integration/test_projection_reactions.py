"""Reactions: answered exactly once as far as their own service is changed, whatever happens on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from evsync.errors import Conflict, EvsyncError, Halted, OtherIncarnation, OutcomeUnknown, StoreUnavailable
from evsync.projections import Event, Reaction, ReactionRunner
from evsync.projections.batch import digest_of
from evsync.projections.running.reaction_runner import LAZY_EVENTS
from evsync.records import Checkpoint, Position
from evsync.tags import current_tags
from tests.projection_logs import INCARNATION, ListSource, Opened, Paid

pytestmark = pytest.mark.anyio

PAID = "bank.Account.Paid"


class Answer:
    """Stands for an aggregate."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.pending_events = ["Answered"]


class AnswerStore:
    """Keeps answers and checkpoints by the rules of a store: the checkpoint's place decides what is accepted."""

    def __init__(self) -> None:
        self.stored: dict[str, Checkpoint] = {}
        self.answers: list[int] = []
        self.tags: list[dict[str, str]] = []
        self.commits = 0
        self.before: list[EvsyncError] = []
        """Raised by the next commits, with nothing stored."""
        self.after: list[EvsyncError] = []
        """Raised by the next commits, though all was stored."""

    async def checkpoints(self, follower: str) -> list[Checkpoint]:
        await asyncio.sleep(0)
        return list(self.stored.values())

    async def commit(self, answers: Sequence[Any], follower: str, checkpoint: Checkpoint, after: int) -> Position:
        await asyncio.sleep(0)
        if self.before:
            raise self.before.pop(0)
        found = self.stored.get(checkpoint.log)
        if (found.position if found else 0) != after:
            raise Conflict(f"checkpoint of {follower}", after, found.position if found else 0)
        self.stored[checkpoint.log] = checkpoint
        self.commits += 1
        self.answers += [a.to for a in answers]
        self.tags += [dict(current_tags()) for _ in answers]
        if self.after:
            raise self.after.pop(0)
        return Position("own.main", "x", len(self.answers))

    def at(self, position: int) -> Callable[[], bool]:
        """Whether the checkpoint stored for the bank's log is at this position."""
        return lambda: "bank.main" in self.stored and self.stored["bank.main"].position == position


def answering(
    seen: list[int] | None = None, *, since: Any = "beginning", retries: int = 5, evens_only: bool = False
) -> Reaction:
    """A reaction that answers payments, or only those at even positions; `seen` gets each call."""
    reaction = Reaction("thanks", since=since, retries=retries)

    @reaction.on(Paid)
    async def thank(e: Event[Paid], service: Any) -> Any:
        assert service == "the service"
        await asyncio.sleep(0)
        number = e.position.number
        if seen is not None:
            seen.append(number)
        if e.data.amount < 0:
            raise ValueError("no money")
        return None if evens_only and number % 2 else Answer(number)

    return reaction


def runner_of(reaction: Reaction, store: AnswerStore, source: ListSource, **options: Any) -> ReactionRunner:
    """A runner of the reaction."""
    service: Any = "the service"
    return ReactionRunner(
        reaction, checkpoints=store.checkpoints, commit=store.commit, sources=[source], service=service, **options
    )


@asynccontextmanager
async def running(runner: ReactionRunner) -> AsyncIterator[asyncio.Task[None]]:
    """The runner at work, until the block ends, which must be soon."""
    task = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(30):
            yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        await runner.close()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 10) -> None:
    """Return when the condition holds; fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.002)


def bank(size: int) -> ListSource:
    """A log of so many payments."""
    source = ListSource("bank")
    source.incarnation = INCARNATION
    for n in range(size):
        source.add(PAID, f"account-{n % 3}", amount=n)
    return source


async def test_every_event_is_answered_once_across_restarts() -> None:
    """The answer and the checkpoint are one commit."""
    source, store = bank(5), AnswerStore()
    async with running(runner_of(answering(), store, source)):
        await until(store.at(5))
    source.add(PAID, "a", amount=1)
    async with running(runner_of(answering(), store, source)):
        await until(store.at(6))
    assert store.answers == [1, 2, 3, 4, 5, 6]
    checkpoint = store.stored["bank.main"]
    assert (checkpoint.group, checkpoint.incarnation, checkpoint.count) == (0, INCARNATION, 6)
    assert checkpoint.digest == sum(map(digest_of, source.events)) % 2**64


async def test_what_an_answer_saves_is_tagged_with_its_cause() -> None:
    """The correlation of the event, or else its command; and the event itself as the cause."""
    source, store = bank(2), AnswerStore()
    source.events[1] = source.events[1]._replace(meta='{"actor":"ada","correlation_id":"c-1"}')
    async with running(runner_of(answering(), store, source)):
        await until(store.at(2))
    first, second = source.events
    assert store.tags == [
        {"correlation_id": str(UUID(bytes=first.id[:14] + b"\0\0")), "causation_id": str(UUID(bytes=first.id))},
        {"correlation_id": "c-1", "causation_id": str(UUID(bytes=second.id))},
    ]
    assert current_tags() == {}


async def test_events_without_an_answer_move_the_checkpoint_in_few_commits() -> None:
    """At the latest when the log is idle; an answer in between takes them along."""
    source, store = ListSource("bank"), AnswerStore()
    for n in range(999):
        source.add("bank.Account.Audited" if n != 500 else PAID, "a", amount=1)
    async with running(runner_of(answering(), store, source)):
        await until(store.at(999))
    assert store.answers == [501]
    assert store.commits < 15
    assert store.stored["bank.main"].count == 1


class TestSince:
    """From which events on a reaction answers."""

    async def test_now_is_settled_once(self) -> None:
        """Events of the time before the first opening are never answered, later ones always, also after a restart."""
        source, store = bank(3), AnswerStore()
        async with running(runner_of(answering(since="now"), store, source)):
            await until(store.at(3))
        source.add(PAID, "a", amount=1)
        async with running(runner_of(answering(since="now"), store, source)):
            await until(store.at(4))
        assert store.answers == [4]

    async def test_now_is_the_place_before_the_first_event_of_an_empty_log(self) -> None:
        """Also that is stored at once, so that what comes while nothing runs is answered."""
        source, store = bank(0), AnswerStore()
        async with running(runner_of(answering(since="now"), store, source)):
            await until(store.at(0))
        source.add(PAID, "a", amount=1)
        async with running(runner_of(answering(since="now"), store, source)):
            await until(store.at(1))
        assert store.answers == [1]

    async def test_a_time_passes_over_earlier_events(self) -> None:
        """By each event's own time; the exact moment is answered."""
        source, store = bank(6), AnswerStore()
        since = datetime.fromtimestamp(1_700_000_000, UTC).replace(microsecond=4)
        async with running(runner_of(answering(since=since), store, source)):
            await until(store.at(6))
        assert store.answers == [4, 5, 6]


class TestFailures:
    """Handlers and stores that fail."""

    async def test_a_handler_that_keeps_failing_halts_and_what_came_before_is_not_handled_again(self) -> None:
        """The error names the event; a mended handler goes on there."""
        source, store, seen = bank(5), AnswerStore(), list[int]()
        source.add(PAID, "a", amount=-1)
        reaction = answering(seen, retries=2, evens_only=True)
        runner = runner_of(reaction, store, source)
        async with running(runner) as task:
            with pytest.raises(Halted, match=r"'thanks' halted at position 6 of log 'bank.main'.*ValueError: no money"):
                await task
            assert (await runner.status()).state == "halted"
        assert seen == [1, 2, 3, 4, 5, 6, 6, 6]
        assert store.answers == [2, 4]
        source.events[5] = source.events[0]._replace(position=6)
        async with running(runner_of(answering(seen), store, source)):
            await until(store.at(6))
        assert seen[8:] == [6]

    async def test_an_event_that_does_not_meet_its_contract_halts(self) -> None:
        """As for projections."""
        source, store = ListSource("bank"), AnswerStore()
        source.add(PAID, "a", amount="much")
        async with running(runner_of(answering(retries=0), store, source)) as task:
            with pytest.raises(Halted, match="does not meet the contract: amount: Input should be a valid integer"):
                await task

    async def test_what_cannot_be_saved_is_an_error_of_the_handler(self) -> None:
        """And says what a reaction may return."""
        source, store = ListSource("bank"), AnswerStore()
        reaction = Reaction("thanks", since="beginning", retries=0)
        wrong: Any = "Ada"

        @reaction.on(Opened)
        async def wrong_answer(e: Event[Opened], service: Any) -> Any:
            return wrong

        source.add("bank.Account.Opened", "a", owner="Ada")
        async with running(runner_of(reaction, store, source)) as task:
            with pytest.raises(Halted, match="wrong_answer' returned 'Ada'; a reaction returns an aggregate"):
                await task

    async def test_a_conflict_over_an_aggregate_is_decided_again(self) -> None:
        """The checkpoint stands where it was, so nobody else has answered: the handler is asked once more."""
        source, store, seen = bank(2), AnswerStore(), list[int]()
        store.before = [Conflict("order-1", 3, 4)]
        async with running(runner_of(answering(seen), store, source)):
            await until(store.at(2))
        assert (seen, store.answers) == ([1, 1, 2], [1, 2])

    async def test_conflicts_with_writers_who_are_faster_are_no_failures(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """However many: the stream has grown each time, and no warning tells of it. One that stands still is the
        handler's own fault, and so is one that was to be new."""
        source, store, seen = bank(2), AnswerStore(), list[int]()
        store.before = [Conflict("order-1", n, n + 1) for n in range(1, 9)]
        async with running(runner_of(answering(seen, retries=0), store, source)):
            await until(store.at(2))
        assert (seen, store.answers) == ([1] * 9 + [2], [1, 2])
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
        for conflicts in ([Conflict("order-1", 3, 4)] * 2, [Conflict("order-1", 0, 4)]):
            source.add(PAID, "a", amount=1)
            store.before = list(conflicts)
            async with running(runner_of(answering(retries=0), store, source)) as task:
                with pytest.raises(Halted, match="another writer was first"):
                    await task

    async def test_an_unknown_outcome_is_looked_up_before_anything_is_done_again(self) -> None:
        """Stored: it is passed over. Not stored: it is answered again."""
        source, store, seen = bank(3), AnswerStore(), list[int]()
        store.after = [OutcomeUnknown("the reply was lost")]
        async with running(runner_of(answering(seen), store, source)):
            await until(store.at(3))
        assert (seen, store.answers) == ([1, 2, 3], [1, 2, 3])
        store.before = [OutcomeUnknown("the reply was lost")]
        source.add(PAID, "a", amount=1)
        async with running(runner_of(answering(seen), store, source)):
            await until(store.at(4))
        assert (seen[3:], store.answers) == ([4, 4], [1, 2, 3, 4])

    async def test_a_reply_that_is_lost_later_on_is_made_up_for_without_a_restart(self) -> None:
        """What is stored by then is gone on from: the event is not answered again, and nobody else has done it."""
        source, store, seen = bank(3), AnswerStore(), list[int]()
        runner = runner_of(answering(seen), store, source)
        for _ in range(10):
            if store.at(1)():
                store.after = [OutcomeUnknown("the reply was lost")]
            await runner.step(limit=1)
        assert runner.halted is None
        assert store.at(3)()
        assert (seen, store.answers) == ([1, 2, 3], [1, 2, 3])
        await runner.close()

    async def test_a_store_that_is_away_is_waited_for(self) -> None:
        """However often: it is not the event's fault."""
        source, store = bank(1), AnswerStore()
        store.before = [StoreUnavailable("the disk is on holiday")] * 4
        runner = runner_of(answering(retries=0), store, source)
        async with running(runner):

            async def retrying() -> bool:
                status = await runner.status()
                return status.state == "retrying" and status.logs[0].reason == "the disk is on holiday"

            await until(retrying)
            await until(store.at(1))
        assert store.answers == [1]

    async def test_another_history_halts(self) -> None:
        """Answers to a past that never was would be worse than none."""
        source, store = bank(2), AnswerStore()
        async with running(runner_of(answering(), store, source)):
            await until(store.at(2))
        source.incarnation = "0000000000ff"
        async with running(runner_of(answering(), store, source)) as task:
            with pytest.raises(OtherIncarnation, match="Else give the reaction a new name") as caught:
                await task
        assert str(caught.value).startswith(
            f"reaction 'thanks' has answered log 'bank.main' up to position 2 of incarnation {INCARNATION}, and the "
            "log that is there now is incarnation 0000000000ff: "
        )


class TestTwoProcesses:
    """The same reaction at work twice."""

    async def test_each_event_is_answered_once_and_one_of_them_stands_by(self) -> None:
        """Whoever loses the commit leaves the log to the other."""
        source, store = bank(0), AnswerStore()
        first, second = (runner_of(answering(), store, source) for _ in range(2))
        async with running(first), running(second):
            for n in range(50):
                source.add(PAID, "a", amount=n)
                await until(store.at(n + 1))

            async def divided() -> bool:
                return {(await r.status()).state for r in (first, second)} == {"running", "standby"}

            await until(divided)
        assert store.answers == list(range(1, 51))

    async def test_calls_that_need_no_commit_are_doubled_until_a_checkpoint_tells_the_two_apart(self) -> None:
        """After 256 events at the latest; without a lease, neither knows of the other before."""
        source, store, calls = bank(1_000), AnswerStore(), list[int]()

        def calling() -> Reaction:
            reaction = Reaction("thanks", since="beginning")

            @reaction.on(Paid)
            async def call(e: Event[Paid], service: Any) -> None:
                await asyncio.sleep(0)
                calls.append(e.position.number)

            return reaction

        async with running(runner_of(calling(), store, source)), running(runner_of(calling(), store, source)):
            await until(store.at(1_000))
        assert set(calls) == set(range(1, 1_001))
        assert len(calls) <= 1_000 + LAZY_EVENTS

    async def test_the_one_that_stood_by_goes_on_when_events_stay_unanswered(self) -> None:
        """Not before they have waited for a while, so that an idle log wakes nobody."""
        source, store = bank(1), AnswerStore()
        slow, loses = Reaction("thanks", since="beginning"), True

        @slow.on(Paid)
        async def thank_late(e: Event[Paid], service: Any) -> Any:
            if loses:
                await until(store.at(e.position.number))
            return Answer(e.position.number)

        first, second = runner_of(answering(), store, source), runner_of(slow, store, source, standby_s=0.2)

        async def stands_by() -> bool:
            status = await second.status()
            return status.state == "standby" and status.logs[0].reason == "another process answers this log"

        async with running(second):
            async with running(first):
                await until(stands_by)
                source.add(PAID, "a", amount=1)
                await until(store.at(2))
                assert await stands_by()
            loses = False
            source.add(PAID, "a", amount=1)
            await until(store.at(3))
            assert (await second.status()).state == "running"
        assert store.answers == [1, 2, 3]


async def test_step_answers_a_piece_and_says_when_there_is_nothing_left() -> None:
    """For a world that decides what happens when; failed attempts count, until it halts."""
    source, store = bank(5), AnswerStore()
    runner = runner_of(answering(retries=1), store, source)
    assert await runner.step(limit=2)
    assert store.answers == [1, 2]
    store.after = [OutcomeUnknown("the reply was lost")]
    while await runner.step("bank.main", limit=2):
        pass
    assert store.answers == [1, 2, 3, 4, 5]
    assert runner.logs == ("bank.main",)
    source.add(PAID, "a", amount=-1)
    assert [await runner.step() for _ in range(3)] == [True, True, False]
    assert isinstance(runner.halted, Halted)
    await runner.close()
