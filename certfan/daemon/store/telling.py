"""What somebody was told of problems, and the messages that are to be sent: written down before anything is sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from certfan.core.model import Problem
from certfan.daemon.store import tables
from certfan.daemon.store.rows import change, from_problem, put, remove, to_problem


@dataclass(frozen=True, slots=True)
class ToldFact:
    """What a channel was last told of one problem."""

    stage: str
    detail: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Posted:
    """A message that a channel is to send; `problem` is why it could not be sent so far."""

    channel: str
    id: str
    message: Mapping[str, Any]
    failures: int
    not_before: datetime
    problem: Problem | None


def told(db: Connection) -> dict[str, dict[tuple[str, str], ToldFact]]:
    """Return what each channel was told, by (subject, code), of all that had not ended then."""
    found: dict[str, dict[tuple[str, str], ToldFact]] = {}
    for row in db.execute(select(tables.notices)):
        fact = ToldFact(row.stage, row.detail, row.since)
        found.setdefault(row.channel, {})[row.subject, row.code] = fact
    return found


def outbox(db: Connection) -> dict[str, Posted]:
    """Return what is to be sent, by channel."""
    return {
        row.channel: Posted(
            row.channel, row.id, row.message, row.failures, row.not_before, to_problem(row.problem)
        )
        for row in db.execute(select(tables.outbox))
    }


def post(
    db: Connection,
    channel: str,
    message_id: str,
    message: Mapping[str, Any],
    news: Mapping[tuple[str, str], ToldFact | None],
    now: datetime,
) -> None:
    """Write down a message, and that what it tells is told (None: it is over), all or nothing. There is none yet."""
    row = {"channel": channel, "id": message_id, "message": dict(message), "made_at": now}
    db.execute(insert(tables.outbox).values(**row, failures=0, not_before=now))
    for (subject, code), fact in news.items():
        key = {"channel": channel, "subject": subject, "code": code}
        if fact is None:
            remove(db, tables.notices, key)
        else:
            put(db, tables.notices, key, {"stage": fact.stage, "detail": fact.detail, "since": fact.since})


def sent(db: Connection, channel: str, message_id: str) -> None:
    """Forget a message that was sent; repeatable."""
    remove(db, tables.outbox, {"channel": channel, "id": message_id})


def not_sent(
    db: Connection, channel: str, message_id: str, failures: int, problem: Problem, not_before: datetime
) -> None:
    """Remember why a message could not be sent, and when to try again."""
    values = {"failures": failures, "problem": from_problem(problem), "not_before": not_before}
    change(db, tables.outbox, {"channel": channel, "id": message_id}, values)


def keep_channels(db: Connection, channels: Collection[str]) -> None:
    """Forget what channels were told that are in the config no longer."""
    for table in (tables.notices, tables.outbox):
        db.execute(delete(table).where(table.c.channel.not_in(list(channels))))
