"""Places for backups, by URL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from evsync.archive.directory import DirectoryTarget
from evsync.archive.object_storage import ObjectTarget
from evsync.errors import ConfigurationError
from evsync.ports import BackupTarget

FORMS = """
    /var/backups/shop, file:///var/backups/shop   a directory: of another disk, or of another machine
    s3://bucket/prefix?region=eu-central-1        a bucket (needs evsync[s3]); &endpoint=https://host:9000 where it is
                                                  not Amazon's"""


def open_target(url: str) -> BackupTarget:
    """The place for backups at a URL. Nothing is touched yet. Raises ConfigurationError for what is no such URL."""
    scheme, separator, rest = url.partition("://")
    if not separator and url:
        return DirectoryTarget(url)
    if scheme == "file" and rest.startswith("/"):
        return DirectoryTarget(rest)
    if scheme == "s3":
        return ObjectTarget(url)
    raise ConfigurationError(f"{url!r} is not a place for backups. Use one of:{FORMS}")


@asynccontextmanager
async def opened_targets(urls: Sequence[str]) -> AsyncIterator[list[BackupTarget]]:
    """The places at these URLs, for the length of a block."""
    async with AsyncExitStack() as stack:
        targets = []
        for url in urls:
            targets.append(open_target(url))
            stack.push_async_callback(targets[-1].close)
        yield targets
