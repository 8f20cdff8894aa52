"""What only Pebble can show of the authority's edge: a CA that forgot everything, and how many requests one counts."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from certfan import pki
from certfan.errors import AuthorityRefused
from tests.lab.authorities import PebbleServer, Rig, lacking

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(lacking("pebble")), reason=lacking("pebble"))]


@pytest.fixture
async def pebble(tmp_path: Path) -> PebbleServer:
    return PebbleServer(tmp_path)


@pytest.fixture
async def rig(pebble: PebbleServer) -> AsyncIterator[Rig]:
    rig = Rig(pebble)
    async with rig.up():
        yield rig


async def test_an_authority_that_restarted_is_used_again(rig: Rig, pebble: PebbleServer) -> None:
    """Connections, nonces and the account died with it; registering again is all it takes."""
    await rig.acme.register()
    await pebble.restart()

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.new_order(pki.make_csr(pki.make_key(), ["a.example.test"]))
    await rig.acme.register()
    async with asyncio.timeout(20):
        await rig.issue("a.example.test")

    assert caught.value.type.endswith(":accountDoesNotExist")


async def test_an_authority_that_takes_its_time_issues_too(tmp_path: Path) -> None:
    """Random sleeps before each challenge is tried, with some nonces refused."""
    rig = Rig(PebbleServer(tmp_path, nonce_reject=15, sleeps=True))
    async with asyncio.timeout(40), rig.up():
        await rig.acme.register()
        pairs, restarts = await rig.issue_all([f"n{number}.example.test" for number in range(16)], at_once=8)

    assert (len(pairs), restarts) == (16, 0)


async def test_a_certificate_takes_about_seven_requests(
    rig: Rig, pebble: PebbleServer, say: Callable[[str], None]
) -> None:
    """newOrder, authorization, answer, authorization, finalize, order, certificate: a poll follows the hit."""
    await rig.acme.register()
    await rig.issue("warm.example.test")
    log = pebble.pebble.log_path
    before, cpu, many = posts_and_heads(log), time.process_time(), 30
    for number in range(many):
        await rig.issue(f"n{number}.example.test")
    cpu_ms = 1000 * (time.process_time() - cpu) / many
    requests = (posts_and_heads(log) - before) / many
    say(f"{requests:.2f} requests and {cpu_ms:.1f} ms of CPU a certificate, responder and keys included")

    assert requests <= 10  # seven, and on a busy machine a poll more


def posts_and_heads(log: Path) -> int:
    """How many requests Pebble says it had."""
    return sum(log.read_text().count(f" {method} /") for method in ("POST", "HEAD", "GET"))
