"""The wire form of the status: what a dataclass is in JSON, and the schema that says so, out of one description.

Instants are ISO 8601 in UTC with Z, spans whole seconds. What must never come in: which values there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Annotated, Any

from pydantic import PlainSerializer, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from certfan import log
from certfan.core.model import Endpoint

SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Located:
    """Where a service can be probed; `url` is the same in one word."""

    url: str
    service: str
    protocol: str
    address: str
    port: int
    server_name: str

    @classmethod
    def of(cls, endpoint: Endpoint) -> Located:
        """Put its one word beside an endpoint."""
        one = endpoint
        return cls(str(one), one.service, one.protocol, one.address, one.port, one.server_name)


def _seconds(span: timedelta) -> int:
    return round(span.total_seconds())


Span = Annotated[timedelta, PlainSerializer(_seconds, return_type=int)]
Place = Annotated[Endpoint, PlainSerializer(Located.of, return_type=Located)]
# What the store holds may be any mapping.
Fields = Annotated[Mapping[str, Any], PlainSerializer(dict, return_type=dict[str, Any])]


def encode(value: Any) -> bytes:
    """Return the JSON of a dataclass. Should key material have come that far, it is replaced."""
    return log.redact_json(_adapter(type(value)).dump_json(value))


def as_json(value: Any) -> Any:
    """Turn a value, or containers of such, into what JSON can say."""
    match value:
        case None | bool() | int() | float():
            return value
        case StrEnum() | str():
            return str(value)
        case timedelta():
            return _seconds(value)
        case Mapping():
            return {str(key): as_json(inner) for key, inner in value.items()}
        case tuple() | list() | frozenset():
            return [as_json(inner) for inner in value]
        case _ if isinstance(value, datetime) or dataclasses.is_dataclass(value):
            return _adapter(type(value)).dump_python(value, mode="json")
        case _:
            return str(value)


def schemas(kinds: Iterable[Any]) -> dict[str, Any]:
    """Return the schemas of some dataclasses, and of all that they hold, by name; they refer to `SCHEMAS`."""
    inputs = [(kind, "serialization", _adapter(kind)) for kind in kinds]
    _, found = TypeAdapter.json_schemas(
        inputs,  # type: ignore[arg-type]
        ref_template=SCHEMAS + "{model}",
        schema_generator=_Schema,
    )
    defined: dict[str, Any] = found["$defs"]
    return defined


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return _made(kind)


@cache
def _made(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


class _Schema(GenerateJsonSchema):
    """What we write has every member, also the one whose value is the default."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Every one is there."""
        return True
