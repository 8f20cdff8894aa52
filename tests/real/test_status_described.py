"""The status endpoint under a client that knows only its description, and asks all that it allows, and more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from certfan.daemon.listeners import Listener
from certfan.daemon.status.api.openapi import description
from tests.unit.status_parts import serving
from tests.unit.status_populated import READY

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the populated farm is served by a loop of its own: the clients here block."""
    loop, started, urls = asyncio.new_event_loop(), threading.Event(), list[str]()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(Listener("127.0.0.1", 0), doors=READY) as runner:
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(60)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)
    loop.close()


SCHEMA = schemathesis.openapi.from_dict(description())


@SCHEMA.parametrize()
@settings(
    max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_no_request_finds_an_answer_that_is_not_described(case: schemathesis.Case, address: str) -> None:
    """Asked rightly and wrongly: no server's error, no status, type or member that is not described, no wrong thing taken."""
    case.call_and_validate(base_url=address, headers={"Connection": "close"})
