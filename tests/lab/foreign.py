"""What other ACME programs leave on a machine, made by themselves against a CA of the lab."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.lab import machine
from tests.lab.acme_peers import CERTBOT, MAIL, nginx
from tests.lab.pebble import Pebble, free_port


class Certbot:
    """A folder of certbot's; `root` is what a web server serves on the port where the CA validates."""

    def __init__(self, here: Path, http_port: int) -> None:
        self.folder, self.root = here / "letsencrypt", here / "root"
        self._here, self._http_port = here, http_port

    def register(self, pebble: Pebble) -> None:
        """Make an account and nothing else."""
        self._run(pebble, "register")

    def standalone(self, pebble: Pebble, *names: str, key: str = "ecdsa") -> None:
        """Get a certificate, answered by certbot itself."""
        words = ["--standalone", "--http-01-port", str(self._http_port)]
        self._get(pebble, [*words, "--key-type", key], names)

    def webroot(self, pebble: Pebble, *names: str, key: str = "ecdsa") -> None:
        """Get a certificate, answered out of a folder that nginx serves."""
        with serving(self._here, self.root, self._http_port):
            words = ["--webroot", "--webroot-path", str(self.root), "--deploy-hook", "true"]
            self._get(pebble, [*words, "--key-type", key], names)

    def _get(self, pebble: Pebble, words: list[str], names: tuple[str, ...]) -> None:
        profile = ["--preferred-profile", "default"]  # Pebble picks one at random when an order names none
        self._run(pebble, "certonly", *profile, *words, *(w for name in names for w in ("--domain", name)))

    def _run(self, pebble: Pebble, command: str, *words: str) -> None:
        folders = [
            f"--config-dir={self.folder}",
            f"--work-dir={self._here}/work",
            f"--logs-dir={self._here}/logs",
        ]
        agreed = ["--agree-tos", "--email", MAIL, "--no-eff-email", "--non-interactive"]
        argv = [str(CERTBOT), command, "--server", pebble.directory_url, *agreed, *folders, *words]
        machine.run(["env", f"REQUESTS_CA_BUNDLE={pebble.ca_file}", *argv])


def dehydrated(
    here: Path, http_port: int, pebble: Pebble, domains: str, **settings: Mapping[str, str]
) -> Path:
    """Get the certificates of a domains.txt with dehydrated; `settings` are those of single ones. Return its folder."""
    folder, root = here / "dehydrated", here / "root"
    folder.mkdir()
    answers = root / ".well-known/acme-challenge"
    config = {
        "CA": pebble.directory_url, "BASEDIR": folder, "WELLKNOWN": answers, "CONTACT_EMAIL": MAIL,
        "CURL_OPTS": f"--cacert {pebble.ca_file}", "ACME_PROFILE": "default",
    }  # fmt: skip
    (folder / "config").write_text("".join(f'{name}="{value}"\n' for name, value in config.items()))
    (folder / "domains.txt").write_text(domains)
    for name, own in settings.items():
        (folder / "certs" / name).mkdir(parents=True)
        lines = "".join(f'{key}="{value}"\n' for key, value in own.items())
        (folder / "certs" / name / "config").write_text(lines)
    program = [str(shutil.which("dehydrated")), "--config", str(folder / "config")]
    with serving(here, root, http_port):
        machine.run([*program, "--register", "--accept-terms"])
        machine.run([*program, "--cron"], timeout=180)  # in shell, with an account key of 4096 bits
    return folder


@contextlib.contextmanager
def serving(here: Path, root: Path, port: int) -> Iterator[None]:
    """Serve what webroots are for."""
    (root / ".well-known/acme-challenge").mkdir(parents=True, exist_ok=True)
    with nginx(here, root, port, remember="off"):
        yield


@contextlib.contextmanager
def tls_server(pair: Path, log: Path) -> Iterator[int]:
    """Serve a folder's fullchain.pem; yields the port."""
    port = free_port()
    argv = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(pair / "fullchain.pem"),
            "-cert_chain", str(pair / "fullchain.pem"), "-key", str(pair / "privkey.pem"), "-quiet"]  # fmt: skip
    process = machine.spawn(argv, log)
    try:
        machine.wait_until(lambda: machine.listens(process.pid, port), f"openssl to listen; see {log}")
        yield port
    finally:
        machine.end(process)


def print_of(folder: Path) -> str:
    """Return what changes when anything below a folder does: names, modes, times, contents, where links lead."""
    found = []
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.append((os.fspath(path), seen.st_mode, seen.st_mtime_ns, content))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def accounts_made(pebble: Pebble) -> int:
    """Return how many accounts a Pebble has."""
    return len(re.findall(r"There are now \d+ accounts in memory", pebble.log_path.read_text()))
