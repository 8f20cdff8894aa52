"""One release older and newer, against what such a peer says: recorded/*.json. Fields may be new, never required."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from certfan import pki
from certfan.agent.link import Link
from certfan.errors import MessageInvalid, NotAllowed
from certfan.protocol.identity import parse_line, server_context
from certfan.protocol.messages import Report
from tests.unit.channel_parts import CA, FLEET, NOW, ask, make_ca_folder, write_pair
from tests.unit.daemon_parts import Daemon, running_daemon

RECORDED = Path(__file__).parent / "recorded"
REPORT = Report.of([], [], boot_id="b", sequence=1, sent_at=NOW, version="0.1.0")


def exchanges(peer: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RECORDED / f"{peer}.json").read_text())["exchanges"]
    return found


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running_daemon(tmp_path / "daemon") as running:
        yield running


def shape(value: Any) -> Any:
    """What a peer relies on: which fields there are, down to the first of a list."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value[:1]] if isinstance(value, list) else type(value)


def _known(found: Any, known: Any) -> Any:
    """What a peer sees of an answer: a field that it does not know is dropped."""
    if isinstance(found, dict) and isinstance(known, dict):
        return {key: _known(found[key], known[key]) for key in found.keys() & known.keys()}
    if isinstance(found, list) and known:
        return [_known(one, known[0]) for one in found]
    return found


@pytest.mark.parametrize("peer", ["agent_older", "agent_newer"])
async def test_an_agent_of_another_release_is_served(daemon: Daemon, tmp_path: Path, peer: str) -> None:
    """It enrols, hears, reports and fetches; every answer has what it reads; each new field of its own is told once."""
    await daemon.issue("web1")
    key_pem, new_key_pem = pki.make_key(), pki.make_key()
    words = {
        "{token}": parse_line(await daemon.enroller.add("web1")).token,
        "{csr}": pki.make_csr_pem(key_pem),
        "{new csr}": pki.make_csr_pem(new_key_pem),
    }
    told: list[str] = []
    routes = daemon.channel._routes
    routes._tell_unknown = told.append  # type: ignore[method-assign, assignment]
    identity: Path | None = None
    for exchange in exchanges(peer):
        request, expected = exchange["request"], exchange["answer"]
        body = request["body"] and {
            k: words.get(v, v) if isinstance(v, str) else v for k, v in request["body"].items()
        }
        status, answer = await ask(
            daemon,  # type: ignore[arg-type]
            request["method"],
            request["path"],
            identity=identity,
            body=json.dumps(body).encode() if body else None,
        )
        found = json.loads(answer) if answer else None
        assert (request["path"], status) == (request["path"], expected["status"])
        assert shape(expected["body"]) == shape(_known(found, expected["body"]))
        if request["path"] == "/v1/enrol":
            identity = write_pair(tmp_path / "identity", key_pem, found["certificate"].encode())

    ((deployment,),) = (await daemon.store.deployments()).values()
    ((proof,),) = (await daemon.store.proofs()).values()
    assert (deployment.generation, deployment.problem and deployment.problem.output) == (1, "last line")
    assert proof.fingerprint == "ab" * 32
    expected_new = (
        []
        if peer == "agent_older"
        else [
            "EnrolRequest.attestation",
            "Report.deployments.problem.trace",
            "Report.deployments.seconds",
            "Report.load",
            "Report.proofs.alpn",
            "RenewRequest.why",
        ]
    )
    assert sorted(told) == sorted(expected_new)


async def test_a_newer_agents_fields_are_told_once(daemon: Daemon) -> None:
    """One line a field, not one a report; a peer that makes fields up cannot fill the log."""
    routes = daemon.channel._routes
    lines: list[str] = []
    for n in [*range(3), *range(1000)]:
        before = len(routes._unknown)
        routes._tell_unknown(f"Report.{n}")
        if len(routes._unknown) > before:
            lines.append(str(n))

    assert lines == [str(n) for n in range(100)]


class Recording:
    """A server that gives recorded answers under the daemon's name."""

    def __init__(self, peer: str) -> None:
        self.answers = {
            (one["request"]["method"], one["request"]["path"]): one["answer"] for one in exchanges(peer)
        }

    async def answer(self, request: web.BaseRequest) -> web.Response:
        await request.read()
        found = self.answers[request.method, request.path]
        body = json.dumps(found["body"]).encode() if found["body"] else b""
        return web.Response(status=found["status"], body=body, content_type="application/json")


@pytest.fixture
async def to(tmp_path: Path) -> AsyncIterator[Any]:
    """Return a function that links to a recorded daemon."""
    ca = make_ca_folder(tmp_path / "ca")
    context: ssl.SSLContext = server_context(CA.cert_pem, ca.server_cert, ca.server_key)
    servers: list[asyncio.Server] = []
    links: list[Link] = []
    https: list[web.Server] = []

    async def connect(peer: str) -> Link:
        http = web.Server(Recording(peer).answer, access_log=None)
        server = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0, ssl=context)
        key_pem = pki.make_key()
        cert_pem, _ = CA.issue_consumer(pki.make_csr(key_pem, ()), "web1", NOW)
        identity = write_pair(tmp_path / "web1", key_pem, cert_pem)
        port = server.sockets[0].getsockname()[1]
        link = Link(f"127.0.0.1:{port}", identity, fleet=FLEET, ca_pem=CA.cert_pem)
        servers.append(server)
        links.append(link)
        https.append(http)
        return link

    yield connect
    for link in links:
        await link.close()
    for server in servers:
        server.close()
    for http in https:
        await http.shutdown(1)


@pytest.mark.parametrize("peer", ["daemon_older", "daemon_newer"])
async def test_a_daemon_of_another_release_is_understood(to: Any, peer: str) -> None:
    """What is assigned, taken and handed out is read as ever, whatever else stands beside it."""
    link = await to(peer)

    found = await link.assignments()
    await link.report(REPORT)
    assert [(a.certificate, a.generation, a.fingerprint) for a in found.assignments] == [
        ("web1.example", 1, "ab" * 32)
    ]
    assert await link.bundle("web1.example", 1) == {"cert.pem": b"\0\xff"}


async def test_what_another_release_does_not_do_is_said(to: Any) -> None:
    """No such route at an older daemon, a code that is new at a newer one: leaves of our own error tree."""
    older, newer = await to("daemon_older"), await to("daemon_newer")
    with pytest.raises(MessageInvalid, match="nothing at POST /v1/identity"):
        await older.renew("csr")
    with pytest.raises(NotAllowed, match="not yours"):
        await newer.bundle("web2.example", 1)

    assert await newer.renew("csr") == b"-----BEGIN CERTIFICATE-----"
    assert newer._unknown == {"RenewReply.chain"}
