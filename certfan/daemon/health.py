"""Whether the daemon lives and is ready: asked for by /livez and /readyz, told to systemd's watchdog."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta

from certfan import systemd
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.share.share import Share
from certfan.daemon.store import Store
from certfan.loop import Loop

STALLED = timedelta(minutes=3)  # a reconciler that has not ticked for that long hangs


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
        """Tell systemd that we live, as long as the reconciler ticks and the store answers."""
        interval = systemd.watchdog_interval()
        while interval is not None:
            await self._store.epoch()
            if not any(self.alive().values()):
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval.total_seconds())
