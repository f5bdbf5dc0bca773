"""Who reads an event's field: the projections and reactions whose contracts name it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import AliasChoices, AliasPath, BaseModel
from pydantic.fields import FieldInfo

from evsync.projections import Projection, Reaction
from evsync.projections.contracts import Contract, matches


@dataclass(frozen=True, slots=True)
class Reader:
    """One contract of one follower."""

    service: str
    kind: Literal["projection", "reaction"]
    follower: str
    contract: type[Contract]

    def reads(self, event: str, field: Sequence[str]) -> bool:
        """Whether it needs this field (none: anything) of this event, by whatever name it takes it."""
        if not matches(self.contract.__event_type__, event):
            return False
        names = [part for part in field if part not in ("[]", "{}")]
        return _reads(typing.cast("type[BaseModel]", self.contract), names)

    def __str__(self) -> str:
        return f"{self.service}: {self.kind} {self.follower} ({self.contract.__name__})"


def readers_of(service: str, followers: Iterable[Projection[Any] | Reaction]) -> Iterator[Reader]:
    """The contracts of a service's projections and reactions."""
    for follower in followers:
        kind: Literal["projection", "reaction"] = "projection" if isinstance(follower, Projection) else "reaction"
        for contract in follower.handlers.contracts:
            yield Reader(service, kind, follower.name, contract)


def _reads(model: type[BaseModel], names: Sequence[str]) -> bool:
    if not names or model.model_config.get("extra") == "allow":
        return True
    for name, field in model.model_fields.items():
        if names[0] in _names(name, field):
            inside = list(_models(field.annotation))
            # Where it takes the whole value as it comes, it may need every part of it.
            return not inside or any(_reads(part, names[1:]) for part in inside)
    return False


def _names(name: str, field: FieldInfo) -> set[str]:
    """The names under which a contract looks for a field."""
    alias = field.validation_alias if field.validation_alias is not None else field.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias if alias is not None else name]
    return {str(choice.path[0] if isinstance(choice, AliasPath) else choice) for choice in choices}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation: `list[Line] | None` has one."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from _models(part)
