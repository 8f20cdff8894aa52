"""The connections of the http-01 responder: accepted, read, answered and ended, and none holds a place for long.

A validator connects, asks once and closes, so its connection costs more than its answer. Here it costs no task, timer,
transport or turn of the loop: the request is mostly there when its connection is accepted, and is answered at once.
What is HTTP decides aiohttp's parser. What must never come in: what the answers are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.streams import StreamReader

from certfan import log
from certfan.daemon.challenges import promptly

PATIENCE = 10.0  # seconds from accept, or from the last answer, to the last byte of the next one
MOST_CONNECTIONS = 512
MAX_LINE = 2048  # bytes of the request line, and of one header
MAX_HEADERS = 64
ACCEPT_AGAIN = 1.0  # seconds after the system had no descriptor or memory left; asyncio waits as long

_AT_ONCE = 64  # connections accepted, then whoever else waits for the loop has a turn
_IN_ONE_BREATH = 16  # requests of one connection, likewise

_log = log.get("http01")


class Request(NamedTuple):
    """One request; a body is not read."""

    message: RawRequestMessage
    keep: bool  # whether its connection may ask once more
    address: object  # of the other side, as `socket.accept` says it


class Answer(NamedTuple):
    """What is sent, whether the connection stays, and what is called after the last byte went out."""

    data: bytes
    keep: bool = False
    sent: Callable[[], None] | None = None


class Connections:
    """Whoever is connected: `respond` says what a request gets, `refuse` what a status means to them.

    Those that had an answer may ask again, until their place is needed: the one that was answered longest ago goes.
    So nobody can hold a place for longer than ten seconds, however much it asks.
    """

    def __init__(self, respond: Callable[[Request], Answer], refuse: Callable[[int], Answer]) -> None:
        self.respond = respond
        self.refuse = refuse
        self.loop = asyncio.get_running_loop()
        self._protocol = BaseProtocol(self.loop)  # would be told to read more slowly; we never read that far
        self._listening: list[socket.socket] = []
        # Who came, or was answered last, at which time; longest ago first.
        self._unanswered: dict[_Connection, float] = {}
        self._kept: dict[_Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None  # one for all of them

    def listen(self, sock: socket.socket) -> None:
        """Accept on a socket that listens; it is closed by `end_all`."""
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
            # The system hands a connection over with its first bytes, or after about a second. Four in ten would be
            # there before their request, to be registered with the loop and read twice: a fifth of all CPU (measured).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        self._listening.append(sock)
        self.loop.add_reader(sock, self._accept, sock)

    def end_all(self) -> None:
        """Stop listening and end every connection, also those whose clients do not read what we have for them."""
        for sock in self._listening:
            self.loop.remove_reader(sock)
            sock.close()
        self._listening.clear()
        for connection in [*self._unanswered, *self._kept]:
            connection.end()
        if self._timer:
            self._timer.cancel()

    def admit(self, connection: _Connection) -> None:
        """Give a connection a place; where there is none, whoever was answered longest ago goes, or else this one."""
        if connection not in self._kept:
            self._unanswered[connection] = self.loop.time()
        if len(self._unanswered) + len(self._kept) > MOST_CONNECTIONS:
            next(iter(self._kept), connection).end()
        self._set_timer()

    def keep(self, connection: _Connection) -> None:
        """Let a connection that was just answered ask once more."""
        self._unanswered.pop(connection, None)
        self._kept.pop(connection, None)
        self._kept[connection] = self.loop.time()

    def forget(self, connection: _Connection) -> None:
        """Give the place of a connection away."""
        self._unanswered.pop(connection, None)
        self._kept.pop(connection, None)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("http01.exhausted", error=str(error))
                self.loop.remove_reader(listening)
                self.loop.call_later(ACCEPT_AGAIN, self._accept_again, listening)
                return
            parser = HttpRequestParser(
                self._protocol, self.loop, promptly.READ, max_line_size=MAX_LINE, max_field_size=MAX_LINE,
                max_headers=MAX_HEADERS, auto_decompress=False, max_msg_queue_size=_IN_ONE_BREATH,
            )  # fmt: skip
            _Connection(self, sock, address, parser).read()

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self.loop.add_reader(listening, self._accept, listening)

    def _set_timer(self) -> None:
        oldest = [next(iter(some.values())) for some in (self._unanswered, self._kept) if some]
        if oldest and self._timer is None:
            self._timer = self.loop.call_at(min(oldest) + PATIENCE, self._end_overdue)

    def _end_overdue(self) -> None:
        self._timer = None
        overdue = self.loop.time() - PATIENCE
        for some in (self._unanswered, self._kept):
            while some and next(iter(some.values())) <= overdue:
                next(iter(some)).end()
        self._set_timer()


class _Connection:
    """One client's: at any time it waits for bytes of it, or for room to send, and is in the loop for that alone."""

    __slots__ = (
        "_address",
        "_answer",
        "_closing",
        "_messages",
        "_more",
        "_ours",
        "_parser",
        "_sock",
        "_unsent",
        "_waits_to",
    )

    def __init__(
        self, ours: Connections, sock: socket.socket, address: object, parser: HttpRequestParser
    ) -> None:
        self._ours = ours
        self._sock = sock
        self._address = address
        self._parser = parser
        self._messages: Iterator[tuple[RawRequestMessage, StreamReader]] = iter(())
        self._more = False  # whether the parser holds requests back until these are answered
        self._answer: Answer | None = None  # the one under way
        self._closing = False  # whether its client said that nothing comes after it
        self._unsent = b""
        self._waits_to = ""

    def read(self) -> None:
        """Read once, and answer what that makes whole."""
        try:
            data = promptly.receive(self._sock)
        except (BlockingIOError, InterruptedError):
            self._wait_to("read")
        except OSError:
            self.end()
        else:
            if data:
                self._parse(data)
            else:
                self.end()

    def end(self) -> None:
        """Close it, whatever is under way; repeatable."""
        self._wait_to("")
        self._sock.close()
        self._ours.forget(self)

    def _write(self) -> None:
        if self._send() and self._answer_all() and self._more:
            self._parse(b"")

    def _parse(self, data: bytes) -> None:
        try:
            messages, _, _ = self._parser.feed_data(data)
        except HttpProcessingError:
            self._begin(self._ours.refuse(400))
            return
        self._messages = iter(messages)
        self._more = len(messages) >= _IN_ONE_BREATH
        self._answer_all()

    def _answer_all(self) -> bool:
        """Answer what was parsed, and return whether all of it was sent and the connection stays."""
        for message, payload in self._messages:
            self._parser.message_consumed()
            # A body that nobody reads would be taken for the next request, as would what follows in another protocol.
            is_all = not message.upgrade and payload.at_eof()
            self._closing = is_all and message.should_close
            keep = is_all and not message.should_close
            try:
                answer = self._ours.respond(Request(message, keep, self._address))
            except Exception:  # noqa: BLE001 - the watchdog has to hear of it, and the next client to be served
                _log.exception("http01.failed")
                answer = self._ours.refuse(500)
            if not self._begin(answer):
                return False
        self._wait_to("write" if self._more else "read")
        return True

    def _begin(self, answer: Answer) -> bool:
        self._answer, self._unsent = answer, answer.data
        return self._send()

    def _send(self) -> bool:
        """Send as much as there is room for, and return whether the next request may be answered."""
        if (answer := self._answer) is None:
            return True
        try:
            sent = promptly.send(self._sock, self._unsent, closing=self._closing)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.end()
            return False
        if sent < len(self._unsent):  # who asks and never reads gets no second answer into memory
            self._unsent = self._unsent[sent:]
            self._wait_to("write")
            return False
        self._answer = None
        if answer.keep:
            self._ours.keep(self)
        else:
            self.end()
        if answer.sent:
            answer.sent()
        return answer.keep

    def _wait_to(self, what: str) -> None:
        if what == self._waits_to:
            return
        before, self._waits_to = self._waits_to, what
        if before == "read":
            self._ours.loop.remove_reader(self._sock)
        elif before == "write":
            self._ours.loop.remove_writer(self._sock)
        elif before == "":
            self._ours.admit(self)  # which may end it
        if self._waits_to == "read":
            self._ours.loop.add_reader(self._sock, self.read)
        elif self._waits_to == "write":
            self._ours.loop.add_writer(self._sock, self._write)
