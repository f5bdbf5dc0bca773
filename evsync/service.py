"""A service: a named set of aggregates, projections and reactions, and what can be done with it while it is open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload
from uuid import UUID

import sqlalchemy as sa
from typing_extensions import TypeVarTuple, Unpack

from evsync.codec.events import unreadable
from evsync.codec.values import unpack
from evsync.config import Deployment
from evsync.definition import Definition, stored_projections
from evsync.domain import AnyAggregate, BaseAggregate
from evsync.errors import ConfigurationError, DecodingError, StoreUnavailable
from evsync.operations.rebuilding import rebuild
from evsync.ports import Store
from evsync.projections import Event, MemoryModel, Projection
from evsync.records import Position, StoredEvent
from evsync.runtime import Runtime
from evsync.status import Status
from evsync.tags import current_tags

A = TypeVar("A", bound=BaseAggregate[Any])
S = TypeVar("S")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class Service(Definition):
    """A named set of aggregates, projections and reactions. Inert until opened: nothing is touched, no global kept.

    `renamed` and `upcasters` keep old events readable (see EventCodec); `snapshots` says when the state of long streams
    is kept, None never; `cached_aggregates` is how many aggregates stay in memory after a load; `backups` how often and
    where to the log is archived, None never; `router` plans which shard holds what, None a HashRing of all shards. What
    remains, `**deployment`, says where the service runs: see Deployment. Raises ConfigurationError for names and
    classes that do not fit, EncodingError for an event whose fields cannot be written.
    """

    _runtime: Runtime | None = None
    _opening = False
    _closing: AbstractAsyncContextManager[Self] | None = None

    def __repr__(self) -> str:
        return f"<Service {self.name}: {'open' if self._runtime else 'not open'}>"

    # ---- opening

    @asynccontextmanager
    async def open(self, **overrides: Unpack[Deployment]) -> AsyncIterator[Self]:
        """Open the service for the length of an `async with`: the store, the broker, and the parts that `run` names.

        A broker that cannot be reached is no error: saves go on, and the relay catches up when it is there. Raises
        ConfigurationError, StoreError. A service is open once at a time.
        """
        async with self._opened(Runtime.open(self, self.settings(**overrides))) as runtime:
            runtime.start()
            yield self

    @asynccontextmanager
    async def inspect(self, *, followers: bool = False, **overrides: Unpack[Deployment]) -> AsyncIterator[Self]:
        """Open the service to look at it: an existing store only, nothing is made and nothing runs.

        With `followers`, `status()` tells of projections and reactions too. Raises as `open`, StoreUnavailable where
        there is no store.
        """
        settings = self.settings(**overrides)
        async with self._opened(Runtime.open(self, settings, followers=followers, look_only=True)):
            yield self

    @asynccontextmanager
    async def _opened(self, opening: AbstractAsyncContextManager[Runtime]) -> AsyncIterator[Runtime]:
        if self._runtime is not None or self._opening:
            raise ConfigurationError(f"service {self.name!r} is open already; make a second Service to open it twice")
        self._opening = True
        try:
            async with opening as runtime:
                self._runtime = runtime
                try:
                    yield runtime
                finally:
                    self._runtime = None
        finally:
            self._opening = False

    async def __aenter__(self) -> Self:
        opened = self.open()
        await opened.__aenter__()
        self._closing = opened
        return self

    async def __aexit__(self, *exc: Any) -> None:
        opened, self._closing = self._closing, None
        if opened is not None:
            await opened.__aexit__(*exc)

    @asynccontextmanager
    async def lifespan(self, app: object, /) -> AsyncIterator[None]:
        """The lifespan of an ASGI application: `FastAPI(lifespan=users.lifespan)`."""
        async with self.open():
            yield

    async def serve(self) -> None:
        """Open the service if it is not, and run until SIGTERM or SIGINT, then end cleanly.

        Raises Halted when a projection or reaction has halted, RelayError when the relay has.
        """
        if self._runtime is not None:
            await self._runtime.serve()
            return
        async with self.open():
            await self.runtime.serve()

    @property
    def store(self) -> Store | None:
        """The event store while the service is open, else None; that of the first shard where there are several."""
        return self._runtime.store if self._runtime is not None else None

    @property
    def stores(self) -> Mapping[str, Store]:
        """The event stores by shard while the service is open: where others of this process read its logs."""
        return self._runtime.stores if self._runtime is not None else {}

    @property
    def runtime(self) -> Runtime:
        """What is open, for tools and tests. Raises ConfigurationError when the service is not open."""
        if self._runtime is None:
            raise ConfigurationError(
                f"service {self.name!r} is not open: use `async with {self.name}.open(store=…):`, or its lifespan"
            )
        return self._runtime

    # ---- aggregates

    async def save(self, first: AnyAggregate, /, *more: AnyAggregate) -> Position:
        """Append the pending events of these aggregates in one commit; durable when it returns.

        Returns the position of the last event: wait for it, or send it on. Raises Conflict when another writer was
        first, OutcomeUnknown, EncodingError, EventTooLarge, StoreError; the pending events are then kept.
        """
        return await self.runtime.repository.save((first, *more), current_tags())

    @overload
    async def get(self, cls: type[A], id: UUID | str, /) -> A: ...
    @overload
    async def get(self, cls: type[A], id: UUID | str, /, *, version: int) -> A: ...
    @overload
    async def get(self, cls: type[A], id: UUID | str, /, *, at: datetime) -> A: ...
    async def get(
        self, cls: type[A], id: UUID | str, /, *, version: int | None = None, at: datetime | None = None
    ) -> A:
        """The aggregate, rebuilt from its events: now, at a version, or at a time. Raises NotFound."""
        if at is not None and not isinstance(at, datetime):
            raise ConfigurationError(f"at={at!r}, where a datetime with a time zone is needed")
        return await self.runtime.repository.get(cls, id, version=version, at=at)

    async def execute(
        self,
        cls: type[A],
        id: UUID | str,
        decide: Callable[Concatenate[A, P], None],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Position:
        """Load the aggregate, call `decide` on it, save it; all of it again after a conflict.

        After an unknown outcome the command is looked for in the stream first, so that it takes effect once. Raises
        NotFound, what `decide` raises, and Conflict or OutcomeUnknown only when patience has run out.
        """
        if not callable(decide):
            raise ConfigurationError(f"execute() takes a method, such as User.rename, not {decide!r}")
        return await self.runtime.repository.execute(cls, id, decide, args, kwargs, current_tags())

    async def history(self, cls: type[AnyAggregate], id: UUID | str, /) -> Sequence[Event[Mapping[str, Any]]]:
        """Every event of one aggregate, oldest first, with its data as it was written. Raises NotFound."""
        runtime = self.runtime
        events = await runtime.repository.history(cls, id)
        return [self._event(e, runtime.home.end_of(e).log) for e in events]

    async def log(
        self, *, after: Position | None = None, follow: bool = False
    ) -> AsyncIterator[Event[Mapping[str, Any]]]:
        """All events of the service in commit order, from the beginning or after a position.

        With `follow`, also those to come, until the service is closed. Of a service with several shards, `after` says
        whose log; without it they come one after the other, and cannot be followed.
        """
        runtime = self.runtime
        if after is None and len(runtime.stores) > 1:
            if follow:
                raise ConfigurationError("the logs of several shards have no common order: follow one, with after=")
            for store in runtime.stores.values():
                async for event in self.log(after=store.identity.at(0)):
                    yield event
            return
        position = runtime.number_of(after) if after is not None else 0
        store = runtime.store_of(after.log) if after is not None else runtime.store
        while self._runtime is runtime:
            try:
                events = await store.read(position, 500)
                if follow and not events:
                    await store.wait(position, 1.0)
            except StoreUnavailable:
                if self._runtime is runtime:
                    raise
                return  # closed meanwhile
            for e in events:
                yield self._event(e, store.identity.name)
            if events:
                position = events[-1].position
            elif not follow:
                return

    def _event(self, stored: StoredEvent, log: str) -> Event[Mapping[str, Any]]:
        try:
            data = unpack(stored.data)
        except DecodingError as e:
            raise unreadable(stored, e) from e
        return Event.of(stored, data, log)

    # ---- read models

    async def wait(self, after: Position, /, *projections: Projection[Any], timeout_s: float = 5.0) -> None:
        """Return the moment these projections (none given: all that read its log) have passed the position.

        Raises NotVisible when the time has run out, Halted at once when a projection has stopped.
        """
        await self.runtime.wait(_position(after), projections, timeout_s)

    async def query(
        self, select: sa.Select[*Ts], /, *, after: Position | None = None, timeout_s: float = 5.0
    ) -> sa.Result[*Ts]:
        """The rows of a select over read models, first waiting until the projections that own its tables show `after`.

        The result is complete in memory: no connection stays in use. Raises as `wait`.
        """
        return await self.runtime.query(select, None if after is None else _position(after), timeout_s)

    def state(self, model: MemoryModel[S], /) -> S:
        """The state of an in-memory read model. Raises Halted when its projection has stopped."""
        return self.runtime.state(model)

    async def rebuild(self, *projections: Projection[Any]) -> None:
        """Make the read models of these projections (none given: of all) anew from history, while they are in use.

        Returns once the new ones are in place; workers, here and elsewhere, go on with them. Raises ConfigurationError
        for a model in memory, and what stops the handlers; the read model is then as it was.
        """
        runtime = self.runtime
        for projection in projections or stored_projections(self):
            if projection not in self.projections:
                raise ConfigurationError(f"{projection!r} is not a projection of service {self.name!r}")
            await rebuild(self, projection, runtime.views, runtime.sources)

    async def status(self) -> Status:
        """How far the relay, the projections and the reactions are, and what is wrong with them if anything is."""
        return await self.runtime.status()


def _position(given: object) -> Position:
    """What was given, if it is a position. Raises ConfigurationError for its text, too."""
    if isinstance(given, Position):
        return given
    hint = f": use Position.parse({given!r})" if isinstance(given, str) else ""
    raise ConfigurationError(f"{given!r} is not a Position{hint}")
