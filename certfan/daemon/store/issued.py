"""What was issued: generations, their numbers, revocations, renewal infos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    bindparam,
    delete,
    func,
    select,
    union_all,
    update,
)

from certfan.core.ledger import SpendKind
from certfan.core.model import Generation, KeyType, Problem, RenewalInfo, Revocation, RevocationReason
from certfan.daemon.store import signing, spending, tables
from certfan.daemon.store.issuing import close_issuance, open_issuances
from certfan.daemon.store.prepared import Written, rows, run, value
from certfan.daemon.store.rows import add_new, identifiers_of, names_of, put
from certfan.daemon.store.wishes import clear_order_attempts, drop_rollback

# Every column that names the number of a generation.
NUMBERS = (
    tables.generations.c.number,
    tables.issuances.c.generation,
    tables.assignments.c.generation,
    tables.published.c.generation,
    tables.deployments.c.generation,
    tables.forgotten.c.generation,
    tables.signing_requests.c.generation,
)


_MADE, _WISH, _SAID, _BEFORE = tables.generations.c, tables.asked.c, tables.deployments.c, tables.forgotten.c
_CERTIFICATE: BindParameter[str] = bindparam("certificate")
_FINGERPRINT = select(_MADE.fingerprint).where(
    _MADE.certificate == _CERTIFICATE, _MADE.number == bindparam("number")
)
_EVERY = select(tables.generations).order_by(_MADE.certificate, _MADE.number)
_FULFIL = delete(tables.asked).where(_WISH.certificate == _CERTIFICATE, _WISH.at <= bindparam("at"))
_REPORTED = union_all(
    select(func.max(_SAID.generation).label("number")).where(_SAID.certificate == _CERTIFICATE),
    select(_BEFORE.generation).where(_BEFORE.certificate == _CERTIFICATE),
)
_HIGHEST = union_all(
    *(
        select(func.max(number).label("number")).where(number.table.c.certificate == _CERTIFICATE)
        for number in NUMBERS
    )
)


def record_generation(db: Connection, generation: Generation) -> None:
    """Remember an issued generation; in the same breath its try, tokens, failures and wishes are done with.

    Repeatable.

    Raises:
        ValueError: the number already belongs to another leaf.
    """
    is_new = add_new(db, tables.generations, _generation_row(generation))
    if not is_new and _fingerprint(db, generation) != generation.fingerprint:
        raise ValueError(f"{generation} is another leaf already")
    ended = close_issuance(db, generation.certificate, generation.number, generation.issued_at, None)
    if is_new and ended:
        spending.count(db, SpendKind.CERTIFICATE, ended, generation.issued_at)
    clear_order_attempts(db, generation.certificate)
    if generation.holder:
        signing.drop_csr(db, generation.certificate, generation.number)
    run(db, _FULFIL, {"certificate": generation.certificate, "at": generation.issued_at})


def _fingerprint(db: Connection, generation: Generation) -> str:
    same = {"certificate": generation.certificate, "number": generation.number}
    return str(value(db, _FINGERPRINT, same))


def record_copy(db: Connection, generation: Generation) -> None:
    """Remember an older pair's new number; in the same breath the roll-back and any order meanwhile are done with.

    Repeatable.

    Raises:
        ValueError: the number already belongs to another leaf.
    """
    _end_orders(db, generation, f"rolled back to {generation.origin}")
    record_generation(db, generation)
    drop_rollback(db, generation.certificate)


def record_adopted(db: Connection, generation: Generation) -> None:
    """Remember a pair that another program got; in the same breath any order meanwhile is done with.

    Repeatable.

    Raises:
        ValueError: the number already belongs to another leaf.
    """
    _end_orders(db, generation, "another pair was taken over")
    record_generation(db, generation)


def _end_orders(db: Connection, generation: Generation, why: str) -> None:
    problem = Problem("authority.refused", f"{generation.certificate}: {why}")
    for issuance in open_issuances(db):
        if issuance.certificate == generation.certificate:
            close_issuance(db, generation.certificate, issuance.generation, generation.issued_at, problem)


def generations(db: Connection) -> dict[str, tuple[Generation, ...]]:
    """Return every generation ever issued, by certificate, ascending by number."""
    return with_generations({}, ((tables.generations, row) for row in rows(db, _EVERY, {})))


def with_generations(
    known: Mapping[str, tuple[Generation, ...]], written: Iterable[Written]
) -> dict[str, tuple[Generation, ...]]:
    """Return every generation ever issued when some are known, and these rows were written since."""
    found = dict(known)
    for _, row in written:
        made = _generation(row)
        others = found.get(made.certificate, ())
        found[made.certificate] = tuple(sorted((*others, made), key=attrgetter("number")))
    return found


def reported_number(db: Connection, certificate: str) -> int:
    """Return the highest number that a consumer has reported, or that it had before it was forgotten; 0 if none."""
    known = rows(db, _REPORTED, {"certificate": certificate})
    return max((row["number"] or 0 for row in known), default=0)


def highest_number(db: Connection, certificate: str) -> int:
    """Return the highest number that any fact here names: tries, generations, offers, reports; 0 if none does."""
    return max(row["number"] or 0 for row in rows(db, _HIGHEST, {"certificate": certificate}))


def put_renewal_info(db: Connection, info: RenewalInfo) -> None:
    """Remember what the authority said about renewing; the newest word about a certificate counts."""
    values = {
        "number": info.number,
        "window_start": info.start,
        "window_end": info.end,
        "chosen": info.chosen,
        "ask_again_at": info.ask_again_at,
        "explanation_url": info.explanation_url,
    }
    put(db, tables.renewal_infos, {"certificate": info.certificate}, values)


def renewal_infos(db: Connection) -> dict[tuple[str, int], RenewalInfo]:
    """Return the newest word about renewing each certificate, by (certificate, generation)."""
    return {
        (row.certificate, row.number): RenewalInfo(
            row.certificate,
            row.number,
            start=row.window_start,
            end=row.window_end,
            chosen=row.chosen,
            ask_again_at=row.ask_again_at,
            explanation_url=row.explanation_url,
        )
        for row in db.execute(select(tables.renewal_infos))
    }


def ask_revocation(db: Connection, certificate: str, generation: int, wish: Revocation) -> None:
    """Remember that a generation is to be revoked; the last word counts."""
    key = {"certificate": certificate, "generation": generation}
    put(
        db,
        tables.revocations,
        key,
        {"reason": wish.reason.value, "at_once": wish.at_once, "asked_at": wish.asked_at},
    )


def revocations(db: Connection) -> dict[tuple[str, int], Revocation]:
    """Return which generations, as (certificate, number), are to be revoked and are not yet."""
    return {
        (row.certificate, row.generation): Revocation(RevocationReason(row.reason), row.at_once, row.asked_at)
        for row in db.execute(select(tables.revocations)).all()
    }


def mark_revoked(db: Connection, certificate: str, generation: int, now: datetime) -> None:
    """Remember that a generation, and whatever else has its leaf, is revoked; the first instant stays.

    In the same breath the wish to do so is done with.
    """
    wish = tables.revocations.c
    db.execute(
        delete(tables.revocations).where(wish.certificate == certificate, wish.generation == generation)
    )
    table = tables.generations
    named = (table.c.certificate == certificate, table.c.number == generation)
    leaf = db.execute(select(table.c.fingerprint).where(*named)).scalar()
    same = (table.c.certificate == certificate, table.c.fingerprint == leaf)
    db.execute(update(table).where(*same, table.c.revoked_at.is_(None)).values(revoked_at=now))


def revoked(db: Connection) -> dict[tuple[str, int], datetime]:
    """Return since when which generations, as (certificate, number), are revoked."""
    table = tables.generations
    query = select(table.c.certificate, table.c.number, table.c.revoked_at)
    rows = db.execute(query.where(table.c.revoked_at.is_not(None)))
    return {(certificate, number): at for certificate, number, at in rows}


def _generation(row: Mapping[str, Any]) -> Generation:
    return Generation(
        row["certificate"],
        row["number"],
        fingerprint=row["fingerprint"],
        serial=row["serial"],
        identifiers=frozenset(identifiers_of(row["identifiers"])),
        key_type=KeyType(row["key_type"]),
        authority=row["authority"],
        not_before=row["not_before"],
        not_after=row["not_after"],
        issued_at=row["issued_at"],
        copy_of=row["copy_of"],
        key=row["key"],
        holder=row["holder"],
    )


def _generation_row(generation: Generation) -> dict[str, object]:
    return {
        "certificate": generation.certificate,
        "number": generation.number,
        "fingerprint": generation.fingerprint,
        "serial": generation.serial,
        "identifiers": names_of(sorted(generation.identifiers)),
        "key_type": generation.key_type.value,
        "authority": generation.authority,
        "not_before": generation.not_before,
        "not_after": generation.not_after,
        "issued_at": generation.issued_at,
        "copy_of": generation.copy_of,
        "key": generation.key,
        "holder": generation.holder,
    }
