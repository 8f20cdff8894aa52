"""Log lines as RFC 5424, and a sender that keeps nobody waiting, whatever the receiver does."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certfan import log, syslog
from certfan.log_sender import LogSender, LogTarget, target_of

EVENT = {
    "event": "generation.published",
    "level": "info",
    "timestamp": "2026-11-25T18:55:15.123456Z",
    "room": "daemon",
    "subject": "www.example.org@7",
    "took": 0.8,
}
PATIENCE = 20.0


def said(event: dict[str, Any]) -> str:
    return syslog.message(event, host="cert vm", pid=42).decode()


def test_an_event_is_a_message_with_its_fields_as_structured_data() -> None:
    """Facility daemon, severity of the level, the event as MSGID; what a header may not hold is replaced."""
    assert (
        "<30>1 2026-11-25T18:55:15.123456Z cert_vm certfan 42 generation.published"
        ' [certfan@32473 room="daemon" subject="www.example.org@7" took="0.8"]'
        " generation.published www.example.org@7"
    ) == said(EVENT)


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", 31), ("info", 30), ("warning", 28), ("error", 27), ("critical", 26)]
)
def test_each_level_has_its_severity(level: str, priority: int) -> None:
    """As syslog numbers them, times eight for the facility."""
    assert said({**EVENT, "level": level}).startswith(f"<{priority}>1 ")


def test_values_are_escaped_and_what_is_not_ascii_is_marked() -> None:
    """RFC 5424 section 6.3.3 for values, the byte order mark of section 6.4 before a text of UTF-8."""
    text = said({"event": "a.b", "level": "info", "detail": 'bücher "x" ] \\'})

    assert 'detail="bücher \\"x\\" \\] \\\\"' in text
    assert text.endswith('\ufeffa.b bücher "x" ] \\')


def test_a_long_field_stands_in_the_text_and_what_is_too_long_is_cut() -> None:
    """A list has a line for each; no message is longer than what a receiver should take, nor cut within a character."""
    last = [{"name": "order.created", "n": n} for n in range(30)]
    text = said({**EVENT, "last": last})
    cut = syslog.message({**EVENT, "detail": "ü" * 9000}, host="h", pid=1)

    assert 'last: {"name": "order.created", "n": 29}' in text.splitlines()
    assert 'last="' not in text
    assert 8191 <= len(cut) <= syslog.MOST_BYTES
    assert cut.decode().endswith("ü")


def test_a_frame_counts_its_octets() -> None:
    """Octets, not characters, of the message alone."""
    frame = syslog.frame({**EVENT, "detail": "ü"}, host="h", pid=1)

    count, _, message = frame.partition(b" ")
    assert int(count) == len(message)


@pytest.mark.parametrize(
    "text", ["host:514", "udp://h:514", "tcp://h", "tls://", "tls://h/x", "tls://u@h", "tcp://h:99999"]
)
def test_a_target_is_tls_or_tcp_with_a_port(text: str) -> None:
    """Over TLS the port has a default, over TCP there is none that all agree on."""
    assert LogTarget("h.example", 6514, True) == target_of("tls://h.example")
    assert "tcp://[fd00::1]:601" == str(target_of("tcp://[fd00::1]:601"))
    with pytest.raises(ValueError, match=r"."):
        target_of(text)


class Receiver:
    """A syslog receiver on loopback; `hangs` lets it in and reads nothing."""

    def __init__(self, *, context: ssl.SSLContext | None = None, hangs: bool = False, port: int = 0) -> None:
        self.messages: list[str] = []
        self.port = port
        self._context, self._hangs = context, hangs
        self._writers: list[asyncio.StreamWriter] = []
        self._heard = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._context, limit=1024
        )
        self.port, self._server = server.sockets[0].getsockname()[1], server
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """End, as a process that is killed."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not self._hangs:
                count = int(await reader.readuntil(b" "))
                self.messages.append((await reader.readexactly(count)).decode())
                self._heard.set()
            await asyncio.Event().wait()

    async def heard(self, what: str) -> str:
        """Wait for a message that has this in it."""
        async with asyncio.timeout(PATIENCE):
            while not (found := [one for one in self.messages if what in one]):
                self._heard.clear()
                await self._heard.wait()
        return found[0]


class Told:
    """What the sender said about outages."""

    def __init__(self, sender: LogSender) -> None:
        self.outages: list[tuple[str | None, int]] = []
        self._news = asyncio.Event()
        self._sender = sender

    async def __call__(self, problem: str | None, dropped: int) -> None:
        self.outages.append((problem, dropped))
        self._sender.take(
            {"event": "log.delivered" if problem is None else "log.undelivered", "dropped": dropped}
        )
        self._news.set()

    async def times(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.outages) < count:
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def sending(sender: LogSender) -> AsyncIterator[Told]:
    told = Told(sender)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sender.run(told))
        yield told
        task.cancel()


async def test_every_line_comes_in_order_also_those_of_before_the_loop() -> None:
    """The first lines of a process are older than its connection."""
    async with Receiver().listening() as receiver:
        sender = LogSender(LogTarget("127.0.0.1", receiver.port, False))
        for n in range(500):
            sender.take({"event": "test.said", "n": n})
        async with sending(sender) as told:
            await receiver.heard('n="499"')

    assert list(range(500)) == [int(re.findall(r'n="(\d+)"', one)[0]) for one in receiver.messages]
    assert [] == told.outages


async def test_a_receiver_that_comes_back_gets_what_waited_and_hears_how_many_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The outage is told once, its end once with the count; what found no room was the newest."""
    monkeypatch.setattr("certfan.log_sender.DELAYS", (0.05,))
    async with Receiver().listening() as first:
        sender = LogSender(LogTarget("127.0.0.1", first.port, False), most=2000)
        async with sending(sender) as told:
            sender.take({"event": "test.said", "n": -1})
            await first.heard('n="-1"')
            first.stop()
            await told.times(1)
            for n in range(100):
                sender.take({"event": "test.said", "n": n})
            kept, dropped, problem = sender.waiting, sender.dropped, sender.problem
            async with Receiver(port=first.port).listening() as second:
                await second.heard("log.delivered")

    assert problem is not None
    assert f"tcp://127.0.0.1:{first.port}" in problem.text
    assert 0 < dropped < 100
    assert [(None, dropped)] == told.outages[1:]
    numbers = [int(n) for one in second.messages for n in re.findall(r'n="(\d+)"', one)]
    assert list(range(100 - dropped)) == numbers
    assert kept == len(numbers) + 1
    assert f'dropped="{dropped}"' in second.messages[-1]
    assert sender.problem is None


async def test_a_receiver_that_takes_nothing_keeps_nobody_waiting() -> None:
    """It lets us in and reads nothing: lines wait up to their bound, the rest is counted, and it is told as an outage."""
    async with Receiver(hangs=True).listening() as receiver:
        sender = LogSender(LogTarget("127.0.0.1", receiver.port, False), most=1 << 20, patience=0.3)
        async with sending(sender) as told:
            before = asyncio.get_running_loop().time()
            for _ in range(4000):
                sender.take({"event": "test.said", "detail": "x" * 4000})
                await asyncio.sleep(0)
            took = asyncio.get_running_loop().time() - before
            await told.times(1)

    assert sender.dropped > 0
    assert took < PATIENCE
    assert "nothing was taken in time" in str(told.outages[0][0])


async def test_over_tls_only_the_authority_of_the_config_is_believed(tmp_path: Path) -> None:
    """A receiver that another one certified gets no line; what is wrong is told."""
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(tmp_path / "ours.pem")
    async with (
        Receiver(context=server_context(ours)).listening() as good,
        Receiver(context=server_context(other)).listening() as bad,
    ):
        sender = LogSender(LogTarget("127.0.0.1", bad.port, True, str(tmp_path / "ours.pem")))
        sender.take(EVENT)
        async with sending(sender) as told:
            await told.times(1)
            sender.aim(LogTarget("127.0.0.1", good.port, True, str(tmp_path / "ours.pem")))
            for n in range(3):
                sender.take({"event": "test.said", "n": n})
                await good.heard(f'n="{n}"')

    assert [] == bad.messages
    assert "certificate verify failed" in str(told.outages[0][0])


async def test_a_tls_receiver_that_ends_while_lines_wait_is_an_outage_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection has ended by itself, and the lines are sent over the next one."""
    monkeypatch.setattr("certfan.log_sender.DELAYS", (0.05,))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    send_some, lost = LogSender._send_some, list[str]()

    async def lose(self: LogSender, writer: asyncio.StreamWriter, tell: Any) -> None:
        await send_some(self, writer, tell)
        if not lost:
            lost.append(await receiver.heard('n="1"'))
            receiver.stop()
            try:
                await asyncio.Event().wait()  # the end is noticed, and this cancelled
            finally:
                self.take({"event": "test.said", "n": 2})

    monkeypatch.setattr(LogSender, "_send_some", lose)
    async with Receiver(context=server_context(authority)).listening() as receiver:
        sender = LogSender(LogTarget("127.0.0.1", receiver.port, True, str(tmp_path / "ca.pem")))
        sender.take({"event": "test.said", "n": 1})
        async with sending(sender) as told:
            await told.times(1)
            async with Receiver(context=server_context(authority), port=receiver.port).listening() as second:
                await second.heard('n="2"')

    assert told.outages[0][0] is not None


def server_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_the_last_lines_of_a_process_are_sent_and_a_dead_receiver_delays_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits goes out within two seconds, or not at all."""
    monkeypatch.setattr("certfan.log_sender.FAREWELL", 0.3)
    async with Receiver().listening() as receiver, Receiver(hangs=True).listening() as hanging:
        sender = LogSender(LogTarget("127.0.0.1", receiver.port, False))
        sender.take(EVENT)
        await sender.farewell()
        await receiver.heard("www.example.org@7")
        stuck = LogSender(LogTarget("127.0.0.1", hanging.port, False), most=64 << 20)
        for _ in range(3000):
            stuck.take({"event": "test.said", "detail": "x" * 8000})
        async with asyncio.timeout(PATIENCE):
            await stuck.farewell()

    assert stuck.waiting > 0


async def test_a_private_key_is_removed_before_a_line_leaves() -> None:
    """The same redactor stands before both ways out, and the local line is as ever."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    local = io.StringIO()
    async with Receiver().listening() as receiver:
        sender = LogSender(LogTarget("127.0.0.1", receiver.port, False))
        log.set_up(level="debug", stream=local, remote=sender.take)
        log.get("test").info("key.leaked", subject="x", detail=pem)
        async with sending(sender):
            text = await receiver.heard("key.leaked")
    log.set_up()
    logging.getLogger().handlers.clear()

    assert log.REDACTED in text
    assert pem.splitlines()[1] not in text
    assert '"event": "key.leaked"' in local.getvalue()


async def test_without_a_target_nothing_is_kept() -> None:
    """Nobody pays for what is not configured."""
    sender = LogSender(None)
    sender.take(EVENT)

    assert (0, 0) == (sender.waiting, sender.dropped)
