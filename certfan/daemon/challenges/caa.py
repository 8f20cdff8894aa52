"""CAA records as a CA would find them: at the name, else at the next one above it that has any (RFC 8659 section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import dns.asyncresolver
import dns.exception
import dns.rdatatype

from certfan.core.findings import CaaRecord, CaaSet
from certfan.core.path import Failure
from certfan.daemon.challenges.names import failure_of

MOST_LOOK_UPS = 16  # at once
FindCaa: TypeAlias = Callable[[str], Awaitable[CaaSet | Failure]]


class CaaFinder:
    """Looks CAA records up at the resolvers of /etc/resolv.conf, or at a given one."""

    def __init__(self, resolver: dns.asyncresolver.Resolver | None = None) -> None:
        self._resolver = resolver
        self._at_once = asyncio.Semaphore(MOST_LOOK_UPS)

    async def find(self, host: str) -> CaaSet | Failure:
        """Return the records that count for a host, or why they cannot be known."""
        async with self._at_once:
            try:
                resolver = self._resolver or dns.asyncresolver.Resolver()
            except dns.exception.DNSException:
                return Failure.DNS_FAILED
            labels = host.split(".")
            for above in range(len(labels)):
                at = ".".join(labels[above:])
                found = await _ask(resolver, at)
                if isinstance(found, Failure):
                    return found
                if found:
                    return CaaSet(at, found)
            return CaaSet("", ())


async def _ask(resolver: dns.asyncresolver.Resolver, name: str) -> tuple[CaaRecord, ...] | Failure:
    try:
        answer = await resolver.resolve(name, dns.rdatatype.CAA, search=False)
    except dns.exception.DNSException as error:
        failure = failure_of(error)
        return () if failure in {Failure.NXDOMAIN, Failure.NO_ADDRESS} else failure
    records = (
        CaaRecord(bool(r.flags & 0x80), r.tag.decode("ascii", "replace"), r.value.decode("ascii", "replace"))
        for r in answer
    )
    return tuple(sorted(records, key=lambda one: (one.tag, one.value)))
