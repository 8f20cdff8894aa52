"""SMTP STARTTLS (RFC 3207)."""

from __future__ import annotations

from certfan.probe.wire import Wire


async def ready(wire: Wire, *, hello: str = "EHLO") -> None:
    """Greet, see STARTTLS offered, ask for it.

    Raises:
        ProbeRefused: another answer, or no STARTTLS among the extensions.
    """
    await _reply(wire, "220")
    await wire.send(f"{hello} probe.invalid")
    offered = await _reply(wire, "250")
    if not any(line[4:].strip().upper() == "STARTTLS" for line in offered[1:]):
        raise wire.refused("offers no STARTTLS")
    await wire.send("STARTTLS")
    await _reply(wire, "220")


async def _reply(wire: Wire, code: str) -> list[str]:
    """Read one reply, whose lines but the last have a dash after the code (RFC 5321 section 4.2)."""
    lines = []
    while True:
        line = await wire.line()
        lines.append(line)
        if not line.startswith(code):
            raise wire.refused(f"answered: {line}")
        if line[3:4] != "-":
            return lines
