"""The writing routes of the authority side: revoking, accounts, trial orders. On the control socket only.

An account's key goes out and comes in by two routes, for root alone. What must never come in: a log line about a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from aiohttp import web

from certfan.core.model import Authority, Generation, RevocationReason
from certfan.daemon.status.control.actions import caller, members, number
from certfan.daemon.status.model import AccountView, as_json
from certfan.errors import MessageInvalid, NotAllowed
from certfan.pki import Leaf

_LOOK = 0.25  # seconds between looks whether the caller is still there
_T = TypeVar("_T")


class Actions(Protocol):
    """What the control socket can make the daemon do; `uid` is who asked. A leaf of the error tree refuses."""

    async def revoke(
        self, certificate: str, number: int | None, reason: RevocationReason, *, at_once: bool, uid: int
    ) -> tuple[Generation, ...]:
        """Ask that a generation is revoked; return all that are to be. Raises UnknownName, ActionRefused."""

    async def account(self, authority: str) -> AccountView:
        """Return what is known of our account. Raises UnknownName."""

    async def roll_account_key(self, authority: str, *, uid: int) -> None:
        """Ask that our account gets a new key. Raises UnknownName, ActionRefused."""

    async def export_account(self, authority: str, *, uid: int) -> tuple[Authority, str, bytes]:
        """Return authority, account URL and private key (PEM). Raises UnknownName, ActionRefused."""

    async def import_account(self, authority: str, key: bytes, directory: str | None, *, uid: int) -> str:
        """Use the account of a key; return its URL. Raises UnknownName, ActionRefused, AuthorityError."""

    async def trial(self, certificate: str, authority: str | None, *, uid: int) -> tuple[str, Leaf]:
        """Order a certificate once where it costs nothing. Raises UnknownName, ActionRefused, and what an order does."""


def authority_routes(actions: Actions) -> list[web.RouteDef]:
    """Return the routes of the given actions."""
    routes = _Control(actions)
    return [
        web.post("/api/v1/revoke", routes.revoke),
        web.get("/api/v1/accounts/{authority}", routes.account, allow_head=False),
        web.put("/api/v1/accounts/{authority}", routes.import_account),
        web.get("/api/v1/accounts/{authority}/key", routes.export_account, allow_head=False),
        web.post("/api/v1/accounts/{authority}/rollover", routes.roll_account_key),
        web.post("/api/v1/trial", routes.trial),
    ]


class _Control:
    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    async def revoke(self, request: web.Request) -> web.Response:
        uid = caller(request)
        match await members(request):
            case {"certificate": str(name), "reason": str(why), "now": bool(at_once), **rest} if (
                rest.keys() <= {"generation"} and why in list(RevocationReason)
            ):
                which = number("generation", rest.get("generation"))
            case _:
                raise MessageInvalid(
                    'the body must be of the form {"certificate": "...", "generation": 1, "reason": "superseded", "now": false}'
                )
        reason = RevocationReason(why)
        found = await self._actions.revoke(name, which, reason, at_once=at_once, uid=uid)
        told = [{"generation": g.number, "serial": g.serial, "not_after": g.not_after} for g in found]
        return web.json_response(
            as_json({"certificate": name, "revoking": told, "reason": reason, "now": at_once})
        )

    async def account(self, request: web.Request) -> web.Response:
        caller(request)
        return web.json_response(as_json(await self._actions.account(request.match_info["authority"])))

    async def roll_account_key(self, request: web.Request) -> web.Response:
        name = request.match_info["authority"]
        await self._actions.roll_account_key(name, uid=caller(request))
        return web.json_response({"authority": name})

    async def export_account(self, request: web.Request) -> web.Response:
        name = request.match_info["authority"]
        spec, uri, key = await self._actions.export_account(name, uid=_root(request, "export", name))
        told = {"authority": name, "directory": spec.directory, "uri": uri, "key": key.decode("ascii")}
        return web.json_response(told)

    async def import_account(self, request: web.Request) -> web.Response:
        name = request.match_info["authority"]
        uid = _root(request, "import", name)
        match await members(request):
            case {"key": str(key), "directory": str() | None as directory, **rest} if not rest:
                uri = await self._actions.import_account(name, key.encode(), directory, uid=uid)
            case _:
                raise MessageInvalid('the body must be of the form {"key": "PEM", "directory": "..."}')
        return web.json_response({"authority": name, "uri": uri})

    async def trial(self, request: web.Request) -> web.Response:
        uid = caller(request)
        match await members(request):
            case {"certificate": str(name), "authority": str() | None as authority, **rest} if not rest:
                work = self._actions.trial(name, authority, uid=uid)
            case _:
                raise MessageInvalid(
                    'the body must be of the form {"certificate": "...", "authority": "..."}'
                )
        place, leaf = await _while_called(request, work)
        told = {"certificate": name, "authority": place, "names": leaf.names, "not_after": leaf.not_after}
        return web.json_response(as_json({**told, "issuer": leaf.issuer}))


def _root(request: web.Request, what: str, authority: str) -> int:
    uid = caller(request)
    if uid != 0:
        raise NotAllowed(
            f"only root may {what} the account at {authority}: its key says who we are there",
            subject=authority,
            hint=f"run: sudo certfan account {what} {authority}",
        )
    return uid


async def _while_called(request: web.Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Do something for as long as the caller waits for it.

    aiohttp can cancel every handler with its connection; what is written down by the others must not be cut off.
    """
    task = asyncio.create_task(work, name=request.path)
    try:
        while not task.done() and request.transport is not None:
            await asyncio.wait({task}, timeout=_LOOK)
        if not task.done():
            raise web.HTTPRequestTimeout
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
