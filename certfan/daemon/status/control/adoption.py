"""The routes of `certfan import`, on the control socket only: a pair comes in by one of them, from root alone.

What must never come in: a log line about a body.
"""

from __future__ import annotations

import re
from typing import Protocol

from aiohttp import web

from certfan.daemon.status.control.actions import caller, members
from certfan.errors import MessageInvalid, NotAllowed

MOST_BYTES = 1 << 16  # of a body: a key and a chain
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Actions(Protocol):
    """What the control socket can make the daemon do; `uid` is who asked. A leaf of the error tree refuses."""

    async def adopted(self, name: str, fingerprint: str) -> tuple[int, bool]:
        """Return the number that a leaf has, or would get, and whether it has it. Raises MessageInvalid."""

    async def adopt(
        self, name: str, key_pem: bytes, fullchain_pem: bytes, authority: str, *, uid: int
    ) -> tuple[int, bool]:
        """Take a pair over; return its number, and whether it was new. Raises UnknownName, ActionRefused."""


def adoption_routes(actions: Actions) -> list[web.RouteDef]:
    """Return the routes of the given actions."""
    routes = _Control(actions)
    return [
        web.get("/api/v1/adoptions/{name}/{fingerprint}", routes.adopted, allow_head=False),
        web.put("/api/v1/adoptions/{name}", routes.adopt),
    ]


class _Control:
    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    async def adopted(self, request: web.Request) -> web.Response:
        caller(request)
        fingerprint = request.match_info["fingerprint"]
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise MessageInvalid("a fingerprint is 64 lower-case hex digits")
        number, known = await self._actions.adopted(request.match_info["name"], fingerprint)
        return web.json_response({"generation": number, "adopted": known})

    async def adopt(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        uid = caller(request)
        if uid != 0:
            raise NotAllowed(
                "only root may hand over a private key", subject=name, hint="run: sudo certfan import DIR"
            )
        match await members(request, most=MOST_BYTES):
            case {"key": str(key), "fullchain": str(chain), "authority": str(authority), **rest} if not rest:
                number, new = await self._actions.adopt(
                    name, key.encode(), chain.encode(), authority, uid=uid
                )
            case _:
                raise MessageInvalid(
                    'the body must be of the form {"key": "PEM", "fullchain": "PEM", "authority": "..."}'
                )
        return web.json_response({"certificate": name, "generation": number, "new": new})
