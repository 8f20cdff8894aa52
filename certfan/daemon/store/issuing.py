"""One try to get one generation: the intent, its order, what was answered, the tokens that are live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, String, and_, bindparam, func, select, update

from certfan.core.issuance import Issuance
from certfan.core.ledger import SpendKind
from certfan.core.model import Identifier, Problem
from certfan.daemon.store import engine, spending, tables
from certfan.daemon.store.facts import ClosedIssuance
from certfan.daemon.store.prepared import Written, returning, rows, run, value
from certfan.daemon.store.rows import (
    add,
    add_new,
    from_problem,
    identifiers_of,
    names_of,
    put,
    remove,
    to_problem,
)


@dataclass(frozen=True, slots=True)
class Tries:
    """What reads some tries, and what was answered of them."""

    begun: Select[Any]
    answered: Select[Any]


def _tries(*where: ColumnElement[bool]) -> Tries:
    told = select(tables.answered).join(_TRIES, tables.answered.c.issuance == _TRY.id)
    return Tries(select(_TRIES).where(*where).order_by(_TRY.id), told.where(*where))


_TRIES, _TRY = tables.issuances, tables.issuances.c
_IS_OPEN = _TRY.closed_at.is_(None)
_SAME_CERTIFICATE = _TRY.certificate == bindparam("certificate")
_SAME_TRY = and_(_SAME_CERTIFICATE, _TRY.generation == bindparam("generation"))
_OPEN, _OPEN_OF, _CLOSED_OF = (
    _tries(_IS_OPEN),
    _tries(_IS_OPEN, _SAME_CERTIFICATE),
    _tries(~_IS_OPEN, _SAME_CERTIFICATE),
)
_OPEN_ID = select(_TRY.id).where(_IS_OPEN, _SAME_TRY)
# A bound value that is named like a column would be a value to set.
_CHANGE_OPEN = (
    update(_TRIES)
    .where(
        _IS_OPEN,
        _TRY.certificate == bindparam("its_certificate"),
        _TRY.generation == bindparam("its_generation"),
    )
    .returning(_TRIES)
)
_ANSWER = (
    engine.insert(tables.answered)
    .from_select(
        ["issuance", "challenge_url"],
        select(_TRY.id, bindparam("challenge_url", type_=String)).where(_IS_OPEN, _SAME_TRY),
    )
    .on_conflict_do_nothing()
)
_MADE, _SAID, _FORGOTTEN = tables.generations.c, tables.deployments.c, tables.forgotten.c


def _highest(number: ColumnElement[int], certificate: ColumnElement[str]) -> ColumnElement[int]:
    highest = select(func.max(number)).where(certificate == bindparam("certificate"))
    return func.coalesce(highest.scalar_subquery(), 0)


_BEFORE = select(
    _highest(_MADE.number, _MADE.certificate).label("number"),
    _highest(_SAID.generation, _SAID.certificate).label("reported"),
    _highest(_FORGOTTEN.generation, _FORGOTTEN.certificate).label("forgotten"),
    select(_TRY.id).where(_IS_OPEN, _SAME_CERTIFICATE).exists().label("is_open"),
)


def begin_issuance(
    db: Connection,
    certificate: str,
    generation: int,
    authority: str,
    identifiers: Sequence[Identifier],
    now: datetime,
    *,
    replaces: str | None = None,
    exempt: bool = False,
) -> Issuance | None:
    """Note the intent to get a generation; if the certificate has an open try, return that one instead.

    A number whose try was given up may be tried again, with the key that was made for it. None, and no intent, when
    a consumer has reported that number, or a higher one.

    Raises:
        ValueError: that number is not above every generation of the certificate.
    """
    (before,) = rows(db, _BEFORE, {"certificate": certificate})
    if before["is_open"]:
        return _issuances(db, _OPEN_OF, {"certificate": certificate})[0]
    if generation <= before["number"]:
        raise ValueError(f"{certificate}@{generation} is used up")
    if generation <= max(before["reported"], before["forgotten"]):
        return None
    begun = Issuance(
        certificate, generation, authority, tuple(identifiers), now, replaces=replaces, exempt=exempt
    )
    row = {
        "certificate": certificate,
        "generation": generation,
        "authority": authority,
        "identifiers": names_of(identifiers),
        "begun_at": now,
        "replaces": replaces,
        "exempt": exempt,
    }
    add(db, tables.issuances, row)
    return begun


def drop_replaces(db: Connection, certificate: str, generation: int) -> None:
    """Remember that the authority does not take an open try as a replacement, and so not as exempt. Repeatable.

    Raises:
        ValueError: there is no such open try.
    """
    table = tables.issuances
    known = _open_id(db, certificate, generation)
    db.execute(update(table).where(table.c.id == known).values(replaces=None, exempt=False))


def record_order_url(db: Connection, certificate: str, generation: int, url: str, now: datetime) -> None:
    """Remember where an open try's order is; the newest word counts, every order is kept as a row, and counted.

    Raises:
        ValueError: there is no such open try.
    """
    begun = _change_open(db, certificate, generation, {"order_url": url})
    if begun is None:
        raise _not_open(certificate, generation)
    row = {"url": url, "certificate": certificate, "generation": generation, "recorded_at": now}
    if add_new(db, tables.orders, row):
        spending.count(db, SpendKind.ORDER, begun, now)
    else:
        # The authority may give an order again that was given up; its authorizations are needed now.
        spending.drop_leftover(db, url)


def record_answered(db: Connection, certificate: str, generation: int, challenge_url: str) -> None:
    """Remember that the authority was told to try a challenge of an open try; repeatable.

    Raises:
        ValueError: there is no such open try.
    """
    told = {"certificate": certificate, "generation": generation, "challenge_url": challenge_url}
    if run(db, _ANSWER, told) == 0:
        _open_id(db, certificate, generation)


def abandon_issuance(
    db: Connection,
    certificate: str,
    generation: int,
    problem: Problem,
    now: datetime,
    *,
    failed: Sequence[Identifier] = (),
) -> None:
    """Close a try that led nowhere, kept as history, and forget its tokens. Repeatable.

    Its order may have left authorizations pending, which is remembered; the authorizations that `failed` are counted.
    """
    if given_up := close_issuance(db, certificate, generation, now, problem):
        if given_up.order_url is not None:
            put(
                db,
                tables.leftovers,
                {"order_url": given_up.order_url},
                {"authority": given_up.authority, "recorded_at": now},
            )
        for identifier in failed:
            spending.count(db, SpendKind.FAILURE, replace(given_up, identifiers=(identifier,)), now)


def open_issuances(db: Connection) -> tuple[Issuance, ...]:
    """Return every open try, oldest first."""
    return _issuances(db, _OPEN, {})


def with_tries(known: Iterable[Issuance], written: Iterable[Written]) -> tuple[Issuance, ...]:
    """Return the open tries when some were, and these rows were written since."""
    tries = {(one.certificate, one.generation): one for one in known}
    for table, row in written:
        where = row["certificate"], row["generation"]
        answered = tries[where].answered if where in tries else frozenset()
        if table is tables.answered:
            tries[where] = replace(tries[where], answered=answered | {row["challenge_url"]})
        elif row.get("closed_at") is None:
            tries[where] = _issuance(row, answered)
        else:
            del tries[where]
    return tuple(tries.values())


def closed_issuances(db: Connection, certificate: str) -> tuple[ClosedIssuance, ...]:
    """Return the certificate's tries that ended, oldest first; one that was given up has its problem."""
    same = {"certificate": certificate}
    how = rows(db, _CLOSED_OF.begun, same)
    return tuple(
        ClosedIssuance(known, row["closed_at"], to_problem(row["problem"]))
        for known, row in zip(_issuances(db, _CLOSED_OF, same), how, strict=True)
    )


def orders_sent(db: Connection) -> int:
    """Return how many different orders any authority ever gave us."""
    return db.execute(select(func.count()).select_from(tables.orders)).scalar_one()


def record_token(
    db: Connection, token: str, key_authorization: str, certificate: str, identifier: str, now: datetime
) -> None:
    """Remember what to answer for a token; repeatable."""
    key = {"token": token, "certificate": certificate}
    values = {"key_authorization": key_authorization, "identifier": identifier, "recorded_at": now}
    put(db, tables.tokens, key, values)


def tokens(db: Connection) -> dict[str, str]:
    """Return the key authorization of every live token."""
    table = tables.tokens
    return dict(db.execute(select(table.c.token, table.c.key_authorization)).all())


def drop_tokens(db: Connection, certificate: str) -> None:
    """Forget the certificate's tokens; one that another certificate waits for too stays live."""
    remove(db, tables.tokens, {"certificate": certificate})


def close_issuance(
    db: Connection, certificate: str, generation: int, now: datetime, problem: Problem | None
) -> Issuance | None:
    """Close a try, if it is open, and forget its tokens; return it, without what was answered."""
    ended = {"closed_at": now, "problem": from_problem(problem)}
    closed = _change_open(db, certificate, generation, ended)
    if closed is not None:
        drop_tokens(db, certificate)
    return closed


def _change_open(
    db: Connection, certificate: str, generation: int, values: Mapping[str, object]
) -> Issuance | None:
    """Change a try, if it is open; return it, without what was answered."""
    same = {"its_certificate": certificate, "its_generation": generation}
    row = returning(db, _CHANGE_OPEN, {**same, **values})
    return None if row is None else _issuance(row, ())


def _open_id(db: Connection, certificate: str, generation: int) -> int:
    known = value(db, _OPEN_ID, {"certificate": certificate, "generation": generation})
    if known is None:
        raise _not_open(certificate, generation)
    return int(known)


def _not_open(certificate: str, generation: int) -> ValueError:
    return ValueError(f"{certificate}@{generation} is not being issued")


def _issuances(db: Connection, tries: Tries, values: Mapping[str, object]) -> tuple[Issuance, ...]:
    """Return the tries that fit, in the order in which they were begun."""
    begun = rows(db, tries.begun, values)
    challenges = defaultdict[int, set[str]](set)
    for one in rows(db, tries.answered, values) if begun else ():
        challenges[one["issuance"]].add(one["challenge_url"])
    return tuple(_issuance(row, challenges[row["id"]]) for row in begun)


def _issuance(row: Mapping[str, Any], answered: Iterable[str]) -> Issuance:
    return Issuance(
        row["certificate"],
        row["generation"],
        row["authority"],
        identifiers_of(row["identifiers"]),
        row["begun_at"],
        row.get("order_url"),
        frozenset(answered),
        replaces=row["replaces"],
        exempt=row["exempt"],
    )
