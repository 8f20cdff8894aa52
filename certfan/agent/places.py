"""What a pointer may lead to: a copy of ours, or the mounted generation where that is wished and sure.

The mount is read through a worker process with deadlines, and a pair counts as in place only when the bundle there
verifies as a staged one does and holds the same pair. Whatever speaks against it, a copy is laid instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime, timedelta

from certfan import log, pki
from certfan.agent.bundled import Bundled
from certfan.agent.config import AgentConfig
from certfan.agent.config_schema import Install
from certfan.agent.installer import Installer, Laid
from certfan.agent.shelf import Shelf
from certfan.core.model import Custody
from certfan.errors import BundleInvalid, CertfanError, InstallFailed

PATIENCE = timedelta(seconds=5)  # with a silent share: services wait for us, and a copy is as good


class Places:
    """Lays pairs, and tells whether what was laid still stands."""

    def __init__(
        self,
        config: AgentConfig,
        installer: Installer,
        bundled: Bundled,
        clock: Callable[[], datetime],
        shelf: Shelf | None = None,
    ) -> None:
        self._config = config
        self.installer = installer
        self._bundled = bundled
        self._clock = clock
        self._shelf = shelf
        self._log = log.get("apply")

    async def lay(self, certificate: str, generation: int, pair: pki.Pair) -> Laid:
        """Have a pair somewhere, whole; the pointer stays. Repeatable.

        Raises:
            InstallFailed: it is not in place, and cannot be copied.
        """
        mounted = await self._in_place(certificate, generation, pair)
        return mounted or self.installer.put(certificate, generation, pair, self._config.layout(certificate))

    def lay_placeholder(self, certificate: str) -> Laid:
        """Have a new placeholder; the pointer stays.

        Raises:
            InstallFailed: it cannot be written.
        """
        return self.installer.put_placeholder(certificate, self._clock(), self._config.layout(certificate))

    async def standing(self, certificate: str, laid: Laid | None) -> Laid | None:
        """Return a place to point at instead of one that may have been mounted and be gone: never a dangling one.

        The same generation, as a copy when the share does not show it; a placeholder when not even its bundle is here.
        """
        if laid is None or not laid.mounted:
            return laid
        pair = None
        with suppress(CertfanError):
            pair = self._bundled.pair(certificate, laid.generation)
        try:
            if pair is not None:
                return await self.lay(certificate, laid.generation, pair)
            mounted = await self._in_place(certificate, laid.generation, None)
            return mounted or self.lay_placeholder(certificate)
        except InstallFailed as error:
            self._log.error("pair.not_copied", certificate=certificate, problem=error.text, hint=error.hint)
            return laid

    async def _in_place(self, certificate: str, generation: int, pair: pki.Pair | None) -> Laid | None:
        """Return the mounted generation when it is there, verifies, and holds that very pair."""
        if self._shelf is None or self._config.share is None:
            return None
        try:
            found = await self._shelf.find(certificate, generation)
            bundle = self._bundled.opened(found.files, certificate, generation)
            if bundle.manifest.custody is not Custody.SHARE or pair not in {None, bundle.pair()}:
                subject = f"{certificate}@{generation}"
                raise BundleInvalid(
                    f"{subject} on the share has no key that a service could read, or is another pair",
                    subject=subject,
                )
            self.installer.mount_at(self._config.share)
        except CertfanError as error:
            self._log.warning(
                "pair.not_in_place", bundle=f"{certificate}@{generation}", code=error.code, detail=error.text
            )
            return None
        return Laid(str(generation), generation, found.generations)


@contextlib.asynccontextmanager
async def opened(
    config: AgentConfig, installer: Installer, bundled: Bundled, clock: Callable[[], datetime]
) -> AsyncIterator[Places]:
    """Open what the config asks for; the end takes a second at most, whatever the share does."""
    if config.install is not Install.IN_PLACE or config.share is None:
        yield Places(config, installer, bundled, clock)
        return
    lock = config.install_to / ".certfan-share-worker.lock"
    shelf = Shelf(config.share, bundled.consumer, lock, patience=PATIENCE)
    try:
        yield Places(config, installer, bundled, clock, shelf)
    finally:
        await shelf.stop()
