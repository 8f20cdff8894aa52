"""What a config asks for, as JSON and back: so that a plan can be asked for of a config that is in force nowhere."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from certfan.core.model import Authority, Certificate, Consumer, Desired
from certfan.errors import MessageInvalid

_AUTHORITIES = TypeAdapter(dict[str, Authority])
_CERTIFICATES = TypeAdapter(dict[str, Certificate])
_CONSUMERS = TypeAdapter(dict[str, Consumer])


def as_wire(desired: Desired) -> dict[str, Any]:
    """Return it as JSON can say it; `from_wire` makes the same value of that again."""
    return {
        "authorities": _AUTHORITIES.dump_python(dict(desired.authorities), mode="json"),
        "certificates": _CERTIFICATES.dump_python(dict(desired.certificates), mode="json"),
        "consumers": _CONSUMERS.dump_python(dict(desired.consumers), mode="json"),
    }


def from_wire(told: Any) -> Desired:
    """Return what a config asks for; what it names must be in it.

    Raises:
        MessageInvalid: it is not of that form, or a certificate names an authority or consumer that is missing.
    """
    match told:
        case {"authorities": authorities, "certificates": certificates, "consumers": consumers, **rest} if (
            not rest
        ):
            pass
        case _:
            raise MessageInvalid("a config must be an object of authorities, certificates and consumers")
    try:
        found = Desired(
            _AUTHORITIES.validate_python(authorities),
            _CERTIFICATES.validate_python(certificates),
            _CONSUMERS.validate_python(consumers),
        )
    except ValidationError as error:
        raise MessageInvalid(f"that is no config: {error.errors()[0]['msg']}") from error
    for one in found.certificates.values():
        if one.authority not in found.authorities or not set(one.consumers) <= found.consumers.keys():
            raise MessageInvalid(f"{one.name} names an authority or consumer that is not in the config")
    return found
