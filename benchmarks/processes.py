"""What the processes of a tree have used of the processors, from /proc. Empty where there is no /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """One process."""

    command: str
    cpu_s: float
    """In its own code and in the kernel's, so far."""


def usage_below(root: int) -> dict[int, Usage]:
    """The process `root` and all its descendants, by process id."""
    parents, found = {}, {}
    for pid, parent, usage in _processes():
        parents[pid], found[pid] = parent, usage
    return {pid: usage for pid, usage in found.items() if _descends(pid, root, parents)}


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid != root:
        if pid not in parents:
            return False
        pid = parents[pid]
    return True


def _processes() -> Iterator[tuple[int, int, Usage]]:
    ticks = os.sysconf("SC_CLK_TCK")
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # After the name in parentheses, which may hold anything: state, parent, …, user and system time.
            stat = (directory / "stat").read_text().rpartition(")")[2].split()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if command:  # empty once it has ended, until its parent has asked how
            yield int(directory.name), int(stat[1]), Usage(command, (int(stat[11]) + int(stat[12])) / ticks)
