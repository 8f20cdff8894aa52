"""The status listener and the control socket: real sockets, who may do what, and how a refusal looks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from certfan.daemon.listeners import Listener, bind
from certfan.daemon.status.control import authorities as authority_control
from tests.unit.status_parts import Admin, AuthorityAdmin, serving


@contextlib.asynccontextmanager
async def over_tcp(host: str = "127.0.0.1") -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    async with serving(Listener(host, 0)) as runner, aiohttp.ClientSession() as session:
        port = runner.addresses[0][1]
        yield session, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def over_unix(folder: Path, admin: Admin) -> AsyncIterator[aiohttp.ClientSession]:
    path = str(folder / "control.sock")
    async with (
        serving(Listener(path=path), admin),
        aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(path)) as session,
    ):
        yield session


async def problem(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    assert response.content_type == "application/problem+json"
    body = await response.json(content_type=None)
    return response.status, body["code"], body["hint"]


async def test_the_page_is_served() -> None:
    """JSON, kept by nobody without asking again, no software's version."""
    async with over_tcp() as (session, url), session.get(f"{url}/api/v1/status") as response:
        page = await response.json()

    assert page["summary"]["text"] == "1 of 1 proven"
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.headers["Server"] == "certfan"


async def test_health_names_its_checks() -> None:
    """Alive and not ready are two things; ?verbose tells every check."""
    async with over_tcp() as (session, url):
        async with session.get(f"{url}/livez") as live:
            assert (live.status, await live.text()) == (200, "ok\n")
        async with session.get(f"{url}/readyz") as ready:
            assert (ready.status, await ready.text()) == (503, "failed: share\nfailed\n")
        async with session.get(f"{url}/readyz?verbose") as told:
            assert await told.text() == "http01: ok\nshare: /srv/le is not mounted\nfailed\n"


async def test_one_certificate_is_found_by_name_or_guessed() -> None:
    """An unknown name is a problem document with a suggestion."""
    async with over_tcp() as (session, url):
        async with session.get(f"{url}/api/v1/certificates/www.test") as found:
            assert (await found.json())["generation"] == 1
        async with session.get(f"{url}/api/v1/certificates/ww.test") as missing:
            assert await problem(missing) == (404, "control.unknown_name", "run: certfan status")
            assert (await missing.json(content_type=None))["detail"].endswith('did you mean "www.test"?')


async def test_events_are_paged_and_hold_no_secret() -> None:
    """`after` goes on from an id; a field that could be a secret is removed on its way out."""
    async with over_tcp() as (session, url):
        async with session.get(f"{url}/api/v1/events?after=1") as response:
            (event,) = (await response.json())["events"]
        async with session.get(f"{url}/api/v1/events?limit=1") as response:
            (last,) = (await response.json())["events"]
        async with session.get(f"{url}/api/v1/events?after=x") as response:
            refused = await problem(response)

    assert event["fields"] == {"token": "[key material removed]"}
    assert last["id"] == 2
    assert refused == (400, "channel.message_invalid", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_the_status_listener_cannot_write(method: str) -> None:
    """The writing routes do not exist there."""
    async with over_tcp() as (session, url):
        for path in ("/api/v1/renew", "/api/v1/consumers", "/api/v1/consumers/web1", "/api/v1/reload"):
            async with session.request(method, url + path, json={"certificate": "www.test"}) as response:
                assert (await problem(response))[0] in {404, 405}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("evil.example", 421),
        ("evil.example:80", 421),
        ("", 421),
        ("127.0.0.1.evil.example", 421),
        ("[::1].evil.example", 421),
        ("cert.int:8056", 200),
        ("CERT.int", 200),
        ("localhost", 200),
        ("192.168.1.1:8056", 200),
        ("[fd00::1]:8056", 200),
        ("[fd00::1]", 200),
    ],
)
async def test_a_strange_host_gets_nothing(host: str, expected: int) -> None:
    """A page in a browser that rebinds its own name to us sees a refusal."""
    async with (
        over_tcp() as (session, url),
        session.get(f"{url}/livez", headers={"Host": host}) as response,
    ):
        assert response.status == expected


async def test_ipv6_is_bound_and_only_ipv6() -> None:
    """A v6 listener does not take v4 connections along."""
    sock = bind(Listener("::", 0))
    with sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    async with over_tcp("::1") as (session, url), session.get(f"{url}/livez") as response:
        assert response.status == 200


async def test_the_control_socket_is_closed_to_others_from_the_start(tmp_path: Path) -> None:
    """Mode and group are final before the first connection."""
    group = str(os.getgid())
    with bind(Listener(path=str(tmp_path / "s"), mode=0o660, group=group)):
        about = (tmp_path / "s").stat()

    assert stat.S_IMODE(about.st_mode) == 0o660
    assert about.st_gid == os.getgid()


async def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """A crash leaves its socket behind; a second daemon must not steal the first one's."""
    listener = Listener(path=str(tmp_path / "s"))
    bind(listener).close()
    with bind(listener), pytest.raises(FileExistsError, match="in use"):
        bind(listener)


async def test_a_socket_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    """Only a refused connection shows that nobody is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))

        with pytest.raises(OSError, match="wrong type"):
            bind(Listener(path=str(tmp_path / "s")))

        assert (tmp_path / "s").is_socket()


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A typo in the config deletes nobody's file."""
    (tmp_path / "s").write_text("precious")

    with pytest.raises(FileExistsError, match="no socket"):
        bind(Listener(path=str(tmp_path / "s")))

    assert (tmp_path / "s").read_text() == "precious"


async def test_a_listener_that_cannot_be_bound_is_named_and_leaves_none_bound() -> None:
    """All listeners or none, and the text says which one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serving(Listener("127.0.0.1", port)):
                pass


async def test_actions_carry_the_uid_that_the_kernel_vouches_for(tmp_path: Path) -> None:
    """Every writing route ends in one action, with the caller's uid."""
    admin = Admin()
    async with over_unix(tmp_path, admin) as session:
        async with session.post("/api/v1/renew", json={"certificate": "www.test"}) as renewed:
            assert renewed.status == 200
        async with session.post("/api/v1/consumers", json={"name": "web1"}) as added:
            assert (added.status, await added.json()) == (201, {"line": "certfan1:192.0.2.1:8057:token:hash"})
        async with session.delete("/api/v1/consumers/web1") as revoked:
            assert revoked.status == 200
        async with session.post("/api/v1/reload") as reloaded:
            (problem,) = (await reloaded.json())["problems"]
            assert problem["hint"] == "run: certfan check"

    me = os.getuid()
    assert admin.asked == [
        ("renew", "www.test", me),
        ("add", "web1", me),
        ("revoke", "web1", me),
        ("reload", "", me),
    ]


async def test_the_control_socket_shows_the_page_too(tmp_path: Path) -> None:
    """One application behind both doors."""
    async with over_unix(tmp_path, Admin()) as session, session.get("/api/v1/status") as response:
        assert (await response.json())["fleet"] == "example"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (
            "/api/v1/renew",
            {"certificate": "other.test"},
            (404, "control.unknown_name", "run: certfan status"),
        ),
        ("/api/v1/renew", {"certificate": 1}, (400, "channel.message_invalid", "")),
        ("/api/v1/renew", {"certificate": "www.test", "force": True}, (400, "channel.message_invalid", "")),
        ("/api/v1/renew", [], (400, "channel.message_invalid", "")),
        ("/api/v1/rollback", {"certificate": "www.test", "to": "2"}, (400, "channel.message_invalid", "")),
        ("/api/v1/rollback", {"certificate": "www.test", "to": 0}, (400, "channel.message_invalid", "")),
        ("/api/v1/rollback", {"certificate": "www.test", "to": True}, (400, "channel.message_invalid", "")),
        ("/api/v1/rollback", {"to": 1}, (400, "channel.message_invalid", "")),
        (
            "/api/v1/forget",
            {"certificate": "a.test", "consumer": "web1"},
            (400, "channel.message_invalid", ""),
        ),
        ("/api/v1/forget", {"consumer": "../web1"}, (400, "channel.message_invalid", "")),
        ("/api/v1/consumers", {"name": "../web1"}, (400, "channel.message_invalid", "")),
        ("/api/v1/consumers", {"name": "x" * 20000}, (413, "http.413", "")),
    ],
)
async def test_a_malformed_request_is_refused_and_does_nothing(
    tmp_path: Path, path: str, body: Any, expected: tuple[int, str, str]
) -> None:
    """Exactly the member that is asked for, as a string, and no more."""
    admin = Admin()
    async with over_unix(tmp_path, admin) as session, session.post(path, json=body) as response:
        assert await problem(response) == expected

    assert admin.asked == []


# The authority side


def called_by(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel vouch for somebody else: it would for whoever runs the tests."""
    monkeypatch.setattr(authority_control, "caller", lambda _: uid)


@contextlib.asynccontextmanager
async def at_the_authorities(
    folder: Path,
) -> AsyncIterator[tuple[aiohttp.ClientSession, AuthorityAdmin]]:
    path, admin = str(folder / "control.sock"), AuthorityAdmin()
    async with (
        serving(Listener(path=path), Admin(), admin),
        aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(path)) as session,
    ):
        yield session, admin


async def test_a_revocation_names_what_is_revoked(tmp_path: Path) -> None:
    """With the uid that the kernel vouches for."""
    body = {"certificate": "www.test", "generation": 2, "reason": "keyCompromise", "now": True}
    async with (
        at_the_authorities(tmp_path) as (session, admin),
        session.post("/api/v1/revoke", json=body) as response,
    ):
        told = await response.json()

    assert [("revoke", "www.test", 2, "keyCompromise", True, os.getuid())] == admin.asked
    assert [(2, "2")] == [(one["generation"], one["serial"]) for one in told["revoking"]]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "revoke", {"certificate": "www.test", "reason": "because", "now": False}),
        ("POST", "revoke", {"certificate": "www.test", "reason": "superseded", "now": 1}),
        ("POST", "revoke", {"certificate": "www.test", "reason": "superseded"}),
        ("POST", "revoke", {"certificate": "www.test", "reason": "superseded", "now": True, "generation": 0}),
        ("POST", "trial", {"certificate": "www.test"}),
        ("POST", "trial", {"certificate": ["www.test"], "authority": None}),
        ("PUT", "accounts/pebble", {"key": "x"}),
        ("PUT", "accounts/pebble", {"key": "x", "directory": None, "uri": "y"}),
        ("PUT", "accounts/pebble", None),
    ],
)
async def test_a_malformed_request_about_an_authority_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: Any
) -> None:
    """Exactly the members that are asked for, of the right kind; what was sent is not said back."""
    called_by(0, monkeypatch)
    async with (
        at_the_authorities(tmp_path) as (session, admin),
        session.request(method, f"/api/v1/{path}", json=body) as response,
    ):
        assert (await problem(response))[:2] == (400, "channel.message_invalid")

    assert [] == admin.asked


@pytest.mark.parametrize(("method", "path"), [("GET", "accounts/pebble/key"), ("PUT", "accounts/pebble")])
async def test_a_key_goes_out_and_in_for_root_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """A member of the socket's group is refused and told the command; nothing is asked of the account."""
    body = {"key": AuthorityAdmin.EXPORTED_KEY, "directory": None}
    async with at_the_authorities(tmp_path) as (session, admin):
        called_by(1000, monkeypatch)
        async with session.request(method, f"/api/v1/{path}", json=body) as response:
            refused = await problem(response)
        assert [] == admin.asked
        called_by(0, monkeypatch)
        async with session.request(method, f"/api/v1/{path}", json=body) as response:
            told = await response.json()

    what = "export" if method == "GET" else "import"
    assert (403, "channel.not_allowed", f"run: sudo certfan account {what} pebble") == refused
    assert what == admin.asked[0][0]
    assert (told.get("key") == AuthorityAdmin.EXPORTED_KEY) == (what == "export")


async def test_a_trial_ends_when_its_caller_goes_away(tmp_path: Path) -> None:
    """Nobody waits for it any more: the order is cut off, and the socket goes on answering."""
    body = {"certificate": "slow.test", "authority": None}
    async with at_the_authorities(tmp_path) as (session, admin), asyncio.timeout(10):
        calling = asyncio.create_task(session.post("/api/v1/trial", json=body))
        await admin.begun.wait()
        calling.cancel()
        await admin.cut_off.wait()
        async with session.post("/api/v1/trial", json={**body, "certificate": "www.test"}) as response:
            assert ("staging", ["www.test"]) == ((told := await response.json())["authority"], told["names"])


async def test_the_status_listener_knows_nothing_of_accounts() -> None:
    """Not even to read."""
    async with over_tcp() as (session, url):
        for path in ("/api/v1/accounts/pebble", "/api/v1/accounts/pebble/key"):
            async with session.get(url + path) as response:
                assert 404 == (await problem(response))[0]
