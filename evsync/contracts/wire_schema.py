"""An annotation → the JSON Schema of its values, as they are on the wire and in their JSON form.

The JSON form of an event's data (evsync.codec.json_form) is what a schema describes, and what `evsync tail --json`
prints. Where msgpack holds something else than JSON can, a keyword of ours says so:

    x-msgpack-ext   the code of the extension type that holds the value (see evsync.codec.values)
    x-keys          the schema of a map's keys, which JSON turns into text

"Not required" means that events stored before the field was there lack it. Whoever writes an event today writes every
field.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from evsync.codec.fields import plain, wire_of
from evsync.codec.json_form import in_json

EXTENSION: Final = "x-msgpack-ext"
KEYS: Final = "x-keys"


class WireSchema(GenerateJsonSchema):
    """pydantic's generator, told how evsync writes what JSON lacks."""

    def uuid_schema(self, schema: core_schema.UuidSchema) -> JsonSchemaValue:
        """16 bytes."""
        return {"type": "string", "format": "uuid", EXTENSION: 1}

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Its text: a number would be read as a float."""
        return {"type": "string", "format": "decimal", EXTENSION: 2}

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """Always with an offset."""
        return {"type": "string", "format": "date-time", EXTENSION: 3}

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        """A day."""
        return {"type": "string", "format": "date", EXTENSION: 4}

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        """A time of day, with or without an offset."""
        return {"type": "string", "format": "time", EXTENSION: 5}

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        """Microseconds on the wire, ISO 8601 in JSON."""
        return {"type": "string", "format": "duration", EXTENSION: 6}

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        """Bytes on the wire."""
        return {"type": "string", "contentEncoding": "base64url"}

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """A map; its keys need not be text."""
        found: JsonSchemaValue = {"type": "object"}
        if "values_schema" in schema and (values := self.generate_inner(schema["values_schema"])):
            found["additionalProperties"] = values
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        if keys.get("type") != "string" or len(keys) > 1:
            found[KEYS] = keys
        return found

    def computed_field_schema(self, schema: core_schema.ComputedField) -> JsonSchemaValue:
        """Not written: whoever reads computes it again."""
        raise NotImplementedError  # never asked for, see _name_required_computed_fields

    @staticmethod
    def _name_required_computed_fields(computed_fields: list[core_schema.ComputedField]) -> list[Any]:
        return []

    def field_is_required(
        self, field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField, total: bool
    ) -> bool:
        """Whether an old event must have it: it has no default."""
        if field["type"] == "typed-dict-field":
            return bool(field.get("required", total))
        return bool(field["schema"]["type"] != "default")

    def field_title_should_be_set(self, schema: Any) -> bool:
        """A field's name is title enough."""
        return False

    def encode_default(self, dft: Any) -> Any:
        """A default in the same form as the values."""
        return default_in_json(type(dft), dft)


def default_in_json(annotation: Any, value: Any) -> Any:
    """A default value in JSON, sets in an order that is the same in every process."""
    wire = wire_of(annotation)
    found = in_json(wire.write(value) if wire else plain(value))
    return sorted(found, key=repr) if isinstance(value, (set, frozenset)) else found


def schemas_of(annotations: dict[Any, Any]) -> tuple[dict[Any, JsonSchemaValue], dict[str, JsonSchemaValue]]:
    """The schema of each annotation, and those of the classes in them, to which `#/$defs/NAME` refers.

    Raises what pydantic raises for an annotation without a schema; the codec has refused those before.
    """
    inputs: list[Any] = [(key, "serialization", TypeAdapter(annotation)) for key, annotation in annotations.items()]
    found, shared = TypeAdapter.json_schemas(inputs, by_alias=False, schema_generator=WireSchema)
    return {key: schema for (key, _), schema in found.items()}, shared.get("$defs", {})
