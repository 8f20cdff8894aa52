"""A small farm and its application, for the tests of the page, the listeners and the command line."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiohttp import web

from certfan import pki
from certfan.core.model import (
    Authority,
    Certificate,
    Consumer,
    Deployment,
    DeploymentState,
    Desired,
    Endpoint,
    Generation,
    Health,
    Identifier,
    KeyType,
    Problem,
    Proof,
    RevocationReason,
)
from certfan.daemon.listeners import Listener
from certfan.daemon.observing import remembered
from certfan.daemon.status import app
from certfan.daemon.status.model import AccountView, LimitUsed
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.store.facts import Event, Heard, StoreFacts
from certfan.errors import SelfCheckFailed, UnknownName

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
HTTPS = Endpoint("apache2", "tls", "192.0.2.1", 443, "www.test")
WHERE = ("www.test", "web1")


def generation(number: int, issued_at: datetime = NOW - DAY) -> Generation:
    return Generation(
        "www.test",
        number,
        fingerprint=f"{number:064x}",
        serial=f"{number:x}",
        identifiers=frozenset({Identifier("www.test")}),
        key_type=KeyType.ECDSA_P256,
        authority="pebble",
        not_before=issued_at,
        not_after=issued_at + 90 * DAY,
        issued_at=issued_at,
    )


def proof(number: int = 1, heard_ago: timedelta = MINUTE, **more: Any) -> Proof:
    at = NOW - heard_ago
    leaf = {
        "fingerprint": f"{number:064x}",
        "not_before": NOW - DAY,
        "not_after": NOW + 89 * DAY,
        "heard_at": at,
    }
    return Proof(HTTPS, more.pop("health", Health.SERVED), at - MINUTE, **(leaf | more))


def deployment(
    number: int, state: DeploymentState = DeploymentState.PROVEN, problem: Problem | None = None
) -> Deployment:
    return Deployment("www.test", "web1", number, state, NOW - 10 * MINUTE, problem)


NO_FACTS = StoreFacts(
    **{field.name: MappingProxyType({}) for field in dataclasses.fields(StoreFacts)}
    | {"issuances": (), "leftovers": (), "rollovers": frozenset()}
)
DESIRED = Desired(
    authorities={"pebble": Authority("pebble", "https://ca.int/dir")},
    certificates={
        "www.test": Certificate(
            "www.test", (Identifier("www.test"),), consumers=("web1",), authority="pebble"
        )
    },
    consumers={"web1": Consumer("web1")},
)
HEARD = Heard("web1", NOW - MINUTE, boot_id="b", sequence=1, version="0.1.0", install="in-place")


def things(
    now: datetime = NOW, *, desired: Desired = DESIRED, seen: Mapping[str, Any] | None = None, **facts: Any
) -> StateOfThings:
    """A farm in which www.test@1 is issued, published and offered, and web1 was heard a minute ago.

    `seen` is what the reconciler has seen beside what the store knows.
    """
    usual = {
        "generations": {"www.test": (generation(1),)},
        "offered": {WHERE: 1},
        "heard": {"web1": HEARD},
        "config_changed": {"www.test": NOW - 2 * DAY},
    }
    known = dataclasses.replace(NO_FACTS, **(usual | facts))
    return StateOfThings(
        now=now,
        fleet="example",
        desired=desired,
        facts=known,
        observed=dataclasses.replace(remembered(known), **(seen or {})),
        live={WHERE: 1},
    )


class Admin:
    """Actions that only remember who asked for what."""

    config_problems: Sequence[Problem] = (
        Problem("config.invalid", "certfan.toml: flet: unknown key", "run: certfan check"),
    )

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []

    async def renew(self, certificate: str, *, uid: int) -> None:
        if certificate != "www.test":
            raise UnknownName(f"no certificate {certificate}", hint="run: certfan status")
        self.asked.append(("renew", certificate, uid))

    async def add_consumer(self, name: str, *, uid: int) -> str:
        self.asked.append(("add", name, uid))
        return "certfan1:192.0.2.1:8057:token:hash"

    async def revoke_consumer(self, name: str, *, uid: int) -> None:
        self.asked.append(("revoke", name, uid))

    async def rollback(self, certificate: str, to: int | None, *, uid: int) -> Generation:
        self.asked.append(("rollback", f"{certificate} {to}", uid))
        return generation(to or 1)

    async def forget(self, certificate: str, *, uid: int) -> None:
        self.asked.append(("forget", certificate, uid))

    async def forget_consumer(self, name: str, *, uid: int) -> None:
        self.asked.append(("forget consumer", name, uid))

    async def reload(self, *, uid: int) -> Sequence[Problem]:
        self.asked.append(("reload", "", uid))
        return self.config_problems


class AuthorityAdmin:
    """Actions of the authority side that only remember who asked for what."""

    EXPORTED_KEY = "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.begun, self.cut_off = asyncio.Event(), asyncio.Event()

    async def revoke(
        self, certificate: str, number: int | None, reason: RevocationReason, *, at_once: bool, uid: int
    ) -> tuple[Generation, ...]:
        self.asked.append(("revoke", certificate, number, reason, at_once, uid))
        return (generation(number or 1),)

    async def account(self, authority: str) -> AccountView:
        used = LimitUsed(
            limit="certificates_per_domain",
            subject="www.test",
            used=3,
            count=50,
            window=7 * DAY,
            frees_at=NOW + DAY,
        )
        return AccountView(
            authority=authority,
            directory="https://ca.int/dir",
            uri="https://ca.int/account/1",
            thumbprint="ab" * 32,
            contact=("mailto:me@www.test",),
            since=NOW,
            limits=(used,),
        )

    async def roll_account_key(self, authority: str, *, uid: int) -> None:
        self.asked.append(("rollover", authority, uid))

    async def export_account(self, authority: str, *, uid: int) -> tuple[Authority, str, bytes]:
        self.asked.append(("export", authority, uid))
        return DESIRED.authorities["pebble"], "https://ca.int/account/1", self.EXPORTED_KEY.encode()

    async def import_account(self, authority: str, key: bytes, directory: str | None, *, uid: int) -> str:
        self.asked.append(("import", authority, key, directory, uid))
        return "https://ca.int/account/2"

    async def trial(self, certificate: str, authority: str | None, *, uid: int) -> tuple[str, pki.Leaf]:
        self.asked.append(("trial", certificate, authority, uid))
        if certificate == "broken.test":
            raise SelfCheckFailed("http://broken.test/: answered 404", hint="look at the vhost")
        if certificate == "slow.test":
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cut_off.set()
        return authority or "staging", LEAF


LEAF = pki.read_leaf(pki.make_placeholder(["www.test"], NOW)[1])
EVENTS = (
    Event(NOW, "generation.published", "www.test@1", {"took": 0.8}, 1),
    Event(NOW, "endpoint.proven", "www.test/web1", {"token": "abc"}, 2),
)


async def _things() -> StateOfThings:
    return things(proofs={WHERE: (proof(),)}, deployments={WHERE: (deployment(1),)}, heard={"web1": HEARD})


async def _events(after: int, limit: int, subject: str) -> Sequence[Event]:
    found = [event for event in EVENTS if event.subject.startswith(subject)]
    return [event for event in found if event.id > after][:limit] if after >= 0 else found[-limit:]


async def _story(_certificate: str, _identifiers: Sequence[str], limit: int) -> Sequence[Event]:
    return EVENTS[-limit:]


DOORS = app.Doors(
    things=_things,
    events=_events,
    story=_story,
    alive=lambda: {"reconciler": None},
    ready=lambda: {"http01": None, "share": "/srv/le is not mounted"},
    hosts={"cert.int"},
)


@contextlib.asynccontextmanager
async def control_socket(
    folder: Path, admin: Admin, authorities: AuthorityAdmin | None = None, **more: Any
) -> AsyncIterator[Path]:
    """Serve the application on a control socket, and yield a config that names it."""
    path = folder / "control.sock"
    config = folder / "certfan.toml"
    config.write_text(f'[control]\nsocket = "{path}"\n')
    async with serving(Listener(path=str(path)), admin, authorities, **more):
        yield config


@contextlib.asynccontextmanager
async def serving(
    listener: Listener,
    admin: Admin | None = None,
    authorities: AuthorityAdmin | None = None,
    *,
    doors: app.Doors | None = None,
    others: Sequence[web.RouteDef] = (),
) -> AsyncIterator[web.AppRunner]:
    """Serve the application for as long as the block runs."""
    runner = await app.start(app.make_app(doors or DOORS, admin, authorities, others=others), (listener,))
    try:
        yield runner
    finally:
        await runner.cleanup()
