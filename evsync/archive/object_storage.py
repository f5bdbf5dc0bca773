"""A bucket of S3-compatible object storage as a place for backups. obstore, an extra, is known to this module alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from evsync.errors import ConfigurationError, TargetUnavailable

if TYPE_CHECKING:
    from obstore.store import S3Store

FORM = "s3://bucket/prefix?region=eu-central-1, or &endpoint=https://host:9000 for a server that is not Amazon's"
_OPTIONS = ("endpoint", "region")


class ObjectTarget:
    """A BackupTarget in a bucket: each put is one request, which the server carries out whole or not at all.

    Who one is comes from the environment, as for Amazon's own tools: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ….
    """

    def __init__(self, url: str, *, patience_s: float = 30.0) -> None:
        """`patience_s` is how long a request is tried again. Raises ConfigurationError for a URL that is none."""
        try:
            import obstore  # noqa: PLC0415  (an extra)
        except ImportError as e:
            raise ConfigurationError("backups in object storage need its client: pip install 'evsync[s3]'") from e
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        login = parts.username is not None or "@" in options.get("endpoint", "")
        if not parts.hostname or login or (unknown := set(options) - set(_OPTIONS)):
            what = "no bucket" if not parts.hostname else "it takes no login" if login else ""
            what = what or f"option {min(unknown)!r} is not known"
            raise ConfigurationError(f"the URL of a place for backups in object storage is like {FORM}; {what}")
        self.url = url
        self._obstore = obstore
        self._store = _store(parts.hostname, parts.path.strip("/"), options, patience_s)

    async def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Keep the content under a name; see BackupTarget."""
        mode: Any = "overwrite" if replace else "create"
        try:
            with self._answering():
                await self._obstore.put_async(self._store, name, content, mode=mode)
        except self._obstore.exceptions.AlreadyExistsError:
            # A request that was tried again may meet what it has stored itself.
            return await self.get(name) == content
        except FileNotFoundError as e:  # there is no such bucket
            raise self._unavailable(e) from e
        if await self.get(name) != content:
            await self.delete(name)
            raise TargetUnavailable(
                f"the backup storage {self.url} did not keep {name} as it was written. What it kept was taken away "
                "again."
            )
        return True

    async def get(self, name: str, *, most: int | None = None) -> bytes | None:
        """The content under a name, with `most` its first bytes; None if there is none."""
        options: Any = {} if most is None else {"range": (0, most)}
        with suppress(FileNotFoundError), self._answering():
            result = await self._obstore.get_async(self._store, name, options=options)
            return bytes(await result.bytes_async())
        return None

    async def list(self, prefix: str) -> Sequence[str]:
        """The names that begin with a prefix, sorted."""
        with self._answering():
            pages = self._obstore.list(self._store, prefix=prefix.rstrip("/") or None)
            return sorted([found["path"] async for page in pages for found in page])

    async def delete(self, name: str) -> None:
        """Take away what is kept under a name, if anything is."""
        with suppress(FileNotFoundError), self._answering():
            await self._obstore.delete_async(self._store, name)

    async def close(self) -> None:
        """Nothing is held that is not let go of by itself."""

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise TargetUnavailable for what the client raises, but that a name is taken, or is not there."""
        try:
            yield
        except self._obstore.exceptions.AlreadyExistsError:
            raise
        except self._obstore.exceptions.BaseError as e:
            raise self._unavailable(e) from e

    def _unavailable(self, error: Exception) -> TargetUnavailable:
        return TargetUnavailable(f"the backup storage {self.url}: {' '.join(str(error).split())[:600]}")


def _store(bucket: str, prefix: str, options: dict[str, str], patience_s: float) -> S3Store:
    from obstore.store import S3Store  # noqa: PLC0415  (an extra)

    endpoint = options.get("endpoint")
    settings: dict[str, Any] = {"region": options.get("region", "us-east-1")}
    if endpoint:
        settings["endpoint"] = endpoint
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={"allow_http": bool(endpoint and endpoint.startswith("http://")), "connect_timeout": "5s"},
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=patience_s)},
        **settings,
    )
