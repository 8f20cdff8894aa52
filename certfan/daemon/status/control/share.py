"""The routes of `certfan share`, on the control socket only: long work, told line by line while it goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from aiohttp import web

from certfan.core.share_audit import Difference
from certfan.daemon.status.control.lines import Lines, Progress, Tell, told_by_line

Outcome = tuple[int, Sequence[Difference]]


class Actions(Protocol):
    """What the control socket can have done with the share; `uid` is who asked. A leaf of the error tree refuses."""

    async def verify(self, progress: Progress, *, uid: int) -> Outcome:
        """Compare it with what the daemon knows. Raises ShareError."""

    async def rebuild(self, progress: Progress, *, uid: int) -> Outcome:
        """Publish again what is missing. Raises ShareError."""


def share_routes(actions: Actions) -> list[web.RouteDef]:
    """Return the routes of the given actions."""
    return [
        web.post("/api/v1/share/verify", told_by_line(_outcome(actions.verify))),
        web.post("/api/v1/share/rebuild", told_by_line(_outcome(actions.rebuild))),
    ]


def _outcome(act: Callable[..., Awaitable[Outcome]]) -> Tell:
    async def tell(lines: Lines, uid: int) -> None:
        count, found = await act(lines.progress, uid=uid)
        differences = [{"place": d.place, "detail": d.detail, "hint": d.hint} for d in found]
        await lines.write({"generations": count, "differences": differences})

    return tell
