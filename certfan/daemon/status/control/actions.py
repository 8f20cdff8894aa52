"""The writing routes: on the control socket only, whose mode and group say who may come in.

Each call carries the uid that the kernel vouches for (SO_PEERCRED), which ends up in the event.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, Protocol

from aiohttp import web

from certfan.core.model import CONSUMER_NAME, Generation, Problem
from certfan.daemon.status.model import as_json
from certfan.errors import MessageInvalid, NotAllowed

_PEERCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)


class Actions(Protocol):
    """What the control socket can make the daemon do; `uid` is who asked. A leaf of the error tree refuses."""

    async def renew(self, certificate: str, *, uid: int) -> None:
        """Ask for a new generation now. Raises UnknownName."""

    async def add_consumer(self, name: str, *, uid: int) -> str:
        """Return the enrolment line of a consumer that the config knows. Raises UnknownName."""

    async def revoke_consumer(self, name: str, *, uid: int) -> None:
        """End every identity of a consumer. Raises UnknownName."""

    async def rollback(self, certificate: str, to: int | None, *, uid: int) -> Generation:
        """Make an older pair the next generation; return the older one. Raises UnknownName, ActionRefused."""

    async def forget(self, certificate: str, *, uid: int) -> None:
        """Remove what is left of a certificate. Raises UnknownName, ActionRefused."""

    async def forget_consumer(self, name: str, *, uid: int) -> None:
        """Remove what is left of a consumer. Raises UnknownName, ActionRefused."""

    async def reload(self, *, uid: int) -> Sequence[Problem]:
        """Read the config now; return what is wrong with it."""


def control_routes(actions: Actions) -> list[web.RouteDef]:
    """Return the routes of the given actions."""
    routes = _Control(actions)
    return [
        web.post("/api/v1/renew", routes.renew),
        web.post("/api/v1/rollback", routes.rollback),
        web.post("/api/v1/forget", routes.forget),
        web.post("/api/v1/consumers", routes.add_consumer),
        web.delete("/api/v1/consumers/{name}", routes.revoke_consumer),
        web.post("/api/v1/reload", routes.reload),
    ]


class _Control:
    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    async def renew(self, request: web.Request) -> web.Response:
        uid = caller(request)
        name = await _only(request, "certificate")
        await self._actions.renew(name, uid=uid)
        return web.json_response({"certificate": name})

    async def rollback(self, request: web.Request) -> web.Response:
        uid = caller(request)
        match await members(request):
            case {"certificate": str(name), **rest} if rest.keys() <= {"to"}:
                back = await self._actions.rollback(name, number("to", rest.get("to")), uid=uid)
            case _:
                raise MessageInvalid(
                    'the body must be a JSON object of the form {"certificate": "...", "to": 1}'
                )
        told = {"to": back.number, "serial": back.serial, "not_after": back.not_after}
        return web.json_response(as_json({"certificate": name, **told}))

    async def forget(self, request: web.Request) -> web.Response:
        uid = caller(request)
        match await members(request):
            case {"certificate": str(name), **rest} if not rest:
                await self._actions.forget(name, uid=uid)
                return web.json_response({"certificate": name})
            case {"consumer": str(name), **rest} if not rest:
                await self._actions.forget_consumer(_consumer(name), uid=uid)
                return web.json_response({"consumer": name})
            case _:
                raise MessageInvalid('the body must be {"certificate": "..."} or {"consumer": "..."}')

    async def add_consumer(self, request: web.Request) -> web.Response:
        uid = caller(request)
        name = _consumer(await _only(request, "name"))
        return web.json_response({"line": await self._actions.add_consumer(name, uid=uid)}, status=201)

    async def revoke_consumer(self, request: web.Request) -> web.Response:
        name = _consumer(request.match_info["name"])
        await self._actions.revoke_consumer(name, uid=caller(request))
        return web.json_response({"name": name})

    async def reload(self, request: web.Request) -> web.Response:
        problems = await self._actions.reload(uid=caller(request))
        return web.json_response({"problems": as_json(tuple(problems))})


def caller(request: web.Request) -> int:
    """Return the uid at the other end of the unix socket.

    Raises:
        NotAllowed: it is no unix socket, so nobody vouches for anyone.
    """
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None or sock.family != socket.AF_UNIX:
        raise NotAllowed("this route is for the control socket only")
    _, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return int(uid)


async def _only(request: web.Request, key: str) -> str:
    """Return the one member of the request's JSON object."""
    match await members(request):
        case {**found} if set(found) == {key} and isinstance(found[key], str):
            return str(found[key])
        case _:
            raise MessageInvalid(f'the body must be a JSON object of the form {{"{key}": "..."}}')


async def long_body(request: web.Request, most: int) -> bytes:
    """Return a body that may be longer than the application lets others be.

    Raises:
        MessageInvalid: it is longer than `most` bytes.
    """
    read = bytearray()
    async for piece in request.content.iter_any():
        read += piece
        if len(read) > most:
            raise MessageInvalid(f"the body is longer than {most} bytes")
    return bytes(read)


async def members(request: web.Request, *, most: int | None = None) -> Any:
    """Return what the body says in JSON, None when it says nothing; `most` bytes instead of the application's limit."""
    try:
        return json.loads(await (request.read() if most is None else long_body(request, most)))
    except (ValueError, RecursionError):
        return None


def number(member: str, value: Any) -> int | None:
    """Return the generation that a member of the body names, if it names one."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise MessageInvalid(f"`{member}` must be the number of a generation")
    return value


def _consumer(name: str) -> str:
    if not CONSUMER_NAME.fullmatch(name):
        raise MessageInvalid(f"{name[:100]!r} cannot be a consumer's name")
    return name
