"""What the tests of the store speak of: a certificate, its names, its generations."""

from datetime import UTC, datetime, timedelta

from certfan.core.model import Generation, Identifier, KeyType, Problem
from certfan.daemon.store import issued
from certfan.daemon.store.store import transaction

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
WWW = "www.example.org"
NAMES = (Identifier("www.example.org"), Identifier("192.0.2.7"))
PROBLEM = Problem("authority.refused", "no", "run: certfan check", NOW + timedelta(hours=1), "last line")

every_generation = transaction(issued.generations)  # as it stands there, past all that is kept of it


def generation(number: int, *, fingerprint: str = "aa", issued_at: datetime = NOW) -> Generation:
    return Generation(
        WWW,
        number,
        fingerprint=fingerprint,
        serial="1f",
        identifiers=frozenset(NAMES),
        key_type=KeyType.ECDSA_P256,
        authority="le",
        not_before=NOW,
        not_after=NOW + timedelta(days=90),
        issued_at=issued_at,
    )
