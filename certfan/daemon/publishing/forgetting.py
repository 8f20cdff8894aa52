"""Removes what left the config, each part only after the one before is gone: off the share, here, then the facts."""

from __future__ import annotations

from certfan.core.subjects import consumer_subject
from certfan.daemon.journal import Journal
from certfan.daemon.lookout import Lookout
from certfan.daemon.share.share import Share
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store


class Forgetting:
    """Carries Clear, Forget and ForgetConsumer out; each may be repeated."""

    def __init__(
        self, *, store: Store, state: StateFolder, share: Share, lookout: Lookout, journal: Journal
    ) -> None:
        self._store = store
        self._state = state
        self._share = share
        self._out = lookout
        self._journal = journal

    async def clear(self, certificate: str, consumer: str) -> None:
        """Take an orphan off one consumer's folder of the share."""
        numbers = sorted({folder.number for folder in self._out.published.get((certificate, consumer), ())})
        if numbers:
            await self._store.keep_number(certificate, numbers[-1])  # what only the share knew
        await self._share.clear(consumer, certificate)
        self._out.cleared((certificate, consumer))
        await self._journal.note("orphan.cleared", certificate, consumer=consumer, generations=numbers)

    async def forget(self, certificate: str, *, highest: int) -> None:
        """Remove an orphan's keys and chains here, then its facts; `highest` is the highest number seen elsewhere."""
        self._state.remove_generations(certificate)
        await self._store.forget(certificate, highest)
        await self._journal.note("certificate.forgotten", certificate)

    async def forget_consumer(self, consumer: str) -> None:
        """Remove a consumer's folder from the share, then what it was offered and said."""
        gone = await self._share.forget(consumer)
        self._out.forgotten(consumer)
        await self._store.forget_consumer(consumer, consumer_subject(consumer))
        if gone:
            await self._journal.note("consumer.forgotten", consumer)
        else:
            hint = f"its folder is empty; run as root: rmdir {self._share.root / consumer}"
            await self._journal.note("consumer.forgotten", consumer, hint=hint)
