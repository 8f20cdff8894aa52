"""Looks what has changed, writes down what is to be told, and sends it: at least once, and over a restart only once.

A message is written down, with what it tells, before it is sent; it goes when it was. A channel sends one at a time, so
what changes while it is broken is one message later. What must never come in: what is worth telling (notices.py).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from certfan import toml
from certfan.core.model import Problem
from certfan.daemon.config.notify import CommandChannel, MailChannel, Notify, NotifyChannel
from certfan.daemon.journal import Journal
from certfan.daemon.notifying import command, mail
from certfan.daemon.notifying.message import Message, message
from certfan.daemon.notifying.notices import Key, Notice, Stage, Told, changes, notices
from certfan.daemon.status.model import Page
from certfan.daemon.store import Store
from certfan.daemon.store.telling import Posted, ToldFact
from certfan.errors import NotifyFailed, UnknownName

INTERVAL = 10.0  # seconds between looks
_DELAYS = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60))  # after failures; the last goes on

Send = Callable[[NotifyChannel, Message], Awaitable[None]]


async def send(channel: NotifyChannel, told: Message) -> None:
    """Send one message over one channel. Raises NotifyFailed."""
    match channel:
        case CommandChannel():
            await command.run(channel, told)
        case MailChannel():
            await mail.send(channel, told)


class Notifier:
    """Tells of changes over every channel of the config in force."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        page: Callable[[], Awaitable[Page]],
        config: Callable[[], Notify],
        clock: Callable[[], datetime],
        send: Send = send,
    ) -> None:
        self._store = store
        self._journal = journal
        self._page = page
        self._config = config
        self._clock = clock
        self._send = send
        self._changing: dict[str, datetime] = {}  # by channel: since when there is something new
        self._sending: set[str] = set()
        self.problems: Mapping[str, Problem] = {}  # by channel: why it could not tell
        self.since: Mapping[str, datetime] = {}  # and when this run saw that

    async def run(self) -> None:
        """Look and send for ever. Cancelled, what was being sent is sent again later."""
        async with asyncio.TaskGroup() as group:
            while True:
                for posted in await self.look():
                    self._sending.add(posted.channel)
                    group.create_task(self.deliver(posted), name=f"notify {posted.channel}")
                await asyncio.sleep(INTERVAL)

    async def look(self) -> tuple[Posted, ...]:
        """Write down what is to be told by now; return what is to be sent now."""
        channels = {one.name: one for one in self._config().channels}
        await self._store.keep_channels(channels.keys())
        waiting = await self._store.outbox()
        if channels:
            page = await self._page()
            seen, told = notices(page), await self._store.told()
            for name in channels.keys() - waiting.keys():
                await self._gather(name, page, seen, _told(told.get(name, {})))
            waiting = await self._store.outbox()
        self.problems = {name: one.problem for name, one in waiting.items() if one.problem is not None}
        now = self._clock()
        self.since = {name: self.since.get(name, now) for name in self.problems}
        return tuple(
            one for name, one in waiting.items() if one.not_before <= now and name not in self._sending
        )

    async def _gather(
        self, name: str, page: Page, seen: Mapping[Key, Notice], told: Mapping[Key, Told]
    ) -> None:
        """Write a message once the first of what is new has waited for the others."""
        own = channel_subject(name)  # it cannot tell of itself
        news = changes(told, {key: one for key, one in seen.items() if one.subject != own})
        if not news:
            self._changing.pop(name, None)
            return
        now = self._clock()
        if now - self._changing.setdefault(name, now) < self._config().gather:
            return
        del self._changing[name]
        written = message(page.fleet, now, secrets.token_hex(16), news, summary=page.summary.text)
        facts = {
            one.key: None if one.stage is Stage.RECOVERED else ToldFact(one.stage, one.detail, one.since)
            for one in news
        }
        held = {"subject": written.subject, "text": written.text, "body": written.body}
        await self._store.post(name, written.id, held, facts, now)

    async def deliver(self, posted: Posted) -> None:
        """Send what was written down. Cancelled, it is sent again: it may be read twice, with the same id."""
        channel = next((one for one in self._config().channels if one.name == posted.channel), None)
        try:
            if channel is None:
                return
            held = posted.message
            await self._send(channel, Message(posted.id, held["subject"], held["text"], held["body"]))
        except NotifyFailed as error:
            await self._put_off(posted, error)
        else:
            await self._store.sent(posted.channel, posted.id)
            count = len(held["body"]["changes"])
            await self._journal.note("notification.sent", channel_subject(posted.channel), changes=count)
        finally:
            self._sending.discard(posted.channel)

    async def _put_off(self, posted: Posted, error: NotifyFailed) -> None:
        delay = _DELAYS[min(posted.failures, len(_DELAYS) - 1)]
        until = self._clock() + delay
        problem = Problem(error.code, error.text, error.hint, until)
        await self._store.not_sent(posted.channel, posted.id, posted.failures + 1, problem, until)
        if posted.problem is None or posted.problem.detail != error.text:
            subject = channel_subject(posted.channel)
            await self._journal.warn("notification.failed", subject, detail=error.text, hint=error.hint)

    async def test(self, name: str | None) -> dict[str, str | None]:
        """Send a test over one channel, or all; return what went wrong with each, None for nothing.

        Raises:
            UnknownName: the config has no such channel, or none at all.
        """
        channels = {one.name: one for one in self._config().channels}
        if not channels or (name is not None and name not in channels):
            known = toml.did_you_mean(name or "", channels)
            what = f"no [notify.exec.{name}] or [notify.mail.{name}]{known}" if name else "nobody is notified"
            raise UnknownName(what, subject=name or "notify", hint="look at [notify] in certfan.toml")
        page = await self._page()
        outcome: dict[str, str | None] = {}
        for one in channels.values() if name is None else [channels[name]]:
            told = message(page.fleet, self._clock(), secrets.token_hex(16), (), summary=page.summary.text)
            try:
                await self._send(one, told)
                outcome[one.name] = None
            except NotifyFailed as error:
                outcome[one.name] = error.text
        return outcome


def channel_subject(name: str) -> str:
    """Return what a channel's problems are filed under."""
    return f"notify {name}"


def _told(facts: Mapping[Key, ToldFact]) -> dict[Key, Told]:
    return {key: Told(Stage(one.stage), one.detail, one.since) for key, one in facts.items()}
