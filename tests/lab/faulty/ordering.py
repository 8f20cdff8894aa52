"""Orders, authorizations and challenges (RFC 8555 sections 7.4 and 7.5), with profiles and `replaces`."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.lab.faulty import signing
from tests.lab.faulty.answers import Answer, document, json_answer, refused, subproblem
from tests.lab.faulty.faults import Faults, Kind, Misissue, Spoil, Stuck, Turn
from tests.lab.faulty.issuing import Issuer, load_request
from tests.lab.faulty.records import Account, Authorization, Behaviour, Challenge, Name, Order, Records, now

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"(\*\.)?({_LABEL}\.)+{_LABEL}")


@dataclass(slots=True)
class Ordering:
    """What can be done with orders; `validate` starts the validation of a challenge."""

    origin: str
    records: Records
    behaviour: Behaviour
    faults: Faults
    issuer: Issuer
    validate: Callable[[Account, Authorization, Challenge], None]
    numbers: count[int]

    def new(self, account: Account, jws: signing.Jws) -> Answer:
        """Make an order, or answer with a live one for the same names."""
        asked = jws.fields
        identifiers = tuple(sorted(_identifier(one) for one in asked.get("identifiers", [])))
        profile = self._profile(asked.get("profile"), identifiers)
        self._check_policy(identifiers)
        if (replaces := asked.get("replaces")) is not None:
            self._check_replaces(account, replaces, identifiers)
        order = self._live(account, identifiers, profile) or Order(
            url=f"{self.origin}/order/{next(self.numbers)}",
            account=account.url,
            identifiers=identifiers,
            profile=profile,
            replaces=replaces,
            expires=now() + self.behaviour.order_life,
            authorizations=[self._authorization(account, one) for one in identifiers],
        )
        self.records.orders[order.url] = order
        self.records.settle([order])
        return self._shown(order, 201).adding(Location=order.url)

    def look(self, order: Order) -> Answer:
        """Look at an order, which is how time passes for one that is processing."""
        match self.faults.issuing(Kind.ORDER, order.names):
            case Turn("expired"):
                order.expires = now() - self.behaviour.order_life
            case Turn(status):
                order.status = status
        self.records.settle([order])
        if order.status == "processing" and order.looks is not None:
            if order.looks == 0:
                order.status = "invalid" if order.error else "valid"
            order.looks -= 1
        return self._shown(order)

    def look_at_authorization(self, authorization: Authorization, jws: signing.Jws) -> Answer:
        """Look, or deactivate (section 7.5.2)."""
        match self.faults.issuing(Kind.AUTHORIZATION, [authorization.identifier[1]]):
            case Turn(status):
                authorization.status = status
        if jws.payload and jws.fields.get("status") == "deactivated":
            if authorization.status not in {"pending", "valid"}:
                raise refused("malformed", detail=f"it is {authorization.status}")
            authorization.status = "deactivated"
        if authorization.status in {"pending", "valid"} and authorization.expires <= now():
            authorization.status = "expired"
        self.records.settle(self.records.orders_with(authorization))
        return self._shown_authorization(authorization)

    def answer(
        self, account: Account, authorization: Authorization, challenge: Challenge, jws: signing.Jws
    ) -> Answer:
        """Start a validation, unless it was only a look or runs already."""
        if jws.payload and challenge.status == "pending" and authorization.status == "pending":
            challenge.status = "processing"
            match self.faults.issuing(Kind.CHALLENGE, [authorization.identifier[1]]):
                case Stuck():
                    pass
                case Spoil(kind, detail):
                    self.conclude(authorization, challenge, document(kind, detail))
                case _:
                    self.validate(account, authorization, challenge)
        return self._delayed(
            json_answer(_shown_challenge(challenge)), challenge.status == "processing"
        ).adding(Link=f'<{authorization.url}>;rel="up"')

    def conclude(
        self, authorization: Authorization, challenge: Challenge, wrong: dict[str, Any] | None
    ) -> None:
        """Record what a validation came to."""
        challenge.status = "invalid" if wrong else "valid"
        challenge.error = wrong
        if authorization.status == "pending":
            authorization.status = challenge.status
            if not wrong:
                authorization.expires = now() + self.behaviour.authorization_life
        self.records.settle(self.records.orders_with(authorization))

    def finalize(self, order: Order, jws: signing.Jws) -> Answer:
        """Issue for a ready order, and say `processing` as long as was asked for."""
        self.records.settle([order])
        if order.status != "ready":
            raise refused("orderNotReady", 403, f"the order is {order.status}")
        try:
            csr = load_request(signing.decoded(jws.fields["csr"]), order.names)
        except (KeyError, ValueError, TypeError):
            raise refused("badCSR", detail="there is no csr") from None
        if signing.spki(csr.public_key()) == signing.spki(signing.public_key(self._jwk(order))):
            raise refused("badCSR", detail="the key is that of the account")
        order.status, order.looks = "processing", self.behaviour.processing
        match self.faults.issuing(Kind.FINALIZE, order.names):
            case Stuck():
                order.looks = None
            case Spoil(kind, detail):
                order.error = document(kind, detail)
            case wrong:
                self._issue(order, csr, wrong if isinstance(wrong, Misissue) else None)
        if order.looks == 0:
            order.status = "invalid" if order.error else "valid"
        return self._shown(order).adding(Location=order.url)

    def _issue(self, order: Order, csr: Any, wrong: Misissue | None) -> None:
        profile = self.behaviour.profiles.get(order.profile or "")
        validity = (profile or next(iter(self.behaviour.profiles.values()))).validity
        url = f"{self.origin}/certificate/{next(self.numbers)}"
        order.certificate = self.issuer.issue(order, csr, url, validity, wrong)
        self.records.certificates[url] = order.certificate

    def _jwk(self, order: Order) -> dict[str, Any]:
        return self.records.accounts[order.account].jwk

    def _live(self, account: Account, identifiers: tuple[Name, ...], profile: str | None) -> Order | None:
        if not self.behaviour.reuse_orders:
            return None
        self.records.settle(self.records.orders.values())
        wanted = (account.url, identifiers, profile)
        return next(
            (
                order
                for order in self.records.orders.values()
                if (order.account, order.identifiers, order.profile) == wanted
                and order.status in {"pending", "ready"}
            ),
            None,
        )

    def _authorization(self, account: Account, identifier: Name) -> Authorization:
        kind, value = identifier
        for known in self.records.authorizations.values() if self.behaviour.reuse_authorizations else ():
            same = (known.account, known.identifier, known.wildcard) == (account.url, (kind, value), False)
            if same and known.status == "valid" and known.expires > now():
                return known
        number = next(self.numbers)
        wildcard = value.startswith("*.")
        offered = (
            ["dns-01"] if wildcard else ["http-01", "tls-alpn-01", *(["dns-01"] if kind == "dns" else [])]
        )
        authorization = Authorization(
            url=f"{self.origin}/authorization/{number}",
            account=account.url,
            identifier=(kind, value.removeprefix("*.")),
            expires=now() + self.behaviour.order_life,
            wildcard=wildcard,
            challenges=[
                Challenge(
                    kind=one,
                    url=f"{self.origin}/challenge/{number}/{one}",
                    token=secrets.token_urlsafe(32),
                )
                for one in offered
            ],
        )
        self.records.authorizations[authorization.url] = authorization
        return authorization

    def _profile(self, asked: Any, identifiers: tuple[Name, ...]) -> str | None:
        profiles = self.behaviour.profiles
        if asked is not None and asked not in profiles:
            raise refused("invalidProfile", detail=f"no profile {asked!r:.80}")
        profile = profiles[asked] if asked else next(iter(profiles.values()))
        if len(identifiers) > profile.most_names:
            raise refused("rejectedIdentifier", detail=f"more than {profile.most_names} names")
        if not profile.addresses and any(kind == "ip" for kind, _ in identifiers):
            raise refused("rejectedIdentifier", detail="the profile allows no IP addresses")
        return asked

    def _check_policy(self, identifiers: tuple[Name, ...]) -> None:
        if not identifiers or len(set(identifiers)) != len(identifiers):
            raise refused("malformed", detail="no identifiers, or one of them twice")
        nested = [
            subproblem("rejectedIdentifier", "it is blocked", value)
            for _, value in identifiers
            if any(value == one or value.endswith(f".{one}") for one in self.behaviour.blocked)
        ]
        if nested:
            raise refused("rejectedIdentifier", 400, "policy forbids a name", subproblems=nested)

    def _check_replaces(self, account: Account, replaces: Any, identifiers: tuple[Name, ...]) -> None:
        known = self.records.by_cert_id(replaces)
        if known is None or known.account != account.url:
            raise refused("malformed", 404, "no such certificate of this account")
        if not {value for _, value in identifiers} & set(known.names):
            raise refused("malformed", detail="the certificate shares no name with the order")
        self.records.settle(self.records.orders.values())
        if self.records.replacement_of(replaces):
            raise refused("alreadyReplaced", 409, "an order replaces that certificate already")

    def _shown(self, order: Order, status: int = 200) -> Answer:
        fields = {
            "status": order.status,
            "expires": f"{order.expires:%Y-%m-%dT%H:%M:%SZ}",
            "identifiers": [{"type": kind, "value": value} for kind, value in order.identifiers],
            "profile": order.profile,
            "replaces": order.replaces,
            "authorizations": [one.url for one in order.authorizations],
            "finalize": f"{order.url}/finalize",
            "certificate": order.certificate.url if order.certificate and order.status == "valid" else None,
            "error": order.error if order.status == "invalid" else None,
        }
        return self._delayed(json_answer(fields, status), order.status == "processing")

    def _shown_authorization(self, authorization: Authorization) -> Answer:
        kind, value = authorization.identifier
        fields = {
            "status": authorization.status,
            "identifier": {"type": kind, "value": value},
            "expires": f"{authorization.expires:%Y-%m-%dT%H:%M:%SZ}",
            "wildcard": authorization.wildcard or None,
            "challenges": [_shown_challenge(one) for one in authorization.challenges],
        }
        return self._delayed(json_answer(fields), authorization.status == "pending")

    def _delayed(self, answer: Answer, pending: bool) -> Answer:
        wait = self.behaviour.retry_after
        return answer.adding(Retry_After=str(wait)) if pending and wait is not None else answer


def _shown_challenge(challenge: Challenge) -> dict[str, Any]:
    fields = {
        "type": challenge.kind,
        "url": challenge.url,
        "status": challenge.status,
        "token": challenge.token,
        "error": challenge.error,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _identifier(found: Any) -> Name:
    match found:
        case {"type": "dns", "value": str(value)} if _DNS_NAME.fullmatch(value):
            return "dns", value
        case {"type": "ip", "value": str(value)} if _canonical(value):
            return "ip", value
        case {"type": "dns" | "ip", "value": value}:
            raise refused("malformed", detail=f"{value!r:.80} is no such identifier")
    raise refused("unsupportedIdentifier", detail=f"{found!r:.80}")


def _canonical(value: str) -> bool:
    try:
        return str(ipaddress.ip_address(value)) == value
    except ValueError:
        return False
