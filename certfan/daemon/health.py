"""Whether the daemon lives and is ready: asked for by /livez and /readyz, told to systemd's watchdog."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta

from certfan import log, systemd
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.share.share import Share
from certfan.daemon.store import Store
from certfan.loop import Loop

STALLED = timedelta(minutes=3)  # a reconciler that has not ticked for that long hangs
PATIENCE = 5.0  # seconds that the store, and the responder on each of its addresses, may take to answer

_log = log.get("health")


class Health:
    """Names checks; None is well, a text says what is wrong."""

    def __init__(self, *, loop: Loop, store: Store, share: Share, responder: Responder) -> None:
        self._loop = loop
        self._store = store
        self._share = share
        self._responder = responder

    def alive(self) -> Mapping[str, str | None]:
        """Return what only a restart would mend."""
        silence = self._loop.silence
        return {"reconciler": f"has not ticked for {silence}" if silence > STALLED else None}

    def ready(self) -> Mapping[str, str | None]:
        """Return what keeps us from our work, whoever has to mend it."""
        problem = self._share.problem
        return {
            **self.alive(),
            "share": f"{problem.detail}; {problem.hint}" if problem else None,
            "http01": None if self._responder.addresses else "does not listen",
        }

    async def feed_watchdog(self) -> None:
        """Tell systemd that we live, as long as `proof_of_life` has nothing to say against it."""
        interval = systemd.watchdog_interval()
        while interval is not None:
            problem = await self.proof_of_life()
            if problem is None:
                systemd.notify("WATCHDOG=1")
            else:
                _log.error("watchdog.withheld", problem=problem)
            await asyncio.sleep(interval.total_seconds())

    async def proof_of_life(self) -> str | None:
        """Return what hangs: the reconciler, the store, or the responder at a request of our own; None if nothing does."""
        for part, problem in self.alive().items():
            if problem:
                return f"{part} {problem}"
        try:
            async with asyncio.timeout(PATIENCE):
                await self._store.epoch()
        except TimeoutError:
            return f"the store has not answered for {PATIENCE:g} s"
        for address in self._responder.addresses:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._responder.ask(address)
            except (TimeoutError, OSError, EOFError) as error:
                return f"http01 does not answer on {address}: {error or type(error).__name__}"
        return None
