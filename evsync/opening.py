"""Event stores by URL: which adapter a URL means."""

from __future__ import annotations

from evsync.config import broker_files
from evsync.errors import ConfigurationError
from evsync.jetstream.store.restore import JetStreamRestore
from evsync.jetstream.store.store import JetStreamStore
from evsync.ports import Store, StoreRestore
from evsync.records import LogIdentity, check_name, new_incarnation
from evsync.sharding.slots import SLOTS
from evsync.stores.memory import MemoryStore
from evsync.stores.sqlite.restore import SqliteRestore
from evsync.stores.sqlite.trimmed import TrimmableSqliteStore
from evsync.urls import is_on_nats

URL_FORMS = """
    sqlite:///events.db            a file, relative to the working directory
    sqlite:////var/lib/events.db   a file, absolute
    memory://                      in this process only, gone when it ends
    postgresql://user:password@host/database?schema=users
                                   a schema of its own in a PostgreSQL database (needs evsync[postgres])
    nats://host:4222/?stream=NAME&replicas=3
                                   a stream of its own in NATS JetStream"""


async def open_store(
    url: str,
    *,
    service: str,
    shard: str = "main",
    create: bool = True,
    owns_slots: bool = True,
    slots: int = SLOTS,
) -> Store:
    """The event store of a service's shard at a URL, one of URL_FORMS.

    Of a store that is made: `owns_slots`, whether all slots are open in it, as in the first shard of a service, or
    none; `slots`, how many there are. An existing one keeps what it was made with.
    `create=False` opens an existing store only (StoreUnavailable if there is none; a memory store is always new).
    Proof of identity for NATS comes from the environment, as for the broker.
    Raises ConfigurationError for any other URL, and what the store raises when it cannot be opened.
    """
    if url == "memory://":
        check_name("service", service)
        check_name("shard", shard)
        return MemoryStore(LogIdentity(service, shard, new_incarnation(), slots), owns_slots=owns_slots)
    if (path := _sqlite_path(url)) is not None:
        return await TrimmableSqliteStore.open(
            path, service=service, shard=shard, slots=slots, create=create, owns_slots=owns_slots
        )
    if _is_postgres(url):
        try:
            from evsync.stores.postgres.trimmed import TrimmablePostgresStore  # noqa: PLC0415  (its driver is an extra)
        except ImportError as e:
            raise _no_driver(e) from e
        return await TrimmablePostgresStore.open(
            url, service=service, shard=shard, slots=slots, create=create, owns_slots=owns_slots
        )
    if is_on_nats(url):
        return await JetStreamStore.open(
            url, service=service, shard=shard, create=create, owns_slots=owns_slots, slots=slots, files=broker_files()
        )
    raise _unknown(url)


async def restore_store(url: str, *, service: str, shard: str = "main", slots: int) -> StoreRestore:
    """A new store at a URL, to be filled from a backup: of any kind that can be opened, but memory.

    Raises ConfigurationError where there is a store already; StoreUnavailable.
    """
    if (path := _sqlite_path(url)) is not None:
        return await SqliteRestore.begin(path, service=service, shard=shard, slots=slots)
    if _is_postgres(url):
        try:
            from evsync.stores.postgres.restore import PostgresRestore  # noqa: PLC0415  (its driver is an extra)
        except ImportError as e:
            raise _no_driver(e) from e
        return await PostgresRestore.begin(url, service=service, shard=shard, slots=slots)
    if is_on_nats(url):
        return await JetStreamRestore.begin(url, service=service, shard=shard, slots=slots, files=broker_files())
    if url.startswith("memory:"):
        raise ConfigurationError("a restore into memory:// would be gone with this process: give a store that lasts")
    raise _unknown(url)


def _is_postgres(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    return scheme in ("postgresql", "postgres") and rest != ""


def _sqlite_path(url: str) -> str | None:
    """The path in the URL of an SQLite store; None for another URL. Raises ConfigurationError."""
    scheme, _, rest = url.partition("://")
    if scheme != "sqlite" or rest[:1] != "/" or len(rest) == 1 or rest.endswith("/"):
        return None
    path = rest[1:]
    if path == ":memory:":
        raise ConfigurationError("sqlite:///:memory: is not a store that lasts: use memory:// instead")
    if "?" in path or "#" in path:
        raise ConfigurationError(f"{url!r}: the URL of an SQLite store takes no options ('?' and '#')")
    return path


def _no_driver(e: ImportError) -> ConfigurationError:
    return ConfigurationError(f"a PostgreSQL store needs its driver: pip install 'evsync[postgres]' ({e})")


def _unknown(url: str) -> ConfigurationError:
    # What stands before an @ may be a password.
    shown = url if "@" not in url else f"{url.partition('://')[0]}://…"
    return ConfigurationError(f"{shown!r} is not the URL of an event store. Use one of:{URL_FORMS}")
