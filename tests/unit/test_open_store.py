"""Event stores by URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.opening import open_store, restore_store
from evsync.stores.memory import MemoryStore
from evsync.stores.sqlite.store import SqliteStore

pytestmark = pytest.mark.anyio


async def test_a_relative_url_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three slashes and a name; four for an absolute path; both may name the same store."""
    monkeypatch.chdir(tmp_path)
    store = await open_store("sqlite:///events 100%.db", service="users", shard="east")
    assert isinstance(store, SqliteStore)
    assert (store.identity.service, store.identity.shard) == ("users", "east")
    same = await open_store(f"sqlite:///{tmp_path}/events 100%.db", service="users", shard="east", create=False)
    assert same.identity == store.identity
    assert (tmp_path / "events 100%.db").exists()
    await store.close()
    await same.close()


async def test_every_memory_store_is_a_new_log() -> None:
    """It has the name it was opened under and an incarnation of its own."""
    stores = [await open_store("memory://", service="users") for _ in range(2)]
    assert all(isinstance(s, MemoryStore) for s in stores)
    assert {s.identity.name for s in stores} == {"users.main"}
    assert stores[0].identity.incarnation != stores[1].identity.incarnation


async def test_a_store_is_not_made_where_one_is_expected(tmp_path: Path) -> None:
    """`create=False` opens what is there."""
    with pytest.raises(StoreUnavailable, match="no store at"):
        await open_store(f"sqlite:///{tmp_path}/events.db", service="users", create=False)


async def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    """No service would ever make the store there."""
    with pytest.raises(StoreUnavailable, match=f"nor a directory {tmp_path}/typo: is the path right"):
        await open_store(f"sqlite:///{tmp_path}/typo/events.db", service="users", create=False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "events.db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://events.db",
        "sqlite:////",
        "sqlite:///events/",
        "memory:",
        "memory://x",
        "mysql://host/db",
    ],
)
async def test_a_url_that_is_not_understood_is_answered_with_those_that_are(url: str) -> None:
    """The error lists the forms."""
    with pytest.raises(ConfigurationError) as caught:
        await open_store(url, service="users")
    for form in ("sqlite:///events.db", "sqlite:////var/lib/events.db", "memory://"):
        assert form in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite:///events.db?mode=ro", "sqlite:///events.db#x"])
async def test_what_other_libraries_allow_is_refused_with_a_reason(url: str) -> None:
    """Options that would be ignored, and a store that would be gone at once."""
    with pytest.raises(ConfigurationError, match=r"memory://|takes no options"):
        await open_store(url, service="users")


@pytest.mark.parametrize("url", ["memory://", "sqlite:///events.db"])
async def test_names_are_checked(url: str) -> None:
    """A service's name becomes part of subjects."""
    with pytest.raises(ConfigurationError, match="Users"):
        await open_store(url, service="Users")


async def test_what_may_be_a_password_is_not_repeated() -> None:
    """In a URL that is not understood anything may stand before an @."""
    url = "mysql://ada:geheim@host/db"
    for opening in (open_store(url, service="users"), restore_store(url, service="users", slots=256)):
        with pytest.raises(ConfigurationError, match="'mysql://…' is not the URL of an event store") as caught:
            await opening
        assert "geheim" not in str(caught.value)
