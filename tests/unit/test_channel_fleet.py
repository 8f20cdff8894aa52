"""The channel with many: consumers beside each other, tokens that many want, agents that all come back at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from certfan import pki, tls
from certfan.agent.liaison import LONGEST_PAUSE, SHORTEST_PAUSE, Liaison, pause_after
from certfan.agent.link import Link
from certfan.core.model import Deployment, DeploymentState, Endpoint, Health, Proof
from certfan.daemon.channel.waiting import Waiting
from certfan.daemon.desk.enroller import token_hash
from certfan.daemon.store import IdentityFact, Store
from certfan.errors import ChannelError, EnrolmentRefused, NotAllowed, NotAuthenticated
from certfan.protocol.identity import client_context, parse_line
from certfan.protocol.messages import EnrolReply, EnrolRequest, Report
from certfan.protocol.wire import decode
from tests.unit.channel_parts import CA, FLEET, NOW
from tests.unit.daemon_parts import CONSUMERS, Daemon, certificate_of, running_daemon, until

pytestmark = pytest.mark.long

EXPIRES = NOW + timedelta(minutes=15)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running_daemon(tmp_path / "daemon") as running:
        yield running


@contextlib.asynccontextmanager
async def linked(daemon: Daemon, folder: Path, *names: str) -> AsyncIterator[dict[str, Link]]:
    """Enrol consumers and yield a link of each."""
    async with contextlib.AsyncExitStack() as stack:
        links = {}
        for name in names:
            trust = await daemon.enrolled(name, folder / name)
            links[name] = await stack.enter_async_context(daemon.link(trust, folder / name))
        yield links


# -- one consumer and the others -----------------------------------------------------------------------------


async def test_no_consumer_gets_anything_of_another(daemon: Daemon, tmp_path: Path) -> None:
    """Each of five asks for every bundle of every other, and tells of every other's: refused, and not believed."""
    for name in CONSUMERS:
        await daemon.issue(name)
    async with linked(daemon, tmp_path, *CONSUMERS) as links:
        for name, link in links.items():
            everyone = [certificate_of(other) for other in CONSUMERS]
            await link.report(report("boot", 1, *everyone))
            assert [a.certificate for a in (await link.assignments()).assignments] == [certificate_of(name)]
            for other in CONSUMERS:
                if other == name:
                    assert "privkey.pem" in await link.bundle(certificate_of(other), 1)
                    continue
                for number in (1, 2):
                    with pytest.raises(NotAllowed, match=f"is not assigned to {name}"):
                        await link.bundle(certificate_of(other), number)

    own = {(certificate_of(name), name) for name in CONSUMERS}
    assert set(await daemon.store.deployments()) == own
    assert set(await daemon.store.proofs()) == own
    refused = Counter(event.subject for event in await daemon.happened("request.refused"))
    assert refused == dict.fromkeys(CONSUMERS, 8)


def report(boot_id: str, sequence: int, *certificates: str, generation: int = 1) -> Report:
    endpoint = Endpoint("apache2", "tls", "127.0.0.1", 443, "www.example")
    proof = Proof(endpoint, Health.SERVED, NOW, fingerprint=f"{generation:064x}")
    return Report.of(
        [Deployment(name, "", generation, DeploymentState.PROVEN, NOW) for name in certificates],
        [(name, proof) for name in certificates],
        boot_id=boot_id,
        sequence=sequence,
        sent_at=NOW,
        version="0.1.0",
    )


@pytest.mark.parametrize("seed", range(5))
async def test_reports_repeated_and_reordered_leave_what_the_newest_said(
    daemon: Daemon, tmp_path: Path, seed: int
) -> None:
    """Whatever comes twice, late, or of a generation before: the newest of the newest life stands, and is told once."""
    await daemon.issue("web1", 1)
    await daemon.issue("web1", 2)
    certificate = certificate_of("web1")
    said = [report("first", n, certificate, generation=1) for n in range(1, 4)]
    said += [report("second", n, certificate, generation=2) for n in range(1, 4)]
    dice = random.Random(seed)
    # The two lives of one machine follow each other; within and after them anything may happen.
    sent = [*said[:3], said[5]]
    late = [*said, *said]
    dice.shuffle(late)
    async with linked(daemon, tmp_path, "web1") as links:
        for one in [*sent, *late]:
            await links["web1"].report(one)

    ((deployment,),) = (await daemon.store.deployments()).values()
    ((proof,),) = (await daemon.store.proofs()).values()
    heard = await daemon.store.heard("web1")
    assert (deployment.generation, proof.fingerprint) == (2, f"{2:064x}")
    assert heard is not None
    assert (heard.boot_id, heard.sequence) == ("second", 3)
    assert [e.subject for e in await daemon.happened("deployment.proven")] == [
        f"{certificate}@1",
        f"{certificate}@2",
    ]


async def test_a_reset_that_an_agent_tells_of_is_told_once_by_the_daemons_clock(
    daemon: Daemon, tmp_path: Path
) -> None:
    """However often the same boot reports, over a restart of the daemon too; an agent of before says nothing."""
    wrong = NOW + timedelta(days=9)  # its clock
    boots = [
        report("old", 1),
        *(
            report("new", n).model_copy(
                update={"sent_at": wrong, "booted_at": wrong - timedelta(hours=1), "reset": True}
            )
            for n in (1, 2, 3)
        ),
    ]
    async with linked(daemon, tmp_path, "web1") as links:
        for one in boots[:3]:
            await links["web1"].report(one)
        await daemon.restart()
        await links["web1"].report(boots[3])

    (told,) = await daemon.happened("machine.reset")
    assert ("web1", (NOW - timedelta(hours=1)).isoformat()) == (told.subject, told.fields["booted_at"])
    known = [one for one in await daemon.store.boots(NOW - timedelta(days=1), NOW) if one.machine]
    assert [("web1", "new", NOW - timedelta(hours=1), True)] == [
        (one.machine, one.boot_id, one.booted_at, one.reset) for one in known
    ]


async def test_revoking_on_the_control_socket_ends_live_sessions(daemon: Daemon, tmp_path: Path) -> None:
    """What `certfan consumer revoke` does: a waiting query of the consumer ends well within 5 s; nothing comes after."""
    async with linked(daemon, tmp_path, "web1", "web2") as links, daemon.control() as control:
        queries = {}
        for name, link in links.items():
            revision = (await link.assignments()).revision
            queries[name] = asyncio.create_task(link.assignments(revision, 60))
        await until(lambda: len(daemon.channel._waiting._rung) == 2)
        async with control.delete("/api/v1/consumers/web1") as response:
            assert response.status == 200
        async with asyncio.timeout(5):
            with pytest.raises(NotAuthenticated):
                await queries["web1"]
        with pytest.raises(NotAuthenticated):
            await links["web1"].report(report("boot", 1))
        await daemon.store.offer([(certificate_of("web2"), "web2", 0)], NOW)
        daemon.channel.announce("web2")
        async with asyncio.timeout(5):
            assert (await queries["web2"]).consumer == "web2"

    assert [event.subject for event in await daemon.happened("consumer.revoked")] == ["web1"]


# -- one token and many keys ---------------------------------------------------------------------------------


@pytest.mark.sweep
async def test_one_token_makes_one_identity_among_10_000_keys(tmp_path: Path) -> None:
    """All at once at the store: exactly one wins, its key may ask again, and nothing of the others was kept.

    A tenth of the keys by default, all 10,000 with CERTFAN_SWEEP=all.
    """
    count = 10_000 if os.environ.get("CERTFAN_SWEEP") == "all" else 1_000
    store = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    await store.add_consumer("web1", NOW)
    await store.open_enrolment("web1", "hash", EXPIRES, NOW)
    some = IdentityFact(
        "0", "web1", spki="", certificate_pem=b"", not_before=NOW, not_after=NOW + timedelta(days=1)
    )

    async def redeem(n: int) -> int | None:
        key = f"spki-{n}"
        with contextlib.suppress(EnrolmentRefused):
            await store.redeem("hash", key, NOW, replace(some, serial=f"{n:x}", spki=key))
            return n
        return None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(redeem(n)) for n in range(count)]
    (winner,) = (won for task in tasks if (won := task.result()) is not None)
    again = await redeem(winner)
    identities = await store.identities("web1")
    await store.close()

    assert again == winner
    assert [one.serial for one in identities] == [f"{winner:x}"]


async def test_one_token_makes_one_identity_over_300_connections(daemon: Daemon) -> None:
    """The same with real keys, requests and handshakes: one 200, 299 times 403, and the winner gets it again."""
    token = parse_line(await daemon.enroller.add("web1")).token
    bodies = [
        EnrolRequest(token=token, csr=pki.make_csr_pem(pki.make_key("ed25519"))).encode() for _ in range(300)
    ]
    connector = aiohttp.TCPConnector(ssl=client_context(CA.cert_pem), limit=100)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def redeem(body: bytes) -> tuple[int, bytes]:
            async with session.post(
                f"https://{daemon.address}/v1/enrol", data=body, server_hostname=pki.daemon_name(FLEET)
            ) as response:
                return response.status, await response.read()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(redeem(body)) for body in bodies]
        answers = [task.result() for task in tasks]
        (winner,) = (n for n, (status, _) in enumerate(answers) if status == 200)
        again = await redeem(bodies[winner])

    assert Counter(status for status, _ in answers) == {200: 1, 403: 299}
    assert again == answers[winner]
    (identity,) = await daemon.store.identities("web1")
    assert decode(EnrolReply, again[1]).certificate.encode() == identity.certificate_pem
    enrolment = await daemon.store.enrolment(token_hash(token))
    assert enrolment is not None
    assert enrolment.spent_by == identity.spki


# -- slow, many, and all at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/reports", "/v1/identity", "/v1/enrol"])
async def test_a_body_that_comes_too_slowly_is_cut(daemon: Daemon, tmp_path: Path, path: str) -> None:
    """Half a body and then drops of it: 408 within the patience, the connection ends, nothing was taken in."""
    await daemon.enrolled("web1", tmp_path / "web1")
    await daemon.channel.stop()
    daemon.patience = 0.3
    await daemon.listen()
    identity = tmp_path / "web1" / "identity"
    context = client_context(CA.cert_pem, cert=identity / "cert.pem", key=identity / "key.pem")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", daemon.port, ssl=context, server_hostname=pki.daemon_name(FLEET)
    )
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())

    async def drip() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(5):
        answer = await reader.read()
    dripping.cancel()
    writer.transport.abort()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["code"] == "channel.message_invalid"
    assert await daemon.store.heard("web1") is None


async def test_500_agents_whose_daemon_was_away_all_come_back(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was there for any of them at their first try; each is listening again after it."""
    monkeypatch.setattr(SSLProtocol, "max_size", tls.RECORD)
    trust = await daemon.enrolled("web1", tmp_path / "web1")
    identity = tmp_path / "web1" / "identity"
    # Agents are processes of their own, each of which reads its identity once.
    context = client_context(CA.cert_pem, cert=identity / "cert.pem", key=identity / "key.pem")
    await daemon.channel.stop()
    away, back = Instants(500), Instants(500)
    pause, look = Liaison._pause, Waiting.look

    async def paused(self: Liaison, failures: int, error: ChannelError) -> None:
        away.add(failures)
        await pause(self, failures, error)

    async def asked_anew(self: Waiting, consumer: str) -> None:
        back.add(1)
        await look(self, consumer)

    monkeypatch.setattr(Liaison, "_pause", paused)
    monkeypatch.setattr(Waiting, "look", asked_anew)
    links = [daemon.link(trust, tmp_path / "web1") for _ in range(500)]
    async with asyncio.TaskGroup() as group, asyncio.timeout(60):
        listening = []
        for n, link in enumerate(links):
            link._caller._context = lambda: context
            liaison = Liaison(
                link, clock=daemon.clock, heartbeat=timedelta(seconds=30), jitter=lambda n=n: n / 500
            )
            listening.append(group.create_task(liaison.listen(lambda _: None)))
        await away.reached.wait()
        await daemon.listen()
        await back.reached.wait()
        for task in listening:
            task.cancel()
    for link in links:
        await link.close()

    assert away.at[:500].count(1) >= 500 // 2
    assert len(back.at) >= 500


@pytest.mark.parametrize("failures", [1, 2, 3, 4, 100])
def test_agents_that_failed_alike_come_back_evenly_spread(failures: int) -> None:
    """No tenth of the range of a pause holds more than its tenth of the agents; nobody comes at once or never."""
    pauses = sorted(pause_after(failures, n / 500) for n in range(500))
    width = (pauses[-1] - pauses[0]) / 10

    tenths = Counter(min(int((pause - pauses[0]) / width), 9) for pause in pauses)

    assert pauses[0] >= SHORTEST_PAUSE
    assert pauses[-1] <= LONGEST_PAUSE
    assert max(tenths.values()) <= 51


class Instants:
    """Instants, and an event when there are as many as expected."""

    def __init__(self, expected: int) -> None:
        self.at: list[float] = []
        self.expected = expected
        self.reached = asyncio.Event()

    def add(self, at: float) -> None:
        self.at.append(at)
        if len(self.at) == self.expected:
            self.reached.set()


def test_pauses_grow_and_keep_their_jitter(tmp_path: Path) -> None:
    """4, 8, 16, then 30 s at most; the shortest is half a second, whatever the dice say."""
    slept: list[float] = []

    async def record(jitter: float) -> None:
        class Away:
            async def assignments(self, after: str, wait: int) -> object:
                if len(slept) >= 6:
                    raise asyncio.CancelledError
                raise ChannelError("away")

        liaison = Liaison(
            Away(),  # type: ignore[arg-type]
            clock=lambda: NOW,
            heartbeat=timedelta(seconds=30),
            jitter=lambda: jitter,
        )
        with contextlib.suppress(asyncio.CancelledError):
            await liaison.listen(lambda _: None)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("certfan.agent.liaison.asyncio.sleep", sleep)
        asyncio.run(record(1.0))
        longest, slept[:] = list(slept), []
        asyncio.run(record(0.0))

    assert longest == [4, 8, 16, 30, 30, 30]
    assert slept == [0.5] * 6


def test_asyncio_still_has_the_buffer_that_is_shrunk() -> None:
    """When this fails, Python has changed: look again at what a TLS connection keeps."""
    assert SSLProtocol.max_size in {256 << 10, tls.RECORD}


MEASURE = """
import asyncio, sys
from pathlib import Path
from certfan import log, tls
from tests.unit.daemon_parts import Daemon

def rss():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmRSS:"))
    return int(line.split()[1])

async def main(folder):
    daemon = Daemon(folder / "daemon")
    await daemon.start()
    await daemon.enrolled("web1", folder / "web1")
    print(daemon.port, flush=True)
    ask = lambda: asyncio.to_thread(sys.stdin.readline)
    while await ask():
        print(rss(), len(daemon.channel._http.connections), flush=True)
    await daemon.stop()

log.set_up(level="error")
tls.shrink_buffers()
asyncio.run(main(Path(sys.argv[1])))
"""


async def test_an_idle_agent_costs_less_than_100_kib(tmp_path: Path) -> None:
    """100 connections that wait for their list, measured in the daemon's own process, which shrinks its buffers."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MEASURE, str(tmp_path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdin is not None
    assert child.stdout is not None

    async def say(line: bytes = b"\n") -> list[int]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(line)
        return [int(word) for word in (await child.stdout.readline()).split()]

    async with asyncio.timeout(30):
        (port,) = await say(b"")
        identity = tmp_path / "web1" / "identity"
        ca_pem = (tmp_path / "web1" / "etc" / "ca.pem").read_bytes()
        context = client_context(ca_pem, cert=identity / "cert.pem", key=identity / "key.pem")
        writers = []
        readings = []
        for count in (20, 100):
            for _ in range(count):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context, server_hostname=pki.daemon_name(FLEET)
                )
                writer.write(b"GET /v1/assignments HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"GET /v1/assignments?after=x&wait=0 HTTP/1.1\r\nHost: x\r\n\r\n")
                writers.append(writer)
            readings.append(await say())
        for writer in writers:
            writer.transport.abort()
        child.stdin.close()
        await child.wait()

    (warm, few), (loaded, many) = readings
    assert (few, many) == (20, 120)
    assert (loaded - warm) / 100 < 100
