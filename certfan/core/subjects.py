"""What a failed attempt is filed under. None of these can be mistaken for a certificate's name, which has no space.

An order at the certificate's own authority is filed under the bare name, what concerns one consumer of it under
`NAME/CONSUMER`.
"""

from __future__ import annotations

from certfan.core.model import Certificate, Desired
from certfan.core.steps import (
    AskRenewal,
    CheckPath,
    Forget,
    ForgetConsumer,
    GiveUpOrder,
    Issue,
    Revoke,
    RollAccountKey,
    RollBack,
    Step,
    TidyOrders,
)


def subject_of(step: Step, desired: Desired) -> str:
    """Return what the failure of a step is filed under."""
    match step:
        case Issue(name, authority=authority):
            wanted = desired.certificates.get(name)
            return order_subject(wanted, authority) if wanted else name
        case RollBack(name) | Forget(name) | GiveUpOrder(name):
            return name
        case ForgetConsumer(consumer):
            return consumer_subject(consumer)
        case AskRenewal(name):
            return renewal_subject(name)
        case Revoke(name, number):
            return revocation_subject(name, number)
        case TidyOrders(authority):
            return tidy_subject(authority)
        case RollAccountKey(authority):
            return rollover_subject(authority)
        case CheckPath(identifier):
            return path_subject(identifier)
        case _:
            return f"{step.certificate}/{step.consumer}"


def order_subject(certificate: Certificate, authority: str) -> str:
    """An order at the config's authority, or at a fallback."""
    return certificate.name if authority == certificate.authority else f"{certificate.name} at {authority}"


def consumer_subject(consumer: str) -> str:
    """A whole consumer."""
    return f"consumer {consumer}"


def renewal_subject(certificate: str) -> str:
    """Asking when the authority wants it renewed."""
    return f"renewal of {certificate}"


def revocation_subject(certificate: str, generation: int) -> str:
    """The revocation of one generation."""
    return f"revocation of {certificate}@{generation}"


def tidy_subject(authority: str) -> str:
    """What orders that were given up left behind at an authority."""
    return f"leftovers at {authority}"


def rollover_subject(authority: str) -> str:
    """The new key of our account at an authority."""
    return f"account at {authority}"


def path_subject(identifier: str) -> str:
    """Our own look at the way of a challenge."""
    return f"path of {identifier}"
