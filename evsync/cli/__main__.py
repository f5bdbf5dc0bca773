"""`python -m evsync.cli` is `evsync`."""

from __future__ import annotations

from evsync.cli import main

main()
