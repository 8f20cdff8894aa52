"""The description of the reading routes (OpenAPI 3.1), made of the very routes and dataclasses that answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from certfan import __version__
from certfan.daemon.status.api.reading import API, ROUTES, Query, Route
from certfan.daemon.status.problems import ProblemDocument
from certfan.daemon.status.wire import SCHEMAS, schemas

_PROBLEM = {
    "description": "What is wrong, and what to do about it (RFC 9457).",
    "content": {"application/problem+json": {"schema": {"$ref": SCHEMAS + ProblemDocument.__name__}}},
}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "the ETag of the answer that you have",
    "schema": {"type": "string"},
}


@cache
def description() -> dict[str, Any]:
    """Return the document; it depends on nothing but the release."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "certfan",
            "version": __version__,
            "summary": "What every endpoint should serve, what it serves, why they differ, and by when they must agree.",
        },
        "paths": {
            **{API + route.path: {"get": _operation(route)} for route in ROUTES},
            "/livez": {"get": _health("live", "Whether the daemon does its work")},
            "/readyz": {"get": _health("ready", "Whether it can do all of its work")},
            "/metrics": {"get": _text("metrics", "What Prometheus reads")},
        },
        "components": {
            "schemas": schemas([*(route.answers for route in ROUTES), ProblemDocument]),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # Beyond loopback and unix sockets a token is asked for, or a client's certificate.
        "security": [{}, {"token": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    words = [{**_parameter(name, "path"), "required": True} for name in re.findall(r"{(\w+)}", route.path)]
    tag = {"ETag": {"schema": {"type": "string"}, "description": "changes when the answer does"}}
    answered = {
        "description": route.about,
        "headers": tag,
        "content": {"application/json": {"schema": {"$ref": SCHEMAS + route.answers.__name__}}},
    }
    return {
        "operationId": route.name,
        "summary": route.about,
        "parameters": [*words, *map(_asked, route.query), _IF_NONE_MATCH],
        "responses": {
            "200": answered,
            "304": {"description": "You have it.", "headers": tag},
            "default": _PROBLEM,
        },
    }


def _asked(query: Query) -> dict[str, Any]:
    if query.least is None:
        schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": query.most}
    else:
        schema = {"type": "integer", "minimum": query.least, "maximum": query.most}
        if query.default is not None:
            schema["default"] = query.default
    return {**_parameter(query.name, "query", schema), "description": query.about}


def _parameter(name: str, where: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": where, "schema": schema or {"type": "string", "minLength": 1}}


def _text(name: str, about: str, parameters: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": about,
        "parameters": list(parameters),
        "responses": {"200": {"description": about, "content": _TEXT}, "default": _PROBLEM},
    }


def _health(name: str, about: str) -> dict[str, Any]:
    verbose = _parameter("verbose", "query", {"type": "string"})
    left_out = {"type": "array", "items": {"type": "string"}, "maxItems": 20}
    parameters = [
        {**verbose, "allowEmptyValue": True, "description": "tell every check"},
        {**_parameter("exclude", "query", left_out), "description": "a check that does not count"},
    ]
    told = _text(name, about, parameters)
    told["responses"]["503"] = {"description": "A check has failed.", "content": _TEXT}
    return told
