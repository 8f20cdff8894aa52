"""What consumers that make their own keys were asked to sign, and what they sent."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, select, update

from certfan.core.custody import SigningRequest
from certfan.core.model import KeyType, Problem
from certfan.daemon.store import tables
from certfan.daemon.store.rows import from_problem, identifiers_of, names_of, put, to_problem

_ROW = tables.signing_requests.c


def ask_csr(db: Connection, asked: SigningRequest) -> None:
    """Remember what a consumer is to sign; what it was asked for the certificate before is forgotten."""
    values = {
        "consumer": asked.consumer,
        "generation": asked.generation,
        "identifiers": names_of(sorted(asked.identifiers)),
        "key_type": asked.key_type.value,
        "key": asked.key,
        "asked_at": asked.asked_at,
        "csr": asked.csr,
        "problem": from_problem(asked.problem),
    }
    put(db, tables.signing_requests, {"certificate": asked.certificate}, values)


def record_csr(db: Connection, asked: SigningRequest, csr: bytes) -> bool:
    """Keep the answer (DER) to exactly what was asked; False when that was replaced or answered meanwhile."""
    return bool(_change(db, asked, {"csr": csr, "problem": None}))


def refuse_csr(db: Connection, asked: SigningRequest, problem: Problem) -> None:
    """Remember why an answer was refused; another may come."""
    _change(db, asked, {"problem": from_problem(problem)})


def drop_csr(db: Connection, certificate: str, generation: int) -> None:
    """Forget what was asked for a number, and whatever came; repeatable."""
    db.execute(
        delete(tables.signing_requests).where(_ROW.certificate == certificate, _ROW.generation <= generation)
    )


def signing_requests(db: Connection) -> dict[str, SigningRequest]:
    """Return what consumers were asked to sign and no generation has come of yet, by certificate."""
    return {
        row.certificate: SigningRequest(
            row.certificate,
            row.consumer,
            generation=row.generation,
            identifiers=frozenset(identifiers_of(row.identifiers)),
            key_type=KeyType(row.key_type),
            asked_at=row.asked_at,
            key=row.key,
            csr=row.csr,
            problem=to_problem(row.problem),
        )
        for row in db.execute(select(tables.signing_requests)).all()
    }


def _change(db: Connection, asked: SigningRequest, values: Mapping[str, object]) -> int:
    """Change what was asked as long as nothing else is asked instead, and nothing has come."""
    same = (
        _ROW.certificate == asked.certificate,
        _ROW.consumer == asked.consumer,
        _ROW.generation == asked.generation,
        _ROW.asked_at == asked.asked_at,
        _ROW.csr.is_(None),
    )
    return db.execute(update(tables.signing_requests).where(*same).values(values)).rowcount
