"""What the faulty authority can be told to do wrong, as small values, and which exchange is told so.

A fault of the wire changes one exchange: what is answered, or that nothing is. A fault of the issuing changes what
becomes of an order. An exchange meets at most one of each, the one added first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import UnionType

from tests.lab.faulty.answers import Answer, problem, subproblem


class Kind(StrEnum):
    """What an exchange is about; RFC 8555 section 7.1.1's words for what the directory names."""

    DIRECTORY = "directory"
    NEW_NONCE = "newNonce"
    NEW_ACCOUNT = "newAccount"
    ACCOUNT = "account"  # a look, an update, a deactivation
    KEY_CHANGE = "keyChange"
    NEW_ORDER = "newOrder"
    ORDER = "order"
    AUTHORIZATION = "authorization"  # a look, a deactivation
    CHALLENGE = "challenge"  # a look, an answer
    FINALIZE = "finalize"
    CERTIFICATE = "certificate"
    REVOKE_CERT = "revokeCert"
    RENEWAL_INFO = "renewalInfo"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Instead:
    """The request is not processed; this is the answer."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Afterwards:
    """The request is processed; its answer is changed."""

    change: Callable[[Answer], Answer]


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer ever comes; `processed` says whether the request was heard."""

    processed: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset, before or after the request was processed."""

    processed: bool = False


@dataclass(frozen=True, slots=True)
class Drip:
    """The request is processed, and its answer comes byte by byte, with a pause in seconds between them."""

    pause: float = 0.5


@dataclass(frozen=True, slots=True)
class Stuck:
    """At `challenge`: never validated. At `finalize`: processing for ever."""


@dataclass(frozen=True, slots=True)
class Spoil:
    """At `challenge`: invalid without a fetch. At `finalize`: the order turns invalid once processed."""

    kind: str = "serverInternal"
    detail: str = "told so by the test"


@dataclass(frozen=True, slots=True)
class Turn:
    """At a look at an `order` or an `authorization`: it has this status now (`expired` of an order is its instant)."""

    status: str


class Misissue(StrEnum):
    """At `finalize`: what is wrong with the chain."""

    TRUNCATED = "truncated"  # the last certificate is cut off in its middle
    LEAF_ONLY = "leaf only"
    OTHER_KEY = "other key"
    OTHER_NAMES = "other names"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    FOREIGN_ISSUER = "foreign issuer"  # the leaf is not signed by the next of its chain
    HTML = "html"


Wire = Instead | Afterwards | Hang | Reset | Drip
Issuing = Stuck | Spoil | Turn | Misissue


@dataclass(slots=True)
class Fault:
    """What goes wrong at exchanges of one kind (None: all); `name` narrows it to those about that domain name.

    The first `skip` exchanges go well, the next `left` do not (None: all of them); `hits` counts those.
    """

    kind: Kind | None
    what: Wire | Issuing
    name: str | None = field(default=None, kw_only=True)
    skip: int = field(default=0, kw_only=True)
    left: int | None = field(default=None, kw_only=True)
    hits: int = field(default=0, kw_only=True)

    def _takes(self, kind: Kind, names: Iterable[str]) -> bool:
        if self.left == 0 or self.kind not in {None, kind} or (self.name and self.name not in names):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.left = None if self.left is None else self.left - 1
        self.hits += 1
        return True


class Faults:
    """All that was told; tests add from any thread."""

    def __init__(self) -> None:
        self._told: list[Fault] = []

    def add(
        self, kind: str | None, what: Wire | Issuing, *, name: str | None = None, times: int | None = None, skip: int = 0
    ) -> Fault:  # fmt: skip
        """Have something go wrong from now on; `times` None means until `clear`."""
        fault = Fault(Kind(kind) if kind else None, what, name=name, skip=skip, left=times)
        self._told.append(fault)
        return fault

    def clear(self) -> None:
        """Mend everything."""
        self._told.clear()

    def wire(self, kind: Kind, names: Iterable[str]) -> Wire | None:
        """Return what is wrong with this exchange, and count it as done."""
        return self._first(Wire, kind, names)  # type: ignore[return-value]

    def issuing(self, kind: Kind, names: Iterable[str]) -> Issuing | None:
        """Return what is to become of what this exchange is about, and count it as done."""
        return self._first(Issuing, kind, names)  # type: ignore[return-value]

    def _first(self, sort: UnionType, kind: Kind, names: Iterable[str]) -> object:
        told = [fault for fault in self._told if isinstance(fault.what, sort)]
        return next((fault.what for fault in told if fault._takes(kind, names)), None)


# Words for what tests often want.


def rate_limited(retry_after: int | str | None = 60) -> Instead:
    """Too many; `retry_after` in seconds or as an HTTP date."""
    return Instead(problem("rateLimited", 429, "too many new orders", retry_after=retry_after))


def paused(url: str, name: str) -> Instead:
    """An account paused for a name, as Boulder says it: the unpause URL stands in the text."""
    detail = (
        f"Your account is temporarily prevented from requesting certificates for {name}. Please visit: {url}"
    )
    return Instead(problem("rateLimited", 429, detail))


def unavailable(retry_after: int | None = None) -> Instead:
    """HTTP 503 by a load balancer: no problem document."""
    wait = None if retry_after is None else str(retry_after)
    return Instead(html("503 Service Unavailable", 503).adding(Retry_After=wait))


def rejected(name: str, kind: str = "rejectedIdentifier") -> Instead:
    """One name refused, in a subproblem."""
    nested = subproblem(kind, "policy forbids it", name)
    return Instead(problem(kind, 400, "cannot issue", subproblems=[nested]))


def html(text: str = "please log in", status: int = 200) -> Answer:
    """A web page."""
    return Answer(status, f"<html><h1>{text}</h1></html>".encode(), "text/html")


def too_long() -> Answer:
    """A body of more than 1 MiB."""
    return Answer(200, b" " * (1024 * 1024 + 1), "application/json")


def redirect(url: str) -> Answer:
    """A redirect, which no client of an ACME API should follow."""
    return Answer(307).adding(Location=url)


def foreign(origin: str, other: str = "https://evil.example") -> Afterwards:
    """Every URL of the answer has another origin than the authority's."""

    def change(answer: Answer) -> Answer:
        headers = tuple((name, value.replace(origin, other)) for name, value in answer.headers)
        return replace(answer, body=answer.body.replace(origin.encode(), other.encode()), headers=headers)

    return Afterwards(change)
