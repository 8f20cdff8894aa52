"""POP3 STLS (RFC 2595 section 4)."""

from __future__ import annotations

from certfan.probe.wire import Wire


async def ready(wire: Wire) -> None:
    """Read the greeting, ask for STLS.

    Raises:
        ProbeRefused: another answer.
    """
    for command in ("STLS", None):
        line = await wire.line()
        if not line.startswith("+OK"):
            raise wire.refused(f"answered: {line}")
        if command:
            await wire.send(command)
