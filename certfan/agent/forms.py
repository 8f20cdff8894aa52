"""The files that a pair becomes on a consumer: certbot's layout for all, and a form of its own for a service that asks.

All of a certificate's forms lie in one folder, so that one pointer moves them together. What must never come in:
the writing of them, or a word of a password in a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from certfan import files, pki
from certfan.errors import CertfanError, InstallFailed

# Services that open their files whenever a process starts want key and chain in one file.
COMBINED = "combined.pem"
_SECRET = frozenset({"privkey.pem", COMBINED})
NAMES = frozenset({*_SECRET, "cert.pem", "chain.pem", "fullchain.pem"})
MAX_PASSWORD = 1024  # bytes


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Owner, group (names or numbers) and mode of installed key files."""

    owner: str = "root"
    group: str = "root"
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Form:
    """One service's own file beside certbot's: key and chain as one PEM, or PKCS#12 when there is a password file."""

    file: str
    key: KeyFile
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What a certificate's folder holds: certbot's files, `key` for the secret ones, and the forms that services want."""

    key: KeyFile = field(default_factory=KeyFile)
    forms: tuple[Form, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One file: whose it is (None: everybody reads it), how to make it, how to know one that is there."""

    file: str
    key: KeyFile | None
    make: Callable[[], bytes]
    is_same: Callable[[bytes], bool]


def parts(pair: pki.Pair, layout: Layout) -> Iterator[Part]:
    """Tell every file of a pair's folder.

    Raises:
        InstallFailed: a password file is not as it must be.
    """
    for file, data in contents(pair).items():
        yield _fixed(file, layout.key if file in _SECRET else None, data)
    for form in layout.forms:
        if form.password_file is None:
            yield _fixed(form.file, form.key, contents(pair)[COMBINED])
        else:
            yield _pkcs12(form, pair, read_password(form.password_file))


def contents(pair: pki.Pair) -> Mapping[str, bytes]:
    """Return certbot's files, and the combined one."""
    return {
        "privkey.pem": pair.key_pem,
        "cert.pem": pair.cert_pem,
        "chain.pem": pair.chain_pem or pair.cert_pem,  # servers refuse an empty file
        "fullchain.pem": pair.fullchain_pem,
        COMBINED: pair.key_pem.rstrip() + b"\n" + pair.fullchain_pem,
    }


def read_password(path: Path) -> bytes:
    """Read the one line of a password file, which only its owner may read: root, or whoever runs this.

    Raises:
        InstallFailed: it is not there, open to others, empty, or no line of text.
    """
    try:
        data = files.read_private(path, limit=MAX_PASSWORD).removesuffix(b"\n").removesuffix(b"\r")
        data.decode()
    except (OSError, CertfanError, UnicodeDecodeError) as error:
        # A UnicodeDecodeError would quote what it read.
        why = getattr(error, "strerror", None) or getattr(error, "text", None) or "it is not UTF-8"
        raise _bad_password(path, why) from None
    if not data or len(data) > MAX_PASSWORD or not data.decode().isprintable():
        raise _bad_password(path, "it must be one line of printable text")
    return data


def _fixed(file: str, key: KeyFile | None, data: bytes) -> Part:
    return Part(file, key, make=lambda: data, is_same=lambda there: there == data)


def _pkcs12(form: Form, pair: pki.Pair, password: bytes) -> Part:
    """Return a part whose bytes differ each time, so that only opening it tells whether it is the same."""

    def is_same(there: bytes) -> bool:
        try:
            found = pki.read_pkcs12(there, password)
        except CertfanError:
            return False
        return found.fullchain_pem == pair.fullchain_pem  # each of both has the key that belongs to it

    return Part(
        form.file,
        form.key,
        make=lambda: pki.pack_pkcs12(
            pair, name=pair.leaf.names[0] if pair.leaf.names else "", password=password
        ),
        is_same=is_same,
    )


def _bad_password(path: Path, why: str) -> InstallFailed:
    return InstallFailed(
        f"password file {path} cannot be used: {why}",
        subject=str(path),
        hint=f"run: chown root {path}; chmod 600 {path}",
    )
