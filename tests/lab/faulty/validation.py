"""http-01 as an authority validates it (RFC 8555 section 8.3): real fetches, redirects followed, several at once.

Known limits: redirects to https are refused, and dns-01 and tls-alpn-01 are offered but never succeed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from tests.lab.faulty.answers import document

MOST_REDIRECTS = 10
MOST_BYTES = 128
PATIENCE = 10.0  # seconds


@dataclass(slots=True)
class Validator:
    """Knows where names are: at `hosts`, else every DNS name at `address` and every IP address at itself."""

    address: str = "127.0.0.1"
    port: int = 80
    hosts: Mapping[str, str] = field(default_factory=dict)

    async def http01(self, name: str, token: str, expected: str, fetches: int) -> dict[str, Any] | None:
        """Fetch a token so often, all at once; return what is wrong, or None."""
        host = f"[{name}]" if ":" in name else name
        url = f"http://{host}/.well-known/acme-challenge/{token}"
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            asyncio.TaskGroup() as tasks,
        ):
            asked = [tasks.create_task(self._try(session, name, url, expected)) for _ in range(fetches)]
        return next((wrong for fetch in asked if (wrong := fetch.result())), None)

    async def _try(
        self, session: aiohttp.ClientSession, name: str, url: str, expected: str
    ) -> dict[str, Any] | None:
        try:
            status, body = await self._fetch(session, url)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as why:
            return document("connection", f"{name}: fetching {url}: {why or type(why).__name__}")
        if status != 200:
            return document("unauthorized", f"{name}: {url} answered {status}")
        if body.rstrip() != expected.encode():
            return document("incorrectResponse", f"{name}: {url} answered something else")
        return None

    async def _fetch(self, session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
        for _ in range(1 + MOST_REDIRECTS):
            parts = urlsplit(url)
            name = parts.hostname or ""
            if parts.scheme != "http" or parts.port not in {None, 80, self.port}:
                raise ValueError(f"redirected to {url}")
            address = self.hosts.get(name) or (name if _is_address(name) else self.address)
            literal = f"[{address}]" if ":" in address else address
            where = f"http://{literal}:{self.port}{parts.path}" + (f"?{parts.query}" if parts.query else "")
            async with session.get(where, headers={"Host": parts.netloc}, allow_redirects=False) as answer:
                if 300 <= answer.status < 400:
                    url = urljoin(url, answer.headers.get("Location", ""))
                    continue
                return answer.status, await _beginning(answer.content)
        raise ValueError("too many redirects")


async def _beginning(body: aiohttp.StreamReader) -> bytes:
    """Read no more than a validator does; a longer body is cut, and then is another one."""
    try:
        return await body.readexactly(MOST_BYTES)
    except asyncio.IncompleteReadError as end:
        return end.partial


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
