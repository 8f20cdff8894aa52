"""Keys that were made on this machine and never leave it: root's, 0600, durable before anybody hears of their CSR.

INSTALL_TO/keys/CERTIFICATE/NUMBER.HASH.pem     the number that it was made for, the SHA-256 of its SubjectPublicKeyInfo

A key is found by its hash: a roll-back gives an old one a new number. What must never come in: whether a chain may be
trusted, or who asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from certfan import files, pki
from certfan.core.custody import KEYS_KEPT
from certfan.core.model import KeyType
from certfan.errors import InstallFailed

MOST_CERTIFICATES = 1000  # what an agent that is no more its own could fill the disk with
MOST_KEYS = 64  # of a certificate
KEPT = 2 * KEYS_KEPT  # some led nowhere: their CSR was refused, or asked for anew
_NAME = re.compile(r"([1-9][0-9]{0,17})\.([0-9a-f]{64})\.pem")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be signed; `like` is the hash of the key to use again, "" for a new one."""

    certificate: str
    number: int
    key_type: KeyType
    identifiers: tuple[str, ...]
    like: str = ""


@dataclass(frozen=True, slots=True)
class _Key:
    number: int
    key_hash: str
    path: Path


class OwnKeys:
    """The keys below INSTALL_TO."""

    def __init__(self, install_to: Path) -> None:
        self._folder = install_to / "keys"

    def csr(self, wanted: Wanted) -> str:
        """Return a CSR (PEM) by the key for a number, which is made and durable first if there is none. Repeatable.

        Raises:
            InstallFailed: there are too many already, or the disk refuses.
        """
        try:
            return pki.make_csr_pem(self._key(wanted), wanted.identifiers)
        except OSError as error:
            raise InstallFailed(
                f"key of {wanted.certificate} cannot be written: {error.strerror}",
                subject=wanted.certificate,
                hint=f"run: ls -ld {self._folder}; df -h {self._folder}",
            ) from error

    def find(self, certificate: str, key_hash: str) -> bytes | None:
        """Return the key (PEM) of that hash, None when it is not here (any more).

        Raises:
            StateTooOpen: others may read it.
        """
        found = next((one for one in self._keys(certificate) if one.key_hash == key_hash), None)
        return files.read_private(found.path) if found else None

    def prune(self, certificate: str, in_use: Callable[[], Collection[str]]) -> None:
        """Remove what is neither in use nor among the newest; the last thing that goes of a generation. Repeatable."""
        old = sorted(self._keys(certificate), key=lambda one: -one.number)[KEPT:]
        kept = in_use() if old else ()
        for one in old:
            if one.key_hash not in kept:
                one.path.unlink(missing_ok=True)

    def _key(self, wanted: Wanted) -> bytes:
        there = [*self._keys(wanted.certificate)]
        alike = [one for one in there if one.key_hash == wanted.like]
        for one in (*alike, *(one for one in there if one.number == wanted.number)):
            key_pem = files.read_private(one.path)
            if pki.key_type(key_pem) == wanted.key_type:
                return key_pem
        self._check_room(wanted.certificate, len(there))
        key_pem = pki.make_key(wanted.key_type)
        folder = files.private_folder(self._folder / wanted.certificate)
        files.write_private(folder / f"{wanted.number}.{pki.public_key_hash(key_pem)}.pem", key_pem)
        return key_pem

    def _check_room(self, certificate: str, keys: int) -> None:
        names = len([*self._folder.iterdir()]) if self._folder.is_dir() else 0
        if keys >= MOST_KEYS or (not keys and names >= MOST_CERTIFICATES):
            raise InstallFailed(
                f"there are too many keys below {self._folder} to make one for {certificate}",
                subject=certificate,
                hint=f"run: ls -l {self._folder / certificate}, and see who asks for so many",
            )

    def _keys(self, certificate: str) -> Iterator[_Key]:
        folder = self._folder / certificate
        if folder.is_dir():
            for path in folder.iterdir():
                if found := _NAME.fullmatch(path.name):
                    yield _Key(int(found[1]), found[2], path)
