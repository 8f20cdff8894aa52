"""A canary scan: real private keys, looked for in every form they could have, in all that a daemon says and writes down."""

import base64
import contextlib
import http.client
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from certfan.daemon.status.api.openapi import description
from tests.real.daemon_place import Daemon, Place, authority, certificate

pytestmark = pytest.mark.real

WORDS = {"name": "a.test", "certificate": "a.test", "consumer": "web1", "number": "1"}


def forms(key_pem: bytes) -> Iterator[bytes]:
    """Yield what gives a key away: its secret number and its DER, raw, in hex, and in base64 however it is aligned."""
    key = serialization.load_pem_private_key(key_pem, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        secret = key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8, "big")
    else:
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        secret = key.private_bytes_raw()
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Its last line is of the public half alone, which every certificate shows.
    yield from [line for line in key_pem.splitlines() if b"-----" not in line][:2]
    for raw in (secret, der):
        yield raw
        yield from (raw.hex().encode(), raw.hex().upper().encode(), raw.hex(":").encode())
        for before in range(3):
            # What stands before it moves base64 by a third of its group; the groups at both ends are shared.
            for text in (
                base64.b64encode(bytes(before) + raw),
                base64.urlsafe_b64encode(bytes(before) + raw),
            ):
                yield text[4:-4]


def finds(key_pem: bytes, text: bytes) -> list[bytes]:
    joined = re.sub(rb"\s|\\n", b"", text)  # base64 is broken into lines, in JSON too
    return [form for form in forms(key_pem) if form in text or form in joined]


def routes() -> Iterator[str]:
    for path in description()["paths"]:
        yield re.sub(r"{(\w+)}", lambda word: WORDS[word[1]], path).replace(
            "authorities/a.test", "authorities/ca"
        )
    yield from ("/openapi.json", "/", "/certificates/a.test", "/consumers/web1", "/readyz?verbose")
    yield from ("/api/v1/certificates?limit=1000", "/api/v1/events?after=0&limit=1000", "/nothing")


def said(daemon: Daemon) -> Iterator[tuple[str, bytes]]:
    """Yield every answer of both doors, the log, and each file of the database."""
    for path in routes():
        yield path, daemon.ask(path)[1]
        yield f"control socket {path}", over_unix(daemon.here / "control.sock", path)
    for path in ("/api/v1/plan", "/api/v1/doctor"):
        yield f"control socket {path}", over_unix(daemon.here / "control.sock", path, "POST")
    with contextlib.chdir(daemon.here), nobody():  # the way here is root's alone
        told = over_unix(Path("control.sock"), "/api/v1/backup", "POST")
    yield "backup for nobody", told
    yield "log", daemon.log.read_bytes()
    for file in sorted((daemon.here / "state").glob("certfan.db*")):
        yield file.name, file.read_bytes()


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be, for the kernel that tells whom it speaks for, somebody else of the admins' group."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def over_unix(path: Path, url: str, method: str = "GET") -> bytes:
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request(method, url)
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def test_no_key_is_in_anything_that_a_daemon_says_or_writes_down(daemons: Place) -> None:
    """At DEBUG, over an issue, a renewal, a new account key, a failure and a backup, which alone has keys, for root alone.

    And the scan does find a key that is planted.
    """
    ca = daemons.faulty()
    ca.behaviour.blocked = ("b.test",)
    fragments = ['[log]\nlevel = "debug"', authority("ca", ca), certificate("a.test"), certificate("b.test")]
    with daemons.running(*fragments) as daemon:
        state = daemon.here / "state"
        keys = [daemon.issued("a.test").key_pem]
        daemon.failure("b.test")
        daemon.certfan("account", "rollover", "ca")
        daemon.wait(lambda: daemon.events("account.key_changed"), "the new key")
        daemon.renew("a.test")
        keys.append(daemon.issued("a.test", 2).key_pem)
        keys += [text for file in state.rglob("*.pem") if b"PRIVATE KEY" in (text := file.read_bytes())]
        backup = over_unix(daemon.here / "control.sock", "/api/v1/backup", "POST")
        told = dict(said(daemon))

    assert len(set(keys)) >= 5  # two generations, an account before and after, the internal CA and its signer
    assert b"generation.offered" in told["log"]
    assert b"a.test" in told["/metrics"]
    assert b"backup.taken" in told["log"]
    assert b"only root may take a backup" in told["backup for nobody"]
    assert b"a.test" in told["control socket /api/v1/plan"]
    assert b'"area"' in told["control socket /api/v1/doctor"]
    assert [
        (where, found) for where, text in told.items() for key in keys if (found := finds(key, text))
    ] == []
    assert [key for key in keys if not finds(key, backup)] == []
    for form in forms(keys[0]):
        assert finds(keys[0], b'{"x": "' + form + b'"}'), form
    assert finds(keys[0], keys[0].replace(b"\n", b"\\n"))
