"""Event stores, by URL."""

from __future__ import annotations

from evsync.errors import ConfigurationError
from evsync.ports import Store, StoreRestore
from evsync.records import LogIdentity, check_name, new_incarnation
from evsync.sharding.slots import SLOTS
from evsync.stores.memory import MemoryStore
from evsync.stores.sqlite.restore import SqliteRestore
from evsync.stores.sqlite.trimmed import TrimmableSqliteStore

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
    """The event store of a service's shard at a URL, one of URL_FORMS but the last.

    Of a store that is made: `owns_slots`, whether all slots are open in it, as in the first shard of a service, or
    none; `slots`, how many there are. An existing one keeps what it was made with.
    `create=False` opens an existing store only (StoreUnavailable if there is none; a memory store is always new).
    Raises ConfigurationError for any other URL, and what the store raises when it cannot be opened.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "memory" and separator and not rest:
        check_name("service", service)
        check_name("shard", shard)
        return MemoryStore(LogIdentity(service, shard, new_incarnation(), slots), owns_slots=owns_slots)
    if (path := _sqlite_path(url)) is not None:
        return await TrimmableSqliteStore.open(
            path, service=service, shard=shard, slots=slots, create=create, owns_slots=owns_slots
        )
    if scheme in ("postgresql", "postgres") and rest:
        try:
            from evsync.stores.postgres.trimmed import TrimmablePostgresStore  # noqa: PLC0415  (its driver is an extra)
        except ImportError as e:
            raise _no_driver(e) from e
        return await TrimmablePostgresStore.open(
            url, service=service, shard=shard, slots=slots, create=create, owns_slots=owns_slots
        )
    if scheme == "nats":
        # The adapters do not know one another.
        raise ConfigurationError(f"a store on NATS is opened by evsync.opening.open_store, not here.{URL_FORMS}")
    raise _unknown(url)


async def restore_store(url: str, *, service: str, shard: str = "main", slots: int) -> StoreRestore:
    """A new store in a database at a URL, to be filled from a backup.

    Raises ConfigurationError where there is a store already, or for a URL of another kind; StoreUnavailable.
    """
    scheme, _, rest = url.partition("://")
    if (path := _sqlite_path(url)) is not None:
        return await SqliteRestore.begin(path, service=service, shard=shard, slots=slots)
    if scheme in ("postgresql", "postgres") and rest:
        try:
            from evsync.stores.postgres.restore import PostgresRestore  # noqa: PLC0415  (its driver is an extra)
        except ImportError as e:
            raise _no_driver(e) from e
        return await PostgresRestore.begin(url, service=service, shard=shard, slots=slots)
    if scheme == "memory":
        raise ConfigurationError("a restore into memory:// would be gone with this process: give a store that lasts")
    raise _unknown(url)


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
