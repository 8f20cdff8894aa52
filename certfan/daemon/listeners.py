"""Where the daemon listens: the value, its spelling, and the aiohttp site that binds exactly that and no more.

`192.168.1.1:8055`, `[fd00::1]:80`, `unix:/run/certfan/http01.sock`. A name is refused: it could come to mean
another interface tomorrow.
"""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web


@dataclass(frozen=True, slots=True)
class Listener:
    """One address: either literal host and port, or the path of a unix socket with its mode and group."""

    host: str = ""
    port: int = 0
    path: str = field(default="", kw_only=True)
    mode: int = field(default=0o660, kw_only=True)
    group: str = field(default="", kw_only=True)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can come in here."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listener(text: str) -> Listener:
    """Read one listener as the config spells it.

    Raises:
        ValueError: what is wrong with it.
    """
    if text.startswith("unix:"):
        return _parse_unix(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not port.isascii() or not 0 < int(port) < 65536:
        raise ValueError(f"{text}: must be ADDRESS:PORT or unix:/PATH")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{text}: the address must be a literal IP, never a name or `*`") from None
    if bracketed != (address.version == 6):
        raise ValueError(f"{text}: brackets are for IPv6 addresses, and needed there")
    return Listener(str(address), int(port))


def _parse_unix(path: str) -> Listener:
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"unix:{path}: the path must be absolute")
    if len(os.fsencode(path)) > 107:
        raise ValueError(f"unix:{path}: longer than the 107 bytes that a socket's path may have")
    return Listener(path=path)


def bind(listener: Listener) -> socket.socket:
    """Bind and listen, without blocking; IPv6 sockets take IPv6 only.

    A unix socket gets mode and group before anyone can connect, and takes the place of a dead one; one that
    somebody still answers on is left alone.

    Raises:
        OSError: it cannot be bound, or the group is not to be had.
    """
    if listener.path:
        return _bind_unix(listener)
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        where = socket.getaddrinfo(
            listener.host, listener.port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0][4]
        sock.bind(where)
        return _listening(sock)
    except BaseException:
        sock.close()
        raise


def _bind_unix(listener: Listener) -> socket.socket:
    _remove_dead(listener.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Connecting fails until listen(): nobody gets in before mode and group are final.
        sock.bind(listener.path)
        if listener.group:
            os.chown(listener.path, -1, group_id(listener.group), follow_symlinks=False)
        Path(listener.path).chmod(listener.mode)
        return _listening(sock)
    except BaseException:
        sock.close()
        raise


def _listening(sock: socket.socket) -> socket.socket:
    sock.listen(128)
    sock.setblocking(False)
    return sock


def _remove_dead(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            return
    raise FileExistsError(f"{path} is in use by another process")


def group_id(group: str) -> int:
    """Return the number of a group given by name or number.

    Raises:
        OSError: there is no such group.
    """
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(f"group {group} does not exist") from None


def bind_all(listeners: Iterable[Listener]) -> list[socket.socket]:
    """Bind and listen on every listener, or on none.

    Raises:
        OSError: naming the listener that cannot be bound.
    """
    sockets: list[socket.socket] = []
    for listener in listeners:
        try:
            sockets.append(bind(listener))
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise OSError(error.errno, f"cannot listen on {listener}: {error.strerror or error}") from error
    return sockets


async def serve(
    runner: web.BaseRunner, listeners: tuple[Listener, ...], tls: ssl.SSLContext | None = None
) -> list[socket.socket]:
    """Start an aiohttp runner that was set up already on every listener, or on none; over TLS where others come in.

    Raises:
        OSError: naming the listener that cannot be bound.
    """
    from aiohttp import web

    sockets = bind_all(listeners)
    try:
        for listener, sock in zip(listeners, sockets, strict=True):
            await web.SockSite(runner, sock, ssl_context=None if listener.is_local else tls).start()
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets
