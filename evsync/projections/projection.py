"""Projections: handlers that turn events into a read model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from evsync.errors import ConfigurationError
from evsync.projections.contracts import Contract
from evsync.projections.event import Event
from evsync.projections.handlers import Handlers
from evsync.projections.models.read_model import ReadModel
from evsync.records import check_name

C = TypeVar("C", bound=Contract)
M = TypeVar("M")

MAX_GROUPS = 256


class Projection(Generic[M]):
    """Handlers that turn events into a read model: plain functions, deterministic, in the model's transaction.

    Its sources follow from its contracts. Events of one aggregate come in order; between two sources there is no order.

    `version` counts the meanings of the read model: raise it when the handlers or tables change so that what is there
    would be wrong. A read model of an older version is then refused, until `evsync rebuild` has made it anew; with
    `rebuild="auto"`, who runs the projection does that when the service is opened, while the old one is in use.

    `groups` is the number of parts that workers may share (1: the full order of each log is kept for all workers
    together); like the version, it is fixed while the read model exists. An event whose handler fails is tried again
    `retries` times with growing pauses. Then the projection halts, with nothing of the batch applied; or, with
    `then="park"`, the event is set aside with all later ones of its stream, and the other streams go on.
    """

    def __init__(
        self,
        name: str,
        *,
        model: ReadModel[M],
        version: int = 1,
        groups: int = 16,
        retries: int = 5,
        then: Literal["halt", "park"] = "halt",
        rebuild: Literal["manual", "auto"] = "manual",
    ) -> None:
        self.name = check_name("projection", name)
        if not isinstance(model, ReadModel):
            raise ConfigurationError(
                f"projection {name!r}: model= takes SqlModel(metadata) or MemoryModel(factory), not {model!r}"
            )
        self.model: ReadModel[M] = model
        self.version = check_number(f"version of projection {name!r}", version, 1, 2**31 - 1)
        self.groups = check_number(f"groups of projection {name!r}", groups, 1, MAX_GROUPS)
        self.retries = check_number(f"retries of projection {name!r}", retries, 0, 1_000_000)
        if then not in ("halt", "park"):
            raise ConfigurationError(f"projection {name!r}: then={then!r} is not known; use 'halt' or 'park'")
        self.then: Literal["halt", "park"] = then
        if rebuild not in ("manual", "auto"):
            raise ConfigurationError(f"projection {name!r}: rebuild={rebuild!r} is not known; use 'manual' or 'auto'")
        self.rebuild = rebuild
        self.handlers = Handlers(f"projection {name!r}", awaited=False)

    def __repr__(self) -> str:
        return f"<Projection {self.name} version {self.version}>"

    @property
    def sources(self) -> tuple[str, ...]:
        """The services whose logs it reads."""
        return self.handlers.services

    def on(self, contract: type[C], /) -> Callable[[Callable[[Event[C], M], None]], Callable[[Event[C], M], None]]:
        """Register a handler for the events that the contract names: `@view.on(UserRegistered)`.

        An event that several contracts match (an exact one and one that ends in `.*`) reaches their handlers in the
        order of registration. Raises ConfigurationError for what is no contract, for a handler that is async or does
        not take two arguments, and for a second handler of the same type.
        """
        return self.handlers.on(contract)


def check_number(what: str, value: int, least: int, most: int) -> int:
    """`value`, if it is a whole number in this range (both ends included). Raises ConfigurationError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigurationError(f"{what}: a whole number from {least} to {most:,} is needed, not {value!r}")
    return value
