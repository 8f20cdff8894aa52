"""The faulty authority itself: HTTPS, nonces, signatures, which resource an exchange is about, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from email.utils import format_datetime
from itertools import count
from pathlib import Path
from typing import Any, Self

import trustme
from aiohttp import web

from tests.lab.faulty import signing
from tests.lab.faulty.accounts import Accounts
from tests.lab.faulty.answers import Answer, Refused, refused
from tests.lab.faulty.certificates import Certificates
from tests.lab.faulty.faults import Afterwards, Drip, Faults, Hang, Instead, Kind, Reset
from tests.lab.faulty.issuing import Issuer
from tests.lab.faulty.ordering import Ordering
from tests.lab.faulty.records import (
    Account,
    Authorization,
    Behaviour,
    Challenge,
    Exchange,
    Records,
    now,
)
from tests.lab.faulty.routes import Nonces, Request, Routes, kind_of
from tests.lab.faulty.validation import Validator
from tests.lab.pebble import free_port

NONCE = "Replay-Nonce"
Watch = Callable[[int, Kind, str], None]


class FaultyAuthority:
    """An ACME authority on a loopback port of its own, which it keeps when it is stopped and started again.

    `start` and `stop` serve on the running loop; `with authority.running():` on a thread's own. Validation fetches
    from `hosts[name]`, else `http_at[0]`, port `http_at[1]`. `on_exchange` hears of every exchange as it is
    `received`, `processed` and `answered`, on the authority's loop, and may take its time: nothing else happens then.

    `records` is what happened, `behaviour` how it works when well, `faults` what tests add.
    """

    def __init__(
        self, folder: Path, *, http_at: tuple[str, int] = ("127.0.0.1", 80), hosts: Mapping[str, str] | None = None,
        behaviour: Behaviour | None = None, on_exchange: Watch = lambda _number, _kind, _phase: None, seed: int = 0,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self.origin = f"https://127.0.0.1:{self._port}"
        self.directory_url = f"{self.origin}/directory"
        self.behaviour = behaviour or Behaviour()
        self.faults = Faults()
        self.records = Records()
        self.on_exchange = on_exchange
        listener = trustme.CA()
        self.ca_file = folder / "listener-ca.pem"
        listener.cert_pem.write_to_path(self.ca_file)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        listener.issue_cert("127.0.0.1").configure_cert(self._tls)
        issuer = Issuer()
        self.roots_file = folder / "roots.pem"
        self.roots_file.write_bytes(b"".join(issuer.roots_pem))
        self._validator = Validator(*http_at, hosts or {})
        numbers = count(1)
        self._ordering = Ordering(
            self.origin, self.records, self.behaviour, self.faults, issuer, self._validate, numbers
        )
        self._nonces = Nonces(self.behaviour, seed)
        self._routes = Routes(
            self.origin,
            self.records,
            self.behaviour,
            self._nonces,
            self._ordering,
            Accounts(self.origin, self.records, self.behaviour, numbers),
            Certificates(self.records, self.behaviour),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.ServerRunner | None = None

    @property
    def counts(self) -> Counter[str]:
        """How many requests of each kind came."""
        return Counter(exchange.kind for exchange in self.records.exchanges)

    def reject_nonces(self, many: int) -> None:
        """Refuse the next good nonces, whatever the percentage is."""
        self._nonces.reject_next = many

    def forget_nonces(self) -> None:
        """Refuse every nonce that was given out so far, as after a long idle time."""
        self._nonces.good.clear()

    async def start(self) -> None:
        """Serve on the running loop."""
        server = web.Server(self._serve)
        self._runner = web.ServerRunner(server, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls).start()

    async def stop(self) -> None:
        """Cut every connection and validation; repeatable. What was made is kept."""
        runner, self._runner = self._runner, None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if runner:
            await runner.cleanup()

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Serve on a loop in a thread of its own until the block ends."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="faulty authority")

        def wait_for(coroutine: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

        thread.start()
        try:
            wait_for(self.start())
            yield self
        finally:
            try:
                wait_for(self.stop())
            finally:
                loop.call_soon_threadsafe(loop.stop)
                thread.join(10)
                loop.close()

    # One exchange

    async def _serve(self, http: web.BaseRequest) -> web.StreamResponse:
        number = len(self.records.exchanges) + 1
        self.records.exchanges.append(Exchange(number, Kind.UNKNOWN, http.path, (), None, None))
        kind = kind_of(http.path)
        request = Request(number, http.method, http.path, http.content_type, await http.read(), kind)
        seen = self._note(request)
        self.on_exchange(number, kind, "received")
        fault = self.faults.wire(kind, seen.names)
        if isinstance(fault, Hang | Reset) and not fault.processed:
            return await self._no_answer(http, fault)
        answer = fault.answer if isinstance(fault, Instead) else self._routes.process(request)
        if isinstance(fault, Afterwards):
            answer = fault.change(answer)
        self.on_exchange(number, kind, "processed")
        if isinstance(fault, Hang | Reset):
            return await self._no_answer(http, fault)
        response = await self._send(http, answer, fault.pause if isinstance(fault, Drip) else 0)
        self.records.exchanges[number - 1] = replace(seen, status=answer.status)
        self.on_exchange(number, kind, "answered")
        return response

    def _note(self, request: Request) -> Exchange:
        """Record what a request says it is about, believed or not."""
        protected = payload = None
        with contextlib.suppress(Refused):
            jws = signing.read(request.body)
            protected = jws.protected
            payload = jws.fields if jws.payload else ""
        names = self._routes.names(request, payload)
        seen = Exchange(request.number, request.kind, request.path, names, protected, payload)
        self.records.exchanges[request.number - 1] = seen
        return seen

    # Beside the exchanges

    def _validate(self, account: Account, authorization: Authorization, challenge: Challenge) -> None:
        task = asyncio.get_running_loop().create_task(
            self._validated(account, authorization, challenge), name=f"validation of {challenge.url}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _validated(self, account: Account, authorization: Authorization, challenge: Challenge) -> None:
        wrong: dict[str, Any] | None
        name = authorization.identifier[1]
        if challenge.kind == "http-01":
            expected = f"{challenge.token}.{account.thumbprint}"
            wrong = await self._validator.http01(name, challenge.token, expected, self.behaviour.fetches)
        else:
            wrong = json.loads(refused("dns", detail=f"{challenge.kind} is not validated here").answer.body)
        self._ordering.conclude(authorization, challenge, wrong)

    async def _send(self, http: web.BaseRequest, answer: Answer, pause: float) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status) if pause else web.Response(status=answer.status)
        for name, value in answer.headers:
            response.headers.add(name, value)
        if answer.content_type:
            response.headers["Content-Type"] = answer.content_type
        if http.method == "POST" or http.path == "/new-nonce":
            response.headers.setdefault(NONCE, self._nonces.make())
        response.headers["Cache-Control"] = "no-store"
        response.headers["Date"] = format_datetime(now() + self.behaviour.date_offset, usegmt=True)
        response.headers.add("Link", f'<{self.directory_url}>;rel="index"')
        if isinstance(response, web.Response):
            response.body = answer.body
            await response.prepare(http)
        else:
            await response.prepare(http)
            for byte in answer.body:
                await response.write(bytes([byte]))
                await asyncio.sleep(pause)
        await response.write_eof()
        return response

    async def _no_answer(self, http: web.BaseRequest, fault: Hang | Reset) -> web.StreamResponse:
        transport = http.transport
        if transport is None or isinstance(fault, Hang):
            await asyncio.get_running_loop().create_future()  # until the connection's task is cancelled
        assert transport is not None
        # Without lingering, closing sends a reset and not an end.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        transport.abort()
        return web.Response()
