"""A consumer in a temporary folder: real sockets, and shell scripts as services."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from certfan import files, pki
from certfan.agent import apply, config, places
from certfan.agent.bundled import Bundled, staged
from certfan.agent.identity import Trust, read_trust, write_trust
from certfan.agent.installer import Installer
from certfan.agent.swap import Answer, Swap, Wanted
from certfan.core.model import Custody
from certfan.protocol import manifest
from certfan.share_worker.place import Sentinel, write_sentinel

NOW = datetime.now(UTC)
WWW, MAIL = "www.example.org", "mail.example.org"

AGENT = """
[agent]
state = "{root}/state"
trust = "{root}/trust"
install_to = "{root}/etc"
apply_socket = "{root}/run/apply.sock"
user = "{user}"
"""
# A service is a folder: `runs` exists while it runs, `log` holds what was asked of it and what it then saw, and the
# files `test`, `reload` and `start`, when there, are what its commands do first.
SERVICE = """
[[service]]
name = "{name}"
certificates = ["{patterns}"]
endpoints = [{{ address = "127.0.0.1", port = 443, protocol = "tls" }}]
owner = "{uid}"
group = "{gid}"
test = ["{root}/ctl", "{root}/{name}", "test"]
reload = ["{root}/ctl", "{root}/{name}", "reload"]
start = ["{root}/ctl", "{root}/{name}", "start"]
active = ["{root}/ctl", "{root}/{name}", "active"]
hook = ["{root}/ctl", "{root}/{name}", "hook"]
timeout = 10
{more}
"""
CTL = """#!/bin/sh
cd "$1" || exit 1
[ "$2" = active ] && { [ -e runs ]; exit; }
[ "$2" = hook ] && { [ ! -e hook ] || . ./hook; }
[ "$2" = hook ] && echo "hook $RENEWED_LINEAGE $RENEWED_DOMAINS $CERTFAN_GENERATION" >> log && exit
echo "$2" $(readlink ../etc/live/*) >> log
[ -e "$2" ] && . "./$2"
[ "$2" = start ] && touch runs
exit 0
"""


class Machine:
    """A consumer in a temporary folder, with the daemon's signing key at hand."""

    def __init__(self, root: Path, *, user: str | None = None) -> None:
        self.root = root
        self.path = root / "agent.toml"
        (root / "ctl").write_text(CTL)
        (root / "ctl").chmod(0o755)
        self.path.write_text(AGENT.format(root=root, user=user or os.getuid()))
        self.path.chmod(0o644)
        files.private_folder(root / "state")
        ca = pki.InternalCA.create("home", NOW)
        self.signer = ca.issue_signer(NOW)
        write_trust(root / "trust", Trust("home", "web1", "192.0.2.1:8443", ca.cert_pem.decode()))
        self.installer = Installer(root / "etc")

    def service(self, name: str, patterns: str = "*", *, more: str = "") -> Path:
        facts = {"uid": os.getuid(), "gid": os.getgid(), "root": self.root}
        text = SERVICE.format(name=name, patterns=patterns, more=more, **facts)
        self.path.write_text(self.path.read_text() + text)
        folder = self.root / name
        folder.mkdir()
        (folder / "runs").touch()
        (folder / "log").touch()
        return folder

    def keystore(self, name: str, patterns: str = "*") -> Path:
        """Add a service that takes PKCS#12; return where its password stands."""
        files.write_private(self.root / "password", b"open sesame\n")
        more = f'output = "pkcs12"\npassword_file = "{self.root}/password"'
        self.service(name, patterns, more=more)
        return self.root / "password"

    def in_place(self, *, whole: bool = False) -> Path:
        """Let pairs be live in place from now on; return where the share, or this consumer's folder of it, is mounted."""
        self.mount = self.root / "mnt"
        self._mine = self.mount / "web1" if whole else self.mount
        self._mine.mkdir(parents=True)
        said = Sentinel("share-1", None if whole else "web1")
        (self.mount / "certfan.share").write_bytes(write_sentinel(said))
        words = f'[agent]\ninstall = "in-place"\nshare = "{self.mount}"\n'
        self.path.write_text(self.path.read_text().replace("[agent]\n", words, 1))
        return self.mount

    def unmount(self) -> None:
        """Take the share away, as a power cut or umount does."""
        self.mount.rename(self.root / "unmounted")

    def mount_again(self) -> None:
        """Bring the share back."""
        (self.root / "unmounted").rename(self.mount)

    def publish(self, certificate: str, generation: int, bundle: dict[str, bytes] | None = None) -> Path:
        """Put on the share what is staged, or something else."""
        staged = self.root / "state" / "bundles" / certificate / str(generation)
        folder = self._mine / "generations" / certificate / str(generation)
        folder.mkdir(parents=True)
        for name, data in (bundle or {path.name: path.read_bytes() for path in staged.iterdir()}).items():
            (folder / name).write_bytes(data)
        return folder

    def does(self, name: str, command: str, script: str) -> None:
        """Let a service's command do something from now on."""
        (self.root / name / command).write_text(script + "\n")

    def log(self, name: str) -> list[str]:
        return [line.split()[0] for line in (self.root / name / "log").read_text().splitlines()]

    def bundle(self, certificate: str, generation: int, **changes: Any) -> dict[str, bytes]:
        pair = changes.pop("pair", None) or pki.load_pair(*pki.make_placeholder([certificate], NOW))
        facts = {"fleet": "home", "consumer": "web1", "certificate": certificate, "generation": generation}
        return manifest.pack(
            pair,
            pair.key_pem,
            custody=Custody.SHARE,
            signer_key_pem=self.signer.key_pem,
            signer_cert_pem=self.signer.cert_pem,
            **facts | changes,
        )

    def stage(self, certificate: str, generation: int, bundle: dict[str, bytes] | None = None) -> Path:
        folder = self.root / "state" / "bundles" / certificate / str(generation)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (bundle or self.bundle(certificate, generation)).items():
            (folder / name).write_bytes(data)
        return folder

    def staged_fingerprint(self, certificate: str, generation: int) -> str:
        folder = self.root / "state" / "bundles" / certificate / str(generation)
        return pki.read_leaf((folder / "cert.pem").read_bytes()).fingerprint

    def live(self, certificate: str = WWW) -> str | None:
        """Return the fingerprint of the matching pair that services see through live/NAME, in every form there."""
        folder = self.root / "etc" / "live" / certificate
        if not folder.is_symlink():
            return None
        pair = pki.load_pair((folder / "privkey.pem").read_bytes(), (folder / "fullchain.pem").read_bytes())
        for form in config.load(self.path).layout(certificate).forms:
            data = (folder / form.file).read_bytes()
            if form.password_file is None:
                assert data == pair.key_pem + pair.fullchain_pem
            else:
                assert pki.read_pkcs12(data, b"open sesame").leaf == pair.leaf
        return pair.leaf.fingerprint

    def laid(self) -> list[Path]:
        return [path for path in (self.root / "etc").rglob("*") if path.is_symlink() or path.is_file()]

    def outcomes(self, **states: tuple[str, int]) -> None:
        """Write what the agent has noted: `g7=("proven", 3)` is generation 7, proven at hour 3."""
        noted = {
            number[1:]: {"state": state, "at": (NOW + timedelta(hours=hour)).isoformat()}
            for number, (state, hour) in states.items()
        }
        (self.root / "state" / "outcomes.json").write_text(json.dumps({WWW: noted}))

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        with apply.listen(self.root / "run" / "apply.sock", config.load(self.path)) as listener:
            task = asyncio.create_task(apply.serve(listener, self.path), name="apply")
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def says(self, request: bytes) -> dict[str, Any]:
        """Send raw bytes and return the answer."""
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_unix_connection(self.root / "run" / "apply.sock")
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                writer.write_eof()
            answer = await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        found: dict[str, Any] = json.loads(answer)
        return found

    async def asks(self, *wanted: tuple[str, int]) -> dict[str, Any]:
        """Serve one request."""
        async with self.serving():
            return await self.says(request(*wanted))


def request(*wanted: tuple[str, int]) -> bytes:
    return b"".join(
        json.dumps({"certificate": name, "generation": number}).encode() + b"\n" for name, number in wanted
    )


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in answer["services"]}


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process and return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at(count: int) -> None:
    """Let this process be killed right before the n-th change of a name on disk."""
    left = [count]
    for name in ("replace", "symlink", "unlink"):
        real = getattr(os, name)

        def counted(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*args, **kwargs)

        setattr(os, name, counted)


def swap(machine: Machine, certificate: str, generation: int) -> Answer:
    """Bring one staged bundle live, in this process."""
    bundled = staged(machine.root / "state", certificate, generation)
    assert bundled is not None
    pair = pki.load_pair(bundled["privkey.pem"], bundled["fullchain.pem"])
    return asyncio.run(_swap(machine, Wanted(certificate, generation, pair)))


async def _swap(machine: Machine, wanted: Wanted) -> Answer:
    loaded = config.load(machine.path)
    loaded.install_to.mkdir(exist_ok=True)
    stock = Bundled(loaded, machine.installer, read_trust(loaded.trust), lambda: NOW)
    async with places.opened(loaded, machine.installer, stock, lambda: NOW) as opened:
        return await Swap(loaded, opened, lambda: NOW).run([wanted])


def spoil(installed: Path, harm: str) -> None:
    """Do to an installed copy what a power cut may have done: `folder lost`, `key lost`, `key cut short`, else nothing."""
    key = installed / "privkey.pem"
    if harm == "folder lost":
        for path in installed.iterdir():
            path.unlink()
        installed.rmdir()
    elif harm == "key lost":
        key.unlink()
    elif harm == "key cut short":
        key.write_bytes(key.read_bytes()[:50])
