"""Addresses of hosts as a CA would find them: A and AAAA from the DNS, never /etc/hosts."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import dns.asyncresolver
import dns.exception
import dns.rcode
import dns.resolver

from certfan.core.model import Identifier
from certfan.core.path import Failure, addresses_of

Addresses: TypeAlias = tuple[str, ...] | Failure
Resolve: TypeAlias = Callable[[str], Awaitable[Addresses]]


async def ask_system(host: str) -> Addresses:
    """Look up a name at the resolvers of /etc/resolv.conf, as it is now."""
    try:
        resolver = dns.asyncresolver.Resolver()
    except dns.exception.DNSException:
        return Failure.DNS_FAILED
    return await ask(resolver, host)


async def ask(resolver: dns.asyncresolver.Resolver, host: str) -> Addresses:
    """Look up every A and AAAA of a name, each apart, without a search list."""
    async with asyncio.TaskGroup() as group:
        a, aaaa = (
            group.create_task(_ask(resolver, host, kind), name=f"look up {kind} of {host}")
            for kind in ("A", "AAAA")
        )
    return addresses_of(a.result(), aaaa.result())


async def _ask(resolver: dns.asyncresolver.Resolver, host: str, kind: str) -> Addresses:
    try:
        answer = await resolver.resolve(host, kind, search=False)
    except dns.exception.DNSException as error:
        return failure_of(error)
    # Servers turn the records round; a problem should be told of the same address every time.
    return tuple(sorted(record.address for record in answer))


def failure_of(error: dns.exception.DNSException) -> Failure:
    """Return why a look-up found nothing."""
    match error:
        case dns.resolver.NXDOMAIN():
            return Failure.NXDOMAIN
        case dns.resolver.NoAnswer():
            return Failure.NO_ADDRESS
        case dns.resolver.LifetimeTimeout():
            return Failure.DNS_TIMEOUT
        case dns.resolver.NoNameservers():
            answers = [told[4] for told in error.kwargs["errors"]]
            failed = any(one is not None and one.rcode() == dns.rcode.SERVFAIL for one in answers)
            return Failure.SERVFAIL if failed else Failure.DNS_FAILED
        case _:
            return Failure.DNS_FAILED


class Names:
    """The addresses of each host of one check, looked up once."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._one_by_one = asyncio.Lock()
        self._known: dict[str, Addresses] = {}

    async def look_up(self, host: str) -> Addresses:
        """Return the addresses of a host, or why there is none; a literal one is its own address."""
        if Identifier(host).kind == "ip":
            return (str(ipaddress.ip_address(host)),)
        async with self._one_by_one:
            if host not in self._known:
                self._known[host] = await self._resolve(host)
            return self._known[host]
