"""A document → the AsyncAPI 3.0 document of what a service publishes to NATS: docs/wire-format.md for machines.

Channels are event types, since each has a subject of its own. Payloads are in AsyncAPI's own schema dialect, which is
that of JSON Schema draft 7: where 2020-12 says the same in other words, they are translated.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from evsync.contracts import wire_schema
from evsync.contracts.document import EVENT, Document, Schema, classes_of, events_of, service_of, write
from evsync.jetstream.messages import CONTENT_TYPE, FORMAT, escape
from evsync.records import NAME

_NATS: Final = {"nats": {"bindingVersion": "0.1.0"}}
_TIME: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"
_NUMBER: Final = "(0|[1-9][0-9]{0,18})"


def asyncapi_of(document: Schema) -> Document:
    """The AsyncAPI document. The same contracts always give the same one; its version is a hash of them."""
    service, events = service_of(document), events_of(document)
    return {
        "asyncapi": "3.0.0",
        "id": f"urn:evsync:{service}",
        "info": {
            "title": service,
            "version": hashlib.sha256(write(document).encode()).hexdigest()[:12],
            "description": (
                f"The events that service {service} publishes to NATS JetStream, one message each, as CloudEvents 1.0 "
                "in binary mode. Message n of a log's stream is event n of the log. Payload schemas describe the JSON "
                "form of the data; its body is msgpack, and `x-msgpack-ext` is the code of the extension type that "
                "holds a value which msgpack lacks."
            ),
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {type: _channel(service, type) for type in events},
        "operations": {
            f"publish.{type}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{type}"},
                "summary": f"Publishes {type}.",
                "bindings": _NATS,
                "messages": [{"$ref": f"#/channels/{type}/messages/event"}],
            }
            for type in events
        },
        "components": {
            "messages": {type: _message(service, type, schema) for type, schema in events.items()},
            "schemas": {
                **{
                    type: _translated({k: v for k, v in schema.items() if k != EVENT})
                    for type, schema in events.items()
                },
                **{name: _translated(schema) for name, schema in classes_of(document).items()},
            },
        },
    }


def address_of(service: str, type: str) -> str:
    """The subject of an event type, with parameters for what differs from event to event."""
    aggregate, _, event = type.removeprefix(f"{service}.").partition(".")
    return f"evsync.{service}.{{shard}}.{{slot}}.{escape(aggregate)}.{escape(event)}.{{stream}}"


def _channel(service: str, type: str) -> Document:
    return {
        "address": address_of(service, type),
        "messages": {"event": {"$ref": f"#/components/messages/{type}"}},
        "parameters": {
            "shard": {"description": "The service's shard.", "default": "main", "examples": ["main"]},
            "slot": {
                "description": "The slot of the stream id: CRC-32 modulo the number of slots.",
                "examples": ["28"],
            },
            "stream": {
                "description": (
                    "The aggregate's id; of its UTF-8 form every byte but A-Z, a-z, 0-9, - and _ as %XX. In a stream "
                    "that is itself the store, one more token follows: the version."
                ),
                "examples": ["m%C3%BCller%2E7"],
            },
        },
    }


def _message(service: str, type: str, schema: Schema) -> Document:
    return {
        "name": type,
        "title": type,
        "summary": f"{type}, schema version {schema[EVENT]['schema']}.",
        "contentType": CONTENT_TYPE,
        "headers": _headers(service, type),
        "correlationId": {"location": "$message.header#/ce-correlationid"},
        "payload": {"$ref": f"#/components/schemas/{type}"},
        "x-schema-version": schema[EVENT]["schema"],
    }


def _headers(service: str, type: str) -> Document:
    uuid = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
    of = {
        "ce-specversion": {"type": "string", "const": "1.0"},
        "ce-id": {"type": "string", "format": "uuid", "pattern": uuid, "description": "The event's id."},
        "ce-time": {"type": "string", "format": "date-time", "pattern": _TIME, "description": "When it was decided."},
        "ce-source": {"type": "string", "pattern": f"^/{service}/{NAME.pattern}$"},
        "ce-type": {"type": "string", "const": type},
        "ce-datacontenttype": {"type": "string", "const": CONTENT_TYPE},
        "evsync": {
            "type": "string",
            "pattern": f"^{FORMAT} [A-Za-z0-9_-]+ {_NUMBER} {_NUMBER} {_NUMBER}$",
            "description": "Format, incarnation, position, version, and how many events of the commit follow.",
        },
        "evsync-meta": {
            "type": "string",
            "description": "The event's tags, a JSON object; `schema` is the schema version where that is not 1.",
        },
        "ce-correlationid": {"type": "string"},
        "ce-causationid": {"type": "string"},
        "ce-traceparent": {"type": "string"},
    }
    return {"type": "object", "properties": of, "required": list(of)[:7]}


def _translated(schema: Any) -> Any:
    """A schema in the words of draft 7."""
    if not isinstance(schema, dict):
        return schema
    found: Document = {}
    for keyword, value in schema.items():
        match keyword:
            case "$ref":
                found["$ref"] = value.replace("#/$defs/", "#/components/schemas/")
            case "properties":
                found["properties"] = {name: _translated(of) for name, of in value.items()}
            case "anyOf" | "oneOf" | "allOf":
                found[keyword] = [_translated(part) for part in value]
            case "prefixItems":
                found["items"] = [_translated(part) for part in value]
            case "items" if "prefixItems" in schema:
                found["additionalItems"] = _translated(value)
            case "items" | "additionalProperties" | "not" | wire_schema.KEYS:
                found[keyword] = _translated(value)
            case "discriminator":  # AsyncAPI knows a simpler one; the parts say enough
                pass
            case _:
                found[keyword] = value
    if "$ref" in found and len(found) > 1:
        return {"allOf": [{"$ref": found.pop("$ref")}], **found}  # beside a $ref, draft 7 ignores everything
    return found
