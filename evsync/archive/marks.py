"""Marks: one place in the logs of several services at which none of them is ahead of what it was made from.

Restored to a mark, no log has an answer whose question is gone (see `dependence`). A mark is a file beside the segments
of each log that it names; docs/archive-format.md has its form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from evsync.archive.segments import FollowerCheckpoint
from evsync.archive.verification import CopyReport
from evsync.errors import ArchiveDamaged, ArchiveError, ArchiveIncomplete, ConfigurationError, TargetUnavailable
from evsync.ports import BackupTarget
from evsync.records import Checkpoint

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
FORMAT = 1


@dataclass(frozen=True, slots=True)
class MarkedLog:
    """One log's part of a mark."""

    incarnation: str
    position: int
    checkpoints: tuple[FollowerCheckpoint, ...] = ()
    """Of the service's reactions, as they were there."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in several logs."""

    name: str
    made_us: int
    logs: Mapping[str, MarkedLog]


def check_name(name: str) -> str:
    """`name`, if it can name a mark: it becomes part of a file's name. Raises ConfigurationError otherwise."""
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a mark: use 1 to 100 of the characters A-Z, a-z, 0-9, '.', '-' and '_', "
            "beginning with a letter or digit"
        )
    return name


def name_for(now: datetime) -> str:
    """The name of a mark that nobody gave one."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")


def folder(log: str) -> str:
    """Where the marks are that a log is part of."""
    return f"{log}/marks/"


def file_of(log: str, name: str) -> str:
    """Where a mark is kept beside a log's segments."""
    return f"{folder(log)}{name}.json"


def encode_mark(mark: Mark) -> bytes:
    """The bytes of its file."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "name": mark.name,
        "made_us": mark.made_us,
        "logs": {
            name: {
                "incarnation": log.incarnation,
                "position": log.position,
                "checkpoints": [_row(kept) for kept in log.checkpoints],
            }
            for name, log in mark.logs.items()
        },
    }
    return _written({**fields, "sha256": sha256(_written(fields)).hexdigest()})


def _written(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n"


def decode_mark(target: str, name: str, content: bytes | None) -> Mark:
    """The mark that is kept under a name in a target. Raises ArchiveDamaged."""
    try:
        fields: dict[str, Any] = json.loads(content or b"")
        said = fields.pop("sha256")
        if sha256(_written(fields)).hexdigest() != said:
            raise ArchiveDamaged(target, name, "it does not have the SHA-256 that it ends with")
        if fields["format"] != FORMAT:
            raise ArchiveDamaged(target, name, f"its format {fields['format']!r} is not known to this evsync")
        logs = {
            log: MarkedLog(
                part["incarnation"],
                part["position"],
                tuple(_of_row(*kept) for kept in part["checkpoints"]),
            )
            for log, part in fields["logs"].items()
        }
        return Mark(fields["name"], fields["made_us"], logs)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise ArchiveDamaged(target, name, f"it is no mark: {type(e).__name__}: {e}") from e


def _row(kept: FollowerCheckpoint) -> list[Any]:
    *fields, digest = astuple(kept.checkpoint)
    return [kept.follower, *fields, f"{digest:x}"]  # JSON's numbers do not hold a digest everywhere


def _of_row(
    follower: str, log: str, group: int, incarnation: str, position: int, count: int, digest: str
) -> FollowerCheckpoint:
    return FollowerCheckpoint(follower, Checkpoint(log, group, incarnation, position, count, int(digest, 16)))


async def marks_in(target: BackupTarget, log: str) -> list[Mark | ArchiveDamaged]:
    """The marks of a log in a place, in the order of their making. Raises TargetUnavailable."""
    found: list[Mark | ArchiveDamaged] = []
    for name in await target.list(folder(log)):
        try:
            found.append(await _read(target, log, name))
        except ArchiveDamaged as e:
            found.append(e)
    return sorted(found, key=lambda m: m.made_us if isinstance(m, Mark) else 0)


async def _read(target: BackupTarget, log: str, file: str) -> Mark:
    mark = decode_mark(target.url, file, await target.get(file))
    if log not in mark.logs or file_of(log, mark.name) != file:
        raise ArchiveDamaged(target.url, file, f"it is mark {mark.name}, of {', '.join(mark.logs)}")
    return mark


async def find_mark(targets: Sequence[BackupTarget], log: str, name: str) -> Mark:
    """A mark of a log by its name, from the first place that has it whole.

    Raises ArchiveIncomplete where none has it, ArchiveDamaged where only damaged ones do, TargetUnavailable.
    """
    errors: list[ArchiveError] = []
    known: dict[str, None] = {}
    for target in targets:
        try:
            files = await target.list(folder(log))
            known.update(dict.fromkeys(f.removeprefix(folder(log)).removesuffix(".json") for f in files))
            if file_of(log, name) in files:
                return await _read(target, log, file_of(log, name))
        except (ArchiveDamaged, TargetUnavailable) as e:
            errors.append(e)
    if errors:
        raise errors[0]
    raise ArchiveIncomplete(
        f"there is no mark {name!r} of log {log} in {', '.join(t.url for t in targets)}; there is "
        f"{', '.join(known) or 'none'}"
    )


async def verify_marks(target: BackupTarget, log: str, copies: Sequence[CopyReport]) -> list[ArchiveError]:
    """What is wrong with the marks of a log in a place, of whose segments `copies` tell. Raises TargetUnavailable."""
    wrong: list[ArchiveError] = []
    whole = {c.incarnation: c.last for c in copies if c.target == target.url}
    for mark in await marks_in(target, log):
        if isinstance(mark, ArchiveDamaged):
            wrong.append(mark)
            continue
        part = mark.logs[log]
        if part.position > (reached := whole.get(part.incarnation, 0)):
            what = f"it is at position {part.position} of incarnation {part.incarnation}, whose segments here are whole"
            wrong.append(ArchiveDamaged(target.url, file_of(log, mark.name), f"{what} up to {reached}"))
    return wrong
