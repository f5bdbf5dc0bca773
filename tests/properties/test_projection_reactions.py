"""Whatever a store answers and whoever else reacts, each event is answered exactly once."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.errors import Conflict, EvsyncError, OutcomeUnknown, StoreUnavailable
from tests.integration.test_projection_reactions import AnswerStore, answering, bank, runner_of

FAILURES: list[EvsyncError] = [
    OutcomeUnknown("the reply was lost"),
    StoreUnavailable("not now"),
    Conflict("order-1", 3, 4),
]


async def answer_through_failures(seed: int, size: int, runners: int) -> None:
    chance = random.Random(seed)
    source, store = bank(size), AnswerStore()
    source.again = lambda after: max(0, after - chance.choice([0, 0, 1, 3]))  # some events are delivered again
    workers = [runner_of(answering(retries=10_000, evens_only=True), store, source) for _ in range(runners)]
    while not store.at(size)():
        match chance.randrange(6):
            case 0:
                store.before.append(chance.choice(FAILURES))
            case 1:
                store.after.append(FAILURES[0])
            case 2:
                i = chance.randrange(runners)
                await workers[i].close()
                workers[i] = runner_of(answering(retries=10_000, evens_only=True), store, source)
        # Two at the same time, so that their handlers and commits interleave.
        chosen = chance.sample(workers, min(2, runners))
        await asyncio.gather(*(w.step(limit=chance.randint(1, 5)) for w in chosen))
    assert store.answers == list(range(2, size + 1, 2))
    assert not any(w.halted for w in workers)
    for worker in workers:
        await worker.close()


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_each_event_is_answered_exactly_once_through_lost_replies_conflicts_and_rivals(
    seed: int, size: int, runners: int
) -> None:
    """Nothing is answered twice or left out, in order, by any number of processes."""
    asyncio.run(answer_through_failures(seed, size, runners))
