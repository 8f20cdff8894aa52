"""What authorities have counted against our accounts, and what orders that were given up may have left there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from certfan.core.issuance import Issuance
from certfan.core.ledger import Spend, SpendKind
from certfan.core.model import Leftover
from certfan.daemon.store import tables
from certfan.daemon.store.prepared import Written, returning, rows
from certfan.daemon.store.rows import names_of, put, remove

KEPT = timedelta(days=30)  # longer than any window that an authority publishes
_EVERY = select(tables.spends).order_by(tables.spends.c.id)
# Each is found by the index, as its own query; of one query for both every row would be looked at.
_COUNT = insert(tables.spends).returning(
    select(func.min(tables.spends.c.at)).scalar_subquery().label("oldest"),
    select(func.max(tables.spends.c.at)).scalar_subquery().label("newest"),
)


def count(db: Connection, kind: SpendKind, issuance: Issuance, now: datetime) -> None:
    """Note that the authority of a try has counted something against its identifiers; older entries go."""
    row = {
        "authority": issuance.authority,
        "kind": kind.value,
        "at": now,
        "names": names_of(sorted(issuance.identifiers)),
        "exempt": issuance.exempt,
        "same_set": _is_same_set(db, issuance),
    }
    table, known = tables.spends, returning(db, _COUNT, row)
    assert known is not None
    if known["oldest"] < now - KEPT:
        db.execute(delete(table).where(table.c.at < now - KEPT))
    if known["newest"] > now:
        # Recorded before the clock was set back: dated anew, or it would count until the clock is there again.
        db.execute(update(table).where(table.c.at > now).values(at=now))


def _is_same_set(db: Connection, issuance: Issuance) -> bool:
    if issuance.generation == 1:
        return False
    made = tables.generations.c
    same = (made.certificate == issuance.certificate, made.authority == issuance.authority)
    earlier = select(made.identifiers).where(*same, made.number < issuance.generation)
    wanted = names_of(sorted(issuance.identifiers))
    return any(names == wanted for names in db.execute(earlier).scalars())


def spends(db: Connection) -> Mapping[str, tuple[Spend, ...]]:
    """Return what was counted, by authority, oldest first."""
    return with_spends({}, ((tables.spends, row) for row in rows(db, _EVERY, {})))


def with_spends(
    known: Mapping[str, tuple[Spend, ...]], written: Iterable[Written]
) -> Mapping[str, tuple[Spend, ...]]:
    """Return what was counted when some of it is known, and these rows were written since."""
    found: dict[str, list[Spend]] = {}
    for _, row in written:
        found.setdefault(row["authority"], []).append(_spend(row))
    return {**known, **{authority: (*known.get(authority, ()), *more) for authority, more in found.items()}}


def leftovers(db: Connection) -> tuple[Leftover, ...]:
    """Return the orders whose authorizations may be pending still, oldest first."""
    query = select(tables.leftovers).order_by(tables.leftovers.c.recorded_at)
    return tuple(Leftover(**row) for row in db.execute(query).mappings())


def drop_leftover(db: Connection, order_url: str) -> None:
    """Forget one; nothing of it is pending any more. Repeatable."""
    remove(db, tables.leftovers, {"order_url": order_url})


def ask_rollover(db: Connection, authority: str, now: datetime) -> None:
    """Remember that the account at an authority is to get a new key."""
    put(db, tables.rollovers, {"authority": authority}, {"asked_at": now})


def drop_rollover(db: Connection, authority: str) -> None:
    """Forget that the account at an authority was to get a new key; repeatable."""
    remove(db, tables.rollovers, {"authority": authority})


def rollovers(db: Connection) -> frozenset[str]:
    """Return the authorities whose account is to get a new key."""
    return frozenset(db.execute(select(tables.rollovers.c.authority)).scalars())


def _spend(row: Mapping[str, Any]) -> Spend:
    return Spend(SpendKind(row["kind"]), row["at"], frozenset(row["names"]), row["exempt"], row["same_set"])
