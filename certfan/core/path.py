"""The path of an http-01 challenge as we saw it ourselves: which redirect a CA would follow, and what is wrong with the path.

A name's path is seen as walks, one an address of the name; a walk is its hops, one a request. What must never come
in: requests, look-ups, and anything else of a foreign answer than a `Hop` has room for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from certfan.core.model import Identifier, Problem

MOST_REDIRECTS = 10
MOST_BYTES = 128  # of a body that a CA reads
MOST_LOCATION = 2000  # characters; Boulder refuses longer ones too
FOLLOWED = frozenset({301, 302, 307, 308})  # CA/B Baseline Requirements 3.2.2.4.19: no 303
CODE = "challenge.self_check_failed"

_SHOWN = 160  # characters of a URL that a text has room for
# The last label begins with a letter, or libraries below us would read `127.1` and `2130706433` as addresses.
_HOST = re.compile(r"([a-z0-9_-]{1,63}\.)*[a-z][a-z0-9-]{0,62}\.?")
_PLACE = re.compile(r"(https?)://(\[[^\]]*\]|[^/:?#]*)(?::([0-9]+))?")


class Failure(StrEnum):
    """What ended a walk before our own answer was seen."""

    NO_ADDRESS = "no_address"
    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    DNS_TIMEOUT = "dns_timeout"
    DNS_FAILED = "dns_failed"
    NO_ROUTE = "no_route"  # this machine's own lack, so it says nothing about what a CA sees
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    NOT_CONNECTED = "not_connected"
    SILENT = "silent"
    NOT_HTTP = "not_http"
    NOT_FOUND = "not_found"
    DENIED = "denied"
    NO_DAEMON = "no_daemon"
    FOREIGN = "foreign"
    TOO_LONG = "too_long"
    ODD_STATUS = "odd_status"
    LOOP = "loop"
    TOO_MANY = "too_many"
    BAD_LOCATION = "bad_location"
    NO_SLASH = "no_slash"
    BAD_SCHEME = "bad_scheme"
    BAD_PORT = "bad_port"
    CREDENTIALS = "credentials"
    BAD_ADDRESS = "bad_address"
    OURSELVES = "ourselves"


@dataclass(frozen=True, slots=True)
class Hop:
    """What one request got. `failure` also ends a walk whose next hop could not be asked, or may not be."""

    url: str
    address: str = ""  # that was dialled, or was not to be; "" when there was none
    status: int | None = field(default=None, kw_only=True)
    length: int = field(default=0, kw_only=True)  # bytes of a 200's body, at most one more than a CA reads
    equals_ours: bool = field(default=False, kw_only=True)
    location: str = field(default="", kw_only=True)
    failure: Failure | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a redirect leads; `host` is a name in lower case or a literal address, without brackets."""

    url: str
    scheme: str = field(kw_only=True)
    host: str = field(kw_only=True)
    port: int | None = field(kw_only=True)
    has_credentials: bool = field(default=False, kw_only=True)


Walk: TypeAlias = Sequence[Hop]


def addresses_of(a: tuple[str, ...] | Failure, aaaa: tuple[str, ...] | Failure) -> tuple[str, ...] | Failure:
    """Join the two look-ups of a host as a CA does: one that failed matters only when the other finds nothing."""
    found = tuple(one for kind in (a, aaaa) if not isinstance(kind, Failure) for one in kind)
    if found:
        return found
    failures = [kind for kind in (a, aaaa) if isinstance(kind, Failure)]
    worst = (Failure.NXDOMAIN, Failure.SERVFAIL, Failure.DNS_TIMEOUT, Failure.DNS_FAILED)
    return next((one for one in worst if one in failures), Failure.NO_ADDRESS)


def why_not_follow(target: Target, walk: Walk, ports: Collection[int]) -> Failure | None:
    """Return why a CA would not follow the redirect that the last hop of `walk` got, None when it would."""
    if target.scheme not in {"http", "https"}:
        return Failure.BAD_SCHEME
    if target.has_credentials:
        return Failure.CREDENTIALS
    if target.port not in ports:
        return Failure.BAD_PORT
    if target.host.endswith(".well-known"):
        return Failure.NO_SLASH
    is_literal = Identifier(target.host).kind == "ip" and "%" not in target.host
    if len(target.url) > MOST_LOCATION or not (is_literal or _HOST.fullmatch(target.host)):
        return Failure.BAD_LOCATION
    if any(target.url == hop.url for hop in walk):
        return Failure.LOOP
    return Failure.TOO_MANY if len(walk) > MOST_REDIRECTS else None


def why_not_dial(
    address: str, port: int, own: Collection[tuple[str, int]], *, is_local: bool
) -> Failure | None:
    """Return why a redirect must not make us dial an address, None when it may.

    `own` is where the daemon listens, unspecified addresses included; `is_local` says that this machine has the
    address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return Failure.BAD_ADDRESS
    anywhere = "::" if ip.version == 6 else "0.0.0.0"  # noqa: S104  # compared, not bound
    ours = {(address, port), (str(ip), port)} | ({(anywhere, port)} if is_local else set())
    return Failure.OURSELVES if ours & set(own) else None


def choose(addresses: Sequence[str], first: str) -> str:
    """Return which address of a later hop a walk goes on at: its first one again, else one of that family."""
    if first in addresses:
        return first
    return next((one for one in addresses if _family(one) == _family(first)), addresses[0])


def why_failed(walk: Walk) -> Failure | None:
    """Return what ended a walk, None when our own answer came through."""
    hop = walk[-1]
    if hop.failure is not None or hop.equals_ours:
        return hop.failure
    match hop.status:
        case 200:
            return Failure.TOO_LONG if hop.length > MOST_BYTES else Failure.FOREIGN
        case 404 | 410:
            return Failure.NOT_FOUND
        case 401 | 403:
            return Failure.DENIED
        case 502 | 503 | 504:
            return Failure.NO_DAEMON
    return Failure.ODD_STATUS


def verdict(identifier: Identifier, walks: Sequence[Walk]) -> Problem | None:
    """Return what is wrong with the path of a name, None when every walk (there is at least one) came through.

    A family that this machine has no route to is not judged as long as another address answers.
    """
    good = [walk for walk in walks if why_failed(walk) is None]
    lacking = Failure.NO_ROUTE if good else None
    bad = next((walk for walk in walks if why_failed(walk) not in {None, lacking}), None)
    if bad is None:
        return None
    failure = why_failed(bad)
    assert failure is not None
    cause, hint = _TOLD[failure]
    words = _words(identifier, bad)
    apart = _apart(good, bad)
    text = f"{identifier}: {apart}{_place(bad)} {cause}".format_map(words)
    return Problem(CODE, text, f"{hint}{_look(failure, is_all=not good)}".format_map(words))


def _apart(good: Sequence[Walk], bad: Walk) -> str:
    """Say how a failing address differs from those that answer."""
    if not good:
        return ""
    address, others = bad[0].address, [walk[0].address for walk in good]
    if any(_family(one) == _family(address) for one in others):
        return f"answers at {others[0]} but not at {address}: "
    return f"answers over IPv{_family(others[0])} but not over IPv{_family(address)} {_bracketed(address)}: "


def _place(walk: Walk) -> str:
    number = f"hop {len(walk)}, " if len(walk) > 1 else ""
    return f"{number}{{url}} at {{address}}" if walk[-1].address else f"{number}{{url}}"


def _words(identifier: Identifier, walk: Walk) -> dict[str, object]:
    """What the texts of a failure may name; foreign strings are cut, and printable."""
    first, last = walk[0], walk[-1]
    scheme, host, port = _socket(last.url)
    return {
        "url": _shown(last.url),
        "host": _shown(host),
        "address": _shown(last.address),
        "socket": f"{_bracketed(last.address)}:{port or (443 if scheme == 'https' else 80)}",
        "claim": "certificate's name"
        if last.address == identifier.value
        else f"{_record(last.address)} record",
        "status": last.status,
        "length": last.length,
        "location": _shown(last.location),
        "curl": _curl(identifier, first),
    }


def _record(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _curl(identifier: Identifier, first: Hop) -> str:
    _, _, port = _socket(first.url)
    pinned = (
        "" if identifier.kind == "ip" else f"--resolve {identifier}:{port or 80}:{_bracketed(first.address)} "
    )
    return f"curl -vkL {pinned}{first.url.replace('<probe>', 'x')}"


def _socket(url: str) -> tuple[str, str, str]:
    found = _PLACE.match(url)
    return (found[1], found[2], found[3] or "") if found else ("", url, "")


def _shown(text: str) -> str:
    text = re.sub(r"[^\x21-\x7e]", "?", text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _look(failure: Failure, *, is_all: bool) -> str:
    """What every hint ends with: how to see the same by hand."""
    if failure in _DNS:
        return ""
    off = '; if this machine alone cannot reach it (hairpin NAT): self_check = "off"'
    return (off if is_all and failure in _CONNECTION else "") + _CURL


_CURL = "; look with: {curl}"
_DNS = frozenset(
    {Failure.NO_ADDRESS, Failure.NXDOMAIN, Failure.SERVFAIL, Failure.DNS_TIMEOUT, Failure.DNS_FAILED}
)
_CONNECTION = frozenset(
    {Failure.NO_ROUTE, Failure.REFUSED, Failure.UNREACHABLE, Failure.NOT_CONNECTED, Failure.SILENT}
)
_LISTEN = "let the web server listen on {socket} and the firewall let it in, or remove that {claim}"
_EXEMPT = "except /.well-known/acme-challenge/ from the redirects there: put `Use le_proxy` into that vhost"
_FORWARD = (
    "put `Use le_proxy` into the vhost of {host}; if it stands there, let the MDomain, Alias or other "
    "ACME client (certbot, acme.sh) leave /.well-known/acme-challenge/ alone"
)
# Each failure's cause and hint, with the words of `_words`.
_TOLD = MappingProxyType(
    {
        Failure.NO_ADDRESS: (
            "has no address: {host} has neither an A nor an AAAA record",
            "add one; look with: dig {host} A {host} AAAA",
        ),
        Failure.NXDOMAIN: (
            "has no address: {host} does not exist in the DNS (NXDOMAIN)",
            "add {host} to its zone, or take it out of where it is named; look with: dig {host}",
        ),
        Failure.SERVFAIL: (
            "has no address: the resolver answers SERVFAIL for {host}",
            "mostly broken DNSSEC, which a CA refuses too; if `dig +cd {host}` answers and `dig {host}` does not, "
            "mend the zone's signatures or its DS record; look with: delv {host}",
        ),
        Failure.DNS_TIMEOUT: (
            "has no address: no resolver answered for {host} in time",
            "let the resolvers in /etc/resolv.conf and the zone's servers answer; look with: dig +trace {host}",
        ),
        Failure.DNS_FAILED: (
            "has no address: no resolver would answer for {host}",
            "name one that does in /etc/resolv.conf; look with: dig {host}",
        ),
        Failure.NO_ROUTE: (
            "cannot be asked: this machine has no route there",
            "give it one",
        ),
        Failure.REFUSED: ("refuses the connection", _LISTEN),
        Failure.UNREACHABLE: ("cannot be reached: a router or a firewall says so", _LISTEN),
        Failure.NOT_CONNECTED: ("does not take the connection in time", _LISTEN),
        Failure.SILENT: (
            "takes the connection and does not answer in time",
            "look whether the web server hangs, or its proxy line names an address where nothing answers",
        ),
        Failure.NOT_HTTP: (
            "ends the connection or answers with what is no HTTP",
            "let a web server with this name's vhost answer there",
        ),
        Failure.NOT_FOUND: (
            "answers {status}: nothing there forwards the path to the daemon, or an MDomain of mod_md, an Alias or another "
            "ACME client takes it first",
            _FORWARD,
        ),
        Failure.DENIED: (
            "answers {status}: authentication or a deny rule stands before the daemon",
            "put `Use le_proxy` last in the vhost of {host}, or `Require all granted` on "
            "/.well-known/acme-challenge/",
        ),
        Failure.NO_DAEMON: (
            "answers {status}: it forwards, but does not reach the daemon",
            "let its proxy line name an address of [http01] listen in certfan.toml, and the firewall between them let it in",
        ),
        Failure.FOREIGN: (
            "answers 200 with {length} bytes that are not ours: an Alias, an application or another ACME client takes "
            "the path",
            _FORWARD,
        ),
        Failure.TOO_LONG: (
            "answers 200 with more than 128 bytes, which is all that a CA reads: an application takes the path",
            _FORWARD,
        ),
        Failure.ODD_STATUS: (
            "answers {status}, where a CA wants 200 or follows 301, 302, 307 and 308",
            "put `Use le_proxy` into the vhost of {host}",
        ),
        Failure.LOOP: ("redirects to {location}, where this check has been: a redirect loop", _EXEMPT),
        Failure.TOO_MANY: ("redirects to {location}, the 11th redirect; a CA follows 10", _EXEMPT),
        Failure.BAD_LOCATION: ("redirects to what is no URL that a CA follows", _EXEMPT),
        Failure.NO_SLASH: (
            "redirects to {location}: a slash is missing after the host",
            "write the target of that Redirect with a slash at its end",
        ),
        Failure.BAD_SCHEME: ("redirects to {location}; a CA follows http and https only", _EXEMPT),
        Failure.BAD_PORT: ("redirects to {location}; a CA follows to ports 80 and 443 only", _EXEMPT),
        Failure.CREDENTIALS: ("redirects to {location} with a user in the URL, which no CA sends", _EXEMPT),
        Failure.BAD_ADDRESS: (
            "is where a redirect leads, and no CA can reach that (loopback, link-local or multicast)",
            "mend the address of {host}, or the redirect that names it",
        ),
        Failure.OURSELVES: (
            "is where a redirect leads, and the daemon itself listens there",
            "let the vhost forward to the daemon (`Use le_proxy`), not redirect to it",
        ),
    }
)  # fmt: skip


def _family(address: str) -> int:
    return ipaddress.ip_address(address).version


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
