"""Finding the service that a command is about: `module:service`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from operator import attrgetter
from types import ModuleType

import evsync
from evsync.errors import ConfigurationError
from evsync.service import Service

_EVSYNC = os.path.join(os.path.dirname(evsync.__file__), "")


def load(target: str) -> Service:
    """The Service that `module:service` names, the module imported with the current directory in front of the path.

    Raises ConfigurationError that says which of the two is wrong, and what there is instead.
    """
    name, colon, attribute = target.partition(":")
    if not colon or not all(part.isidentifier() for part in f"{name}.{attribute}".split(".")):
        raise ConfigurationError(
            f"{target!r} does not name a service: write module:service, such as shop.users:users for the object "
            "`users` in shop/users.py"
        )
    module = _import(name)
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        raise ConfigurationError(f"module {name!r} has no attribute {attribute!r}; {_services_of(module)}") from None
    if not isinstance(found, Service):
        raise ConfigurationError(f"{target} is of type {type(found).__name__!r}, not a Service; {_services_of(module)}")
    return found


def _import(name: str) -> ModuleType:
    directory = os.getcwd()
    if sys.path[0] != directory:
        sys.path.insert(0, directory)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is not None and f"{name}.".startswith(f"{e.name}."):
            raise ConfigurationError(
                f"there is no module {e.name!r} in {directory}, nor anywhere else that Python looks"
            ) from e
        raise _failed(name, e) from e
    except (Exception, SystemExit) as e:
        raise _failed(name, e) from e


def _failed(name: str, error: BaseException) -> ConfigurationError:
    """What the module's own code failed with, and where: the last frame that is not evsync's."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if not f.filename.startswith(_EVSYNC)), frames[-1])
    where = f"{last.filename}, line {last.lineno}"
    if isinstance(error, SyntaxError):  # it happens in no frame, but where the text is wrong
        where = f"{error.filename}, line {error.lineno}"
    said = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    return ConfigurationError(f"module {name!r} cannot be imported: {said} ({where})")


def _services_of(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Service)]
    return f"its services: {', '.join(names)}" if names else "it has no service at all"
