"""A DNS server of a few lines, for what no real one says on demand."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Zone = Mapping[str, Mapping[str, list[str]] | dns.rcode.Rcode | None]


class TinyDns(asyncio.DatagramProtocol):
    """Answers from a zone: records by type, an rcode, or None for silence. What it does not know does not exist."""

    def __init__(self, zone: Zone) -> None:
        self.zone = dict(zone)
        self.asked: list[tuple[str, str]] = []
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio's own are no DatagramTransport in 3.11

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        entry = self.zone.get(name, dns.rcode.NXDOMAIN)
        if entry is None:
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if isinstance(entry, dns.rcode.Rcode):
            answer.set_rcode(entry)
        elif kind in entry:
            answer.answer.append(dns.rrset.from_text(question.name, 5, "IN", kind, *entry[kind]))
        assert self._transport is not None
        self._transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def serving(
    zone: Zone, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[tuple[TinyDns, int]]:
    """Serve the zone; gives the server and its port."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: TinyDns(zone), local_addr=(address, port)
    )
    try:
        yield server, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
