"""What is served now for the names of a pair: a handshake with each of their addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from certfan import pki
from certfan.errors import ProbeError
from certfan.probe import probe

HTTPS = 443
AT_ONCE = 16
_PATIENCE = timedelta(seconds=5)

Place = tuple[str, int]  # a literal address and a port


class Served(StrEnum):
    """What a handshake showed."""

    SAME = "same"
    OTHER = "other"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Seen:
    """One look."""

    endpoint: str
    served: Served
    detail: str = ""


def place_of(text: str) -> Place:
    """Read `192.168.1.5:443` or `[fd00::5]:443`.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536 or host.startswith("[") != (":" in host):
        raise ValueError(f"{text}: must be ADDRESS:PORT")
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)


async def look(
    leaves: Mapping[str, pki.Leaf], places: Sequence[Place] = (), looked: Callable[[], None] = lambda: None
) -> dict[str, tuple[Seen, ...]]:
    """Return what is served for each name of each leaf at these places, or at every address of the name.

    `looked` is called after each name. Cancelled, it leaves no connection behind.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def one(leaf: pki.Leaf, name: str) -> list[Seen]:
        async with room:
            found = [await _seen(leaf, name, *place) for place in places or await _addresses(name)]
        looked()
        return found

    async with asyncio.TaskGroup() as group:
        tasks = {
            key: [group.create_task(one(leaf, name), name=name) for name in leaf.names]
            for key, leaf in leaves.items()
        }
    return {key: tuple(seen for task in own for seen in task.result()) for key, own in tasks.items()}


async def _addresses(name: str) -> list[Place]:
    try:
        async with asyncio.timeout(_PATIENCE.total_seconds()):
            found = await asyncio.get_running_loop().getaddrinfo(name, HTTPS, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return []
    return [(str(address[0]), HTTPS) for *_, address in found]


async def _seen(leaf: pki.Leaf, name: str, address: str, port: int) -> Seen:
    where = f"{name}@{f'[{address}]' if ':' in address else address}:{port}"
    try:
        served = await probe("tls", address, port, name, timeout=_PATIENCE)
    except ProbeError as error:
        return Seen(where, Served.NOTHING, error.text)
    if served.fingerprint == leaf.fingerprint:
        return Seen(where, Served.SAME)
    return Seen(where, Served.OTHER, f"serial {served.serial}, until {served.not_after:%Y-%m-%d}")
