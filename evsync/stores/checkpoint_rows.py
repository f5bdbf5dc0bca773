"""Checkpoints as rows of a database, whose greatest integers have 64 bits with a sign: a digest has none."""

from __future__ import annotations

from evsync.records import Checkpoint

COLUMNS = 'log, "group", incarnation, position, count, digest'
_MODULUS = 2**64


def to_row(c: Checkpoint) -> tuple[str, int, str, int, int, int]:
    """The values of COLUMNS; the digest as the signed integer with the same bits."""
    digest = c.digest % _MODULUS
    signed = digest - _MODULUS if digest >= _MODULUS // 2 else digest
    return c.log, c.group, c.incarnation, c.position, c.count, signed


def from_row(log: str, group: int, incarnation: str, position: int, count: int, digest: int) -> Checkpoint:
    """The checkpoint that has these values."""
    return Checkpoint(log, group, incarnation, position, count, digest % _MODULUS)
