"""Contracts: what a consumer needs of another service's events, in classes that the consumer owns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from evsync.errors import ConfigurationError
from evsync.records import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal, Self, dataclass_transform

    from pydantic import Field, PrivateAttr
    from pydantic.fields import FieldInfo
    from pydantic_core import SchemaValidator

_PATTERN = re.compile(rf"({NAME.pattern})\.(?:\*|[^\W\d][\w-]*\.(?:\*|[^\W\d][\w-]*))")


if TYPE_CHECKING:
    # A contract is a pydantic model. Checkers are shown the like of one without pydantic's metaclass, because where a
    # class has a metaclass they do not look at its keywords, and a missing `type=` is to be seen while writing.
    @dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, PrivateAttr))
    class _Model:
        model_config: ClassVar[ConfigDict]
        model_fields: ClassVar[dict[str, FieldInfo]]
        __pydantic_validator__: ClassVar[SchemaValidator]

        @property
        def model_extra(self) -> dict[str, Any] | None: ...
        @property
        def model_fields_set(self) -> set[str]: ...
        @classmethod
        def model_validate(cls, obj: Any) -> Self: ...
        def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self: ...
        def model_dump(self, *, mode: Literal["json", "python"] = "python") -> dict[str, Any]: ...
        def model_dump_json(self) -> str: ...

else:
    _Model = BaseModel


class Contract(_Model):
    """What this service needs of an event type: `class UserRegistered(Contract, type="users.User.Registered")`.

    Fields that the event has and the contract has not are ignored, so that the producer may add some. Instances are
    frozen. `type="users.User.*"` catches every event of an aggregate class, `type="users.*"` every event of a service;
    such a contract declares only what all of them have, perhaps nothing (with `extra="allow"` as a second argument of
    the class, whatever an event holds is found in `e.data.model_extra`).

    Values are taken as pydantic takes them by default: an array becomes the tuple or set that the contract declares, a
    value the member of an Enum; a UUID does not silently become text. An event that does not meet the contract fails
    as its handler would.
    """

    model_config = ConfigDict(frozen=True)

    __event_type__: ClassVar[str]

    if TYPE_CHECKING:

        def __init_subclass__(cls, *, type: str, **config: Any) -> None: ...

    else:  # who runs without one gets an error that says what to write

        def __init_subclass__(cls, *, type: object = None, **config: Any) -> None:
            super().__init_subclass__(**config)
            if not isinstance(type, str):
                raise TypeError(
                    f"class {cls.__name__} does not say which event it is for: write "
                    f'class {cls.__name__}(…, type="users.User.Registered")'
                )
            if not _PATTERN.fullmatch(type):
                raise TypeError(
                    f"{type!r}, the type of class {cls.__name__}, is not an event type: use 'service.Aggregate.Event', "
                    "or 'service.Aggregate.*', or 'service.*'"
                )
            cls.__event_type__ = type


def matches(pattern: str, type: str) -> bool:
    """Whether an event of this type is one that a contract with this type catches."""
    return type.startswith(pattern[:-1]) if pattern.endswith(".*") else type == pattern


def check_contract(contract: object) -> type[Contract]:
    """`contract`, if it is a contract class. Raises ConfigurationError for anything else."""
    if isinstance(contract, type) and issubclass(contract, Contract) and contract is not Contract:
        return contract
    raise ConfigurationError(
        f"{contract!r} is not a contract; on() takes a contract, as in @view.on(UserRegistered), with "
        'class UserRegistered(Contract, type="users.User.Registered")'
    )


def explain(error: ValidationError) -> str:
    """What pydantic found, on one line: which field, what was wrong, and the value."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'the event'}: {e['msg']} (got {_short(e['input'])})"
        for e in error.errors(include_url=False, include_context=False)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
