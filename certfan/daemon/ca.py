"""The internal CA's files in the state folder: made at the first start, renewed at half-life.

ca.key.pem ca.pem  signer.key.pem signer.pem  channel.key.pem channel.pem     all 0600, keys first
next.key.pem next.pem    the CA that is to follow; previous.pem: the one before, still believed; rotations: how many were begun
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from certfan import files, log, pki
from certfan.errors import ActionRefused, ConfigInvalid, PairMismatch, PkiError
from certfan.protocol.trust import TrustStatement

_log = log.get("ca")


@dataclass(frozen=True, slots=True)
class CaFolder:
    """What the daemon signs with and shows."""

    ca: pki.InternalCA
    signer_key_pem: bytes = field(repr=False)
    signer_cert_pem: bytes = field(kw_only=True)
    server_key: Path = field(kw_only=True)
    server_cert: Path = field(kw_only=True)
    next: pki.InternalCA | None = field(default=None, kw_only=True)
    previous_pem: bytes = field(default=b"", kw_only=True)
    rotations: int = field(default=0, kw_only=True)

    @property
    def anchors(self) -> bytes:
        """Every CA (PEM) that is believed now, the newest last."""
        return self.previous_pem + self.ca.cert_pem + (self.next.cert_pem if self.next else b"")

    @property
    def trust_number(self) -> int:
        """The number of what agents are to believe; 0 while there never was another CA."""
        return max(2 * self.rotations - (self.next is not None), 0)

    def statement(self) -> bytes:
        """Return what agents are to believe, signed by the CA in force."""
        believed = self.ca.cert_pem + (self.next.cert_pem if self.next else b"")
        return TrustStatement(self.ca.fleet, self.trust_number, believed.decode("ascii")).sign(self.ca)

    def issuer(self, number: int) -> pki.InternalCA:
        """Return whom a consumer's identity is to be of that has pinned the statement of that number."""
        return self.next if self.next is not None and number >= self.trust_number else self.ca


def open_ca(folder: Path, fleet: str, now: datetime) -> CaFolder:
    """Load the fleet's CA, or make it; issue the signer's and the channel's pair where they are due.

    Repeatable; may be called daily. Interrupted anywhere, the next call heals what was left half done.

    Raises:
        ConfigInvalid: the CA belongs to another fleet than the config says, or the fleet has no usable name.
        PkiError: the CA itself is damaged; it is never replaced by a new one.
        StateTooOpen: others may read the folder or a key in it.
    """
    files.private_folder(folder)
    if _read(folder / "previous.pem") and _read(folder / "next.pem"):
        _finish_promotion(folder)
    ca = _open_authority(folder, fleet, now)
    signer_key, signer_cert = _open_pair(folder, "signer", ca, (), now, ca.issue_signer)
    _open_pair(folder, "channel", ca, (pki.daemon_name(fleet),), now, ca.issue_server)
    return CaFolder(
        ca,
        signer_key,
        signer_cert_pem=signer_cert,
        server_key=folder / "channel.key.pem",
        server_cert=folder / "channel.pem",
        next=_open_next(folder),
        previous_pem=_read(folder / "previous.pem") or b"",
        rotations=int(_read(folder / "rotations") or b"0"),
    )


def begin_rotation(folder: Path, ca: CaFolder, now: datetime) -> None:
    """Make the CA that is to follow; durable on return. Cut short, nothing has begun; the next call goes on.

    Raises:
        ActionRefused: the one before the present one is still believed.
    """
    if ca.previous_pem:
        raise ActionRefused(
            "the last rotation of the internal CA has not ended", subject="ca", hint="run: certfan ca show"
        )
    files.write_private(folder / "rotations", str(ca.rotations + 1).encode())
    made = pki.InternalCA.create(ca.ca.fleet, now, key_pem=_read(folder / "next.key.pem"))
    files.write_private(folder / "next.key.pem", made.key_pem)
    files.write_private(folder / "next.pem", made.cert_pem)


def promote(folder: Path) -> None:
    """Put the CA that is to follow in the place of the present one; cut short anywhere, `open_ca` finishes it."""
    present = _read(folder / "ca.pem")
    assert present is not None
    files.write_private(folder / "previous.pem", present)  # from here on it is decided
    _finish_promotion(folder)


def _finish_promotion(folder: Path) -> None:
    key, cert = _read(folder / "next.key.pem"), _read(folder / "next.pem")
    assert key is not None
    assert cert is not None
    files.write_private(folder / "ca.key.pem", key)
    files.write_private(folder / "ca.pem", cert)
    # The certificate first: a key without one is a rotation that was begun, and its key would be used again.
    (folder / "next.pem").unlink()
    files.sync_folder(folder)
    (folder / "next.key.pem").unlink()
    files.sync_folder(folder)


def drop(folder: Path) -> None:
    """Believe the one before no longer; durable on return, repeatable."""
    (folder / "next.key.pem").unlink(missing_ok=True)  # of a promotion that was cut short at its very end
    (folder / "previous.pem").unlink(missing_ok=True)
    files.sync_folder(folder)


def _open_next(folder: Path) -> pki.InternalCA | None:
    key, cert = _read(folder / "next.key.pem"), _read(folder / "next.pem")
    return pki.InternalCA(key, cert) if key is not None and cert is not None else None


def _open_authority(folder: Path, fleet: str, now: datetime) -> pki.InternalCA:
    if not pki.FLEET_NAME.fullmatch(fleet):
        raise ConfigInvalid((f"fleet: {fleet!r} must be 1 to 48 of a-z 0-9 -, no hyphen at either end",))
    key, cert = _read(folder / "ca.key.pem"), _read(folder / "ca.pem")
    if cert is None:
        # A key without a certificate is a first start cut short, or a lost file: agents that pinned an earlier
        # certificate of this key still believe it.
        ca = pki.InternalCA.create(fleet, now, key_pem=key)
        files.write_private(folder / "ca.key.pem", ca.key_pem)
        files.write_private(folder / "ca.pem", ca.cert_pem)
        _log.info("ca.made", fleet=fleet)
        return ca
    if key is None:
        raise PairMismatch(
            f"key of the internal CA is missing: {folder / 'ca.key.pem'}",
            subject=str(folder / "ca.key.pem"),
            hint="restore it from a backup; with a new CA every agent must be enrolled again",
        )
    ca = pki.InternalCA(key, cert)
    if ca.fleet != fleet:
        raise ConfigInvalid((f"fleet: is {fleet!r}, but the CA in {folder} is that of fleet {ca.fleet!r}",))
    return ca


def _open_pair(
    folder: Path,
    name: str,
    ca: pki.InternalCA,
    names: tuple[str, ...],
    now: datetime,
    issue: Callable[[datetime], pki.Issued],
) -> tuple[bytes, bytes]:
    key, cert = _read(folder / f"{name}.key.pem"), _read(folder / f"{name}.pem")
    if key is not None and cert is not None and _serves(key, cert, ca, names, now):
        return key, cert
    issued = issue(now)
    # Cut short between the two, they do not match, and the next call issues again.
    files.write_private(folder / f"{name}.key.pem", issued.key_pem)
    files.write_private(folder / f"{name}.pem", issued.cert_pem)
    _log.info("ca.issued", name=name, serial=issued.leaf.serial, not_after=issued.leaf.not_after)
    return issued.key_pem, issued.cert_pem


def _serves(key: bytes, cert: bytes, ca: pki.InternalCA, names: tuple[str, ...], now: datetime) -> bool:
    try:
        leaf = pki.load_pair(key, cert).leaf
        pki.verify_chain(cert, names=names, now=now, roots_pem=ca.cert_pem)
    except PkiError:
        return False
    return now < leaf.not_before + (leaf.not_after - leaf.not_before) / 2


def _read(path: Path) -> bytes | None:
    try:
        return files.read_private(path)
    except FileNotFoundError:
        return None
