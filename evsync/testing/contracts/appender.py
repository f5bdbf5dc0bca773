"""A process that appends to a store until it is done or killed, and says after each commit that it was acknowledged.

    python -m evsync.testing.contracts.appender OPENER URL SERVICE SHARD NAME COMMITS [SIZES]

Each commit has one event of the stream NAME and two of the stream "shared", over which all such processes compete; with
SIZES, such as 1,2,9, as many of it as the next of these numbers says. A line of the output is `COMMAND POSITION`, the
command in hexadecimal.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from pkgutil import resolve_name

from evsync.errors import Conflict
from evsync.ports import Store
from evsync.records import command_of
from evsync.stores.group_commit import GroupCommit
from evsync.testing.contracts.samples import append, commit

SHARED = "shared"


async def run(opening: Awaitable[Store], name: str, n: int, sizes: Sequence[int]) -> None:
    """Make `n` commits, one after the other, each again and again until no other writer is first."""
    store = await opening
    queue = GroupCommit(store)
    mine = len(await store.read_stream(name))
    shared = len(await store.read_stream(SHARED))
    for _, size in zip(range(n), cycle(sizes), strict=False):
        while True:
            wanted = commit(append(name, mine), append(SHARED, shared, size))
            try:
                position = await queue.commit(wanted)
            except Conflict as e:
                if e.stream != SHARED:
                    raise  # nobody else writes to this process's own stream
                shared = e.actual
            else:
                break
        mine, shared = mine + 1, shared + size
        sys.stdout.write(f"{command_of(wanted.command).hex()} {position}\n")
        sys.stdout.flush()
    await queue.close()
    await store.close()


def main(opener: str, url: str, service: str, shard: str, name: str, commits: str, sizes: str = "2") -> None:
    """Run with the arguments of the command line."""
    open_store: Callable[..., Awaitable[Store]] = resolve_name(opener)
    asyncio.run(
        run(open_store(url, service=service, shard=shard), name, int(commits), [int(size) for size in sizes.split(",")])
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
