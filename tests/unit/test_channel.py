"""The channel end to end on loopback: real handshakes, a real store, the agent's own link and enrolment."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Collection
from datetime import timedelta
from pathlib import Path

import pytest

from certfan import files, pki
from certfan.agent.enrolment import enrol
from certfan.agent.identity import read_trust
from certfan.agent.link import Link
from certfan.daemon.ca import open_ca
from certfan.daemon.channel import Channel
from certfan.daemon.channel.waiting import Waiting
from certfan.daemon.listeners import Listener
from certfan.errors import (
    ConfigInvalid,
    ConfigTooOpen,
    DaemonUnreachable,
    EnrolmentRefused,
    MessageInvalid,
    NotAllowed,
    NotAuthenticated,
    PairMismatch,
    StateTooOpen,
    StoreFailed,
)
from certfan.protocol.identity import client_context, make_line, parse_line, server_context
from certfan.protocol.messages import MAX_REPORT, Assignments, EnrolReply, EnrolRequest, Report
from certfan.protocol.wire import decode
from tests.unit.channel_parts import CA, FLEET, NOW, Yard, ask, make_ca_folder, running_yard, write_pair

GUARDED = [
    ("GET", "/v1/assignments"),
    ("POST", "/v1/reports"),
    ("GET", "/v1/bundles/a.example/1"),
    ("GET", "/v1/nothing"),
    ("GET", "/"),
    ("POST", "/v1/ca"),
    ("GET", "/v1/enrol"),
    ("GET", "/v1/ca/"),
    ("GET", "//v1/ca"),
    ("PUT", "/v1/enrol"),
]
REPORT = Report.of([], [], boot_id="b", sequence=1, sent_at=NOW, version="0.1.0")


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with running_yard(tmp_path / "daemon") as running:
        yield running


@pytest.fixture
async def web1(yard: Yard, tmp_path: Path) -> AsyncIterator[Link]:
    async with yard.link(await yard.identify("web1", tmp_path / "web1")) as link:
        yield link


# -- who may come in ---------------------------------------------------------------------------------------


async def test_nobody_gets_past_the_guard_without_a_certificate(yard: Yard) -> None:
    """401 on every route but the two that enrolment needs, and on what is no route."""
    answers = [await ask(yard, method, path) for method, path in GUARDED]

    assert [(status, json.loads(body)["code"]) for status, body in answers] == [
        (401, "channel.not_authenticated")
    ] * len(GUARDED)
    assert yard.reads == 0


async def test_nobody_gets_past_the_guard_with_an_unknown_serial(yard: Yard, tmp_path: Path) -> None:
    """Our CA signed it, the store never heard of it: 401."""
    stranger = await yard.identify("web1", tmp_path / "stranger", known=False)
    answers = [await ask(yard, method, path, identity=stranger) for method, path in GUARDED]

    assert [status for status, _ in answers] == [401] * len(GUARDED)
    assert yard.reads == 0


async def test_the_ca_is_shown_to_anyone(yard: Yard) -> None:
    """It is public, and enrolment begins with it."""
    assert await ask(yard, "GET", "/v1/ca") == (200, CA.cert_pem)


async def test_the_daemons_own_certificate_is_no_way_in(yard: Yard, tmp_path: Path) -> None:
    """It is for serverAuth only: the handshake itself refuses it, and the link says what to do."""
    thief = write_pair(tmp_path / "thief", yard.ca.server_key.read_bytes(), yard.ca.server_cert.read_bytes())
    async with yard.link(thief) as link:
        with pytest.raises(NotAuthenticated, match="does not accept our certificate"):
            await link.assignments()
    assert yard.reads == 0


async def test_a_signers_certificate_is_no_way_in(yard: Yard, tmp_path: Path) -> None:
    """It is for codeSigning only: nobody signs manifests and asks for bundles with the same key."""
    thief = write_pair(tmp_path / "thief", yard.ca.signer_key_pem, yard.ca.signer_cert_pem)
    async with yard.link(thief) as link:
        with pytest.raises(NotAuthenticated, match="does not accept our certificate"):
            await link.assignments()


async def test_a_consumer_of_another_ca_is_no_way_in(yard: Yard, tmp_path: Path) -> None:
    """Same fleet, same name, another key: the handshake refuses it."""
    other = pki.InternalCA.create(FLEET, NOW)
    key_pem = pki.make_key()
    cert_pem, _ = other.issue_consumer(pki.make_csr(key_pem, ()), "web1", NOW)
    async with yard.link(write_pair(tmp_path / "web1", key_pem, cert_pem)) as link:
        with pytest.raises(NotAuthenticated, match="does not accept our certificate"):
            await link.assignments()


async def test_a_serial_counts_for_the_consumer_it_was_issued_to(yard: Yard, tmp_path: Path) -> None:
    """A certificate whose name is not the one the store has for its serial is nobody's."""
    key_pem = pki.make_key()
    cert_pem, leaf = CA.issue_consumer(pki.make_csr(key_pem, ()), "web1", NOW)
    await yard.remember("mail1", cert_pem, leaf)

    assert (
        await ask(yard, "GET", "/v1/assignments", identity=write_pair(tmp_path / "x", key_pem, cert_pem))
    )[0] == 401


async def test_an_ended_identity_is_refused_at_the_next_request(yard: Yard, web1: Link) -> None:
    """The serial is looked up each time; the date on the certificate ends nothing, the store does."""
    await web1.assignments()
    await yard.store.end_identities("web1", NOW)

    with pytest.raises(NotAuthenticated) as caught:
        await web1.assignments()
    assert "certfan agent enrol" in caught.value.hint


async def test_a_new_identity_counts_without_a_restart(yard: Yard, web1: Link, tmp_path: Path) -> None:
    """After a refusal the link reads its files again, and finds what enrolment has put there."""
    await web1.assignments()
    await yard.store.end_identities("web1", NOW)
    with pytest.raises(NotAuthenticated):
        await web1.assignments()
    await yard.identify("web1", tmp_path / "web1")

    assert (await web1.assignments()).consumer == "web1"


async def test_an_expired_certificate_still_comes_in(yard: Yard, tmp_path: Path) -> None:
    """A consumer that was off for longer than its certificate lives catches up without a human."""
    yard.now = NOW - timedelta(days=500)
    identity = await yard.identify("web1", tmp_path / "web1")
    async with yard.link(identity) as link:
        assert (await link.assignments()).consumer == "web1"


async def test_revoking_closes_live_connections(yard: Yard, web1: Link, tmp_path: Path) -> None:
    """A blocking query of the revoked consumer ends at once; another consumer's goes on."""
    mail1 = yard.link(await yard.identify("mail1", tmp_path / "mail1"))
    async with mail1, asyncio.TaskGroup() as group, asyncio.timeout(10):
        victim = group.create_task(refused(web1))
        await waiting(yard)
        bystander = group.create_task(mail1.assignments("e.0", 60))
        await waiting(yard)
        await yard.store.end_identities("web1", NOW)
        yard.channel.end_sessions("web1")
        assert isinstance(await victim, NotAuthenticated)  # cut off, asked again by the library, refused
        yard.assign("mail1", "e.1")
        yard.channel.announce("mail1")
        assert (await bystander).revision == "e.1"
    with pytest.raises(NotAuthenticated):
        await web1.assignments()


async def refused(link: Link) -> Exception:
    try:
        await link.assignments("e.0", 60)
    except Exception as error:
        return error
    raise AssertionError("was answered")


async def waiting(yard: Yard) -> None:
    """Return once a blocking query has read its list; it waits from then on."""
    async with asyncio.timeout(5):
        await yard.read.wait()
    yard.read.clear()


async def test_tls_1_2_is_refused(yard: Yard) -> None:
    """No older protocol, however well it is offered."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection("127.0.0.1", yard.channel.ports[0], ssl=context)


async def test_a_connection_leaves_no_ticket(yard: Yard, tmp_path: Path) -> None:
    """Every connection shows its certificate anew: there is nothing to resume."""
    identity = await yard.identify("web1", tmp_path / "web1")
    context = client_context(CA.cert_pem, cert=identity / "cert.pem", key=identity / "key.pem")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", yard.channel.ports[0], ssl=context, server_hostname=pki.daemon_name(FLEET)
    )
    writer.write(b"GET /v1/assignments HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    session = writer.get_extra_info("ssl_object").session
    writer.close()
    await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 200")
    assert session is None or not session.has_ticket


async def test_half_open_connections_are_found(yard: Yard, web1: Link) -> None:
    """Sockets of both ends have keep-alives that give up within 30 s; accepted ones inherit them."""
    await web1.assignments()
    assert yard.channel._http is not None
    transport = yard.channel._http.connections[0].transport
    assert transport is not None
    sock = transport.get_extra_info("socket")
    idle, interval, count = (
        sock.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )

    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert idle + interval * count <= 30
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000


# -- whom the agent believes -------------------------------------------------------------------------------


async def impostor(folder: Path, yard: Yard, key_pem: bytes, cert_pem: bytes) -> Channel:
    """Serve the same board with somebody else's pair."""
    write_pair(folder, key_pem, cert_pem)
    channel = Channel(yard.ca, yard, listeners=(Listener("127.0.0.1", 0),))
    channel._context = server_context(CA.cert_pem, folder / "cert.pem", folder / "key.pem")
    await channel.start()
    return channel


@pytest.mark.parametrize("who", ["consumer", "signer", "other ca", "other fleet"])
async def test_the_agent_refuses_anyone_but_its_daemon(yard: Yard, tmp_path: Path, who: str) -> None:
    """Another consumer's certificate shown as the server's, the signer's, a stranger's: nothing is said to them."""
    key_pem = pki.make_key()
    other = pki.InternalCA.create(FLEET, NOW).issue_server(NOW)
    away = pki.InternalCA.create("away", NOW, key_pem=CA.key_pem).issue_server(NOW)
    pairs = {
        "consumer": (key_pem, CA.issue_consumer(pki.make_csr(key_pem, ()), "mail1", NOW)[0]),
        "signer": (yard.ca.signer_key_pem, yard.ca.signer_cert_pem),
        "other ca": (other.key_pem, other.cert_pem),
        "other fleet": (away.key_pem, away.cert_pem),
    }
    identity = await yard.identify("web1", tmp_path / "web1")
    channel = await impostor(tmp_path / "impostor", yard, *pairs[who])
    try:
        link = Link(f"127.0.0.1:{channel.ports[0]}", identity, fleet=FLEET, ca_pem=CA.cert_pem)
        async with link:
            with pytest.raises(NotAuthenticated, match=f"is not the daemon daemon.{FLEET}"):
                await link.assignments()
    finally:
        await channel.stop()
    assert yard.reads == 0


async def test_a_daemon_that_is_not_there_is_unreachable(yard: Yard, web1: Link) -> None:
    """The cause is named, and the link works again when the daemon does."""
    port = yard.channel.ports[0]
    await web1.assignments()
    await yard.channel.stop()
    with pytest.raises(DaemonUnreachable) as caught:
        await web1.assignments()
    yard.channel = Channel(yard.ca, yard, listeners=(Listener("127.0.0.1", port),))
    await yard.channel.start()

    assert f"127.0.0.1:{port}" in caught.value.text
    assert caught.value.__cause__ is not None
    assert (await web1.assignments()).consumer == "web1"


async def test_an_agent_without_an_identity_says_how_to_get_one(yard: Yard, tmp_path: Path) -> None:
    """Missing files and a pair that was half replaced are both mended by enrolling."""
    async with yard.link(tmp_path / "nothing") as link:
        with pytest.raises(NotAuthenticated, match="no identity"):
            await link.assignments()
        identity = await yard.identify("web1", tmp_path / "nothing")
        cert_pem = (identity / "cert.pem").read_bytes()
        write_pair(identity, pki.make_key(), cert_pem)
        with pytest.raises(NotAuthenticated, match="does not load"):
            await link.assignments()


async def test_an_answer_that_is_none_of_ours_is_invalid(yard: Yard, web1: Link) -> None:
    """A list for which the agent has no words ends in MessageInvalid, never in a foreign exception."""
    yard.bundles["web1", "a.example", 1] = {}
    yard.assign("web1", "e.1", "a.example")
    yard.lists["web1"] = yard.lists["web1"].model_copy(update={"consumer": "Not A Name"})

    with pytest.raises(MessageInvalid, match="consumer"):
        await web1.assignments()


# -- blocking queries --------------------------------------------------------------------------------------


async def test_a_list_comes_at_once_when_its_revision_is_another(yard: Yard, web1: Link) -> None:
    """Not equal, in either direction: revisions are opaque."""
    yard.assign("web1", "e.5", "a.example")

    async with asyncio.timeout(5):
        assert (await web1.assignments("", 60)).revision == "e.5"
        assert (await web1.assignments("e.9", 60)).revision == "e.5"
        assert [a.certificate for a in (await web1.assignments("f.5", 60)).assignments] == ["a.example"]


async def test_a_blocking_query_returns_when_the_list_is_announced(yard: Yard, web1: Link) -> None:
    """It waits without reading, and then answers with the new list."""
    yard.assign("web1", "e.1")
    async with asyncio.TaskGroup() as group, asyncio.timeout(10):
        query = group.create_task(web1.assignments("e.1", 60))
        await waiting(yard)
        before = yard.reads
        yard.channel.announce("mail1")
        yard.assign("web1", "e.2", "a.example")
        yard.channel.announce("web1")
        found = await query

    assert (found.revision, yard.reads - before) == ("e.2", 1)


async def test_lists_of_many_are_read_together(yard: Yard, tmp_path: Path) -> None:
    """However many wait, an announcement to all is one read; so are those that come while it is under way."""
    names = [f"web{number}" for number in range(5)]
    links = [yard.link(await yard.identify(name, tmp_path / name)) for name in names]
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(10):
        for link in links:
            await stack.enter_async_context(link)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        queries = [group.create_task(link.assignments("e.0", 60)) for link in links]
        while len(yard.acknowledgements) < len(names):
            await asyncio.sleep(0)
        before = yard.reads
        for name in names:
            yard.assign(name, "e.1")
            yard.channel.announce(name)
        found = [(await query).revision for query in queries]

    assert (found, yard.reads - before) == (["e.1"] * len(names), 1)


class SlowBoard:
    """Reads a list at once and hands it out when the gate is open."""

    def __init__(self) -> None:
        self.revision, self.asked, self.gate = "e.1", asyncio.Event(), asyncio.Event()

    async def assignments(self, consumers: Collection[str]) -> dict[str, Assignments]:
        found = {n: Assignments(revision=self.revision, consumer=n, assignments=()) for n in consumers}
        self.asked.set()
        await self.gate.wait()
        await asyncio.sleep(0)
        return found


@contextlib.asynccontextmanager
async def being_read() -> AsyncIterator[tuple[SlowBoard, Waiting, list[asyncio.Task[bytes]]]]:
    """A query whose list has been read, and not been handed out yet."""
    board = SlowBoard()
    waiting = Waiting(board)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        reading = asyncio.create_task(waiting.run())
        queries = [asyncio.create_task(waiting.changed("web1", "e.0", 60))]
        await board.asked.wait()
        yield board, waiting, queries
        for task in (reading, *queries):
            task.cancel()
        await asyncio.wait([reading, *queries])


async def test_a_list_that_changes_while_it_is_read_is_not_handed_out() -> None:
    """It is read once more first."""
    async with being_read() as (board, waiting, queries):
        board.revision = "e.2"
        waiting.announce("web1")
        board.gate.set()

        assert b'"revision":"e.2"' in await queries[0]


async def test_a_list_that_changes_while_its_only_asker_leaves_is_not_kept() -> None:
    """The announcement found nobody; the next query must not wait on what was read before it."""
    async with being_read() as (board, waiting, queries):
        queries[0].cancel()
        await asyncio.wait(queries)
        queries.clear()  # a task that ended holds its frames, and they the event
        gc.collect()
        board.revision = "e.2"
        waiting.announce("web1")
        board.gate.set()
        for _ in range(10):  # turns of the loop: the read comes to its end
            await asyncio.sleep(0)

        assert b'"revision":"e.2"' in await waiting.changed("web1", "e.1", 60)


async def test_a_list_is_read_anew_when_no_revision_is_known(yard: Yard, web1: Link) -> None:
    """What is not issued yet can change its names under the same revision: asking without one shows them."""
    yard.assign("web1", "e.1", "a.example")
    await web1.assignments("e.1", 0)
    yard.assign("web1", "e.1", "b.example")

    assert [a.certificate for a in (await web1.assignments()).assignments] == ["b.example"]


async def test_a_channel_that_cannot_read_lists_says_so(yard: Yard, web1: Link) -> None:
    """The daemon's root waits for it, so that the process ends and is started again."""

    async def broken(_consumers: Collection[str]) -> object:
        raise StoreFailed("disk gone", subject="db")

    yard.assignments = broken  # type: ignore[method-assign, assignment]
    async with asyncio.timeout(5):
        query = asyncio.create_task(web1.assignments())
        with pytest.raises(StoreFailed):
            await yard.channel.failed()
        query.cancel()
        await asyncio.wait([query])


async def test_an_announcement_that_changed_nothing_is_a_hint_only(yard: Yard, web1: Link) -> None:
    """The query looks, finds the same revision, and goes on waiting."""
    yard.assign("web1", "e.1")
    async with asyncio.TaskGroup() as group, asyncio.timeout(10):
        query = group.create_task(web1.assignments("e.1", 60))
        await waiting(yard)
        yard.channel.announce("web1")
        while yard.reads < 2:
            await waiting(yard)
        assert not query.done()
        yard.assign("web1", "e.2")
        yard.channel.announce("web1")
        assert (await query).revision == "e.2"


async def test_an_announcement_between_read_and_wait_is_not_missed(yard: Yard, web1: Link) -> None:
    """A list that changes while it is being read is seen all the same."""
    yard.assign("web1", "e.1")
    old = yard.assignments

    async def read_slowly(consumers: Collection[str]) -> object:
        found = await old(consumers)
        if yard.reads == 1:
            yard.assign("web1", "e.2")
            yard.channel.announce("web1")
        return found

    yard.assignments = read_slowly  # type: ignore[method-assign, assignment]
    async with asyncio.timeout(10):
        assert (await web1.assignments("e.1", 60)).revision == "e.2"


async def test_an_unchanged_list_comes_back_after_the_wait(yard: Yard, web1: Link) -> None:
    """200 with the same revision, and one read in all, for the acknowledgement and the answer."""
    yard.assign("web1", "e.1", "a.example")
    began = asyncio.get_running_loop().time()

    assert (await web1.assignments("e.1", 1)).revision == "e.1"
    assert asyncio.get_running_loop().time() - began >= 0.9
    assert yard.reads == 1


async def test_an_agent_that_goes_away_leaves_nothing_waiting(yard: Yard, tmp_path: Path) -> None:
    """A query ends with its connection, not 60 s later."""
    yard.assign("web1", "e.1")
    link = yard.link(await yard.identify("web1", tmp_path / "web1"))
    query = asyncio.create_task(link.assignments("e.1", 60))
    await waiting(yard)
    query.cancel()
    await asyncio.wait([query])
    await link.close()

    async with asyncio.timeout(5):
        while yard.channel._waiting._rung:
            await asyncio.sleep(0)


async def test_asking_with_a_revision_acknowledges_it_once(yard: Yard, web1: Link) -> None:
    """The current one only, and not again at every poll."""
    yard.assign("web1", "e.1")
    await web1.assignments()
    assert yard.acknowledgements == []
    await web1.assignments("e.0")
    assert yard.acknowledgements == []
    await web1.assignments("e.1")
    await web1.assignments("e.1")
    yard.assign("web1", "e.2")
    yard.channel.announce("web1")
    await web1.assignments("e.1")
    await web1.assignments("e.2")
    async with asyncio.timeout(5):
        while len(yard.acknowledgements) < 2:
            await asyncio.sleep(0)

    assert yard.acknowledgements == [("web1", "e.1"), ("web1", "e.2")]


async def test_a_malformed_query_is_refused(yard: Yard, tmp_path: Path) -> None:
    """At most 300 s, whole seconds, a revision of sane length."""
    identity = await yard.identify("web1", tmp_path / "web1")
    queries = ["wait=301", "wait=-1", "wait=1.5", "wait=x", "wait=", "wait=²", f"after={'x' * 129}"]
    answers = [await ask(yard, "GET", f"/v1/assignments?{query}", identity=identity) for query in queries]

    assert [(status, json.loads(body)["code"]) for status, body in answers] == [
        (400, "channel.message_invalid")
    ] * len(queries)


# -- bundles and reports -----------------------------------------------------------------------------------


async def test_a_consumer_gets_its_own_bundle(yard: Yard, web1: Link) -> None:
    """The bytes come through as they are."""
    yard.assign("web1", "e.1", "a.example")
    yard.bundles["web1", "a.example", 1] = {"cert.pem": b"\0\xff", "chain.pem": b""}

    assert await web1.bundle("a.example", 1) == {"cert.pem": b"\0\xff", "chain.pem": b""}


async def test_a_consumer_gets_nothing_that_is_not_assigned_to_it(yard: Yard, web1: Link) -> None:
    """Another consumer's certificate, and another generation of its own, are 403; the board is not even asked."""
    yard.assign("web1", "e.1", "a.example")
    yard.assign("mail1", "e.1", "b.example")

    for certificate, generation in (("b.example", 1), ("a.example", 2), ("never.example", 1)):
        with pytest.raises(NotAllowed, match=f"{certificate}@{generation} is not assigned to web1"):
            await web1.bundle(certificate, generation)


async def test_a_bundle_path_is_a_name_and_a_number(yard: Yard, tmp_path: Path) -> None:
    """Nothing else gets as far as the board."""
    identity = await yard.identify("web1", tmp_path / "web1")
    paths = ["a.example/01", "a.example/0", "a.example/x", "..%2Fa/1", "%2e%2e/1", "A/1", "a.example"]
    answers = [await ask(yard, "GET", f"/v1/bundles/{path}", identity=identity) for path in paths]

    assert [status for status, _ in answers] == [404] * len(paths)
    assert yard.reads == 0


async def test_a_report_arrives_under_its_senders_name(yard: Yard, web1: Link) -> None:
    """Who sent it is the certificate's word."""
    await web1.report(REPORT)

    assert yard.reports == [("web1", REPORT)]


@pytest.mark.parametrize("declared", [True, False], ids=["with a length", "chunked"])
async def test_an_oversized_report_is_refused(yard: Yard, tmp_path: Path, declared: bool) -> None:
    """Beyond 1 MiB: 413, whether its length was declared or not, and nothing reaches the board."""
    identity = await yard.identify("web1", tmp_path / "web1")
    body = b" " * (MAX_REPORT + 1)

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    status, answer = await ask(
        yard, "POST", "/v1/reports", identity=identity, body=io.BytesIO(body) if declared else pieces()
    )
    assert (status, json.loads(answer)["code"]) == (413, "channel.message_invalid")
    assert yard.reports == []


async def test_a_malformed_report_is_refused(yard: Yard, tmp_path: Path) -> None:
    """Strict: half a report is none."""
    identity = await yard.identify("web1", tmp_path / "web1")
    good = REPORT.encode()
    bodies = [b"", b"{", b"[]", b"\xff", good[:-1], good.replace(b'"b"', b"1")]
    answers = [await ask(yard, "POST", "/v1/reports", identity=identity, body=body) for body in bodies]

    assert [status for status, _ in answers] == [400] * len(bodies)
    assert yard.reports == []


# -- enrolment ---------------------------------------------------------------------------------------------


async def test_one_line_makes_a_consumer(yard: Yard, tmp_path: Path) -> None:
    """Afterwards the link works, root's files say whom to believe, and the key is closed."""
    trust = await enrol(await yard.enroller.add("web1"), tmp_path / "id", tmp_path / "etc", NOW)

    assert (trust.fleet, trust.consumer, trust.address) == (FLEET, "web1", yard.address)
    assert read_trust(tmp_path / "etc") == trust
    assert (tmp_path / "etc" / "ca.pem").read_bytes() == CA.cert_pem
    assert [
        stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("id", "id/key.pem", "etc/fleet.json")
    ] == [
        0o700,
        0o600,
        0o644,
    ]
    async with Link.of(trust, tmp_path / "id") as link:
        assert (await link.assignments()).consumer == "web1"


async def test_the_same_line_again_gives_the_same_identity(yard: Yard, tmp_path: Path) -> None:
    """A lost answer is asked for again with the same key: same certificate, nothing ended."""
    line = await yard.enroller.add("web1")
    await enrol(line, tmp_path / "id", tmp_path / "etc", NOW)
    first = (tmp_path / "id" / "cert.pem").read_bytes()
    (tmp_path / "id" / "cert.pem").unlink()
    (tmp_path / "id" / "key.pem").unlink()
    trust = await enrol(line, tmp_path / "id", tmp_path / "etc", NOW)

    assert (tmp_path / "id" / "cert.pem").read_bytes() == first
    async with Link.of(trust, tmp_path / "id") as link:
        assert (await link.assignments()).consumer == "web1"


async def test_the_key_is_on_disk_before_anything_is_sent(yard: Yard, tmp_path: Path) -> None:
    """When the answer never comes, the key that the token was spent on is still there."""
    seen: list[list[str]] = []
    redeem = yard.redeem

    async def cut(token: str, csr: bytes, sealing_key: bytes | None) -> EnrolReply:
        seen.append(sorted(path.name[:10] for path in (tmp_path / "id").iterdir()))
        await redeem(token, csr)
        raise DaemonUnreachable("answer lost")

    yard.redeem = cut  # type: ignore[method-assign]
    line = await yard.enroller.add("web1")
    with pytest.raises(DaemonUnreachable):
        await enrol(line, tmp_path / "id", tmp_path / "etc", NOW)
    yard.redeem = redeem  # type: ignore[method-assign]

    assert seen == [["enrolling-"]]
    assert not (tmp_path / "etc/fleet.json").exists()
    assert (await enrol(line, tmp_path / "id", tmp_path / "etc", NOW)).consumer == "web1"


async def test_a_used_token_gives_another_key_nothing(yard: Yard, tmp_path: Path) -> None:
    """Who finds the line later is refused, and the consumer that used it goes on."""
    line = await yard.enroller.add("web1")
    trust = await enrol(line, tmp_path / "id", tmp_path / "etc", NOW)

    with pytest.raises(EnrolmentRefused) as caught:
        await enrol(line, tmp_path / "thief", tmp_path / "thiefs-etc", NOW)
    assert "certfan consumer add" in caught.value.hint
    assert not (tmp_path / "thiefs-etc/fleet.json").exists()
    async with Link.of(trust, tmp_path / "id") as link:
        assert (await link.assignments()).consumer == "web1"


async def test_an_expired_token_is_refused(yard: Yard, tmp_path: Path) -> None:
    """15 minutes and not a second more."""
    line = await yard.enroller.add("web1")
    yard.now = NOW + timedelta(minutes=15)

    with pytest.raises(EnrolmentRefused, match="expired"):
        await enrol(line, tmp_path / "id", tmp_path / "etc", NOW)


async def test_an_unknown_token_is_refused(yard: Yard, tmp_path: Path) -> None:
    """A token that was never handed out is nobody's."""
    with pytest.raises(EnrolmentRefused, match="not known"):
        await enrol(make_line(yard.address, "a" * 26, CA.cert_pem), tmp_path / "id", tmp_path / "etc", NOW)


async def test_enrolling_anew_ends_the_earlier_identity_and_its_sessions(yard: Yard, tmp_path: Path) -> None:
    """A new line makes a new key, and who holds the old one is cut off while it waits."""
    trust = await enrol(await yard.enroller.add("web1"), tmp_path / "old", tmp_path / "etc", NOW)
    async with Link.of(trust, tmp_path / "old") as old, asyncio.timeout(10):
        query = asyncio.create_task(refused(old))
        await waiting(yard)
        await enrol(await yard.enroller.add("web1"), tmp_path / "new", tmp_path / "etc", NOW)
        assert isinstance(await query, NotAuthenticated)
        with pytest.raises(NotAuthenticated):
            await old.assignments()


async def test_a_new_line_never_enrols_an_old_key(yard: Yard, tmp_path: Path) -> None:
    """The old key may be why there is a new line."""
    await enrol(await yard.enroller.add("web1"), tmp_path / "id", tmp_path / "etc", NOW)
    first = (tmp_path / "id" / "key.pem").read_bytes()
    await enrol(await yard.enroller.add("web1"), tmp_path / "id", tmp_path / "etc", NOW)

    assert (tmp_path / "id" / "key.pem").read_bytes() != first
    assert len(list((tmp_path / "id").iterdir())) == 3


async def test_the_token_stays_here_when_the_ca_is_another(yard: Yard, tmp_path: Path) -> None:
    """Somebody else at the address gets neither token nor request; no key is even made."""
    line = await yard.enroller.add("web1")
    other = pki.InternalCA.create(FLEET, NOW).cert_pem
    forged = make_line(yard.address, parse_line(line).token, other)
    redeemed: list[str] = []

    async def redeem(token: str, csr: bytes, sealing_key: bytes | None) -> EnrolReply:
        redeemed.append(token)
        raise AssertionError

    yard.redeem = redeem  # type: ignore[method-assign]
    with pytest.raises(EnrolmentRefused, match="the token was not sent"):
        await enrol(forged, tmp_path / "id", tmp_path / "etc", NOW)
    assert redeemed == []
    assert not (tmp_path / "id").exists()


async def test_the_token_stays_here_when_the_server_only_repeats_the_ca(yard: Yard, tmp_path: Path) -> None:
    """Who shows the right CA but holds no certificate of it is found out at the second connection."""
    stranger = pki.InternalCA.create(FLEET, NOW).issue_server(NOW)
    channel = await impostor(tmp_path / "impostor", yard, stranger.key_pem, stranger.cert_pem)
    redeemed: list[str] = []

    async def redeem(token: str, csr: bytes, sealing_key: bytes | None) -> EnrolReply:
        redeemed.append(token)
        raise AssertionError

    yard.redeem = redeem  # type: ignore[method-assign]
    line = parse_line(await yard.enroller.add("web1"))
    try:
        with pytest.raises(NotAuthenticated):
            await enrol(
                make_line(f"127.0.0.1:{channel.ports[0]}", line.token, CA.cert_pem),
                tmp_path / "id",
                tmp_path / "etc",
                NOW,
            )
    finally:
        await channel.stop()
    assert redeemed == []


@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-p384"])
async def test_a_request_with_another_kind_of_key_spends_no_token(yard: Yard, kind: str) -> None:
    """400, and the token still works for a proper key."""
    token = parse_line(await yard.enroller.add("web1")).token
    for key_kind, expected in ((kind, 400), ("ed25519", 200)):
        request = EnrolRequest(token=token, csr=pki.make_csr_pem(pki.make_key(key_kind)))
        status, body = await ask(yard, "POST", "/v1/enrol", body=request.encode())
        assert status == expected
    assert decode(EnrolReply, body).consumer == "web1"


async def test_an_answer_for_another_key_is_not_stored(yard: Yard, tmp_path: Path) -> None:
    """The agent checks what it gets: a certificate of another key leaves no trust behind."""
    other = EnrolReply(
        certificate=CA.issue_consumer(pki.make_csr(pki.make_key(), ()), "web1", NOW)[0].decode(),
        ca=CA.cert_pem.decode(),
        fleet=FLEET,
        consumer="web1",
    )

    async def redeem(token: str, csr: bytes, sealing_key: bytes | None) -> EnrolReply:
        return other

    line = await yard.enroller.add("web1")
    yard.redeem = redeem  # type: ignore[method-assign]
    with pytest.raises(MessageInvalid, match="not usable"):
        await enrol(line, tmp_path / "id", tmp_path / "etc", NOW)
    assert not (tmp_path / "etc/fleet.json").exists()


async def test_an_identity_folder_that_is_a_symlink_is_not_followed(yard: Yard, tmp_path: Path) -> None:
    """Root writes where it was told, not where the agent's user points."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "id").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StateTooOpen, match="symlink"):
        await enrol(await yard.enroller.add("web1"), tmp_path / "id", tmp_path / "etc", NOW)
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_an_identity_folder_open_to_others_is_refused(yard: Yard, tmp_path: Path) -> None:
    """No key is written where others look."""
    (tmp_path / "id").mkdir()
    (tmp_path / "id").chmod(0o755)

    with pytest.raises(StateTooOpen, match="mode 0755"):
        await enrol(await yard.enroller.add("web1"), tmp_path / "id", tmp_path / "etc", NOW)


async def test_pinned_trust_that_others_may_write_is_refused(yard: Yard, tmp_path: Path) -> None:
    """Damaged, too open and missing each say what to do."""
    etc = tmp_path / "etc"
    with pytest.raises(NotAuthenticated, match="not enrolled"):
        read_trust(etc)
    await enrol(await yard.enroller.add("web1"), tmp_path / "id", etc, NOW)
    (etc / "fleet.json").chmod(0o666)
    with pytest.raises(ConfigTooOpen):
        read_trust(etc)
    files.write_private(etc / "fleet.json", b'{"fleet": "away"}', mode=0o644)
    with pytest.raises(ConfigInvalid):
        read_trust(etc)


# -- the CA's folder ---------------------------------------------------------------------------------------


def test_the_cas_folder_is_made_once_and_closed(tmp_path: Path) -> None:
    """Opened twice, it is the same; every file is 0600."""
    first = open_ca(tmp_path / "ca", FLEET, NOW)
    again = open_ca(tmp_path / "ca", FLEET, NOW + timedelta(days=100))

    assert first == again
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()} == {0o600}
    assert len(list((tmp_path / "ca").iterdir())) == 6


def test_pairs_are_issued_again_at_half_life(tmp_path: Path) -> None:
    """The channel's after half a year, the signer's after a year; the CA stays."""
    first = make_ca_folder(tmp_path / "ca")
    served = first.server_cert.read_bytes()
    later = open_ca(tmp_path / "ca", FLEET, NOW + timedelta(days=190))

    assert later.server_cert.read_bytes() != served
    assert later.signer_cert_pem == first.signer_cert_pem
    assert open_ca(tmp_path / "ca", FLEET, NOW + timedelta(days=370)).signer_cert_pem != first.signer_cert_pem
    assert later.ca == first.ca


@pytest.mark.parametrize("name", ["signer.pem", "signer.key.pem", "channel.pem", "channel.key.pem"])
@pytest.mark.parametrize("damage", [None, b"", b"garbage"], ids=["missing", "empty", "garbage"])
def test_a_damaged_pair_is_issued_again(tmp_path: Path, name: str, damage: bytes | None) -> None:
    """Cut short between key and certificate, or lost: the next start heals it."""
    make_ca_folder(tmp_path / "ca")
    (tmp_path / "ca" / name).unlink()
    if damage is not None:
        files.write_private(tmp_path / "ca" / name, damage)
    opened = open_ca(tmp_path / "ca", FLEET, NOW)

    pki.load_pair(opened.signer_key_pem, opened.signer_cert_pem)
    pki.load_pair(opened.server_key.read_bytes(), opened.server_cert.read_bytes())
    assert opened.ca == CA


def test_a_damaged_ca_is_never_replaced(tmp_path: Path) -> None:
    """A new CA would cut off every agent: say what is missing instead."""
    make_ca_folder(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key.pem").unlink()

    with pytest.raises(PairMismatch) as caught:
        open_ca(tmp_path / "ca", FLEET, NOW)
    assert "backup" in caught.value.hint


def test_a_lost_ca_certificate_is_made_again_from_its_key(tmp_path: Path) -> None:
    """What agents pinned before still verifies what is signed after."""
    make_ca_folder(tmp_path / "ca")
    (tmp_path / "ca" / "ca.pem").unlink()
    opened = open_ca(tmp_path / "ca", FLEET, NOW)

    assert opened.ca.key_pem == CA.key_pem
    pki.verify_chain(
        opened.server_cert.read_bytes(), names=[pki.daemon_name(FLEET)], now=NOW, roots_pem=CA.cert_pem
    )


def test_a_ca_of_another_fleet_is_refused(tmp_path: Path) -> None:
    """A changed fleet in the config is a mistake that the state folder notices."""
    make_ca_folder(tmp_path / "ca")

    with pytest.raises(ConfigInvalid, match="fleet 'home'"):
        open_ca(tmp_path / "ca", "away", NOW)


def test_a_ca_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Nothing is signed with a key that leaked."""
    make_ca_folder(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key.pem").chmod(0o640)

    with pytest.raises(StateTooOpen):
        open_ca(tmp_path / "ca", FLEET, NOW)
