"""The share on real GlusterFS: an unprivileged daemon writes, consumers see their own folder only."""

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certfan import pki
from tests.lab import machine
from tests.lab.farm import Farm
from tests.lab.vm import Vm

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(machine.capabilities()), reason="; ".join(machine.capabilities())),
]

DAEMON, AGENT, STRANGER = "4700", "4720", "4799"
WEB1_GROUP, MAIL1_GROUP = "4711", "4712"
PYTHON = "/opt/certfan/bin/python"
KEY = "/srv/le/generations/www.example.test/1/privkey.pem"

PARTS = """
import asyncio, hashlib, json, sys
from datetime import UTC, datetime
from pathlib import Path
from certfan.core.model import Consumer
from certfan.errors import CertfanError
WEB1, MAIL1 = Consumer("web1", group="4711"), Consumer("mail1", group="4712")
def bundle(number):
    files = {name: f"{name} {number}".encode() * 99 for name in ("privkey.pem", "cert.pem", "chain.pem", "fullchain.pem")}
    facts = {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
    return files | {"manifest.json": json.dumps({"files": facts}).encode(), "manifest.sig": b"signed"}
"""
SETUP = """
from certfan.daemon.share.setup import set_up_share
asyncio.run(set_up_share(Path("/srv/le"), [WEB1, MAIL1], uid=4700, lock=Path("/run/setup.lock"), require_mount=True))
"""
PUBLISHER = """
from certfan.daemon.share.share import Share
async def main():
    share = Share(Path("/srv/le"), Path("/tmp/daemon/share.lock"), lambda: datetime.now(UTC))
    for line in sys.stdin:
        try:
            await share.publish(WEB1, "www.example.test", int(line), bundle(int(line)))
            seen = await share.look()
            print(json.dumps([sorted(f.number for f in seen.published["www.example.test", "web1"]), seen.mount.fstype]), flush=True)
        except CertfanError as why:
            print(json.dumps([why.code, why.text]), flush=True)
    await share.stop()
asyncio.run(main())
"""
READER = """
from certfan.agent.shelf import Shelf
async def main():
    shelf = Shelf(Path("/srv/le"), sys.argv[1], Path("/tmp/agent/shelf.lock"), require_mount=True)
    try:
        print(await shelf.read("www.example.test", 1) == bundle(1))
    except CertfanError as why:
        print(why.code, why.text)
    await shelf.stop()
asyncio.run(main())
"""
SEALER = """
from certfan import pki
from certfan.core.model import Custody
from certfan.daemon.share.share import Share
from certfan.protocol import manifest
async def main():
    share = Share(Path("/srv/le"), Path("/tmp/daemon/sealer.lock"), lambda: datetime.now(UTC))
    ca = pki.InternalCA.create("story", datetime.now(UTC))
    signer = ca.issue_signer(datetime.now(UTC))
    for name, (key, cert) in json.load(sys.stdin).items():
        pair = pki.load_pair(key.encode(), cert.encode())
        facts = {"fleet": "story", "consumer": "web1", "certificate": name, "generation": 1}
        signed = {"signer_key_pem": signer.key_pem, "signer_cert_pem": signer.cert_pem}
        if name.startswith("open"):
            files = manifest.pack(pair, pair.key_pem, custody=Custody.SHARE, **facts, **signed)
            await share.publish(WEB1, name, 1, files)
            continue
        bundles = []
        for _ in range(3):  # enrolled anew twice
            public = pki.sealing_public(pki.make_sealing_key())
            sealed = manifest.seal_key(pair.key_pem, public, **facts)
            files = manifest.pack(pair, sealed, custody=Custody.SEALED, **facts, **signed)
            await share.publish(WEB1, name, 1, files)
            bundles.append(manifest.bundle_of(files))
        await share.retire("web1", name, 1, bundles[0])
    await share.stop()
asyncio.run(main())
"""


def _as(uid: str, gid: str, *argv: str) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *argv]


@dataclass(frozen=True)
class Publisher:
    """A running daemon's edge on cert, as an unprivileged user: a number in, what became of it out."""

    process: subprocess.Popen[str]

    def publish(self, number: int) -> list[object]:
        """Publish a generation for web1; return what is published then and the mount's type, or the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        answer: list[object] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm(say=print).up() as farm:
        farm.cert.run([PYTHON, "-c", PARTS + SETUP])
        farm.cert.run(["install", "-d", "-m", "700", "-o", DAEMON, "/tmp/daemon"])
        farm.web1.run(["install", "-d", "-m", "700", "-o", AGENT, "/tmp/agent"])
        farm.mount_consumers()
        yield farm


@pytest.fixture(scope="module")
def publisher(farm: Farm) -> Publisher:
    publisher = Publisher(farm.cert.popen(_as(DAEMON, DAEMON, PYTHON, "-c", PARTS + PUBLISHER)))
    assert publisher.publish(1) == [[1], "fuse.glusterfs"]
    return publisher


def _out(vm: Vm, *argv: str) -> str:
    done = vm.run(argv, check=False)
    return (done.stdout + done.stderr).strip()


def test_a_consumer_reads_what_the_unprivileged_daemon_published(farm: Farm, publisher: Publisher) -> None:
    """The key's group comes from the folder that root made, and web1's agent reads the bundle by it."""
    assert _out(farm.web1, "stat", "-c", "%a %u %g", KEY) == f"640 {DAEMON} {WEB1_GROUP}"
    assert _out(farm.web1, *_as(AGENT, WEB1_GROUP, PYTHON, "-c", PARTS + READER, "web1")) == "True"


def test_the_live_pointer_is_followed_on_the_consumer(farm: Farm, publisher: Publisher) -> None:
    """For a consumer without an agent, live/NAME leads to the generation within its own mount."""
    assert _out(farm.web1, "readlink", "-f", "/srv/le/live/www.example.test/privkey.pem") == KEY


def test_a_consumer_can_neither_write_nor_see_another_ones_folder(farm: Farm, publisher: Publisher) -> None:
    """web1's mount ends at web1's folder, is read-only, and its reader refuses to pass for mail1."""
    assert "Read-only file system" in _out(farm.web1, "touch", "/srv/le/live/mine")
    assert _out(farm.web1, "ls", "/srv/le").split() == ["certfan.share", "generations", "live"]
    refusal = _out(farm.web1, *_as(AGENT, WEB1_GROUP, PYTHON, "-c", PARTS + READER, "mail1"))
    assert "consumer web1 is mounted, not of mail1" in refusal


def test_a_stranger_on_the_consumer_cannot_read_the_key(farm: Farm, publisher: Publisher) -> None:
    """Without the consumer's group the folder does not even open."""
    assert "Permission denied" in _out(farm.web1, *_as(STRANGER, STRANGER, "cat", KEY))


def _forms(key_pem: bytes) -> dict[str, list[bytes]]:
    """Return what a private key could be found by: PEM line by line, the number that all DER holds, base64 of either."""
    key = serialization.load_pem_private_key(key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    return {
        "PEM": key_pem.splitlines()[1:3],  # what follows is the public key, which every certificate shows
        "DER": [secret],
        "base64": [
            base64.b64encode(bytes(shift) + data)[4:-4]
            for shift in range(3)
            for data in (secret, key_pem[76:130])
        ],
        "hex": [secret.hex().encode(), secret.hex().upper().encode()],
    }


def _found(key_pem: bytes, data: bytes) -> list[str]:
    return [form for form, needles in _forms(key_pem).items() if any(needle in data for needle in needles)]


def test_nothing_of_a_sealed_key_is_ever_in_a_brick(farm: Farm, publisher: Publisher) -> None:
    """Both bricks' disks raw, with gluster's own folders, the journal and what was removed, and gluster's state and logs."""
    keys = {
        name: pki.make_placeholder([name], datetime.now(UTC))
        for name in ("open.example.test", "sealed.example.test")
    }
    said = json.dumps({name: [key.decode(), cert.decode()] for name, (key, cert) in keys.items()})
    argv = _as(DAEMON, DAEMON, PYTHON, "-c", PARTS + SEALER)
    farm.cert.run(argv, input=said)
    machine.run(["sync"])
    searched = 0
    found: dict[str, set[str]] = {name: set() for name in keys}
    for vm in (farm.host, farm.cert):
        disk = farm.gluster.brick(vm).with_suffix(".img")
        state = [
            path
            for folder in ("var/lib/glusterd", "var/log/glusterfs")
            for path in (vm.path / folder).rglob("*")
        ]
        for path in (disk, *(path for path in state if path.is_file())):
            data = path.read_bytes()
            searched += len(data)
            for name, (key, _) in keys.items():
                found[name] |= {f"{vm.name}: {form}" for form in _found(key, data)}

    assert found["sealed.example.test"] == set()
    assert found["open.example.test"] >= {"host: PEM", "cert: PEM"}
    assert searched > 100 << 20
    key = keys["sealed.example.test"][0]
    der = serialization.load_pem_private_key(key, password=None).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Each form is found where it is.
    assert "PEM" in _found(key, key)
    assert "DER" in _found(key, der)
    assert "base64" in _found(key, base64.b64encode(b"x" + der))
    assert "base64" in _found(key, base64.b64encode(key))
    assert "hex" in _found(key, der.hex().encode())


def test_a_stopped_volume_is_named_and_heals(farm: Farm, publisher: Publisher) -> None:
    """ENOTCONN becomes share.unavailable; the same process publishes when the volume is back."""
    farm.host.run(["gluster", "--mode=script", "volume", "stop", "le"])
    assert publisher.publish(2)[0] == "share.unavailable"
    farm.host.run(["gluster", "--mode=script", "volume", "start", "le"])

    machine.wait_until(lambda: publisher.publish(2) == [[1, 2], "fuse.glusterfs"], "the share to heal", 30)


def test_an_unmounted_share_is_never_written_below(farm: Farm, publisher: Publisher) -> None:
    """Lazily unmounted under a running daemon: refused, the bare directory stays empty; mounted again, it goes on."""
    farm.cert.run(["umount", "-l", "/srv/le"])
    code, text = publisher.publish(3)
    left = _out(farm.cert, "ls", "-A", "/srv/le")
    farm.cert.run(["systemctl", "restart", "srv-le.mount"])

    assert code == "share.unavailable"
    assert "not mounted" in str(text)
    assert left == ""
    assert 3 in publisher.publish(3)[0]  # type: ignore[operator]
