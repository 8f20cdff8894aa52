"""IMAP STARTTLS (RFC 9051 section 6.2.1)."""

from __future__ import annotations

from certfan.probe.wire import Wire


async def ready(wire: Wire) -> None:
    """Read the greeting, ask for STARTTLS, pass over untagged lines.

    Raises:
        ProbeRefused: another answer. A server that is PREAUTH cannot start TLS any more.
    """
    greeting = await wire.line()
    if not greeting.upper().startswith("* OK"):
        raise wire.refused(f"answered: {greeting}")
    await wire.send("a STARTTLS")
    while (line := await wire.line()).startswith("* "):
        pass
    if not line.upper().startswith("A OK"):
        raise wire.refused(f"answered: {line}")
