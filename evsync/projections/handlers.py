"""Handlers and the events they are for: what a Projection and a Reaction have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from evsync.control import is_control
from evsync.errors import ConfigurationError
from evsync.projections.contracts import Contract, check_contract, matches
from evsync.records import service_of

Handler = Callable[[Any, Any], Any]
H = TypeVar("H", bound=Handler)


class Step(NamedTuple):
    """What happens to an event of one type, for one of its handlers."""

    decode: Callable[[Any], Any]
    """Turns the event's decoded fields into the handler's contract. Raises pydantic's ValidationError."""
    handle: Handler


class Handlers:
    """The handlers of one follower, in the order in which they were registered."""

    def __init__(self, follower: str, *, awaited: bool) -> None:
        self._follower, self._awaited = follower, awaited
        self._of: dict[type[Contract], Handler] = {}
        self._steps: dict[str, tuple[Step, ...]] = {}

    def add(self, contract: object, handler: Handler) -> None:
        """Register a handler. Raises ConfigurationError for one that could not be called, or would be called twice."""
        cls = check_contract(contract)
        for other in self._of:
            if other.__event_type__ == cls.__event_type__:
                raise ConfigurationError(
                    f"{self._follower} already has a handler for {cls.__event_type__} ({_name(self._of[other])}, with "
                    f"contract {other.__name__}): {_name(handler)} would be a second one. Do both in one handler, or "
                    "make a second projection or reaction."
                )
        self._check(handler)
        self._of[cls] = handler
        self._steps.clear()

    def on(self, contract: object) -> Callable[[H], H]:
        """A decorator that registers a handler. Raises as `add`, and for what is no contract at once.

        `@view.on` without one would else take the handler for it, and drop it.
        """
        check_contract(contract)

        def register(handler: H) -> H:
            self.add(contract, handler)
            return handler

        return register

    def _check(self, handler: Handler) -> None:
        if not callable(handler):
            raise ConfigurationError(f"{self._follower}: {handler!r} is not a function")
        call = getattr(handler, "__call__", handler)  # noqa: B004  # an object may have an async __call__
        is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise ConfigurationError(f"{self._follower}: {_name(handler)} is a generator: calling it would do nothing")
        if is_async and not self._awaited:
            raise ConfigurationError(
                f"{self._follower}: {_name(handler)} is async, and a projection's handlers are plain functions: they "
                "run inside the read model's transaction and are run again by a rebuild. What calls out is a Reaction."
            )
        if not is_async and self._awaited:
            raise ConfigurationError(f"{self._follower}: {_name(handler)} must be async: write 'async def'")
        try:
            inspect.signature(handler).bind(None, None)
        except ValueError:  # some callables written in C do not tell
            return
        except TypeError as e:
            second = "service" if self._awaited else "model"
            raise ConfigurationError(
                f"{self._follower}: {_name(handler)} is called with two arguments, the event and the {second}, and "
                f"cannot be: {e}"
            ) from e

    @property
    def contracts(self) -> tuple[type[Contract], ...]:
        """The contracts that are handled, in the order of registration."""
        return tuple(self._of)

    @property
    def registered(self) -> tuple[tuple[type[Contract], Handler], ...]:
        """All of them, each with its contract, in the order of registration."""
        return tuple(self._of.items())

    @property
    def services(self) -> tuple[str, ...]:
        """The services whose events are handled, in the order in which they were first named."""
        return tuple(dict.fromkeys(service_of(c.__event_type__) for c in self._of))

    def steps(self, event_type: str) -> tuple[Step, ...]:
        """What happens to an event of this type, in the order of registration; () if nothing does.

        Nothing happens to evsync's own events, which `service.*` would catch too.
        """
        found = self._steps.get(event_type)
        if found is None:
            found = self._steps[event_type] = tuple(
                Step(contract.__pydantic_validator__.validate_python, handler)
                for contract, handler in self._of.items()
                if matches(contract.__event_type__, event_type) and not is_control(event_type)
            )
        return found


def _name(handler: Handler) -> str:
    return getattr(handler, "__qualname__", None) or repr(handler)
