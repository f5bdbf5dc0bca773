"""Ports for what has to be told one before it runs."""

from __future__ import annotations

import contextlib
import random
import socket

_LOW, _HIGH = 20_000, 32_000
"""Below the ports that the kernel gives to whoever asks for any: nobody gets one by chance before it is used."""


def free_ports(count: int) -> list[int]:
    """So many ports of 127.0.0.1 on which nobody listens."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(_LOW, _HIGH)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return sorted(found)
