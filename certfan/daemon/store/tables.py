"""The tables, in types that SQLite and PostgreSQL share. A change here needs a migration beside it.

No column may ever hold a private key.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.types import UserDefinedType


class Instant(UserDefinedType[datetime]):
    """An aware datetime, stored as UTC without a zone; a naive one is refused.

    The same text as of SQLAlchemy's DateTime, in half the time: an order writes a dozen.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Name the column's type."""
        return "TIMESTAMP"

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], str | None]:
        """Take the zone off on the way in."""
        return _without_zone

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[str | datetime | None], datetime | None]:
        """Put it back on the way out."""
        return _with_zone


def _without_zone(at: datetime | None) -> str | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise ValueError(f"{at} has no time zone")
    return at.astimezone(UTC).isoformat(" ", "microseconds").removesuffix("+00:00")


def _with_zone(held: str | datetime | None) -> datetime | None:
    if held is None:
        return None
    at = datetime.fromisoformat(held) if isinstance(held, str) else held  # SQLite has no type for it
    return at.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _table(name: str, *columns: Any) -> Table:
    return Table(name, metadata, *columns)


def _required(name: str, kind: Any, *more: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *more, nullable=False, **options)


def _key(name: str, kind: Any, *more: Any) -> Column[Any]:
    return Column(name, kind, *more, primary_key=True, autoincrement=False)


def _number(name: str) -> Column[Any]:
    return Column(name, Integer, primary_key=True, autoincrement=True)


runs = _table(
    "runs",
    _number("number"),
    _required("boot_id", String),
    _required("pid", Integer),
    _required("epoch", String),
    _required("remembered_until", Instant),
    _required("began_at", Instant),
    Column("ended_at", Instant),
    Column("booted_for", Integer),
)

accounts = _table(
    "accounts",
    _key("authority", String),
    _key("directory", String),
    _required("uri", String),
    _required("thumbprint", String),
    _required("recorded_at", Instant),
    Column("contact", JSON(none_as_null=True)),  # what it was told last; NULL: 0.1.0 did not remember
)

# One open row (closed_at is NULL) a certificate at most. A try that was given up may be made again under its number.
issuances = _table(
    "issuances",
    _number("id"),
    _required("certificate", String),
    _required("generation", Integer),
    _required("authority", String),
    _required("identifiers", JSON),
    _required("begun_at", Instant),
    Column("order_url", String),
    Column("replaces", String),
    _required("exempt", Boolean, server_default=false()),
    Column("closed_at", Instant),
    Column("problem", JSON(none_as_null=True)),
    Index(None, "certificate"),
)

orders = _table(
    "orders",
    _key("url", String),
    _required("certificate", String),
    _required("generation", Integer),
    _required("recorded_at", Instant),
)

answered = _table(
    "answered",
    _key("issuance", Integer, ForeignKey("issuances.id")),
    _key("challenge_url", String),
)

# An authority may show one pending authorization, and so one token, to the orders of two certificates.
tokens = _table(
    "tokens",
    _key("token", String),
    _key("certificate", String),
    _required("key_authorization", String),
    _required("identifier", String),
    _required("recorded_at", Instant),
)

generations = _table(
    "generations",
    _key("certificate", String),
    _key("number", Integer),
    _required("fingerprint", String),
    _required("serial", String),
    _required("identifiers", JSON),
    _required("key_type", String),
    _required("authority", String),
    _required("not_before", Instant),
    _required("not_after", Instant),
    _required("issued_at", Instant),
    Column("copy_of", Integer),
    Column("revoked_at", Instant),
    _required("key", String, server_default=""),
    _required("holder", String, server_default=""),
)

# What a consumer was asked to sign with a key of its own, and its answer; a row goes when there is a generation.
signing_requests = _table(
    "signing_requests",
    _key("certificate", String),
    _required("consumer", String),
    _required("generation", Integer),
    _required("identifiers", JSON),
    _required("key_type", String),
    _required("key", String),
    _required("asked_at", Instant),
    Column("csr", LargeBinary),  # DER
    Column("problem", JSON(none_as_null=True)),
)

# Which generations are to be revoked; a row goes when it is done.
revocations = _table(
    "revocations",
    _key("certificate", String),
    _key("generation", Integer),
    _required("reason", String),
    _required("at_once", Boolean),
    _required("asked_at", Instant),
)

# Of the newest generation that was asked about.
renewal_infos = _table(
    "renewal_infos",
    _key("certificate", String),
    _required("number", Integer),
    _required("window_start", Instant),
    _required("window_end", Instant),
    _required("chosen", Instant),
    _required("ask_again_at", Instant),
    _required("explanation_url", String),
)

attempts = _table(
    "attempts",
    _key("subject", String),
    _required("problem", JSON),
    _required("failures", Integer),
    _required("at", Instant),
    _required("not_before", Instant),
    Column("since", Instant),
)

# What each authority has counted against our account there.
spends = _table(
    "spends",
    _number("id"),
    _required("authority", String),
    _required("kind", String),
    _required("at", Instant),
    _required("names", JSON),
    _required("exempt", Boolean),
    _required("same_set", Boolean),
    Index(None, "at"),
)

# Orders that were given up and may have left authorizations pending.
leftovers = _table(
    "leftovers",
    _key("order_url", String),
    _required("authority", String),
    _required("recorded_at", Instant),
)

# What our own look at the way of the challenge last showed, by identifier.
checks = _table(
    "checks",
    _key("identifier", String),
    _required("at", Instant),
    Column("problem", JSON(none_as_null=True)),
    _required("failures", Integer),
    _required("since", Instant),
    Column("mended_at", Instant),
)

# Accounts that are to get a new key.
rollovers = _table("rollovers", _key("authority", String), _required("asked_at", Instant))

asked = _table("asked", _key("certificate", String), _required("at", Instant))

# Which older generation is wanted back.
rollbacks = _table(
    "rollbacks",
    _key("certificate", String),
    _required("generation", Integer),
    _required("at", Instant),
)

# The highest number of what was forgotten, as numbers only grow; asked_at while it is still to be done.
forgotten = _table(
    "forgotten",
    _key("certificate", String),
    _required("generation", Integer),
    Column("asked_at", Instant),
)

forgotten_consumers = _table("forgotten_consumers", _key("consumer", String), _required("asked_at", Instant))

definitions = _table(
    "definitions",
    _key("certificate", String),
    _required("digest", String),
    _required("changed_at", Instant),
)

configs = _table(
    "configs",
    _number("number"),
    _required("digest", String),
    _required("in_force_since", Instant),
    _required("problems", JSON),
    Column("problems_at", Instant),
)
consumers = _table(
    "consumers",
    _key("name", String),
    _required("added_at", Instant),
    Column("revoked_at", Instant),
    Column("sealing_key", LargeBinary),  # X25519, public; NULL: none was told, or a restore made it doubtful
)

# Counts up with every change of what a consumer is offered.
revisions = _table("revisions", _key("consumer", String), _required("revision", Integer))

enrolments = _table(
    "enrolments",
    _key("token_hash", String),
    _required("consumer", String, ForeignKey("consumers.name")),
    _required("state", String),  # open, spent, ended
    _required("opened_at", Instant),
    _required("expires", Instant),
    _required("spent_by", String),
    Column("serial", String),
)

identities = _table(
    "identities",
    _key("serial", String),
    _required("consumer", String, ForeignKey("consumers.name")),
    _required("spki", String),
    _required("certificate_pem", LargeBinary),
    _required("not_before", Instant),
    _required("not_after", Instant),
    Column("used_at", Instant),
    Column("ended_at", Instant),
    Index(None, "consumer"),
)

assignments = _table(
    "assignments",
    _key("certificate", String),
    _key("consumer", String),
    _required("generation", Integer),
    _required("offered_at", Instant),
)

published = _table(
    "published",
    _key("certificate", String),
    _key("consumer", String),
    _key("generation", Integer),
    _required("at", Instant),
)

# Every life of an agent that was ever heard, in the order in which the daemon first heard of them.
agent_boots = _table(
    "agent_boots",
    _number("number"),
    _required("consumer", String),
    _required("boot_id", String),
    _required("sequence", Integer),
    _required("heard_at", Instant),
    _required("version", String),
    _required("install", String, server_default=""),
    Column("booted_at", Instant),  # by the daemon's clock; NULL: nobody said
    Column("reset", Boolean),  # NULL: nobody knows how the boot before ended
    UniqueConstraint("consumer", "boot_id"),
)

deployments = _table(
    "deployments",
    _key("certificate", String),
    _key("consumer", String),
    _key("generation", Integer),
    _required("state", String),
    _required("at", Instant),
    Column("problem", JSON(none_as_null=True)),
    Index(None, "consumer"),
)

proofs = _table(
    "proofs",
    _key("certificate", String),
    _key("consumer", String),
    _key("service", String),
    _key("protocol", String),
    _key("address", String),
    _key("port", Integer),
    _key("server_name", String),
    _required("health", String),
    _required("at", Instant),
    _required("fingerprint", String),
    Column("not_after", Instant),
    Column("not_before", Instant),
    _required("placeholder", Boolean),
    _required("detail", Text),
    _required("heard_at", Instant),
    _required("since", Instant),
    Index(None, "consumer"),
)

# How urgent each endpoint that lags was last told to be.
urgencies = _table(
    "urgencies",
    _key("certificate", String),
    _key("consumer", String),
    _key("endpoint", String),  # "" while none was reported
    _required("urgency", String),
    _required("at", Instant),
)

events = _table(
    "events",
    _number("id"),
    _required("at", Instant),
    _required("name", String),
    _required("subject", String),
    _required("fields", JSON),
)

# What each way of notifying was last told of a problem that had not ended then.
notices = _table(
    "notices",
    _key("channel", String),
    _key("subject", String),
    _key("code", String),
    _required("stage", String),
    _required("detail", Text),
    Column("since", Instant),
)

# The one message of a way of notifying that is to be sent; a row goes when it was.
outbox = _table(
    "outbox",
    _key("channel", String),
    _required("id", String),
    _required("message", JSON),
    _required("made_at", Instant),
    _required("failures", Integer),
    _required("not_before", Instant),
    Column("problem", JSON(none_as_null=True)),
)
