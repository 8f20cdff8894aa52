"""Whom an agent believes and who it is: the files of enrolment.

TRUST/fleet.json TRUST/ca.pem          root's, 0644: fleet, consumer, address, pinned CA
IDENTITY/key.pem IDENTITY/cert.pem     the agent's own, 0600
IDENTITY/enrolling-<hash>.pem          the key of the last line that was used, so that it can be used again
IDENTITY/renewing.pem                  the key that a renewal was, or may have been, asked for with
IDENTITY/renewed.pem                   the pair that a renewal brought, until key.pem and cert.pem are it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from certfan import files, pki
from certfan.errors import ConfigInvalid, ConfigTooOpen, NotAuthenticated, PkiError, StateTooOpen
from certfan.protocol.identity import EnrolmentLine
from certfan.protocol.trust import TrustStatement

ENROL_HINT = "run: certfan agent enrol LINE, with the line that `certfan consumer add NAME` prints"


@dataclass(frozen=True, slots=True)
class Trust:
    """What root has pinned on this machine; `address` is host:port of the daemon."""

    fleet: str
    consumer: str
    address: str
    ca: str  # PEM
    sealing_key: str = ""  # public, base64: what our private keys are sealed to; "": enrolled before 0.2
    number: int = 0  # of the statement that said which CA; 0: enrolment did

    @property
    def ca_pem(self) -> bytes:
        """The pinned CA."""
        return self.ca.encode("ascii")

    @property
    def newest_ca(self) -> bytes:
        """The CA (PEM) that our identity is to be of: while two are pinned, the later one."""
        return pki.anchors(self.ca_pem)[-1]

    def following(self, statement: TrustStatement) -> Trust:
        """Return what is pinned by a statement that was verified."""
        return replace(self, ca=statement.ca, number=statement.number)


def read_trust(folder: Path) -> Trust:
    """Read what enrolment has pinned.

    Raises:
        NotAuthenticated: this machine is not enrolled.
        ConfigTooOpen: someone else than root or we may have written it.
        ConfigInvalid: it is damaged.
    """
    path = folder / "fleet.json"
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            data = file.read(1 << 20)
    except FileNotFoundError:
        raise NotAuthenticated("this machine is not enrolled", subject=str(path), hint=ENROL_HINT) from None
    if about.st_uid not in {0, os.geteuid()} or about.st_mode & 0o022:
        raise ConfigTooOpen(
            f"{path} decides whom we believe but has mode {stat.S_IMODE(about.st_mode):04o}, owner {about.st_uid}",
            subject=str(path),
            hint=f"run: chown root {path}; chmod 644 {path}",
        )
    try:
        trust = Trust(**json.loads(data))
        if pki.fleet_of(trust.newest_ca) != trust.fleet or not trust.consumer or ":" not in trust.address:
            raise ValueError("fields contradict each other")
    except (ValueError, TypeError, AttributeError, PkiError) as error:
        raise ConfigInvalid((f"{path}: is damaged",), subject=str(path), hint=ENROL_HINT) from error
    return trust


def write_trust(folder: Path, trust: Trust) -> None:
    """Pin a fleet; `fleet.json` last, because it is what counts. Repeatable."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    files.write_private(folder / "ca.pem", trust.ca_pem, mode=0o644)
    told = asdict(trust)
    if not trust.number:
        del told["number"]  # an agent of an earlier release knows no such field
    document = json.dumps(told, indent=2) + "\n"
    files.write_private(folder / "fleet.json", document.encode(), mode=0o644)


def _digest(line: EnrolmentLine) -> str:
    return hashlib.sha256(f"{line.token}:{line.ca_hash}".encode()).hexdigest()[:32]


class SealingFolder:
    """Root's own half of what this machine's private keys are sealed to, beside what it has pinned."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key_for(self, line: EnrolmentLine) -> bytes:
        """Return the key (PEM) that this line enrols with: made at its first use, the same ever after."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        name = f"sealing-{_digest(line)}.pem"
        for other in self._folder.glob("sealing-*.pem"):
            if other.name != name:
                other.unlink(missing_ok=True)
        try:
            return files.read_private(self._folder / name)
        except FileNotFoundError:
            key_pem = pki.make_sealing_key()
            files.write_private(self._folder / name, key_pem)
            return key_pem

    def store(self, key_pem: bytes) -> None:
        """Make it the key that counts; durable on return, repeatable."""
        files.write_private(self._folder / "sealing.pem", key_pem)

    def read(self) -> bytes | None:
        """Return the key that counts, None when this machine has none.

        Raises:
            StateTooOpen: others may read it.
        """
        try:
            return files.read_private(self._folder / "sealing.pem")
        except FileNotFoundError:
            return None


class IdentityFolder:
    """The agent's own key and certificate, written by root on its behalf when `uid` says so.

    The folder is opened once and never followed through a symlink: the agent's user owns what is around it.

    Raises (when opened):
        StateTooOpen: it is open to others, or somebody else's.
    """

    def __init__(self, path: Path, *, uid: int = -1, gid: int = -1) -> None:
        self.path = path
        self._uid = uid
        self._gid = gid
        self._fd = -1

    @contextlib.contextmanager
    def opened(self) -> Iterator[IdentityFolder]:
        """Make the folder when it is missing, and hold it open."""
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700, parents=True)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError as error:
            raise StateTooOpen(f"{self.path} is a symlink or no folder", subject=str(self.path)) from error
        try:
            self._own()
            yield self
        finally:
            os.close(self._fd)
            self._fd = -1

    def _own(self) -> None:
        about = os.fstat(self._fd)
        if about.st_uid not in {os.geteuid(), self._uid} or about.st_mode & 0o077:
            raise StateTooOpen(
                f"folder {self.path} has mode {stat.S_IMODE(about.st_mode):04o}, owner {about.st_uid}",
                subject=str(self.path),
                hint=f"run: chmod 700 {self.path}, and see who owns it",
            )
        if self._uid != -1 or self._gid != -1:
            os.fchown(self._fd, self._uid, self._gid)

    def key_for(self, line: EnrolmentLine) -> bytes:
        """Return the key that this line enrols: made at its first use, the same ever after.

        Another line gets another key: the old one may be why there is a new line.
        """
        name = f"enrolling-{_digest(line)}.pem"
        for other in os.listdir(self._fd):  # noqa: PTH208 - by descriptor, not by path
            if other.startswith("enrolling-") and other != name:
                os.unlink(other, dir_fd=self._fd)
        try:
            return files.read_private(name, uid=self._uid, dir_fd=self._fd)
        except FileNotFoundError:
            key_pem = pki.make_key()
            self._write(name, key_pem)
            return key_pem

    def store(self, key_pem: bytes, cert_pem: bytes) -> None:
        """Make a pair the agent's identity. Cut short, the two do not match; the same line mends it."""
        # A renewal of the identity before must not come back over this one.
        self._drop("renewed.pem", "renewing.pem")
        self._write("key.pem", key_pem)
        self._write("cert.pem", cert_pem)

    def renewal_key(self) -> bytes:
        """Return the key that the identity's successor is asked for with, the same until there is one."""
        try:
            return files.read_private("renewing.pem", uid=self._uid, dir_fd=self._fd)
        except FileNotFoundError:
            key_pem = pki.make_key()
            self._write("renewing.pem", key_pem)
            return key_pem

    def drop_renewal_key(self) -> None:
        """Let the next renewal be asked for with another key."""
        self._drop("renewing.pem")

    def succeed(self, key_pem: bytes, cert_pem: bytes) -> None:
        """Make a renewed pair the agent's identity; cut short anywhere, `settle` finishes it."""
        self._write("renewed.pem", key_pem + cert_pem)
        self.settle()

    def settle(self) -> None:
        """Finish a succession that was cut short; repeatable, and nothing to do mostly."""
        try:
            pair = files.read_private("renewed.pem", uid=self._uid, dir_fd=self._fd)
        except FileNotFoundError:
            return
        start = pair.index(b"-----BEGIN CERTIFICATE-----")
        self._write("key.pem", pair[:start])
        self._write("cert.pem", pair[start:])
        self._drop("renewing.pem", "renewed.pem")

    def _drop(self, *names: str) -> None:
        """Remove files, durably and in their order."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
                os.fsync(self._fd)

    def _write(self, name: str, data: bytes) -> None:
        files.write_private(name, data, uid=self._uid, gid=self._gid, dir_fd=self._fd)
