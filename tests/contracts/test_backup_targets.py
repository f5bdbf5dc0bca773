"""Every place for backups keeps the laws: a directory, and an S3 server spoken to over HTTP."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from evsync.archive.backup import Backups
from evsync.archive.directory import DirectoryTarget
from evsync.archive.history import read_copies
from evsync.archive.object_storage import ObjectTarget
from evsync.archive.targets import open_target
from evsync.archive.verification import verify_copy
from evsync.errors import ConfigurationError, TargetUnavailable
from evsync.ports import BackupTarget
from evsync.testing.contracts import BackupTargetContract
from tests.archiving import MemoryTarget, archived, copy_of, fill, make_bucket, memory_store, s3_server
from tests.relaying import eventually


class TestDirectoryTarget(BackupTargetContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.path = tmp_path / "made" / "when needed"

    async def new_target(self) -> BackupTarget:
        return open_target(str(self.path))

    async def test_a_directory_that_keeps_a_call_is_away_and_holds_no_other_back(self) -> None:
        """One call holds one thread; the others fail at once, other places get their backups, and it may come back."""
        answers = threading.Event()

        class Share(DirectoryTarget):
            calls = 0

            def _names(self, prefix: str) -> Iterator[str]:
                self.calls += 1
                answers.wait(30)
                return super()._names(prefix)

        share, disk = Share(self.path, patience_s=0.05), MemoryTarget()
        store = memory_store()
        events = await fill(store, 30)
        backups = Backups(store, [share, disk], copies=1)
        try:
            report = await backups.run()
            assert (report.ok, report.backed_up) == (True, len(events))
            assert report.targets[0].error == f"the backup directory {self.path} has not answered for 0.05 s"
            with pytest.raises(TargetUnavailable, match="does not answer yet"):
                await share.list("")
            assert share.calls == 1
        finally:
            answers.set()
        await eventually(lambda: share._silent is not None and share._silent.done(), lambda: "the call is over")
        assert [r.end for r in (await backups.run()).targets] == [len(events)] * 2

    async def test_a_directory_that_cannot_be_read_is_not_empty(self) -> None:
        """What cannot be listed is told: else the archive would seem to be gone."""
        self.path.parent.mkdir()
        self.path.write_text("a file")
        with pytest.raises(TargetUnavailable, match="Not a directory"):
            await (await self.new_target()).list("")


class TestMemoryTarget(BackupTargetContract):
    async def new_target(self) -> BackupTarget:
        return MemoryTarget()


class TestObjectTarget(BackupTargetContract):
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _server(self, s3: str) -> None:
        self.endpoint = s3

    async def new_target(self) -> BackupTarget:
        bucket = f"backups{next(self.numbers)}"
        make_bucket(self.endpoint, bucket)
        return open_target(f"s3://{bucket}/shop?endpoint={self.endpoint}")

    async def test_a_log_is_archived_there_and_read_back(self) -> None:
        """Over HTTP, segment by segment."""
        target = await self.new_target()
        _, events = await archived(60, target)
        assert [e async for _, part in read_copies([copy_of(target)]) for e in part] == events
        report = await verify_copy(copy_of(target))
        assert (report.problems, report.last) == ([], len(events))

    async def test_a_server_that_is_away_is_unavailable(self) -> None:
        """The error names the place; so does one for a bucket that is not there."""
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            away = ObjectTarget(f"s3://b/p?endpoint=http://127.0.0.1:{closed.getsockname()[1]}", patience_s=0.2)
            with pytest.raises(TargetUnavailable, match="s3://b/p"):
                await away.put("a/b", b"")
        missing = open_target(f"s3://no-such-bucket/p?endpoint={self.endpoint}")
        with pytest.raises(TargetUnavailable, match="s3://no-such-bucket"):
            await missing.put("a/b", b"")


@pytest.mark.parametrize("url", ["", "ftp://host/path", "s3://", "file://relative", "s3://bucket/p?regoin=x"])
def test_what_is_no_place_for_backups_is_refused(url: str) -> None:
    """With the forms that there are."""
    with pytest.raises(ConfigurationError, match=r"s3://bucket/prefix\?region"):
        open_target(url)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server for the tests of this module."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        patch.setenv("AWS_ACCESS_KEY_ID", "ada")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not a secret")
        yield endpoint
