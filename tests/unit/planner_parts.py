"""Values that the planners' tests share."""

from datetime import UTC, datetime, timedelta

from certfan.core.model import (
    Authority,
    Certificate,
    Consumer,
    Desired,
    Endpoint,
    Generation,
    Health,
    Identifier,
    KeyType,
    Problem,
    Proof,
)
from certfan.core.plan import AskRenewal, Observed, Step, plan

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
WWW, WEB1 = "www.example.org", "web1"
PLACE = (WWW, WEB1)
PROBLEM = Problem("share.unavailable", "gone")


def make_certificate(
    name: str = WWW, names: tuple[str, ...] = (WWW,), consumers: tuple[str, ...] = (WEB1,)
) -> Certificate:
    return Certificate(name, tuple(map(Identifier, names)), consumers=consumers, authority="ca")


def make_desired(*certificates: Certificate, cap: int = 8) -> Desired:
    consumers = {name for certificate in certificates for name in certificate.consumers}
    return Desired(
        {"ca": Authority("ca", "https://ca/dir", orders_at_once=cap)},
        {certificate.name: certificate for certificate in certificates},
        {name: Consumer(name) for name in consumers},
    )


def make_generation(
    number: int = 1,
    *,
    name: str = WWW,
    names: tuple[str, ...] = (WWW,),
    issued_at: datetime = NOW,
    lifetime: timedelta = 90 * DAY,
) -> Generation:
    return Generation(
        name,
        number,
        fingerprint=f"{name}@{number}",
        serial="01",
        identifiers=frozenset(map(Identifier, names)),
        key_type=KeyType.ECDSA_P256,
        authority="ca",
        not_before=issued_at,
        not_after=issued_at + lifetime,
        issued_at=issued_at,
    )


def steps_of(desired: Desired, observed: Observed, now: datetime) -> tuple[Step, ...]:
    """Return what is planned, but for the questions when to renew, which are always due in a world without answers."""
    return tuple(step for step in plan(desired, observed, now).steps if not isinstance(step, AskRenewal))


HTTPS = Endpoint("apache2", "tls", "192.0.2.1", 443, WWW)
SMTP = Endpoint("postfix", "smtp", "192.0.2.1", 25, WWW)


def make_proof(endpoint: Endpoint = HTTPS, fingerprint: str = "", *, at: datetime = NOW) -> Proof:
    """Return a proof that shows `fingerprint`; without one the endpoint refused."""
    health = Health.SERVED if fingerprint else Health.REFUSED
    return Proof(endpoint, health, at, fingerprint=fingerprint, placeholder=fingerprint == "placeholder")
