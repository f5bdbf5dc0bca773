"""A directory as a place for backups: on another disk, or a share of another machine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from evsync.errors import TargetUnavailable

T = TypeVar("T")

_PART = ".part-"
"""What the names of files that are being written begin with: no segment's name does."""
_LEFT_BEHIND_S = 3600.0
PATIENCE_S = 120.0
"""How long a directory may be silent: the network between, or a disk that fails, can keep a call for ever."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class DirectoryTarget:
    """A BackupTarget in a directory, which is made when something is first put there.

    A file is written under another name, brought to the disk, read back from there, and only then given its own name;
    the directory is brought to the disk too.
    """

    def __init__(self, path: str | os.PathLike[str], *, patience_s: float = PATIENCE_S) -> None:
        self.path = Path(path).absolute()
        self.url = str(path)  # as it was given: what a person knows it by
        self._patience_s = patience_s
        self._silent: asyncio.Task[Any] | None = None  # what holds a thread: no other is given up for this directory

    async def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Keep the content under a name; see BackupTarget."""
        return await self._in_thread(lambda: self._put(name, content, replace))

    async def get(self, name: str, *, most: int | None = None) -> bytes | None:
        """The content under a name, with `most` its first bytes; None if there is none."""
        return await self._in_thread(lambda: self._get(name, most))

    async def list(self, prefix: str) -> Sequence[str]:
        """The names that begin with a prefix, sorted."""
        return await self._in_thread(lambda: sorted(self._names(prefix)))

    async def delete(self, name: str) -> None:
        """Take away what is kept under a name, if anything is."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._file(name).unlink()
                _sync_directory(self._file(name).parent)

        await self._in_thread(delete)

    async def close(self) -> None:
        """Nothing is held."""

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._silent is not None and not self._silent.done():
            raise TargetUnavailable(f"the backup directory {self.url} does not answer yet")
        task = asyncio.create_task(asyncio.to_thread(work))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting by then
        try:
            await asyncio.wait([task], timeout=self._patience_s)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            self._silent = task
            raise TargetUnavailable(f"the backup directory {self.url} has not answered for {self._patience_s:g} s")
        try:
            return task.result()
        except OSError as e:
            raise TargetUnavailable(f"the backup directory {self.url}: {e}") from e

    def _put(self, name: str, content: bytes, replace: bool) -> bool:
        file = self._file(name)
        self._make(file.parent)
        _sweep(file.parent)
        if not replace and file.exists():
            return False
        part = file.with_name(f"{_PART}{uuid4().hex}")
        try:
            _write(part, content)
            if _read_back(part) != content:
                raise TargetUnavailable(
                    f"the backup directory {self.url} did not keep {name} as it was written: its disk, or what stands "
                    "between, cannot be trusted. What it kept was taken away again."
                )
            if replace:
                part.replace(file)
            elif not _rename_anew(part, file):
                return False
        finally:
            part.unlink(missing_ok=True)
        _sync_directory(file.parent)
        return True

    def _get(self, name: str, most: int | None) -> bytes | None:
        try:
            with self._file(name).open("rb") as f:
                return f.read() if most is None else f.read(most)
        except FileNotFoundError:
            return None

    def _names(self, prefix: str) -> Iterator[str]:
        for directory, _, files in os.walk(self.path / prefix, onerror=_unless_gone):
            for name in files:
                if not name.startswith(_PART):
                    yield (Path(directory) / name).relative_to(self.path).as_posix()

    def _file(self, name: str) -> Path:
        parts = name.split("/")
        if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
            raise TargetUnavailable(f"{name[:200]!r} cannot be the name of anything in the backup directory {self.url}")
        return self.path.joinpath(*parts)

    def _make(self, directory: Path) -> None:
        """Make a directory and those above it, so that they are there after a crash of the machine too."""
        if directory.is_dir():
            return
        self._make(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)


def _write(file: Path, content: bytes) -> None:
    with file.open("xb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())


def _read_back(file: Path) -> bytes:
    with file.open("rb") as f:
        if hasattr(os, "posix_fadvise"):  # from the disk, not from what the system remembers of the write
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return f.read()


def _rename_anew(part: Path, file: Path) -> bool:
    """Give a file its name, unless another has it: of two who try, one succeeds."""
    try:
        os.link(part, file)
    except FileExistsError:
        return False
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
        # Some shares have no links. Two backups of one log at the same moment may then both believe to be first; what
        # they wrote holds the same events.
        if file.exists():
            return False
        part.replace(file)
    return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # some shares cannot
            raise
    finally:
        os.close(descriptor)


def _unless_gone(error: OSError) -> None:
    """A directory that cannot be read is not an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _sweep(directory: Path) -> None:
    """Take away what processes that were killed have left half-written."""
    for file in directory.glob(f"{_PART}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > _LEFT_BEHIND_S:
                file.unlink()
