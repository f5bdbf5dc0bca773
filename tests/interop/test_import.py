"""`evsync import` copies a table of the library: all of it, once, whatever comes between."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eventsourcing.utils import Environment

from evsync.interop.eventsourcing import Factory
from evsync.opening import open_store
from evsync.testing.contracts import samples
from tests import forks
from tests.command_line import ROOT, until
from tests.interop.shop import Baskets

pytestmark = pytest.mark.anyio


def evsync(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `evsync import` to its end, which must be with this exit code."""
    done = forks.run(["import", *arguments], cwd=ROOT, env=os.environ, timeout_s=60)
    assert done.returncode == code, f"code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def imported(*arguments: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(evsync(*arguments, "--json").stdout)
    return report


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The database of an application that used the library's own SQLite module."""
    path = tmp_path / "old.db"
    with Baskets(env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}) as app:
        for i in range(50):
            app.start(f"Zoë {i}", *range(i % 4))
    return path


async def test_the_application_goes_on_where_it_was(old: Path, tmp_path: Path) -> None:
    """Over the new store it finds its aggregates and its log, event by event, and saves on."""
    url = f"sqlite:///{tmp_path}/baskets.db"
    report = imported("--from", str(old), "--to", url, "--service", "baskets")
    sqlite = Baskets(env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(old)})
    evsync_ = Baskets(env={"PERSISTENCE_MODULE": "evsync.interop.eventsourcing", "EVSYNC_STORE": url})
    with sqlite as before, evsync_ as after:
        notifications = before.recorder.select_notifications(None, 1000)
        assert after.recorder.select_notifications(None, 1000) == notifications
        assert (report["events"], report["copied"], report["renumbered"], report["whole"]) == (
            len(notifications),
        ) * 2 + (0, 0)
        assert after.repository.get(notifications[0].originator_id) == before.repository.get(
            notifications[0].originator_id
        )
        after.start("Bob")
    store = await open_store(url, service="baskets", create=False)
    log = await samples.whole_log(store)
    await store.close()
    assert {e.type for e in log} == {"baskets.Basket.Started", "baskets.Basket.Filled"}
    samples.check_log(log)


def test_an_import_that_is_killed_is_gone_on_with(tmp_path: Path) -> None:
    """SIGKILL in the middle; the second run copies what is missing, and the digest is that of an undisturbed import."""
    old = tmp_path / "old.db"
    with Baskets(env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(old)}) as app:
        app.start("Ada", *[1] * 8_000)
    arguments = ["--from", str(old), "--service", "baskets"]
    target = tmp_path / "killed.db"
    first = subprocess.Popen([sys.executable, "-m", "evsync.cli", "import", *arguments, "--to", f"sqlite:///{target}"])

    def head() -> int:
        if not target.exists():
            return 0
        with sqlite3.connect(target) as c:
            try:
                return int(c.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    until(head, "nothing is copied")
    first.send_signal(signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    found = head()
    assert 0 < found < 8_001
    second = imported(*arguments, "--to", f"sqlite:///{target}")
    assert (second["events"], second["copied"]) == (8_001, 8_001 - found)
    again = imported(*arguments, "--to", f"sqlite:///{target}")
    assert (again["copied"], again["digest"]) == (0, second["digest"])


async def test_postgres_to_postgres(postgres_url: str) -> None:
    """Ids that a rolled back save has left out are said to be renumbered; text ids and UUIDs keep their type."""
    server = psycopg.conninfo.conninfo_to_dict(postgres_url)
    settings = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres", "POSTGRES_DBNAME": "postgres", "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": "", "POSTGRES_HOST": str(server["host"]), "POSTGRES_PORT": str(server["port"]),
    }  # fmt: skip
    with psycopg.connect(postgres_url, autocommit=True) as c, Baskets(env=settings) as app:
        id = app.start("Ada", 1)
        c.execute("SELECT nextval('baskets_events_notification_id_seq')")
        app.start("Bob", 2)
        old = app.recorder.select_notifications(None, 10)
        target = f"{postgres_url}&schema=imported"
        arguments = ["--from", postgres_url, "--table", "public.baskets_events", "--to", target, "--service", "baskets"]
        report = imported(*arguments)
        assert (report["events"], report["renumbered"]) == (4, 2)
        said = evsync(*arguments).stdout
        assert "baskets.main: 0 events copied, 4 in all, no difference" in said
        assert f"digest {report['digest']}" in said
        assert "2 events have another position than their notification id was" in said
        factory = Factory(Environment("Baskets", {"EVSYNC_STORE": target}))
        new = factory.application_recorder().select_notifications(None, 10)
        factory.close()
        assert [(n.originator_id, n.topic, n.state) for n in new] == [(n.originator_id, n.topic, n.state) for n in old]
        assert new[0].originator_id == id


def test_what_is_no_copy_is_left_alone(old: Path, tmp_path: Path) -> None:
    """A log with other events, a missing file or table, a table that has changed: an error that says so."""
    url = f"sqlite:///{tmp_path}/baskets.db"
    with Baskets(env={"PERSISTENCE_MODULE": "evsync.interop.eventsourcing", "EVSYNC_STORE": url}) as app:
        app.start("Somebody else")
    arguments = ["--from", str(old), "--to", url, "--service", "baskets"]
    assert "no beginning of a copy" in evsync(*arguments, code=2).stderr
    assert "no table 'other'" in evsync(*arguments, "--table", "other", code=2).stderr
    assert "no file" in evsync("--from", f"{old}x", "--to", url, "--service", "baskets", code=2).stderr
    assert not Path(f"{old}x").exists()
    copy = f"sqlite:///{tmp_path}/copy.db"
    imported("--from", str(old), "--to", copy, "--service", "baskets")
    with sqlite3.connect(old) as c:
        c.execute("UPDATE stored_events SET state = '{}' WHERE rowid = 3")
    assert "position 3" in evsync("--from", str(old), "--to", copy, "--service", "baskets", code=2).stderr
