"""Sends every log line to a syslog receiver over TCP or TLS (RFC 6587, RFC 5425), and never lets anybody wait for it.

What waits is bounded; what finds no room is counted, never kept. What must never come in: a line that has not passed
the redactor (log.set_up hands them over behind it).

Known limits: nobody acknowledges syslog, so what the kernel had taken of a connection that broke may be lost, and what
was half sent comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from certfan import syslog
from certfan.errors import LogUndelivered

MOST_WAITING = 4 << 20  # bytes
BATCH = 1 << 16  # bytes handed to the kernel at once
PATIENCE = 30.0  # seconds for a connection, and for a batch
FAREWELL = 2.0  # seconds for the last lines of a process
DELAYS = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds between tries
_USER_TIMEOUT = 30_000  # milliseconds until the kernel gives up on bytes that nobody acknowledges

Tell = Callable[
    [str | None, int], Awaitable[None]
]  # what is wrong, None: nothing any more; how many lines were dropped


@dataclass(frozen=True, slots=True)
class LogTarget:
    """Where lines go; `ca_file` is what its certificate is verified by, None: the system's roots."""

    host: str
    port: int
    tls: bool
    ca_file: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls' if self.tls else 'tcp'}://{host}:{self.port}"


def target_of(text: str, ca_file: str | None = None) -> LogTarget:
    """Read `tls://HOST[:6514]` or `tcp://HOST:PORT`.

    Raises:
        ValueError: it is neither.
    """
    url = urlsplit(text)
    port = url.port or (6514 if url.scheme == "tls" else None)
    bare = not (url.path.strip("/") or url.query or url.fragment or "@" in url.netloc)
    if url.scheme not in {"tls", "tcp"} or not url.hostname or port is None or not bare:
        raise ValueError('must be of the form "tls://HOST:6514" or "tcp://HOST:PORT"')
    return LogTarget(url.hostname, port, url.scheme == "tls", ca_file)


def checked_target(text: str) -> str:
    """Return a target as it was written; raises ValueError."""
    target_of(text)
    return text


class LogSender:
    """Lines in, from any thread and at once; frames out, from one task."""

    def __init__(
        self, target: LogTarget | None, *, most: int = MOST_WAITING, patience: float = PATIENCE
    ) -> None:
        self.target = target
        self.problem: LogUndelivered | None = None
        self.lost_at: datetime | None = None  # when the problem began
        self.dropped = 0  # since the process began
        self._most, self._patience = most, patience
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._untold = 0  # dropped since we last said so
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """How many lines wait."""
        return len(self._waiting)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take a line that the redactor has seen. Returns at once; without room the line is dropped and counted."""
        if self.target is None:
            return
        frame = syslog.frame(event, host=self._host, pid=self._pid)
        with self._lock:
            if self._bytes + len(frame) > self._most:
                self.dropped += 1
                self._untold += 1
                return
            self._waiting.append(frame)
            self._bytes += len(frame)
        self._wake()

    def aim(self, target: LogTarget | None) -> None:
        """Send to another receiver from now on, or to none; what waits goes there."""
        self.target = target
        if target is None:
            with self._lock:
                self._waiting.clear()
                self._bytes = 0
            self.problem = None
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended, and nobody sends any more
                loop.call_soon_threadsafe(self._news.set)

    async def run(self, tell: Tell) -> None:
        """Send until cancelled; `tell` hears of each outage and of its end. What is left then waits for `farewell`."""
        self._loop = asyncio.get_running_loop()
        failures = 0
        while True:
            target = self.target
            if target is None:
                await self._nap(None)
                continue
            began = self._loop.time()
            try:
                await self._send_to(target, tell)
            except* OSError as errors:
                await self._say_it_is_lost(tell, target, errors.exceptions[0])
            # A receiver that takes nothing is not well for having let us in.
            failures = failures + 1 if self._loop.time() - began < self._patience * 2 else 1
            if self.target is target:
                await self._nap(DELAYS[min(failures, len(DELAYS)) - 1], only_for=target)

    async def farewell(self) -> None:
        """Send what waits when the process ends, for two seconds at the most; no more is told."""
        with contextlib.suppress(OSError, ExceptionGroup):
            async with asyncio.timeout(FAREWELL):
                if self.target is not None and self._waiting and self.problem is None:
                    await self._send_to(self.target, None)

    async def _say_it_is_lost(self, tell: Tell, target: LogTarget, error: BaseException) -> None:
        cause = (getattr(error, "strerror", None) or str(error) or "nothing was taken in time").lower()
        before, self.problem = self.problem, LogUndelivered(
            f"no log line reaches {target}: {cause}", subject=str(target), hint="look at the receiver; lines wait here"
        )  # fmt: skip
        if before is None:
            self.lost_at = datetime.now(UTC)
            await tell(self.problem.text, 0)

    async def _say_it_is_back(self, tell: Tell) -> None:
        self.problem = None
        with self._lock:
            dropped, self._untold = self._untold, 0
        await tell(None, dropped)

    async def _nap(self, seconds: float | None, *, only_for: LogTarget | None = None) -> None:
        """Wait for news, or with a target until that is another one, for so many seconds at the most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while only_for is None or self.target is only_for:
                    await self._news.wait()
                    self._news.clear()
                    if only_for is None:
                        return

    async def _send_to(self, target: LogTarget, tell: Tell | None) -> None:
        """Send until the target changes, or without `tell` until nothing waits; raises OSErrors in a group."""
        async with asyncio.TaskGroup() as group:
            context = await asyncio.to_thread(_context, target) if target.tls else None
            async with asyncio.timeout(self._patience):
                reader, writer = await asyncio.open_connection(
                    target.host, target.port, ssl=context, server_hostname=target.host if context else None
                )
            end = group.create_task(_until_closed(reader), name="remote log's end")
            try:
                _keep_alive(writer)
                while self.target is target and (tell is not None or self._waiting):
                    await self._send_some(writer, tell)
            finally:
                end.cancel()
                # One that is closing ends by itself, and abort() after two close() fails (Python 3.11).
                if not writer.transport.is_closing():
                    # Whoever takes nothing would not take a farewell.
                    writer.transport.abort() if self._waiting else writer.close()

    async def _send_some(self, writer: asyncio.StreamWriter, tell: Tell | None) -> None:
        """Send a batch of what waits; with nothing left say so if there was an outage, else wait for news."""
        if batch := self._batch():
            writer.write(b"".join(batch))
            async with asyncio.timeout(self._patience):
                await writer.drain()
            self._sent(batch)
        elif tell is not None and (self.problem is not None or self._untold):
            await self._say_it_is_back(tell)
        else:
            await self._nap(None)

    def _batch(self) -> list[bytes]:
        with self._lock:
            batch: list[bytes] = []
            size = 0
            for frame in self._waiting:
                if batch and size + len(frame) > BATCH:
                    break
                batch.append(frame)
                size += len(frame)
            return batch

    def _sent(self, batch: list[bytes]) -> None:
        with self._lock:
            for frame in batch:
                if self._waiting and self._waiting[0] is frame:  # or they were let go meanwhile
                    self._waiting.popleft()
                    self._bytes -= len(frame)


def _context(target: LogTarget) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=target.ca_file)


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)
    # To drain is to have it in the kernel, or nearly: 0 would have asyncio's TLS wait for ever (Python 3.11.2).
    writer.transport.set_write_buffer_limits(high=1)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Raise ConnectionResetError when the receiver has closed; what it says is of no interest."""
    while await reader.read(1024):
        pass
    raise ConnectionResetError("the receiver has closed the connection")
