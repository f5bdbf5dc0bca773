"""Every place for backups keeps the laws: a directory, and an S3 server spoken to over HTTP."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from evsync.archive.copies import read_copies, verify_copy
from evsync.archive.object_storage import ObjectTarget
from evsync.archive.targets import open_target
from evsync.errors import ConfigurationError, TargetUnavailable
from evsync.ports import BackupTarget
from evsync.testing.contracts import BackupTargetContract
from tests.archiving import MemoryTarget, archived, copy_of, make_bucket, s3_server


class TestDirectoryTarget(BackupTargetContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.path = tmp_path / "made" / "when needed"

    async def new_target(self) -> BackupTarget:
        return open_target(str(self.path))


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
