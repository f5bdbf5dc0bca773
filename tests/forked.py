"""A program that is `evsync`, as far as a terminal or a shell can see: tests.forks runs it elsewhere.

    python -IS tests/forked.py ADDRESS ARGUMENT...

It imports next to nothing, because beginning quickly is what it is for.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from contextlib import suppress


def ask(address: str, arguments: list[str], cwd: str, env: dict[str, str], fds: list[int]) -> socket.socket:
    """Have `evsync` run with these files as input, output and errors. First its id comes, then its exit code."""
    reply = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reply.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    reply.connect(b"\0" + address.encode())
    order = json.dumps({"arguments": arguments, "cwd": cwd, "env": env}).encode()
    reply.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    return reply


def main(address: str, *arguments: str) -> None:
    """Pass signals on; end as it ends."""
    passed_on = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # until there is somebody to pass them on to
    with ask(address, list(arguments), os.getcwd(), dict(os.environ), [0, 1, 2]) as reply:
        pid = int(reply.recv(100))

        def pass_on(number: int, _: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

        for number in passed_on:
            signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
        for fd in (0, 1, 2):
            os.close(fd)  # so that who reads what it writes is told when it has ended
        code = int(reply.recv(100))
    if code < 0:
        if -code in passed_on:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
