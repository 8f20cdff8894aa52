"""Who is who on the channel: TLS contexts of both ends, the caller behind a certificate, the enrolment line.

TLS 1.3 only and no session tickets: every connection shows its certificate anew. An agent checks the fleet's
own server name, whatever address it dials.
"""

from __future__ import annotations

import functools
import hashlib
import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from certfan import pki
from certfan.errors import ChainInvalid, EnrolmentRefused, NotAuthenticated

# X509_V_FLAG_NO_CHECK_TIME. The store ends an identity, not its date: a consumer that was off for longer than
# its certificate lives catches up without a human. The ssl module has no name for it.
_NO_CHECK_TIME = 0x200000

_LINE = re.compile(
    r"certfan1:(?P<address>(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5})"
    r":(?P<token>[a-z2-7]{26}):(?P<ca>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """What a verified consumer certificate says. Whether its serial still counts is the store's to say."""

    fleet: str
    consumer: str
    serial: str


@dataclass(frozen=True, slots=True)
class EnrolmentLine:
    """What `certfan consumer add` prints: where, with what, and whom to believe."""

    address: str  # host:port, IPv6 in brackets
    token: str = field(repr=False)
    ca_hash: str  # SHA-256 of the CA certificate's DER


def consumer_of(cert_der: bytes | None) -> Caller:
    """Name the caller behind a peer certificate that TLS has verified.

    Raises:
        NotAuthenticated: there is none, or it is not a consumer's.
    """
    if not cert_der:
        raise NotAuthenticated("no certificate was shown", hint="run: certfan agent enrol LINE")
    try:
        return _caller(cert_der)
    except ChainInvalid as error:
        raise NotAuthenticated(str(error), hint="run: certfan agent enrol LINE") from error


@functools.lru_cache(maxsize=16384)  # of as many consumers; parsing again at each request was 60 us of it
def _caller(cert_der: bytes) -> Caller:
    return Caller(*pki.consumer_of(cert_der))


def server_context(ca_pem: bytes, cert: Path, key: Path) -> ssl.SSLContext:
    """Return the daemon's end. A certificate is asked for, not demanded: who must show one, a guard decides.

    Raises:
        OSError: a file cannot be read or does not parse (ssl.SSLError is one).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= _NO_CHECK_TIME
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    context.load_cert_chain(cert, key)
    return context


def client_context(
    ca_pem: bytes | None, *, cert: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return the agent's end, which trusts the pinned CA and nothing else.

    Without a CA it believes anyone: only to ask for the CA itself, whose hash is compared afterwards.

    Raises:
        OSError: a file cannot be read or does not parse (ssl.SSLError is one).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


def find_half_open(sock: socket.socket) -> None:
    """Let the kernel end a TCP connection whose other end is gone within 30 s; accepted sockets inherit it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    # Keep-alives stop while data is unacknowledged; this bounds that case (milliseconds).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)


def ca_hash(ca_pem: bytes) -> str:
    """Return the SHA-256 (hex) of a CA certificate's DER; raises ChainInvalid."""
    return hashlib.sha256(pki.read_leaf(ca_pem).der).hexdigest()


def make_line(address: str, token: str, ca_pem: bytes) -> str:
    """Return the one line that enrols one agent."""
    return f"certfan1:{address}:{token}:{ca_hash(ca_pem)}"


def parse_line(line: str) -> EnrolmentLine:
    """Read a pasted line; white space around it does not count.

    Raises:
        EnrolmentRefused: it is not one, or was cut. The text does not repeat it: it may hold a token.
    """
    found = _LINE.fullmatch(line.strip())
    if not found or not 0 < int(found["address"].rpartition(":")[2]) < 65536:
        raise EnrolmentRefused(
            "enrolment line is malformed or was cut",
            hint="paste the whole line that `certfan consumer add NAME` printed on the daemon's machine",
        )
    return EnrolmentLine(found["address"], found["token"], found["ca"])
