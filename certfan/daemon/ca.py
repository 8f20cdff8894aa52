"""The internal CA's files in the state folder: made at the first start, renewed at half-life.

ca.key.pem ca.pem  signer.key.pem signer.pem  channel.key.pem channel.pem     all 0600, keys first
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from certfan import files, log, pki
from certfan.errors import ConfigInvalid, PairMismatch, PkiError

_log = log.get("ca")


@dataclass(frozen=True, slots=True)
class CaFolder:
    """What the daemon signs with and shows."""

    ca: pki.InternalCA
    signer_key_pem: bytes = field(repr=False)
    signer_cert_pem: bytes = field(kw_only=True)
    server_key: Path = field(kw_only=True)
    server_cert: Path = field(kw_only=True)


def open_ca(folder: Path, fleet: str, now: datetime) -> CaFolder:
    """Load the fleet's CA, or make it; issue the signer's and the channel's pair where they are due.

    Repeatable; may be called daily. Interrupted anywhere, the next call heals what was left half done.

    Raises:
        ConfigInvalid: the CA belongs to another fleet than the config says, or the fleet has no usable name.
        PkiError: the CA itself is damaged; it is never replaced by a new one.
        StateTooOpen: others may read the folder or a key in it.
    """
    files.private_folder(folder)
    ca = _open_authority(folder, fleet, now)
    signer_key, signer_cert = _open_pair(folder, "signer", ca, (), now, ca.issue_signer)
    _open_pair(folder, "channel", ca, (pki.daemon_name(fleet),), now, ca.issue_server)
    return CaFolder(
        ca,
        signer_key,
        signer_cert_pem=signer_cert,
        server_key=folder / "channel.key.pem",
        server_cert=folder / "channel.pem",
    )


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
