"""What a whole process shares of TLS: the cost of asyncio's connections, the system's roots."""

from __future__ import annotations

import ssl
from asyncio.sslproto import SSLProtocol
from functools import lru_cache
from pathlib import Path

from certfan.errors import ChainInvalid, ConfigInvalid

RECORD = 16 << 10  # bytes; the longest record of TLS 1.3 (RFC 8446 section 5.1)
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")  # where Debian keeps its roots in one file


def shrink_buffers() -> None:
    """Let every TLS connection opened from now on keep one record to read into, not sixteen. Repeatable."""
    # Each connection holds this buffer for its whole life: 256 KiB of the 327 that a waiting agent cost
    # (Python 3.11.2). The attribute is asyncio's own and undocumented; a test tells when it goes.
    SSLProtocol.max_size = RECORD


def system_roots_pem() -> bytes:
    """Return the certificates that this machine trusts, as PEM; read again only when the file has changed.

    Raises:
        ConfigInvalid: the machine has no such file.
    """
    default = ssl.get_default_verify_paths().cafile
    path = Path(default) if default else BUNDLE
    try:
        return _read(path)
    except OSError as error:
        problem = f"the system's roots {path} cannot be read: {error.strerror}"
        raise ConfigInvalid((problem,), subject=str(path), hint="run: apt install ca-certificates") from error


def roots_pem(file: str | None, *, authority: str) -> bytes:
    """Return what an authority's chains must end in, as PEM: its own roots, else the system's; read as above.

    Raises:
        ChainInvalid: the file cannot be read.
        ConfigInvalid: the machine has none.
    """
    if file is None:
        return system_roots_pem()
    try:
        return _read(_path(file))
    except OSError as error:
        raise ChainInvalid(
            f"roots of authority {authority}: {file} cannot be read: {error.strerror}", subject=authority
        ) from error


@lru_cache(maxsize=8)
def _path(file: str) -> Path:
    return Path(file)


def _read(path: Path) -> bytes:
    return _as_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _as_of(path: Path, _changed: int) -> bytes:
    # The very same bytes each time, so that whoever keeps something by them recognises them at once.
    return path.read_bytes()
