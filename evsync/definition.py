"""What a service is made of, before anything of it is opened."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from evsync.aggregates.snapshots import SnapshotPolicy
from evsync.archive.policy import BackupPolicy
from evsync.codec.events import EventCodec, Upcaster
from evsync.config import Deployment, check_settings, resolve
from evsync.domain import AnyAggregate
from evsync.errors import ConfigurationError
from evsync.projections import MemoryModel, Projection, Reaction, SqlModel
from evsync.projections.contracts import matches
from evsync.records import check_name, service_of
from evsync.sharding import Router

logger = logging.getLogger("evsync")


class Definition:
    """A service's name, aggregates, projections, reactions and policies: the part of a Service that is inert."""

    def __init__(
        self,
        name: str,
        *,
        aggregates: Sequence[type[AnyAggregate]] = (),
        projections: Sequence[Projection[Any]] = (),
        reactions: Sequence[Reaction] = (),
        renamed: Mapping[str, str] | None = None,
        upcasters: Mapping[str, Sequence[Upcaster]] | None = None,
        snapshots: SnapshotPolicy | None = None,
        cached_aggregates: int = 0,
        backups: BackupPolicy | None = None,
        router: Router | None = None,
        **deployment: Unpack[Deployment],
    ) -> None:
        self.name = check_name("service", name)
        check_settings(name, deployment, "; it is made of aggregates=, projections=, reactions=, …")
        _check_parts(name, "aggregates", aggregates, type, "aggregate classes")
        _check_parts(name, "projections", projections, Projection, "projections")
        _check_parts(name, "reactions", reactions, Reaction, "reactions")
        for policy, given, form in (("snapshots", snapshots, SnapshotPolicy), ("backups", backups, BackupPolicy)):
            if given is not None and not isinstance(given, form):
                raise ConfigurationError(f"service {name!r}: {policy}={given!r}, where a {form.__name__} is needed")
        self.codec = EventCodec(name, aggregates, renamed=renamed, upcasters=upcasters)
        self.projections = tuple(projections)
        self.reactions = tuple(reactions)
        self.snapshots = snapshots
        if cached_aggregates < 0:
            raise ConfigurationError(f"cached_aggregates={cached_aggregates}: use 0 for no cache, or how many to keep")
        self.cached_aggregates = cached_aggregates
        self.backups = backups
        if router is not None and not isinstance(router, Router):
            raise ConfigurationError(
                f"service {name!r}: router={router!r}, where a HashRing or a RangeRouter is needed"
            )
        self.router = router
        self._deployment = deployment
        names = [p.name for p in self.projections] + [r.name for r in self.reactions] + ["relay", "backup"]
        for twice in {n for n in names if names.count(n) > 1}:
            raise ConfigurationError(f"service {name!r} has two parts named {twice!r}; 'relay' and 'backup' are taken")

    def settings(self, **overrides: Unpack[Deployment]) -> Deployment:
        """Where the service would be opened now. Raises ConfigurationError."""
        return resolve(self.name, self._deployment, overrides)


def parts_to_run(service: Definition, settings: Deployment) -> frozenset[str]:
    """The names of the parts that `run=` asks for. Raises ConfigurationError for one that the service does not have."""
    names = {"relay", *(p.name for p in service.projections), *(r.name for r in service.reactions)}
    if service.backups is not None:
        names.add("backup")
    run = settings["run"]
    if run == "all":
        return frozenset(names)
    if run == "none":
        return frozenset()
    if isinstance(run, str) or (unknown := set(run) - names):
        raise ConfigurationError(
            f"run={run!r}: service {service.name!r} has no part named "
            f"{', '.join(sorted(unknown)) if not isinstance(run, str) else repr(run)}; use 'all', 'none' or a list of "
            f"{', '.join(sorted(names))}"
        )
    return frozenset(run)


def services_read_by(service: Definition) -> tuple[str, ...]:
    """The services whose logs its projections and reactions follow, itself among them if they do.

    Raises ConfigurationError for one without handlers, which would follow nothing.
    """
    parts: list[Projection[Any] | Reaction] = [*service.projections, *service.reactions]
    for part in parts:
        if not part.sources:
            raise ConfigurationError(
                f"{type(part).__name__.lower()} {part.name!r} has no handlers: it would follow nothing. Register them "
                "before the service is opened: @….on(Contract)"
            )
    return tuple(dict.fromkeys(s for part in parts for s in part.sources))


def tell_of_unknown(reader: Definition, of: Definition) -> None:
    """A warning for each contract of `reader` that names no event of `of`, by today's name or an earlier one.

    Nothing ever comes to a handler whose event is misspelt, which looks like a read model that stays empty.
    """
    names = [*of.codec.types, *of.codec.renamed]
    parts: list[Projection[Any] | Reaction] = [*reader.projections, *reader.reactions]
    for part in parts if of.codec.types else ():
        for contract in part.handlers.contracts:
            type = contract.__event_type__
            known = any(matches(type, name) for name in names) or type.rpartition(".")[0] in of.codec.renamed
            if service_of(type) == of.name and not known:
                logger.warning(
                    "%s %s of service %s handles %s (contract %s), and service %s has no such event: it has %s",
                    *(part.__class__.__name__.lower(), part.name, reader.name, type, contract.__name__, of.name),
                    ", ".join(of.codec.types),
                )


def projection_of(service: Definition, name: str) -> Projection[Any]:
    """A projection of a service by its name. Raises ConfigurationError that says which there are."""
    for projection in service.projections:
        if projection.name == name:
            return projection
    names = ", ".join(p.name for p in service.projections) or "none"
    raise ConfigurationError(f"service {service.name!r} has no projection {name!r}; it has {names}")


def stored_projections(service: Definition) -> list[Projection[Any]]:
    """Those whose read models are stored, rather than made anew in each process."""
    return [p for p in service.projections if not isinstance(p.model, MemoryModel)]


def tables_of(projection: Projection[Any]) -> list[str]:
    """The names of a projection's tables."""
    return list(projection.model.metadata.tables) if isinstance(projection.model, SqlModel) else []


def shared_tables(service: Definition, projection: Projection[Any]) -> tuple[str, list[str]] | None:
    """Another projection that fills tables of this one, and which; None if there is no such projection."""
    for other in service.projections:
        if other is not projection and (shared := sorted({*tables_of(projection)} & {*tables_of(other)})):
            return other.name, shared
    return None


def _check_parts(service: str, what: str, parts: object, form: type, words: str) -> None:
    """Raises ConfigurationError unless `parts` has these, and nothing else."""
    if not isinstance(parts, Collection) or not all(isinstance(part, form) for part in parts):
        raise ConfigurationError(f"service {service!r}: {what}={parts!r}, where a list of {words} is needed")
