"""The reading routes under /api/v1 and their description: what is told is what is described, for any request at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jsonschema_rs
import pytest

from certfan.daemon.listeners import Listener
from certfan.daemon.status.api.openapi import description
from certfan.daemon.status.api.reading import ROUTES
from tests.unit.status_parts import (
    EVENTS,
    serving,
)
from tests.unit.status_populated import POPULATED

PATHS = {
    "/certificates/{name}": "/certificates/www.test",
    "/certificates/{name}/events": "/certificates/www.test/events",
    "/generations/{certificate}/{number}": "/generations/www.test/2",
    "/consumers/{name}": "/consumers/web1",
    "/deployments/{certificate}/{consumer}/{number}": "/deployments/www.test/web1/2",
    "/authorities/{name}": "/authorities/pebble",
    "/authorities/{name}/ledger": "/authorities/pebble/ledger",
    "/runs/{number}": "/runs/2",
    "/events/{number}": "/events/2",
}


@contextlib.asynccontextmanager
async def reading() -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    async with (
        serving(Listener("127.0.0.1", 0), doors=POPULATED) as runner,
        aiohttp.ClientSession() as session,
    ):
        yield session, f"http://127.0.0.1:{runner.addresses[0][1]}"


def exactly(schema: Any) -> Any:
    """The same schema, in which no member may be there that is not described."""
    if isinstance(schema, list):
        return [exactly(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {key: exactly(inner) for key, inner in schema.items()} | closed


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_what_a_route_tells_is_exactly_what_is_described(route: Any) -> None:
    """Every member is described, and every described member is there."""
    document = exactly(description())
    validator = jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{route.answers.__name__}", "components": document["components"]},
        validate_formats=True,
    )
    path = PATHS.get(route.path, route.path)
    async with reading() as (session, url), session.get(f"{url}/api/v1{path}") as response:
        told = await response.json()

    assert response.status == 200
    validator.validate(told)


async def test_what_has_not_changed_is_not_sent_again() -> None:
    """The ETag is strong; who shows it gets 304 without a body, who shows another the whole."""
    async with reading() as (session, url):
        async with session.get(f"{url}/api/v1/generations") as first:
            tag = first.headers["ETag"]
        async with session.get(
            f"{url}/api/v1/generations", headers={"If-None-Match": f'"x", {tag}'}
        ) as again:
            assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
        async with session.get(f"{url}/api/v1/generations?limit=1", headers={"If-None-Match": tag}) as other:
            assert other.status == 200

    assert tag.startswith('"')
    assert other.headers["ETag"] != tag


async def test_lists_are_read_to_their_end_by_cursor() -> None:
    """Each answer says how to go on; nothing is told twice, nothing left out."""
    told, query = [], "limit=1"
    async with reading() as (session, url), asyncio.timeout(30):
        while query:
            async with session.get(f"{url}/api/v1/generations?{query}") as response:
                page = await response.json()
            told += [(one["certificate"], one["number"]) for one in page["generations"]]
            query = f"limit=1&after={page['next']}" if page["next"] else ""

    assert told == [("gone.test", 1), ("www.test", 1), ("www.test", 2)]


async def test_lists_are_narrowed_by_what_they_are_about() -> None:
    """By certificate, consumer, or the subject of an event; of a stranger there is nothing."""
    async with reading() as (session, url):

        async def count(path: str, key: str) -> int:
            async with session.get(f"{url}/api/v1/{path}") as response:
                return len((await response.json())[key])

        assert await count("generations?certificate=www.test", "generations") == 2
        assert await count("proofs?consumer=web1", "proofs") == 2
        assert await count("proofs?consumer=web2", "proofs") == 0
        assert await count("deployments?certificate=gone.test", "deployments") == 0
        assert await count("events?subject=www.test@1", "events") == 1


async def test_the_journal_is_followed_from_where_the_last_answer_ended() -> None:
    """Also when nothing has come since."""
    async with reading() as (session, url):
        async with session.get(f"{url}/api/v1/events") as response:
            first = await response.json()
        async with session.get(f"{url}/api/v1/events?after={first['next']}") as response:
            second = await response.json()

    assert [one["id"] for one in first["events"]] == [one.id for one in EVENTS]
    assert second == {"events": [], "next": first["next"]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/runs/x", 404),
        ("GET", "/api/v1/generations/www.test/99", 404),
        ("GET", "/api/v1/certificates?limit=0", 400),
        ("GET", "/api/v1/certificates?limit=1&limit=2", 400),
        ("GET", "/api/v1/certificates?limt=1", 400),
        ("GET", "/readyz?exclude=shar", 404),
        ("POST", "/api/v1/status", 405),
        ("TRACE", "/livez", 405),
    ],
)
async def test_every_refusal_is_a_problem_document(method: str, path: str, status: int) -> None:
    """RFC 9457, as described; also what aiohttp itself refuses."""
    document = exactly(description())
    validator = jsonschema_rs.Draft202012Validator(
        {"$ref": "#/components/schemas/ProblemDocument", "components": document["components"]}
    )
    async with reading() as (session, url), session.request(method, url + path) as response:
        told = json.loads(await response.read())

    assert (response.status, response.content_type, told["status"]) == (
        status,
        "application/problem+json",
        status,
    )
    validator.validate(told)


async def test_a_check_that_is_excluded_does_not_count() -> None:
    """It is told as such; what else has failed still counts."""
    async with reading() as (session, url), session.get(f"{url}/readyz?verbose&exclude=share") as response:
        assert (response.status, await response.text()) == (200, "http01: ok\nshare: excluded\nok\n")
