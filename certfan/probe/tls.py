"""TLS from the first byte: https, imaps, pop3s, submissions and the like."""

from __future__ import annotations

from certfan.probe.wire import Wire


async def ready(wire: Wire) -> None:
    """Do nothing: the handshake comes first."""
