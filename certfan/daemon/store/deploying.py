"""What each consumer was offered, and what it said came of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    delete,
    func,
    insert,
    select,
    true,
)

from certfan.core.model import Deployment, DeploymentState, Endpoint, Health, Proof
from certfan.daemon.store import engine, tables
from certfan.daemon.store.facts import Heard, PublishedFact
from certfan.daemon.store.prepared import Written, run
from certfan.daemon.store.rows import add_new, from_problem, put, to_problem

NAMED = 100  # consumers that one query names


_ASSIGNED, _REVISED = tables.assignments.c, tables.revisions.c
_ASSIGN = engine.insert(tables.assignments)
_OFFER = _ASSIGN.on_conflict_do_update(
    index_elements=[_ASSIGNED.certificate, _ASSIGNED.consumer],
    set_={"generation": _ASSIGN.excluded.generation, "offered_at": _ASSIGN.excluded.offered_at},
    where=_ASSIGNED.generation != _ASSIGN.excluded.generation,
)
_COUNT_UP = engine.insert(tables.revisions).on_conflict_do_update(
    index_elements=[_REVISED.consumer], set_={"revision": _REVISED.revision + 1}
)


def offer(db: Connection, offers: Iterable[tuple[str, str, int]], now: datetime) -> None:
    """Offer each (certificate, consumer, generation), of which 0 is: assigned, none issued yet.

    A consumer's revision counts up once, when this changes anything of its own; offering the same again changes nothing.
    """
    changed = {consumer for name, consumer, number in offers if _assign(db, name, consumer, number, now)}
    for consumer in sorted(changed):
        _count_up(db, consumer)


def withdraw(db: Connection, certificate: str, consumer: str, now: datetime) -> None:
    """Take a certificate off a consumer's list; its revision counts up if it was on it. Repeatable."""
    table = tables.assignments
    gone = db.execute(delete(table).where(table.c.certificate == certificate, table.c.consumer == consumer))
    if gone.rowcount:
        _count_up(db, consumer)


def offered(db: Connection) -> dict[tuple[str, str], int]:
    """Return the generation that each (certificate, consumer) was last offered."""
    table = tables.assignments
    rows = db.execute(select(table.c.certificate, table.c.consumer, table.c.generation))
    return {(certificate, consumer): generation for certificate, consumer, generation in rows}


def with_offers(
    known: Mapping[tuple[str, str], int], written: Iterable[Written]
) -> dict[tuple[str, str], int]:
    """Return what was last offered when some of it is known, and these rows were written since."""
    return {**known, **{(row["certificate"], row["consumer"]): row["generation"] for _, row in written}}


def lists(
    db: Connection, consumers: Collection[str]
) -> tuple[dict[str, int], dict[str, tuple[tuple[str, int], ...]]]:
    """Return revision and list, (certificate, generation) by certificate, of each of many consumers."""
    table, count = tables.assignments.c, tables.revisions.c
    query = select(table.consumer, table.certificate, table.generation).order_by(table.certificate)
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for consumer, certificate, generation in db.execute(query.where(_among(table.consumer, consumers))).all():
        found[consumer] = (*found.get(consumer, ()), (certificate, generation))
    known = db.execute(select(count.consumer, count.revision).where(_among(count.consumer, consumers))).all()
    revisions = dict.fromkeys(consumers, 0) | {
        row.consumer: row.revision for row in known if row.consumer in consumers
    }
    return revisions, found


def record_published(db: Connection, certificate: str, consumer: str, generation: int, at: datetime) -> None:
    """Note when a generation was first published for a consumer; the first instant stays."""
    row = {"certificate": certificate, "consumer": consumer, "generation": generation, "at": at}
    add_new(db, tables.published, row)


def published(db: Connection) -> tuple[PublishedFact, ...]:
    """Return the whole history of publishing, oldest first."""
    table = tables.published
    query = select(table).order_by(table.c.at, table.c.certificate, table.c.consumer, table.c.generation)
    return tuple(PublishedFact(**row) for row in db.execute(query).mappings())


def record_report(
    db: Connection,
    consumer: str,
    boot_id: str,
    sequence: int,
    deployments: Sequence[Deployment],
    proofs: Mapping[str, Sequence[Proof]],  # by certificate
    now: datetime,
    version: str = "",
    install: str = "",
) -> bool:
    """Let a report replace everything the consumer said before; False if a newer one was heard already.

    Newer is a boot that was never heard of, or a higher sequence of the newest boot. Whatever the values name
    as consumer, they are filed under `consumer`. A proof's `heard_at` is when this very look (same endpoint,
    same `at`) was first heard, so repeating an old look keeps it old; its `since` is when health and leaf last
    changed.

    Known limit: a report of an agent's earlier life that was never heard of before counts as newer.
    """
    if not _is_newer(db, consumer, boot_id, sequence):
        return False
    key = {"consumer": consumer, "boot_id": boot_id}
    put(
        db,
        tables.agent_boots,
        key,
        {"sequence": sequence, "heard_at": now, "version": version, "install": install},
    )
    _replace_deployments(db, consumer, deployments)
    _replace_proofs(db, consumer, proofs, now)
    return True


def deployments(db: Connection) -> dict[tuple[str, str], tuple[Deployment, ...]]:
    """Return what every consumer last said, by (certificate, consumer), ascending by generation."""
    table = tables.deployments
    query = select(table).order_by(table.c.certificate, table.c.consumer, table.c.generation)
    found: dict[tuple[str, str], tuple[Deployment, ...]] = {}
    for certificate, consumer, generation, state, at, problem in db.execute(query):
        said = Deployment(certificate, consumer, generation, DeploymentState(state), at, to_problem(problem))
        found[certificate, consumer] = (*found.get((certificate, consumer), ()), said)
    return found


def proofs(db: Connection) -> dict[tuple[str, str], tuple[Proof, ...]]:
    """Return what every consumer last saw, by (certificate, consumer), in the order of endpoints."""
    return _proofs(db)


def heard(db: Connection, consumer: str) -> Heard | None:
    """Return the newest report that counted of a consumer."""
    return all_heard(db).get(consumer)


def all_heard(db: Connection) -> dict[str, Heard]:
    """Return the newest report that counted of every consumer."""
    table = tables.agent_boots
    newest = select(func.max(table.c.number)).group_by(table.c.consumer).scalar_subquery()
    return {
        row.consumer: Heard(
            row.consumer,
            row.heard_at,
            boot_id=row.boot_id,
            sequence=row.sequence,
            version=row.version,
            install=row.install,
        )
        for row in db.execute(select(table).where(table.c.number.in_(newest)))
    }


def _among(consumer: Column[Any], names: Collection[str]) -> ColumnElement[bool]:
    """Say whose rows are read: everybody's when so many are asked for that naming them would cost more."""
    return consumer.in_(names) if len(names) <= NAMED else true()


def _assign(db: Connection, certificate: str, consumer: str, generation: int, now: datetime) -> bool:
    """Return whether that is not what the consumer was offered last."""
    row = {"certificate": certificate, "consumer": consumer, "generation": generation, "offered_at": now}
    return run(db, _OFFER, row) > 0


def _count_up(db: Connection, consumer: str) -> None:
    run(db, _COUNT_UP, {"consumer": consumer, "revision": 1})


def _is_newer(db: Connection, consumer: str, boot_id: str, sequence: int) -> bool:
    table = tables.agent_boots
    query = select(table.c.boot_id, table.c.sequence).where(table.c.consumer == consumer)
    boots = db.execute(query.order_by(table.c.number.desc())).all()
    if boot_id not in {boot for boot, _ in boots}:
        return True
    newest_boot, newest_sequence = boots[0]
    return bool(boot_id == newest_boot and sequence > newest_sequence)


def _replace_deployments(db: Connection, consumer: str, said: Sequence[Deployment]) -> None:
    table = tables.deployments
    db.execute(delete(table).where(table.c.consumer == consumer))
    rows = {
        (d.certificate, d.generation): {
            "certificate": d.certificate,
            "consumer": consumer,
            "generation": d.generation,
            "state": d.state.value,
            "at": d.at,
            "problem": from_problem(d.problem),
        }
        for d in said
    }
    if rows:
        db.execute(insert(table), list(rows.values()))


def _replace_proofs(
    db: Connection, consumer: str, seen: Mapping[str, Sequence[Proof]], now: datetime
) -> None:
    table = tables.proofs
    before = {
        (certificate, proof.endpoint): proof
        for (certificate, _), known in _proofs(db, table.c.consumer == consumer).items()
        for proof in known
    }
    db.execute(delete(table).where(table.c.consumer == consumer))
    rows: dict[tuple[str, Endpoint], dict[str, Any]] = {}
    for certificate, looks in seen.items():
        for proof in looks:
            known_one = before.get((certificate, proof.endpoint))
            rows[certificate, proof.endpoint] = _proof_row(
                certificate, consumer, _dated(proof, known_one, now)
            )
    if rows:
        db.execute(insert(table), list(rows.values()))


def _dated(proof: Proof, before: Proof | None, now: datetime) -> Proof:
    """Say when this very look was first heard of, and since when it has been the same."""
    if before is None:
        return replace(proof, heard_at=now, since=now)
    same = (before.health, before.fingerprint) == (proof.health, proof.fingerprint)
    heard_at = before.heard_at if before.at == proof.at else now
    return replace(proof, heard_at=heard_at, since=before.since if same else now)


def _proofs(db: Connection, *where: ColumnElement[bool]) -> dict[tuple[str, str], tuple[Proof, ...]]:
    table = tables.proofs
    query = select(table).where(*where).order_by(*table.primary_key.columns)
    found: dict[tuple[str, str], list[Proof]] = {}
    for certificate, consumer, *rest in db.execute(query).all():
        found.setdefault((certificate, consumer), []).append(_proof(*rest))
    return {pair: tuple(seen) for pair, seen in found.items()}


def _proof(
    service: str,
    protocol: str,
    address: str,
    port: int,
    server_name: str,
    health: str,
    at: datetime,
    fingerprint: str,
    not_after: datetime | None,
    not_before: datetime | None,
    placeholder: bool,
    detail: str,
    heard_at: datetime,
    since: datetime,
) -> Proof:
    return Proof(
        Endpoint(service, protocol, address, port, server_name),
        Health(health),
        at,
        fingerprint=fingerprint,
        not_after=not_after,
        not_before=not_before,
        placeholder=placeholder,
        detail=detail,
        heard_at=heard_at,
        since=since,
    )


def _proof_row(certificate: str, consumer: str, proof: Proof) -> dict[str, Any]:
    endpoint = proof.endpoint
    return {
        "certificate": certificate,
        "consumer": consumer,
        "service": endpoint.service,
        "protocol": endpoint.protocol,
        "address": endpoint.address,
        "port": endpoint.port,
        "server_name": endpoint.server_name,
        "health": proof.health.value,
        "at": proof.at,
        "fingerprint": proof.fingerprint,
        "not_after": proof.not_after,
        "not_before": proof.not_before,
        "placeholder": proof.placeholder,
        "detail": proof.detail,
        "heard_at": proof.heard_at,
        "since": proof.since,
    }
