"""The route of `certfan doctor`, on the control socket only: each finding as a line of its own, as soon as it is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from certfan.core.findings import Finding
from certfan.daemon.status.control.lines import Lines, told_by_line
from certfan.daemon.status.model import as_json


class Actions(Protocol):
    """Who looks."""

    async def examine(self, tell: Callable[[Finding], Awaitable[None]]) -> None:
        """Look at everything that only the daemon can; changes nothing."""


def doctor_routes(doctor: Actions) -> list[web.RouteDef]:
    """Return the route."""

    async def examine(lines: Lines, _uid: int) -> None:
        async def tell(finding: Finding) -> None:
            await lines.write(as_json(finding))

        try:
            await doctor.examine(tell)
        except* ConnectionError:
            pass  # nobody listens any more

    return [web.post("/api/v1/doctor", told_by_line(examine))]
