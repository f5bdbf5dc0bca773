"""How soon the two ends of a connection to PostgreSQL notice that the other one is gone.

Whoever stops in the middle of a transaction (a process that stands still, a machine without power or network) keeps
what it has locked: the groups of a projection, the counter of a log. Nobody can take these over before the server has
ended its session, which by its own defaults is after hours, or never.
"""

from __future__ import annotations

from collections.abc import Collection

IDLE_S = 30
"""How long a session may be silent in the middle of a transaction before the server ends it."""
_SILENCE_S, _PROBE_S, _PROBES = 10, 5, 3
"""TCP: after how long a silence the other end is probed, how often, how many times. So 25 s until it counts as gone."""
_GONE_MS = (_SILENCE_S + _PROBE_S * _PROBES) * 1_000

VIEWS = "evsync views"
"""The application_name of sessions on read models."""

END_SILENT = f"""
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND application_name = '{VIEWS}'
        AND state <> 'idle' AND wait_event = 'ClientRead'
        AND current_setting('idle_in_transaction_session_timeout') <> '0'
        AND state_change < clock_timestamp() - current_setting('idle_in_transaction_session_timeout')::interval
"""
"""Ends sessions whose client has been silent in a transaction for longer than may be. For whoever finds locked what
should be free: in the middle of a pipeline, between two statements or within one, the server's own limit does not hold.
"""

CLIENT = {
    "keepalives_idle": _SILENCE_S,
    "keepalives_interval": _PROBE_S,
    "keepalives_count": _PROBES,
    "tcp_user_timeout": _GONE_MS,
}
"""For the driver. What the URL says goes before this."""


def server_settings() -> str:
    """A statement that gives the session its settings, but for those that an operator or the URL has chosen.

    It returns the names of what it has set, and takes the server a millisecond or two: see `those_again`.
    """
    rows = ", ".join(f"('{name}', '{value}')" for name, value in _wanted().items())
    return (
        "SELECT name, set_config(name, wanted.value, false) FROM pg_catalog.pg_settings "
        f"JOIN (VALUES {rows}) AS wanted (name, value) USING (name) WHERE source = 'default'"
    )


def those_again(names: Collection[str]) -> str:
    """The same for another session of the same user, quickly."""
    settings = [f"set_config('{name}', '{value}', false)" for name, value in _wanted().items() if name in names]
    return f"SELECT {', '.join(settings)}"


def _wanted() -> dict[str, int]:
    return {
        "idle_in_transaction_session_timeout": IDLE_S * 1_000,
        "tcp_keepalives_idle": _SILENCE_S,
        "tcp_keepalives_interval": _PROBE_S,
        "tcp_keepalives_count": _PROBES,
        "tcp_user_timeout": _GONE_MS,
    }
