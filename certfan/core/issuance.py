"""An RFC 8555 order as a machine: what was seen and the instant in, one move out.

The `...Seen` values are what an authority answered, already parsed and checked by its edge. The caller makes one
move, records what came of it, and asks again; right after a restart it has seen nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias, assert_never

from certfan.core.model import Attempt, Identifier, Problem


class OrderStatus(StrEnum):
    """RFC 8555 section 7.1.6."""

    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


class AuthorizationStatus(StrEnum):
    """RFC 8555 section 7.1.6."""

    PENDING = "pending"
    VALID = "valid"
    INVALID = "invalid"
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ChallengeStatus(StrEnum):
    """RFC 8555 section 7.1.6."""

    PENDING = "pending"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class ChallengeSeen:
    """One challenge of an authorization; `token` matches `[A-Za-z0-9_-]+` or the edge has refused it."""

    kind: str  # http-01, dns-01, ...
    url: str
    status: ChallengeStatus
    token: str
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class AuthorizationSeen:
    """One authorization as the authority last showed it."""

    url: str
    status: AuthorizationStatus
    identifier: Identifier
    challenges: tuple[ChallengeSeen, ...]
    wildcard: bool = field(default=False, kw_only=True)
    expires: datetime | None = field(default=None, kw_only=True)
    retry_after: timedelta | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class OrderSeen:
    """One order as the authority last showed it."""

    url: str
    status: OrderStatus
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str | None = field(default=None, kw_only=True)
    expires: datetime | None = field(default=None, kw_only=True)
    problem: Problem | None = field(default=None, kw_only=True)
    retry_after: timedelta | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Issuance:
    """What the store remembers of one try to get one generation; survives the process.

    `order_url` is None from the intent until the answer to newOrder was recorded. `answered` holds the URLs of
    challenges that the authority was told to try; one is recorded after its answer, so that a lost one is repeated.
    """

    certificate: str
    generation: int
    authority: str
    identifiers: tuple[Identifier, ...]
    begun_at: datetime
    order_url: str | None = None
    answered: frozenset[str] = frozenset()
    replaces: str | None = field(
        default=None, kw_only=True
    )  # certID of the predecessor (RFC 9773 section 4.1)
    exempt: bool = field(default=False, kw_only=True)  # a renewal that the authority itself suggested


SOONEST = timedelta(milliseconds=4)
SHORTEST_WAIT = timedelta(seconds=1)
LONGEST_OWN_WAIT = timedelta(seconds=15)
LONGEST_WAIT = timedelta(minutes=5)  # what a Retry-After is clamped to


@dataclass(frozen=True, slots=True)
class NewOrder:
    """Ask for an order and record its URL before anything else is asked."""


@dataclass(frozen=True, slots=True)
class LookAtOrder:
    """Ask how the order stands."""

    url: str


@dataclass(frozen=True, slots=True)
class LookAtAuthorization:
    """Ask how one authorization stands."""

    url: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Make the key authorization visible, then tell the authority to try this challenge."""

    authorization_url: str
    challenge: ChallengeSeen


@dataclass(frozen=True, slots=True)
class Wait:
    """Look at the order again then; earlier only when the authority was seen to fetch the token."""

    until: datetime


@dataclass(frozen=True, slots=True)
class Finalize:
    """Send the CSR."""

    url: str


@dataclass(frozen=True, slots=True)
class Download:
    """Get the chain."""

    url: str


@dataclass(frozen=True, slots=True)
class StartOver:
    """Forget the order, keep the key; a failed attempt. The caller does so too when the authority has lost the order."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Forget the order; a failed attempt. The problem names the identifier."""

    problem: Problem


Move: TypeAlias = (
    NewOrder | LookAtOrder | LookAtAuthorization | Answer | Wait | Finalize | Download | StartOver | GiveUp
)


def next_move(
    issuance: Issuance,
    order: OrderSeen | None,
    authorizations: Mapping[str, AuthorizationSeen],
    now: datetime,
    *,
    supported: Collection[str] = ("http-01",),
) -> Move:
    """Return the one thing to do next for an order.

    After a `Wait` the order counts as not seen (None). `authorizations` are those seen under the order's
    present status, by URL: `kept` says which.
    """
    if issuance.order_url is None:
        return NewOrder()
    if order is None:
        return LookAtOrder(issuance.order_url)
    if order.expires is not None and order.expires <= now and order.status is not OrderStatus.VALID:
        return StartOver(_problem(issuance, "its order has expired"))
    match order.status:
        case OrderStatus.PENDING:
            return _move_pending(issuance, order, authorizations, now, supported)
        case OrderStatus.READY:
            return Finalize(order.finalize)
        case OrderStatus.PROCESSING:
            return _wait(issuance, order, now)
        case OrderStatus.VALID:
            return Download(order.certificate) if order.certificate else _wait(issuance, order, now)
        case OrderStatus.INVALID:
            return _move_invalid(issuance, order, authorizations)
        case _:
            assert_never(order.status)


def kept(
    before: OrderSeen | None, after: OrderSeen, authorizations: Mapping[str, AuthorizationSeen]
) -> Mapping[str, AuthorizationSeen]:
    """Return which seen authorizations still tell something after another look at their order."""
    return authorizations if before is None or before.status is after.status else {}


def is_spoilt(issuance: Issuance, before: Attempt | None, problem: Problem) -> bool:
    """Whether what an order led to is refused again: it stays what it is, so only another order can help.

    The first time it may be our clock or our roots, or an answer that got lost, and the order is worth keeping.
    """
    return before is not None and before.at >= issuance.begun_at and before.problem.code == problem.code


def _move_pending(
    issuance: Issuance,
    order: OrderSeen,
    authorizations: Mapping[str, AuthorizationSeen],
    now: datetime,
    supported: Collection[str],
) -> Move:
    """Answer one authorization after the other; wait when all are answered."""
    for url in order.authorizations:
        move = _move_authorization(issuance, url, authorizations.get(url), supported)
        if move is not None:
            return move
    return _wait(issuance, order, now)


def _move_authorization(
    issuance: Issuance, url: str, seen: AuthorizationSeen | None, supported: Collection[str]
) -> Move | None:
    """Return what one authorization needs; None when it is valid or on its way."""
    if seen is None:
        return LookAtAuthorization(url)
    match seen.status:
        case AuthorizationStatus.VALID:
            return None
        case AuthorizationStatus.PENDING:
            return _answer(issuance, seen, supported)
        case AuthorizationStatus.INVALID:
            return GiveUp(_refusal(issuance, seen))
        case AuthorizationStatus.DEACTIVATED | AuthorizationStatus.EXPIRED | AuthorizationStatus.REVOKED:
            return StartOver(_problem(issuance, f"the authorization of {seen.identifier} is {seen.status}"))
        case _:
            assert_never(seen.status)


def _answer(issuance: Issuance, seen: AuthorizationSeen, supported: Collection[str]) -> Move | None:
    """Answer the first challenge we can, once."""
    ours = next((c for kind in supported for c in seen.challenges if c.kind == kind), None)
    if ours is None:
        offered = ", ".join(sorted(c.kind for c in seen.challenges)) or "nothing"
        text = f"the authority offers {offered} for {seen.identifier}, none of which is set up"
        return GiveUp(_problem(issuance, text, hint="a wildcard needs dns-01"))
    if ours.status is ChallengeStatus.INVALID:
        return GiveUp(_refusal(issuance, seen))
    is_new = ours.status is ChallengeStatus.PENDING and ours.url not in issuance.answered
    return Answer(seen.url, ours) if is_new else None


def _move_invalid(
    issuance: Issuance, order: OrderSeen, authorizations: Mapping[str, AuthorizationSeen]
) -> Move:
    """Find the identifier that an order became invalid by; without one another order may do better."""
    seen = [authorizations[url] for url in order.authorizations if url in authorizations]
    refused = next((one for one in seen if one.status is AuthorizationStatus.INVALID), None)
    if refused is not None:
        return GiveUp(_refusal(issuance, refused))
    unseen = next((url for url in order.authorizations if url not in authorizations), None)
    if unseen is not None:
        return LookAtAuthorization(unseen)
    return StartOver(order.problem or _problem(issuance, "the authority has made its order invalid"))


def _wait(issuance: Issuance, order: OrderSeen, now: datetime) -> Wait:
    """Obey a Retry-After within bounds; without one ask rarer as the order grows old.

    Nobody tells us when what the authority does by itself is done, so that is looked at soon, after a tenth of the
    order's age; while it validates its fetches tell us, and a second is the least.
    """
    soon = max((now - issuance.begun_at) / 10, SOONEST)
    if order.retry_after is not None:
        return Wait(now + min(max(order.retry_after, min(soon, SHORTEST_WAIT)), LONGEST_WAIT))
    if order.status is OrderStatus.PENDING:
        soon = max(soon, SHORTEST_WAIT)
    return Wait(now + min(soon, LONGEST_OWN_WAIT))


def _refusal(issuance: Issuance, seen: AuthorizationSeen) -> Problem:
    """Return the challenge's own problem, told with the identifier it is about."""
    found = next((c.problem for c in seen.challenges if c.problem is not None), None)
    detail = found.detail if found is not None else "the authority gives no reason"
    return Problem(
        "challenge.failed",
        f"{issuance.certificate}: {seen.identifier}: {detail}",
        hint=_look_hint(issuance, seen, found.hint if found is not None else ""),
        not_before=found.not_before if found is not None else None,
    )


def _look_hint(issuance: Issuance, seen: AuthorizationSeen, authoritys: str) -> str:
    host = f"[{seen.identifier}]" if ":" in seen.identifier.value else seen.identifier.value
    what = authoritys or "let the vhost forward /.well-known/acme-challenge/ to the daemon on every address"
    url = f"http://{host}/.well-known/acme-challenge/"
    return f"{what}; look with: curl -v {url} , then run: certfan renew {issuance.certificate}"


def _problem(issuance: Issuance, text: str, *, hint: str = "") -> Problem:
    return Problem("authority.refused", f"{issuance.certificate}: {text}", hint=hint)
