"""Does a fence hold? Writers in processes of their own append to slots of a JetStream stream, and somebody seals the
slots meanwhile, while leaders step down, die and are paused.

`python -m tests.fences 60` runs each fence for so many seconds and prints what was counted; a short run is a test.

Each append is an atomic batch of two messages and belongs to an epoch of its slot. Sealing a slot ends the epoch. An
append that stands in the stream behind the seal of its epoch is what a fence must make impossible.

    subject   the batch's second message expects that there is no message on the slot's control subject of the next
              epoch, a literal subject; the seal is plain messages there, one for each lane. A writer has a lane of
              its own, because the server refuses an expectation while another message with the same one is in flight.
    wildcard  the same with a pattern in place of the literal subject: known to leak with replicas, and so the proof
              that this experiment can see it.
    sequence  the batch's first message expects the stream's last sequence, and so does the seal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from evsync.errors import BrokerError, BrokerRefused, BrokerUnavailable
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import header_block, parse_headers, status_of
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.server import EmbeddedServer
from tests.ports import free_ports

FENCES = ("subject", "wildcard", "sequence")
SLOTS, PROCESSES, TASKS = 3, 3, 3
LANES = PROCESSES * TASKS
_STREAM = "FENCE"
_ANSWER_S = 2.0
_NO_MESSAGE, _WRONG_SEQUENCE = 10037, 10071
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"


# ---- the stream


@contextmanager
def three_servers(directory: Path) -> Iterator[list[EmbeddedServer]]:
    """A cluster."""
    ports = free_ports(3)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                EmbeddedServer.start(
                    directory / f"node-{n}",
                    extra_config=f"server_name: n{n}\n"
                    f"cluster {{ name: fences, listen: 127.0.0.1:{port}, routes: [{routes}] }}",
                )
            )
            for n, port in enumerate(ports)
        ]


async def _connected(urls: str) -> Connection:
    conn = await Connection.open(NatsSettings(urls), "fences")
    await conn.ready(10)
    return conn


async def _create(conn: Connection) -> None:
    """The stream, with the settings of a store."""
    config = {
        "name": _STREAM,
        "subjects": ["fence.>"],
        "num_replicas": 3,
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "discard_new_per_subject": True,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "allow_atomic": True,
        "duplicate_window": 100_000_000,
    }
    for _ in range(100):
        with contextlib.suppress(BrokerError):
            await conn.api(f"STREAM.CREATE.{_STREAM}", config)
            return
        await asyncio.sleep(0.2)
    raise AssertionError("no stream was made")


async def _batch(conn: Connection, messages: Sequence[tuple[str, Mapping[str, str]]]) -> int | str:
    """Publish an atomic batch: the sequence of its last message, the server's refusal, or "silence"."""
    batch = uuid4().hex
    for n, (subject, more) in enumerate(messages, 1):
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(n), **more}
        if n < len(messages):
            conn.publish(subject, "", header_block(headers), b"")
            continue
        headers["Nats-Batch-Commit"] = "1"
        try:
            answer = json.loads((await conn.request(subject, headers=headers, timeout_s=_ANSWER_S)).body)
        except BrokerUnavailable:
            return "silence"
        error = answer.get("error")
        return int(answer["seq"]) if error is None else str(error["err_code"])
    return "silence"


async def _epoch(conn: Connection, slot: int) -> int:
    """The slot's epoch, as the stream's leader knows it."""
    try:
        answer = await conn.api(
            f"STREAM.MSG.GET.{_STREAM}", {"last_by_subj": f"fence.{slot}.seal.>"}, timeout_s=_ANSWER_S
        )
    except BrokerRefused as e:
        if e.err_code == _NO_MESSAGE:
            return 0
        raise
    return int(answer["message"]["subject"].split(".")[3])


async def _last(conn: Connection) -> int:
    return int((await conn.api(f"STREAM.INFO.{_STREAM}", timeout_s=_ANSWER_S))["state"]["last_seq"])


# ---- who appends, and who seals


async def write(urls: str, fence: str, first_lane: int) -> dict[str, Any]:
    """Append until the time that standard input tells; what was answered."""
    conn = await _connected(urls)
    print("ready", flush=True)
    until = float(await asyncio.to_thread(sys.stdin.readline))
    answers: Counter[str] = Counter()
    acknowledged: list[tuple[str, int]] = []
    sealed: set[tuple[int, int]] = set()

    async def one(lane: int) -> None:
        epochs: dict[int, int] = {}
        last: int | None = None
        number = 0
        choice = random.Random(lane)
        while time.time() < until:
            slot, number = choice.randrange(SLOTS), number + 1
            try:
                if fence == "sequence" and last is None:
                    last = await _last(conn)
                    epochs.clear()
                if slot not in epochs:
                    epochs[slot] = await _epoch(conn, slot)
                epoch = epochs[slot]
                subject = f"fence.{slot}.event.{epoch}.{lane}.{number}"
                expected = _expectations(fence, f"fence.{slot}.seal.{epoch + 1}", lane, last)
                answer = await _batch(conn, [(f"{subject}.{n}", more) for n, more in enumerate(expected)])
            except BrokerError:
                answers["away"] += 1
                last = None
                await asyncio.sleep(0.05)
                continue
            answers["stored" if isinstance(answer, int) else answer] += 1
            last = answer if isinstance(answer, int) else None
            if isinstance(answer, int):
                acknowledged.append((f"{subject}.1", answer))
            elif answer == str(_WRONG_SEQUENCE) and fence != "sequence":
                sealed.add((slot, epoch))
            if not isinstance(answer, int):
                del epochs[slot]

    await asyncio.gather(*(one(lane) for lane in range(first_lane, first_lane + TASKS)))
    await conn.close()
    return {"answers": answers, "acknowledged": acknowledged, "sealed": sorted(sealed)}


def _expectations(fence: str, seal: str, lane: int, last: int | None) -> list[Mapping[str, str]]:
    """What the two messages of an append expect."""
    if fence == "sequence":
        return [{"Nats-Expected-Last-Sequence": str(last)}, {}]
    subject = f"{seal}.{lane}" if fence == "subject" else f"{seal}.*"
    return [{}, {_EXPECTED: "0", f"{_EXPECTED}-Subject": subject}]


async def _seal(conn: Connection, fence: str, until: float, answers: Counter[str]) -> None:
    """Seal one slot after the other, with hardly a rest."""
    slot, known = 0, dict[int, int]()
    while time.time() < until:
        slot = (slot + 1) % SLOTS
        try:
            fenced = {"Nats-Expected-Last-Sequence": str(await _last(conn))} if fence == "sequence" else {}
            epoch = known.pop(slot, None) or await _epoch(conn, slot) + 1
            lanes = range(LANES) if fence == "subject" else range(1)
            answer = await _batch(
                conn, [(f"fence.{slot}.seal.{epoch}.{lane}", fenced if lane == 0 else {}) for lane in lanes]
            )
            answers["sealed" if isinstance(answer, int) else answer] += 1
            if isinstance(answer, int):
                known[slot] = epoch + 1
        except BrokerError:
            answers["away"] += 1
        await asyncio.sleep(0.003)


async def _disturb(servers: Sequence[EmbeddedServer], conn: Connection, until: float, answers: Counter[str]) -> None:
    """Leaders step down, one is killed, one is paused, in turn."""
    turn = 0
    while time.time() < until - 1:
        await asyncio.sleep(0.7)
        leader = ""
        with contextlib.suppress(BrokerError):
            leader = str((await conn.api(f"STREAM.INFO.{_STREAM}", timeout_s=0.5))["cluster"].get("leader", ""))
        if not leader:
            continue
        turn, server = turn + 1, servers[int(leader[1:])]
        if turn % 3:
            with contextlib.suppress(BrokerError):
                await conn.api(f"STREAM.LEADER.STEPDOWN.{_STREAM}", timeout_s=0.5)
            answers["stepped down"] += 1
        elif turn % 6:
            server.kill()
            await asyncio.sleep(1)
            await asyncio.to_thread(server.restart)
            answers["killed"] += 1
        else:
            os.kill(server.pid, signal.SIGSTOP)
            await asyncio.sleep(min(6.0, max(until - time.time(), 0)))  # longer than an election takes
            os.kill(server.pid, signal.SIGCONT)
            answers["paused"] += 1


# ---- the judgement


async def _subjects(conn: Connection) -> AsyncIterator[list[tuple[int, str]]]:
    """Sequence and subject of every message, in order."""
    received: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    inbox = conn.inbox()
    subscription = conn.subscribe(inbox, lambda _s, _r, headers, body: received.put_nowait((headers, body)))
    place, last = 0, await _last(conn)
    while place < last:
        ask = {"seq": place + 1, "batch": 1_000}
        conn.publish(f"$JS.API.DIRECT.GET.{_STREAM}", inbox, b"", json.dumps(ask).encode())
        found: list[tuple[int, str]] = []
        while True:
            headers, _ = await asyncio.wait_for(received.get(), 10)
            if status_of(headers)[0]:
                break
            own = parse_headers(headers)
            found.append((int(own["Nats-Sequence"]), own["Nats-Subject"]))
        if found:
            place = found[-1][0]
            yield found
        else:  # the replica that answered lags behind
            await asyncio.sleep(0.1)
    subscription.unsubscribe()


async def judge(conn: Connection, told: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What the stream says of the writers' stories."""
    epochs = dict.fromkeys(range(SLOTS), 0)
    places: dict[str, int] = {}
    late = seals = 0
    async for found in _subjects(conn):
        for sequence, subject in found:
            _, slot, what, epoch, lane, *_ = subject.split(".")
            if what == "seal":
                epochs[int(slot)] = int(epoch)
                seals += lane == "0"
            else:
                places[subject] = sequence
                late += int(epoch) < epochs[int(slot)]
    acknowledged = [tuple(item) for story in told for item in story["acknowledged"]]
    # Where the whole stream's sequence is expected, any other append is a reason.
    return {
        "events": len(places) // 2,
        "seals": seals,
        "late": late,
        "half": len(places) % 2,
        "lost": sum(places.get(subject) != sequence for subject, sequence in acknowledged),
        "refused without a seal": sum(epoch >= epochs[slot] for story in told for slot, epoch in story["sealed"]),
    }


async def run(fence: str, directory: Path, seconds: float, *, faults: bool = True) -> dict[str, Any]:
    """One experiment: what was found, and all that was answered."""
    with three_servers(directory) as servers:
        urls = ",".join(server.url for server in servers)
        conn = await _connected(urls)
        await _create(conn)
        processes = [await _process(urls, fence, n * TASKS) for n in range(PROCESSES)]
        sealing, disturbing = Counter[str](), Counter[str]()
        try:
            for process in processes:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
            until = time.time() + seconds
            async with asyncio.TaskGroup() as group:
                group.create_task(_seal(conn, fence, until, sealing))
                if faults:
                    group.create_task(_disturb(servers, conn, until, disturbing))
                stories = [group.create_task(process.communicate(b"%f\n" % until)) for process in processes]
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        told = [json.loads(story.result()[0]) for story in stories]
        answers = sum((Counter(story["answers"]) for story in told), Counter[str]())
        verdict = await _judged(conn, told)
        await conn.close()
        return {**verdict, "answers": dict(answers), "sealing": dict(sealing), "faults": dict(disturbing)}


async def _judged(conn: Connection, told: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    deadline = time.monotonic() + 30
    while True:
        try:
            return await judge(conn, told)
        except (BrokerError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def _process(urls: str, fence: str, first_lane: int) -> asyncio.subprocess.Process:
    arguments = [urls, fence, str(first_lane)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fences", "write", *arguments, stdin=PIPE, stdout=PIPE, limit=1 << 26
    )


def main(arguments: Sequence[str]) -> None:
    """`write …`: one writer process. Else: all fences, or those that are named, for so many seconds each."""
    if arguments[0] == "write":
        urls, fence, first_lane = arguments[1:]
        print(json.dumps(asyncio.run(write(urls, fence, int(first_lane)))))
        return
    for fence in arguments[1:] or FENCES:
        with tempfile.TemporaryDirectory() as directory:
            print(fence, json.dumps(asyncio.run(run(fence, Path(directory), float(arguments[0])))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
