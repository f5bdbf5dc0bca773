"""What a service publishes, as one JSON Schema document: the file that `evsync contracts export` writes.

A document is plain JSON: dicts, lists, text. Under `$defs` stand the event types by name, and the classes in their
fields. Nothing in it depends on where or when it was made, so that it can be kept in a repository and compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from evsync.codec.events import EventCodec, renamed_to
from evsync.contracts.wire_schema import default_in_json, schemas_of
from evsync.errors import ConfigurationError

Document: TypeAlias = dict[str, Any]
Schema: TypeAlias = Mapping[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
FORMAT: Final = 1
"""Of a document. A reader that does not know a format refuses it."""
EVENT: Final = "x-event"
"""Marks the schema of an event type; holds its type and schema version."""
_HEAD: Final = "x-evsync"
"""Holds the document's format, its service, and the old names of its event types."""


def document_of(codec: EventCodec) -> Document:
    """The document of a service. Raises ConfigurationError for a field that no schema can describe."""
    types = [type for type in codec.types if is_published(codec, type)]
    annotations = {
        (type, field): annotation for type in types for field, annotation in codec.coding_of(type).event.fields.items()
    }
    try:
        fields, classes = schemas_of(annotations)
    except Exception as e:  # users' classes may have schemas of their own
        raise ConfigurationError(f"the events of service {codec.service!r} have no JSON Schema: {e}") from e
    events = {type: _event(codec, type, fields) for type in types}
    return {
        "$schema": DIALECT,
        "$id": f"urn:evsync:{codec.service}",
        "title": codec.service,
        "description": f"The data of the events that service {codec.service} publishes, in its JSON form.",
        _HEAD: {"format": FORMAT, "service": codec.service, "renamed": dict(sorted(codec.renamed.items()))},
        "$defs": events | dict(sorted(classes.items())),
    }


def is_published(codec: EventCodec, type: str) -> bool:
    """Whether events of a type of the service's own code can be saved."""
    # The library gives every aggregate an event `Created`, also where `__init__` is decorated with another name.
    event = codec.coding_of(type).event
    if event.kind != "created" or event.name != "Created":
        return True
    others = (codec.coding_of(other).event for other in codec.types if other != type)
    return not any(e.kind == "created" and e.aggregate is event.aggregate for e in others)


def _event(codec: EventCodec, type: str, schemas: Mapping[tuple[str, str], Schema]) -> Document:
    coding = codec.coding_of(type)
    properties: dict[str, Any] = {}
    for name, annotation in coding.event.fields.items():
        properties[name] = dict(schemas[type, name])
        if name in coding.event.defaults:
            try:
                properties[name]["default"] = default_in_json(annotation, coding.event.defaults[name])
            except Exception as e:
                raise ConfigurationError(
                    f"the default of field {name!r} of {type} could not be a value of that field: {e}"
                ) from e
    required = [name for name in properties if name not in coding.event.defaults]
    return {
        EVENT: {"type": type, "schema": len(coding.upcasters) + 1},
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
    }


def events_of(document: Schema) -> dict[str, Document]:
    """Event type → schema."""
    return {name: schema for name, schema in document["$defs"].items() if EVENT in schema}


def classes_of(document: Schema) -> dict[str, Document]:
    """Name → schema of the classes that occur in events."""
    return {name: schema for name, schema in document["$defs"].items() if EVENT not in schema}


def service_of(document: Schema) -> str:
    """The service whose events they are."""
    return str(document[_HEAD]["service"])


def type_today(document: Schema, type: str) -> str | None:
    """The name that an event type has in this document, if it is not there under its old one."""
    return renamed_to(type, document[_HEAD].get("renamed", {}))


def referred(schema: Schema) -> str | None:
    """The name of the class that a schema refers to; None if it says by itself what it describes."""
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def resolve(schema: Any, document: Schema) -> Schema:
    """The schema itself, where it is a reference the one that it names. `true` is the schema of anything."""
    while isinstance(schema, dict) and (name := referred(schema)) is not None:
        schema = document["$defs"][name]
    return schema if isinstance(schema, dict) else {}


def parts_of(schema: Schema) -> list[Any] | None:
    """The schemas of a union's parts; None if it is none."""
    found: list[Any] | None = schema.get("anyOf", schema.get("oneOf"))
    return found


def values_of(schema: Schema) -> list[Any] | None:
    """The values of an enum, in their JSON form; None if it is none."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def write(document: Schema) -> str:
    """A document as text. The same document is always the same text."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read(text: str, where: str) -> Document:
    """A document that `write` wrote. Raises ConfigurationError for anything else, saying what it is instead."""
    try:
        found = json.loads(text)
    except ValueError as e:
        raise ConfigurationError(f"{where} is not JSON: {e}") from e
    export = "make one with `evsync contracts export module:service --out DIR`, and give its .schema.json"
    if isinstance(found, dict) and "asyncapi" in found:
        raise ConfigurationError(f"{where} is an AsyncAPI document; compared are the JSON Schemas beside it: {export}")
    document: Document = found if isinstance(found, dict) else {}
    head = document.get(_HEAD)
    if not isinstance(head, dict) or not isinstance(document.get("$defs"), dict):
        raise ConfigurationError(f"{where} is not a document of exported contracts: {export}")
    if head.get("format") != FORMAT:
        raise ConfigurationError(
            f"{where} has format {head.get('format')!r}, and this evsync reads {FORMAT}: was it written by a newer one?"
        )
    return document
