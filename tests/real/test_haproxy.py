"""HAProxy with one PEM, and a keystore beside it: laid, reloaded and taken back by the privileged half."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from certfan import pki
from certfan.agent import boot
from certfan.agent.config import AgentConfig, load
from certfan.errors import ProbeError
from certfan.probe import probe
from tests.lab import private
from tests.lab.loopback_layout import free_ports
from tests.unit.apply_parts import NOW, WWW, Machine

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
]

ADDRESS = "127.0.0.20"


class Proxied:
    """A consumer whose HAProxy serves the placeholder already; a store reads PKCS#12."""

    def __init__(self, root: Path) -> None:
        self.consumer = Machine(root)
        (self.port,) = free_ports(1, [ADDRESS])
        self.pem = root / "etc" / "live" / WWW / "haproxy.pem"
        self.server = private.haproxy(root / "haproxy", address=ADDRESS, port=self.port, pem=self.pem)
        self._write_config()
        self.password = self.consumer.keystore("store")
        self.keystore = root / "etc" / "live" / WWW / "store.p12"

    def _write_config(self) -> None:
        mine = f'owner = "{os.getuid()}"\ngroup = "{os.getgid()}"\n'
        where = f'endpoints = [{{ address = "{ADDRESS}", port = {self.port}, protocol = "tls" }}]\n'
        path = self.consumer.path
        path.write_text(path.read_text() + self.server.toml() + mine + where + f'certificates = ["{WWW}"]\n')

    @property
    def config(self) -> AgentConfig:
        return load(self.consumer.path)

    async def serves(self, fingerprint: str) -> None:
        """Return when a new handshake shows a leaf; the reload returns before it is effective."""
        async with asyncio.timeout(10):
            while await self.shown() != fingerprint:
                await asyncio.sleep(0.05)

    async def shown(self) -> str:
        try:
            return (await probe("tls", ADDRESS, self.port, WWW)).fingerprint
        except ProbeError:
            return ""


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    place = Proxied(tmp_path)
    boot.lay_all(place.config, lambda: NOW, deadline=monotonic() + 10)
    place.server.begin(place.port)
    try:
        yield place
    finally:
        place.server.end()


def opened(place: Proxied, password: Path) -> subprocess.CompletedProcess[str]:
    """Let openssl open the keystore, as what reads it does: its password from a file, its MAC checked."""
    words = ["openssl", "pkcs12", "-in", str(place.keystore), "-passin", f"file:{password}", "-nodes"]
    return subprocess.run([*words, "-info"], capture_output=True, text=True, check=False)


async def test_haproxy_takes_placeholder_and_renewals_as_one_pem(proxied: Proxied) -> None:
    """The recipe's own commands: test, reload by signal, whether it runs; each handshake is a new one."""
    placeholder = pki.read_leaf((proxied.pem.parent / "cert.pem").read_bytes())
    before = await proxied.shown()
    answers = []
    for number in (1, 2):
        proxied.consumer.stage(WWW, number)
        answers.append(await proxied.consumer.asks((WWW, number)))
        await proxied.serves(proxied.consumer.staged_fingerprint(WWW, number))

    assert (before, placeholder.placeholder) == (placeholder.fingerprint, True)
    assert [answer["problem"] for answer in answers] == [None, None]
    assert {one["name"]: one["state"] for one in answers[1]["services"]}["haproxy"] == "reloaded"
    assert proxied.config.layout(WWW).forms[0].file == "haproxy.pem"


async def test_a_config_that_haproxy_refuses_changes_nothing_that_is_served(proxied: Proxied) -> None:
    """Its own words are in the answer, the one PEM is the former one again, and it heals with the config."""
    consumer, config = proxied.consumer, proxied.server.folder / "haproxy.cfg"
    for number in (1, 2):
        consumer.stage(WWW, number)
    await consumer.asks((WWW, 1))
    await proxied.serves(consumer.staged_fingerprint(WWW, 1))
    good = config.read_text()
    config.write_text(good + "nonsense\n")
    refused = await consumer.asks((WWW, 2))
    back = pki.read_leaf(proxied.pem.read_bytes().partition(b"KEY-----\n")[2].partition(b"KEY-----\n")[2])
    config.write_text(good)
    again = await consumer.asks((WWW, 2))

    assert (refused["problem"]["code"], refused["rolled_back"]) == ("service.config_test_failed", True)
    assert "nonsense" in refused["problem"]["output"]
    assert back.fingerprint == consumer.staged_fingerprint(WWW, 1)
    assert again["problem"] is None
    await proxied.serves(consumer.staged_fingerprint(WWW, 2))


async def test_openssl_opens_the_keystore_of_each_generation(proxied: Proxied, tmp_path: Path) -> None:
    """AES and SHA-256, with the password of its file and with no other; key and leaf are the live ones."""
    (tmp_path / "wrong").write_text("wrong\n")
    for number in (0, 1, 2):
        if number:
            proxied.consumer.stage(WWW, number)
            await proxied.consumer.asks((WWW, number))
        right, wrong = opened(proxied, proxied.password), opened(proxied, tmp_path / "wrong")
        blocks = right.stdout.partition("-----BEGIN CERTIFICATE-----")
        leaf = pki.read_leaf(
            (blocks[1] + blocks[2].partition("-----END")[0] + "-----END CERTIFICATE-----\n").encode()
        )

        assert (right.returncode, wrong.returncode) == (0, 1)
        assert leaf == pki.read_leaf((proxied.keystore.parent / "cert.pem").read_bytes())
        assert "-----BEGIN PRIVATE KEY-----" in right.stdout
        assert "sha256" in right.stderr
        assert "AES-256-CBC" in right.stderr
