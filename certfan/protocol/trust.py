"""Which CAs the machines of a fleet are to believe, as the daemon says and root verifies: signed by a CA believed before."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from certfan import pki
from certfan.errors import ChainInvalid, MessageInvalid, NotAllowed

HEADER = "Certfan-Trust"  # of a request: what is pinned; of an answer: what is to be pinned. Numbers; without one: 0
MAX_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class TrustStatement:
    """A fleet's CAs (PEM), the newest last; of two statements the one with the higher number counts."""

    fleet: str
    number: int
    ca: str

    def sign(self, ca: pki.InternalCA) -> bytes:
        """Return it as it travels: one line of JSON, signed by a CA."""
        body = json.dumps({"fleet": self.fleet, "number": self.number, "ca": self.ca}, sort_keys=True)
        signature = base64.b64encode(pki.sign_trust(ca, body.encode())).decode("ascii")
        return json.dumps({"body": body, "signature": signature}).encode() + b"\n"


def open_statement(data: bytes, *, ca_pem: bytes, fleet: str, number: int) -> TrustStatement:
    """Read a statement if a CA that is pinned has signed it and it is newer than what is pinned.

    Raises:
        SignatureInvalid: it is not signed by one. Nothing of it was parsed before.
        NotAllowed: it is older, or another fleet's.
        MessageInvalid: it is no statement.
    """
    try:
        told = json.loads(data[:MAX_BYTES])
        body, signature = told["body"].encode(), base64.b64decode(told["signature"], validate=True)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError) as error:
        raise MessageInvalid("that is no statement of trust") from error
    pki.verify_trust(body, signature, ca_pem=ca_pem)
    try:
        found = TrustStatement(**json.loads(body))
        anchors = pki.anchors(found.ca.encode("ascii"))
    except (ValueError, TypeError, AttributeError, ChainInvalid) as error:
        raise MessageInvalid("what is to be believed does not parse") from error
    if found.fleet != fleet or pki.fleet_of(anchors[0]) != fleet:
        raise NotAllowed(f"what is to be believed is of fleet {found.fleet}, not {fleet}", subject=fleet)
    if type(found.number) is not int or found.number <= number:
        raise NotAllowed(
            f"what is to be believed is number {found.number}, and {number} is pinned here", subject=fleet
        )
    return found
