"""A daemon's state and store with pairs that load, cut off wherever a test wants."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from certfan import pki
from certfan.core.model import Generation, Identifier, KeyType
from certfan.daemon.desk.actions import AdminActions
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Event, Store
from tests.unit.planner_parts import DAY, NOW, WWW, make_certificate, make_desired

PAIRS = {n: pki.make_placeholder([WWW], NOW) for n in range(1, 6)}


class PowerCut(BaseException):
    """Nothing after this happens."""


class Cut:
    """Passes everything on to `inner`; `left` calls from now the power is cut before the call."""

    def __init__(self, inner: Any, left: list[int]) -> None:
        self._inner = inner
        self._left = left

    def __getattr__(self, name: str) -> Any:
        if not callable(found := getattr(self._inner, name)):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._left[0] == 0:
                raise PowerCut
            self._left[0] -= 1
            return found(*args, **kwargs)

        return call


class Fleet:
    """One machine's durable things, with www.example.org in the config."""

    def __init__(self, state: StateFolder, store: Store) -> None:
        self.state, self.store = state, store
        self.now = NOW
        self.desired = make_desired(make_certificate())
        self.journal = Journal(store, self.clock)
        self.ended: list[str] = []
        self.on_the_share: tuple[tuple[str, str], ...] = ()
        self.actions = AdminActions(
            store=store,
            journal=self.journal,
            enroller=None,  # type: ignore[arg-type]
            desired=lambda: self.desired,
            on_the_share=lambda: self.on_the_share,
            end_sessions=self.ended.append,
            read_config=None,  # type: ignore[arg-type]
            ring=lambda: None,
            clock=self.clock,
        )

    def clock(self) -> datetime:
        return self.now

    async def issue(
        self, number: int, *, lifetime: timedelta = 90 * DAY, name: str = WWW, holder: str = ""
    ) -> Generation:
        """Have a generation as the issuer leaves it; with a holder, its key is that consumer's alone."""
        key, cert = PAIRS[number]
        if holder:
            self.state.generation_request(name, number, pki.csr_pem(pki.make_csr(key, [WWW])))
        else:
            self.state.generation_key(name, number, lambda: key)
        self.state.save_chain(name, number, cert)
        leaf = pki.read_leaf(cert)
        generation = Generation(
            name,
            number,
            fingerprint=leaf.fingerprint,
            serial=leaf.serial,
            identifiers=frozenset({Identifier(WWW)}),
            key_type=KeyType.ECDSA_P256,
            authority="ca",
            not_before=self.now,
            not_after=self.now + lifetime,
            issued_at=self.now,
            holder=holder,
        )
        await self.store.record_generation(generation)
        return generation

    async def known(self, name: str = WWW) -> tuple[Generation, ...]:
        return (await self.store.facts()).generations.get(name, ())

    async def happened(self, name: str) -> list[Event]:
        return [event for event in await self.store.events() if event.name == name]


@contextlib.asynccontextmanager
async def a_fleet(folder: Path) -> AsyncIterator[Fleet]:
    with StateFolder(folder / "state") as state:
        store = await Store.open(state.database, lambda: NOW)
        yield Fleet(state, store)
        await store.close()
