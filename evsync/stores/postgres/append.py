"""What the function that appends is given: commits as arrays (see evsync.stores.postgres.schema)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evsync.records import Commit
from evsync.stores.checkpoint_rows import to_row
from evsync.stores.plan import Place, Plan, key_of, streams_of


def parts_of(commits: Sequence[Commit]) -> Iterator[list[Commit]]:
    """The commits in order, cut so that no stream and no checkpoint belongs to two commits of one part."""
    part: list[Commit] = []
    used: set[object] = set()
    for commit in commits:
        mine: set[object] = {*streams_of([commit])}
        if (key := key_of(commit)) is not None:
            mine.add(key)
        if mine & used:
            yield part
            part, used = [], set()
        part.append(commit)
        used |= mine
    yield part


_PARAMETERS = (
    "%s::int[]", "%s::text[]", "%s::bigint[]",
    "%s::int[]", "%s::text[]", "%s::bigint[]",
    "%s::int[]", "%s::text[]", "%s::text[]", "%s::int[]", "%s::text[]", "%s::bigint[]", "%s::bigint[]", "%s::bigint[]",
    "%s::bigint[]",
    "%s::int[]", "%s::text[]", "%s::bigint[]", "%s::int[]", "%s::text[]", "%s::bigint[]", "%b::bytea[]", "%s::int[]",
    "%b::bytea[]", "%s::text[]",
    "%s", "%s",
)  # fmt: skip
APPEND = f"SELECT * FROM {{schema}}.append_commits({', '.join(_PARAMETERS)})"
"""The call of the function, given what `arguments_of` gives, the store's incarnation and its channel."""


_EVENT = ("stream", "version", "slot", "type", "time_us", "id", "remaining", "data", "meta")


def arguments_of(commits: Sequence[Commit], planned: Plan) -> tuple[list[Sequence[Any]], dict[int, tuple[str, int]]]:
    """The arrays that the function takes, and for each item it judges (see `items` there) its name and expectation."""
    appends: list[tuple[int, str, int | None]] = []
    places: list[tuple[int, str, int]] = []
    checkpoints: list[tuple[Any, ...]] = []
    sizes: list[int] = []
    judged: dict[int, tuple[str, int]] = {}
    for number, commit in enumerate(commits):
        moved: dict[str, int] = {}
        placed: set[Place] = set()
        for a in commit.appends:
            if a.versions is not None:
                # Nothing is expected but that the places are free. One that the commit gives twice never is.
                mine = {(a.stream, version) for version in a.versions}
                sound = len(mine) == len(a.versions) and not mine & placed
                placed |= mine
                places += [(len(appends) + 1, a.stream, version) for version in a.versions]
                appends.append((number, a.stream, None if sound else -1))
                judged[len(appends)] = a.stream, a.expected_version
            elif a.stream not in moved:
                sound = True
                appends.append((number, a.stream, a.expected_version))
                judged[len(appends)] = a.stream, a.expected_version
            elif not (sound := moved[a.stream] == a.expected_version):
                appends.append((number, a.stream, -1))
            if not sound:
                # The commit contradicts itself and is to be refused, for this reason unless the tables give one that
                # comes before it. No stream is at version -1.
                break
            moved[a.stream] = a.expected_version + len(a.events)
        else:
            sizes += [number] * commit.size
        c = commit.checkpoint
        if c is not None and commit.follower is not None:
            checkpoints.append((number, commit.follower, *to_row(c), commit.after))
            judged[-len(checkpoints)] = f"checkpoint of {commit.follower}", commit.after or 0
    rows = planned.rows
    columns: list[Sequence[Any]] = [
        *_columns(appends, 3),
        *_columns(places, 3),
        *_columns(checkpoints, 9),
        sizes,
        *([getattr(e, name) for e in rows] for name in _EVENT),
    ]
    return columns, judged


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
