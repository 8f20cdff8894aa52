"""Probes: dial an endpoint, speak its protocol up to TLS, and say which leaf was served.

Trust is never judged here: leaves are compared by fingerprint. Every probe is a new connection, because a service
keeps an old leaf on its old ones. One file a protocol; each has a coroutine that brings a `Wire` to the handshake.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from certfan import pki
from certfan.errors import ChainInvalid, ProbeRefused, ProbeUnreachable
from certfan.probe import imap, lmtp, pop3, smtp, tls
from certfan.probe.wire import Wire, connect

PATIENCE = timedelta(seconds=10)

PROTOCOLS: Mapping[str, Callable[[Wire], Awaitable[None]]] = {
    "tls": tls.ready,
    "smtp": smtp.ready,
    "lmtp": lmtp.ready,
    "imap": imap.ready,
    "pop3": pop3.ready,
}


async def probe(
    protocol: str, address: str, port: int, server_name: str, *, timeout: timedelta = PATIENCE
) -> pki.Leaf:
    """Return the leaf that is served at a literal IP address and port for a server name.

    An IP address as server name sends no SNI (RFC 6066 section 3). Cancelled, it leaves no connection behind.

    Raises:
        ProbeRefused: something answered, but no leaf came of it.
        ProbeUnreachable: nothing listens there, or it was not done in time.
    """
    where = f"{protocol}://{server_name}@{f'[{address}]' if ':' in address else address}:{port}"
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            return await _seen(protocol, address, port, server_name, where)
    except TimeoutError as error:
        raise ProbeUnreachable(
            f"{where} did not finish within {timeout.total_seconds():g} s", subject=where
        ) from error


async def _seen(protocol: str, address: str, port: int, server_name: str, where: str) -> pki.Leaf:
    if protocol not in PROTOCOLS:
        raise ProbeRefused(
            f"{where}: no probe speaks {protocol}",
            subject=where,
            hint=f"one of: {', '.join(sorted(PROTOCOLS))}",
        )
    async with connect(address, port, where=where) as wire:
        try:
            await PROTOCOLS[protocol](wire)
            return pki.read_leaf(await wire.handshake(server_name))
        except ssl.SSLError as error:
            cause = (error.reason or str(error)).lower().replace("_", " ")
            raise ProbeRefused(f"{where}: no TLS handshake: {cause}", subject=where) from error
        except ChainInvalid as error:
            raise ProbeRefused(f"{where} served what is no certificate: {error}", subject=where) from error
        except OSError as error:
            raise ProbeRefused(
                f"{where} broke the connection: {error.strerror or error}", subject=where
            ) from error
