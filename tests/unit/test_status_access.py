"""Who may read the status from where: tokens, certificates of clients, and the config that must name one of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
import trustme
from click.testing import CliRunner

from certfan import log
from certfan.cli import main
from certfan.daemon.config.loading import TlsFiles, load
from certfan.daemon.config.tokens import hash_of, make_token
from certfan.daemon.listeners import Listener
from certfan.daemon.status import access, app
from certfan.errors import ConfigInvalid
from tests.unit.status_parts import DOORS
from tests.unit.test_config import MAIN, problems_of, write

TOKEN = "certfan_" + "k3Y-" * 10 + "abc"  # the same in every process: names of tests are made of it
TOKENS = {"prometheus": hash_of(TOKEN), "other": hash_of(make_token())}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loopback count as any other network: a test has no second machine to ask from."""
    monkeypatch.setattr(access, "_is_local", lambda _: False)
    monkeypatch.setattr(Listener, "is_local", property(lambda self: bool(self.path)))


@contextlib.asynccontextmanager
async def listening(tls: ssl.SSLContext | None = None, tokens: Any = TOKENS) -> AsyncIterator[str]:
    doors = replace(DOORS, tokens=lambda: tokens.values())
    runner = await app.start(app.make_app(doors), (Listener("127.0.0.1", 0),), tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What is logged at DEBUG."""
    stream = io.StringIO()
    log.set_up(level="debug", stream=stream)
    yield stream
    structlog.reset_defaults()


def _basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Basic {_basic(f'me:{TOKEN}')}", 200),
        (f"Basic {_basic(f'{TOKEN}:')}", 401),  # the password is the token, not the name
        (f"Basic {_basic(TOKEN)}", 401),
        (f"Basic {TOKEN}", 401),
        ("Basic \xff", 401),
        (f"Bearer {TOKENS['prometheus']}", 401),  # the hash at rest is no token
        ("Bearer ", 401),
        (None, 401),
    ],
)
@pytest.mark.parametrize("path", ["/livez", "/metrics", "/api/v1/status", "/openapi.json", "/nothing"])
async def test_from_elsewhere_only_a_token_reads(
    elsewhere: None, logged: io.StringIO, path: str, header: str | None, status: int
) -> None:
    """Every path, also one that does not exist; a refusal says how to get one, and no log line holds it."""
    headers = {"Authorization": header} if header else {}
    async with (
        listening() as url,
        aiohttp.ClientSession() as session,
        session.get(url + path, headers=headers) as got,
    ):
        body = await got.text()

    assert got.status == (404 if path == "/nothing" and status == 200 else status)
    if status == 401:
        bearer, basic = got.headers.getall("WWW-Authenticate")
        assert bearer == 'Bearer realm="certfan"'
        assert basic.startswith('Basic realm="certfan: the password is the token"')
        assert (got.content_type, "certfan token" in body) == ("application/problem+json", True)
        assert '"event": "status.refused"' in logged.getvalue()
    assert TOKEN not in logged.getvalue() + body


async def test_a_token_ends_with_its_line_in_the_config(elsewhere: None) -> None:
    """The config in force is asked at every request, so revoking one needs no restart."""
    tokens = dict(TOKENS)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with listening(tokens=tokens) as url, aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{url}/livez") as before:
            assert before.status == 200
        del tokens["prometheus"]
        async with session.get(f"{url}/livez") as after:
            assert after.status == 401


async def test_this_machine_needs_no_token() -> None:
    """Loopback is for whoever is here already."""
    async with listening() as url, aiohttp.ClientSession() as session, session.get(f"{url}/livez") as got:
        assert got.status == 200


class Clients:
    """A CA for the listener's pair and for clients, and the files that the config names."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.files = TlsFiles(
            certificate=folder / "status.pem", key=folder / "status.key", client_ca=folder / "clients.pem"
        )
        self.ca.cert_pem.write_to_path(str(self.files.client_ca))
        self.renew()

    def renew(self) -> None:
        pair = self.ca.issue_cert("127.0.0.1")
        pair.private_key_pem.write_to_path(str(self.files.key))
        pair.cert_chain_pems[0].write_to_path(str(self.files.certificate))

    def context(self, signer: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if signer:
            signer.issue_cert("monitor.test").configure_cert(context)
        return context


async def test_a_clients_certificate_counts_as_a_token(elsewhere: None, tmp_path: Path) -> None:
    """Of the configured CA; without one a token is needed still, and a stranger's ends the handshake."""
    clients = Clients(tmp_path)
    tls = access.tls_context(clients.files, or_token=True)
    async with listening(tls) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/livez", ssl=clients.context(clients.ca)) as known:
            assert known.status == 200
        async with session.get(f"{url}/livez", ssl=clients.context()) as nobody:
            assert nobody.status == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get(f"{url}/livez", ssl=clients.context(), headers=headers) as shown:
            assert shown.status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{url}/livez", ssl=clients.context(trustme.CA()))


async def test_without_tokens_nobody_comes_in_without_a_certificate(elsewhere: None, tmp_path: Path) -> None:
    """The handshake itself asks for it."""
    clients = Clients(tmp_path)
    tls = access.tls_context(clients.files, or_token=False)
    async with listening(tls, tokens={}) as url, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{url}/livez", ssl=clients.context())


async def test_a_renewed_pair_is_shown_without_a_restart(elsewhere: None, tmp_path: Path) -> None:
    """New connections see it; a pair that does not match is refused and named, and the one before stays."""
    clients = Clients(tmp_path)
    tls = access.tls_context(clients.files, or_token=False)

    async def serial(url: str) -> str:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", int(url.rpartition(":")[2]), ssl=clients.context(clients.ca)
        )
        try:
            return str(writer.get_extra_info("peercert")["serialNumber"])
        finally:
            writer.close()
            await writer.wait_closed()

    async with listening(tls) as url:
        first = await serial(url)
        clients.renew()
        access.reload_pair(tls, clients.files)
        second = await serial(url)
        clients.files.key.write_text("no key")
        with pytest.raises(ConfigInvalid, match=r"status\.pem cannot be used"):
            access.reload_pair(tls, clients.files)
        third = await serial(url)

    assert first != second == third


def test_a_token_is_random_and_known_by_its_hash() -> None:
    """256 bits of it; the hash says nothing of it."""
    assert re.fullmatch(r"certfan_[A-Za-z0-9_-]{43}", make_token())
    assert make_token() != make_token()
    assert TOKEN[8:] not in hash_of(TOKEN)


OPEN = '[status]\nlisten = ["127.0.0.1:8056", "192.0.2.1:8056"]\n'


def test_a_status_that_others_reach_must_say_who_may_read(tmp_path: Path) -> None:
    """A clear sentence with the command; loopback and unix sockets need nothing."""
    (problem,) = problems_of(write(tmp_path, MAIN + OPEN))

    assert "status.listen: 192.0.2.1:8056 can be reached from other machines" in problem
    assert "run: certfan token NAME" in problem
    write(tmp_path, MAIN + '[status]\nlisten = ["[::1]:8056", "unix:/run/certfan/status.sock"]\n')
    assert load(tmp_path / "certfan.toml").status_tls is None


def test_tokens_and_tls_are_taken_from_the_config(tmp_path: Path) -> None:
    """Hashes by name, files beside the config; either is enough."""
    clients = Clients(tmp_path)
    clients.files.key.chmod(0o600)
    tokens = f'[status.tokens]\nprometheus = "{TOKENS["prometheus"]}"\n'
    tls = '[status.tls]\ncertificate = "status.pem"\nkey = "status.key"\nclient_ca = "clients.pem"\n'

    assert load(write(tmp_path, MAIN + OPEN + tokens)).status_tokens == {"prometheus": TOKENS["prometheus"]}
    assert load(write(tmp_path, MAIN + OPEN + tls)).status_tls == clients.files


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            f'[status.tokens]\nme = "{TOKEN}"\n',
            "status.tokens.me: must be the hash that `certfan token NAME` prints",
        ),
        ('[status.tls]\ncertificate = "a.pem"\n', "status.tls.key: is missing"),
        ('[status.tls]\ncertificate = "a.pem"\nkey = "b.pem"\n', "status.tls.certificate: "),
    ],
)
def test_what_is_wrong_with_them_is_told_by_key_path(tmp_path: Path, lines: str, expected: str) -> None:
    """A token in the clear is refused, and never repeated."""
    told = "\n".join(problems_of(write(tmp_path, MAIN + lines)))

    assert expected in told
    assert TOKEN not in told


def test_the_command_prints_a_token_once_and_the_line_that_admits_it(tmp_path: Path) -> None:
    """What it prints is taken by the config as it stands; a name that no table can have is refused."""
    told = json.loads(CliRunner().invoke(main, ["token", "prometheus", "--json"]).output)
    text = CliRunner().invoke(main, ["token", "prometheus"]).output
    refused = CliRunner().invoke(main, ["token", "Not a name"])
    lines = "\n".join(line.strip() for line in text.splitlines()[-2:])

    assert told["hash"] == hash_of(told["token"])
    assert set(load(write(tmp_path, f"{MAIN}{lines}\n")).status_tokens) == {"prometheus"}
    assert refused.exit_code == 2
