"""An append to a stream that is the store, cut into parts that fit into one batch each; checked before any is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evsync.errors import ConfigurationError, EncodingError
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.store import checkpoints
from evsync.jetstream.store.stream import MAX_COMMIT_EVENTS
from evsync.records import Commit, LogIdentity
from evsync.sharding.slots import slot_of
from evsync.stores.plan import key_of, plan


def parts_of(commits: Sequence[Commit], identity: LogIdentity, form: MessageFormat) -> list[list[Commit]]:
    """The commits, in order, in parts that can be sent one after the other.

    Raises EncodingError or ConfigurationError for what no store, or not this one, can keep.
    """
    expected = {a.stream: a.expected_version for commit in commits for a in reversed(commit.appends)}
    planned = plan(identity, 0, expected, {}, [Commit(c.command, c.appends) for c in commits])
    for commit in commits:
        if (size := _size(commit)) > MAX_COMMIT_EVENTS:
            raise EncodingError(
                f"a commit of {size:,} events was refused and nothing of it stored: {MAX_COMMIT_EVENTS:,} is the "
                "most that one save in a JetStream store can hold. Save in several steps."
            )
        for a in commit.appends:
            if a.slot != slot_of(a.stream, identity.slots) or checkpoints.is_reserved(a.stream):
                raise ConfigurationError(
                    f"stream {a.stream!r} cannot be written in slot {a.slot}: its slot follows from its id, and "
                    f"ids that begin with {checkpoints.PREFIX!r} are evsync's own"
                )
    parts = list(_parts(commits))
    if len(parts) > 1:  # of one part, whatever cannot be written is found out before anything is sent
        for row in planned.rows:
            form.encode_unplaced(row)
    return parts


def _parts(commits: Sequence[Commit]) -> Iterator[list[Commit]]:
    """Parts that fit into one batch, and store one checkpoint of a follower at most."""
    part: list[Commit] = []
    followers: set[str] = set()
    size = 0
    for commit in commits:
        if commit.follower in followers or size + _size(commit) > MAX_COMMIT_EVENTS:
            yield part
            part, followers, size = [], set(), 0
        part.append(commit)
        if commit.follower is not None:
            followers.add(commit.follower)
        size += _size(commit)
    yield part


def _size(commit: Commit) -> int:
    """How many messages a commit takes: its checkpoint is one more."""
    return commit.size + (key_of(commit) is not None)
