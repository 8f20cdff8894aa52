"""LMTP STARTTLS: SMTP's, with another greeting (RFC 2033)."""

from __future__ import annotations

from certfan.probe import smtp
from certfan.probe.wire import Wire


async def ready(wire: Wire) -> None:
    """Greet, see STARTTLS offered, ask for it."""
    await smtp.ready(wire, hello="LHLO")
