"""An open service: the adapters that its settings name, and the tasks that keep its parts going.

This is the composition root, the one module that chooses adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.sql import visitors
from typing_extensions import TypeVarTuple

from evsync.aggregates.cache import AggregateCache
from evsync.aggregates.repository import Repository
from evsync.aggregates.snapshots import Snapshots
from evsync.archive.reader import ArchivedSource
from evsync.archive.schedule import ScheduledBackups
from evsync.archiving import read_past, scheduled_backups
from evsync.config import Deployment, broker_files
from evsync.control import REACTION_TAG, reaction_tag
from evsync.definition import Definition, parts_to_run, services_read_by, tell_of_unknown
from evsync.domain import AnyAggregate
from evsync.errors import ConfigurationError
from evsync.homes import Home, OneStore
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.relay import Relay
from evsync.jetstream.sizes import SizeLimit
from evsync.jetstream.source import JetStreamSource
from evsync.operations.rebuilding import rebuild
from evsync.operations.renewal import Renewal, sweep_for_ever
from evsync.ports import LogSource, Progress, Store
from evsync.projections import (
    MemoryModel,
    Projection,
    ProjectionRunner,
    ReactionRunner,
    SqlModel,
    ViewsDatabase,
)
from evsync.projections.failures import DatabaseAway
from evsync.projections.lag import Lags
from evsync.projections.models.bookkeeping import version_of
from evsync.projections.rebuilding.rebuild import RebuildReport
from evsync.projections.status import FollowerStatus
from evsync.records import Checkpoint, Position, service_of
from evsync.shards import open_home, open_only_shard, open_shards
from evsync.sources import ServiceSource, StoreSource
from evsync.status import OwnLogStatus, Status
from evsync.stores.group_commit import GroupCommit
from evsync.tags import current_tags
from evsync.urls import broker_of, first_url, shards_on_nats, urls_by_shard, views_beside

S = TypeVar("S")
Ts = TypeVarTuple("Ts")
logger = logging.getLogger("evsync")


class Runtime:
    """What is open of one service, and what runs."""

    def __init__(self, service: Definition, settings: Deployment, stores: Mapping[str, Store], home: Home) -> None:
        self.service, self.settings, self.stores, self.home = service, settings, stores, home
        self.store = store = next(iter(stores.values()))
        """The only one, or that of the first shard."""
        policy = service.snapshots
        self.snapshots = Snapshots(policy, service.codec, home) if policy is not None else None
        sizes = SizeLimit(store.identity, lambda: self.connection.max_payload if self.connection is not None else None)
        cache = AggregateCache(service.cached_aggregates) if service.cached_aggregates else None
        self.repository = Repository(service.codec, home, sizes, self.snapshots, cache)
        self.connection: Connection | None = None
        self.views: ViewsDatabase | None = None
        self.relays: dict[str, Relay] = {}
        """By shard."""
        self.sources: Mapping[str, LogSource] = {}
        """Where the logs of the services that followers read are, by service."""
        self.lags = Lags(self.sources)
        self.projections: dict[str, ProjectionRunner] = {}
        self.renewals: dict[str, Renewal] = {}
        self.reactions: dict[str, ReactionRunner] = {}
        self.backups: dict[str, ScheduledBackups] = {}
        """By shard."""
        self.running: frozenset[str] = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashed: BaseException | None = None

    # ---- opening and closing

    @classmethod
    @asynccontextmanager
    async def open(
        cls, service: Definition, settings: Deployment, *, followers: bool = True, look_only: bool = False
    ) -> AsyncIterator[Runtime]:
        """Everything that the settings ask for, opened in the order of need and closed in the other.

        Without `followers` projections and reactions are left out. `look_only` makes nothing: no store, no tables.
        """
        running = frozenset[str]() if look_only else parts_to_run(service, settings)
        given = settings["store"]
        async with AsyncExitStack() as stack:
            if isinstance(given, str):
                store = await open_only_shard(given, service.name, stack, create=not look_only, router=service.router)
                stores, commits = {store.identity.shard: store}, GroupCommit(store)
                stack.push_async_callback(commits.close)
                home: Home = OneStore(store, commits)
            else:
                stores = await open_shards(given, service.name, stack, create=not look_only, router=service.router)
                home = await open_home(stores, service.router, stack, place=not look_only)
            read_past(service, settings, stores)
            runtime = cls(service, settings, stores, home)
            runtime.running = running
            if runtime.snapshots is not None:
                stack.push_async_callback(runtime.snapshots.close)
            nats = settings.get("nats") or broker_of(given)
            if nats:
                runtime.connection = await Connection.open(NatsSettings(nats, **broker_files()), service.name)
                stack.push_async_callback(runtime.connection.close)
                if "relay" in running:
                    mirrored = stores.keys() - shards_on_nats(given).keys()  # there the log is the stream
                    runtime.relays = {s: Relay(stores[s], runtime.connection) for s in stores if s in mirrored}
            if service.backups is not None and "backup" in running:
                runtime.backups = await scheduled_backups(service, stores, service.backups, stack)
            if followers:
                sources: dict[str, LogSource] = {}
                for name in services_read_by(service):
                    sources[name] = runtime._archived(name, await runtime._source(name, stack), stack)
                runtime.sources = sources
                runtime.lags = Lags(sources)
                stack.push_async_callback(runtime.lags.close)
                await runtime._open_projections(stack, prepare=not look_only)
                await runtime._open_reactions(stack)
            stack.push_async_callback(runtime._stop)
            yield runtime

    async def _source(self, name: str, stack: AsyncExitStack) -> LogSource:
        given: Any = self.settings.get("sources", {}).get(name)
        if isinstance(given, LogSource):  # how a test world puts its own in
            found: LogSource = given
            return found
        if name == self.service.name:
            tell_of_unknown(self.service, self.service)
            return ServiceSource(name, lambda: self.stores)
        if isinstance(given, (str, Mapping)):
            source = StoreSource(name, urls_by_shard(given))
            stack.push_async_callback(source.close)
            await source.check()
            return source
        if given is not None:
            if not isinstance(given, Definition) or given.name != name:
                raise ConfigurationError(f"sources={{{name!r}: {given!r}}}: give service {name!r}, or its store's URL")
            service: Any = given  # the rest of a Service, which is above this module
            tell_of_unknown(self.service, given)
            return ServiceSource(name, lambda: service.stores)
        if self.connection is not None:
            return JetStreamSource(self.connection, name)
        raise ConfigurationError(
            f"service {self.service.name!r} needs the events of {name!r} and does not know where they are: set nats= "
            f"(or EVSYNC_NATS), or sources={{{name!r}: …}} with a Service of this process or its store's URL"
        )

    def _archived(self, name: str, source: LogSource, stack: AsyncExitStack) -> LogSource:
        urls: Any = self.settings.get("archives", {}).get(name)
        if not urls:
            return source
        archived = ArchivedSource(source, [urls] if isinstance(urls, str) else urls)
        stack.push_async_callback(archived.close)
        return archived

    async def _open_projections(self, stack: AsyncExitStack, *, prepare: bool) -> None:
        if any(isinstance(p.model, SqlModel) for p in self.service.projections):
            self.views = ViewsDatabase(
                self.settings.get("views") or views_beside(first_url(self.settings["store"]), self.service.name)
            )
            stack.push_async_callback(self.views.close)
        for projection in self.service.projections:
            runner = ProjectionRunner(projection, self.views, [self.sources[s] for s in projection.sources])
            stack.push_async_callback(runner.close)
            self.projections[projection.name] = runner
            if not prepare:
                continue
            if (renewal := await self._renewal(projection, runner)) is not None:
                self.renewals[projection.name] = renewal
            else:
                await runner.open()

    async def _renewal(self, projection: Projection[Any], runner: ProjectionRunner) -> Renewal | None:
        """What brings the read model to this version, if it is an older one that is to be rebuilt by itself."""
        views = self.views
        if projection.rebuild != "auto" or views is None or not isinstance(projection.model, SqlModel):
            return None
        try:
            found = await views.write(lambda connection: version_of(connection, projection.name))
        except DatabaseAway:
            return None  # opening the runner says so
        if found is None or found >= projection.version:
            return None

        async def again(advance: Progress) -> RebuildReport:
            return await rebuild(self.service, projection, views, self.sources, only_if_older=True, advance=advance)

        return Renewal(projection, runner, views, found, again)

    async def _open_reactions(self, stack: AsyncExitStack) -> None:
        if self.service.reactions and len(self.stores) > 1:
            raise ConfigurationError(
                f"service {self.service.name!r} has reactions and several shards: a reaction's checkpoint is stored in "
                "one commit with what it changes, and that may be on any shard. Give them a service of their own"
            )
        for reaction in self.service.reactions:
            runner = ReactionRunner(
                reaction,
                checkpoints=self.store.checkpoints,
                commit=self._commit_of_reaction,
                sources=[self.sources[s] for s in reaction.sources],
                service=self.service,
            )
            stack.push_async_callback(runner.close)
            self.reactions[reaction.name] = runner

    async def _commit_of_reaction(
        self, aggregates: Sequence[AnyAggregate], follower: str, checkpoint: Checkpoint, after: int
    ) -> Position:
        tags = {**current_tags(), REACTION_TAG: reaction_tag(follower, checkpoint)}
        return await self.repository.save(aggregates, tags, follower=follower, checkpoint=checkpoint, after=after)

    def start(self) -> None:
        """Begin to run the parts that this process is to run."""
        for shard, relay in self.relays.items():
            self._spawn("relay" if len(self.relays) == 1 else f"relay of {shard}", relay.run())
        for shard, backups in self.backups.items():
            self._spawn("backup" if len(self.backups) == 1 else f"backup of {shard}", backups.run())
        for name, projection in self.projections.items():
            if name in self.renewals:
                self._spawn(name, self._renew(name, projection))
            elif name in self.running:
                self._spawn(name, projection.run())
        if self.views is not None and self.running & self.projections.keys():
            self._spawn("sweep", sweep_for_ever(self.views))
        for name, reaction in self.reactions.items():
            if name in self.running:
                self._spawn(name, reaction.run())

    async def _renew(self, name: str, projection: ProjectionRunner) -> None:
        await self.renewals[name].run(rebuilds=name in self.running)
        if name in self.running:
            await projection.run()

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"evsync {self.service.name} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s ended: %s", task.get_name(), error, exc_info=error)
            self._crashed = error

    async def _stop(self) -> None:
        """End the tasks. Each brings its step to an end first: a batch is applied or not, never half."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def serve(self) -> None:
        """Run until SIGTERM or SIGINT. Raises what stopped a part before that."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Threads that write wait for the interpreter lock beside a busy event loop, 5 ms each time by default. This is
        # the process's own loop, so it may say otherwise; a library inside somebody's web server may not.
        sys.setswitchinterval(0.001)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            while not stop.is_set():
                if (error := self.failure()) is not None:
                    raise error
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await stop.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def followers(self) -> list[ProjectionRunner | ReactionRunner]:
        """The service's projections and reactions, whether this process runs them or not."""
        return [*self.projections.values(), *self.reactions.values()]

    def failure(self) -> BaseException | None:
        """What stopped a part that was to run: a halted projection, reaction or relay; None if all is well."""
        halted: list[BaseException] = [part.halted for part in self.followers() if part.halted]
        halted += [relay.halted for relay in self.relays.values() if relay.halted is not None]
        return halted[0] if halted else self._crashed

    # ---- read models

    def number_of(self, position: Position) -> int:
        """The number of a position of this service's own log. Raises ConfigurationError for any other."""
        identity = self.store_of(position.log).identity
        if position != identity.at(position.number):
            raise ConfigurationError(
                f"{position} is not a position of log {identity.name!r}, incarnation {identity.incarnation!r}"
            )
        return position.number

    def store_of(self, log: str) -> Store:
        """The store of a log of this service; the first one for another's."""
        return next((s for s in self.stores.values() if s.identity.name == log), self.store)

    @property
    def relay(self) -> Relay | None:
        """The relay of the only, or the first, shard; None if none runs here."""
        return next(iter(self.relays.values()), None)

    async def wait(self, after: Position, projections: Sequence[Projection[Any]], timeout_s: float) -> None:
        """See Service.wait."""
        service = service_of(after.log)
        chosen = projections or [p for p in self.service.projections if service in p.sources]
        if not chosen:
            raise ConfigurationError(f"no projection of service {self.service.name!r} reads the log of {after}")
        await asyncio.gather(*(self._wait(p, after, timeout_s) for p in chosen))

    async def _wait(self, projection: Projection[Any], after: Position, timeout_s: float) -> None:
        runner = self._runner(projection)
        end = asyncio.get_running_loop().time() + timeout_s
        if (renewal := self.renewals.get(projection.name)) is not None:
            await renewal.wait(timeout_s)
        await runner.wait(after, max(0.0, end - asyncio.get_running_loop().time()))

    def _runner(self, projection: Projection[Any]) -> ProjectionRunner:
        if projection not in self.service.projections or projection.name not in self.projections:
            raise ConfigurationError(
                f"{projection!r} is not a projection of service {self.service.name!r}: "
                "give it to Service(projections=[…])"
            )
        return self.projections[projection.name]

    async def query(self, select: sa.Select[*Ts], after: Position | None, timeout_s: float) -> sa.Result[*Ts]:
        """See Service.query."""
        if not isinstance(select, sa.Executable):
            raise ConfigurationError(f"query() takes a select, as in sqlalchemy.select(customers), not {select!r}")
        if self.views is None:
            raise ConfigurationError(f"service {self.service.name!r} has no projection with tables to query")
        owners = self._owners(select) if after is not None or self.renewals else []
        for owner in owners:
            if (renewal := self.renewals.get(owner.name)) is not None:
                await renewal.wait(timeout_s)
        if after is not None:
            if reading := [p for p in owners if service_of(after.log) in p.sources]:
                await self.wait(after, reading, timeout_s)
            else:
                raise ConfigurationError(
                    f"{after} is a position of a log that no projection behind this select reads "
                    f"({', '.join(p.name for p in owners) or 'its tables belong to none'})"
                )
        return await self.views.query(select)

    def _owners(self, select: sa.Select[*Ts]) -> list[Projection[Any]]:
        tables = {id(found) for found in visitors.iterate(select) if isinstance(found, sa.Table)}
        return [
            p
            for p in self.service.projections
            if isinstance(p.model, SqlModel) and any(id(t) in tables for t in p.model.metadata.tables.values())
        ]

    def state(self, model: MemoryModel[S]) -> S:
        """See Service.state."""
        for projection in self.service.projections:
            if projection.model is model:
                runner = self._runner(projection)
                if runner.halted is not None:
                    raise runner.halted
                state: S = runner.state
                return state
        raise ConfigurationError(f"no projection of service {self.service.name!r} fills that model")

    async def status(self) -> Status:
        """See Service.status."""
        logs, connection = {}, self.connection
        for shard, store in self.stores.items():
            relay = self.relays[shard].status() if shard in self.relays else None
            logs[store.identity.name] = OwnLogStatus(store.identity.incarnation, await store.head(), relay)
        return Status(
            service=self.service.name,
            logs=logs,
            nats=_shown(connection) if connection is not None else None,
            followers=[await self._follower(follower) for follower in self.followers()],
            backups={self.stores[shard].identity.name: b.status() for shard, b in self.backups.items()},
        )

    async def _follower(self, follower: ProjectionRunner | ReactionRunner) -> FollowerStatus:
        status = await self.lags.of(await follower.status())
        renewal = self.renewals.get(status.name)
        return status if renewal is None or renewal.state is None else replace(status, reason=renewal.state)


def _shown(connection: Connection) -> str:
    problem = f" (not connected: {connection.problem})" if connection.problem else ""
    return connection.settings.shown + problem
