"""The watchdog is fed by a daemon whose loop ticked, whose store answered and whose responder answered itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from certfan.daemon import health
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.health import Health
from certfan.daemon.listeners import Listener
from certfan.daemon.store import Store
from certfan.loop import Loop

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Spoilt(dict[str, str]):
    """Stands for whatever keeps the responder from answering."""

    def get(self, *_: object) -> str:  # type: ignore[override]
        raise RuntimeError("spoilt")


class Rig:
    """Real parts, of which any may be made to hang."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.loop = Loop(lambda: NOW)
        self.responder = Responder(lambda _: None, lambda *_: None)

    def health(self, **others: object) -> Health:
        parts = {"loop": self.loop, "store": self.store, "responder": self.responder, **others}
        return Health(share=SimpleNamespace(problem=None), **parts)  # type: ignore[arg-type]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    store = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    rig = Rig(store)
    listeners = (Listener("127.0.0.1"), Listener("::1"), Listener(path=str(tmp_path / "http01.sock")))
    await rig.responder.start(listeners)
    yield rig
    await rig.responder.stop()
    await store.close()


async def test_nothing_is_said_against_a_daemon_that_works(rig: Rig) -> None:
    """Loop, store and responder answer, over IPv4, IPv6 and a unix socket."""
    assert len(rig.responder.addresses) == 3
    assert await rig.health().proof_of_life() is None


async def test_a_loop_that_hangs_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tick began longer ago than is good."""
    monkeypatch.setattr(health, "STALLED", timedelta(-1))

    assert "reconciler has not ticked" in (await rig.health().proof_of_life() or "")


async def test_a_store_that_hangs_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread does not come back."""
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    hung = SimpleNamespace(epoch=asyncio.Event().wait)

    assert await rig.health(store=hung).proof_of_life() == "the store has not answered for 0.05 s"


async def test_a_responder_that_answers_wrong_or_not_at_all_is_told(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails at a request, or nothing comes within the patience although somebody listens."""
    spoilt = Responder(lambda _: None, lambda *_: None, probes=Spoilt())
    await spoilt.start((Listener("127.0.0.1"),))
    wrong = await rig.health(responder=spoilt).proof_of_life()
    await spoilt.stop()
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        silent = SimpleNamespace(addresses=[deaf.getsockname()], ask=rig.responder.ask)
        prompt = SimpleNamespace(epoch=lambda: asyncio.sleep(0))  # however busy this machine is
        nothing = await rig.health(responder=silent, store=prompt).proof_of_life()

    assert "somebody else answered: b'HTTP/1.1 500" in (wrong or "")
    assert (nothing or "").startswith("http01 does not answer on ('127.0.0.1', ")


@pytest.mark.parametrize("hangs", [False, True])
async def test_only_a_daemon_that_works_feeds_the_watchdog(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """Its socket gets WATCHDOG=1 again and again, and nothing from one that hangs."""
    looks = asyncio.Event()
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        fed = rig.health()
        looked = 0

        async def proof_of_life() -> str | None:
            nonlocal looked
            looked += 1
            if looked == 3:
                looks.set()
            return "it hangs" if hangs else await Health.proof_of_life(fed)

        monkeypatch.setattr(fed, "proof_of_life", proof_of_life)
        feeding = asyncio.create_task(fed.feed_watchdog())
        async with asyncio.timeout(30):
            await looks.wait()
        feeding.cancel()
        heard = [] if hangs else [systemd.recv(100) for _ in range(2)]
        if hangs:
            with pytest.raises(BlockingIOError):
                systemd.recv(100)

    assert set(heard) == (set() if hangs else {b"WATCHDOG=1"})
