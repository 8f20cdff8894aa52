"""The agent's reading side of the share: one bundle at a time, through a worker process."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from certfan.share_worker.client import ShareWorker

PATIENCE = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Found:
    """A bundle as it stands on the share; `generations` is the folder of them all, below where the share is mounted."""

    files: dict[str, bytes] = field(repr=False)
    generations: str


class Shelf:
    """What one consumer can take from the share. `path` is its own folder, mounted alone, or the whole share.

    Whose folder it is, its sentinel says; another consumer's is refused.
    """

    def __init__(
        self,
        path: Path,
        consumer: str,
        lock: Path,
        *,
        share_id: str | None = None,
        require_mount: bool = False,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._consumer = consumer
        self._patience = patience
        self._worker = ShareWorker(
            path, lock=lock, writable=False, sentinel_id=share_id, require_mount=require_mount
        )

    async def read(self, certificate: str, generation: int, bundle: str = "") -> dict[str, bytes]:
        """Return the files of a generation, of exactly one bundle and unverified: see protocol.manifest.open_bundle.

        Raises:
            BundleInvalid: it is not there yet, or holds what no bundle holds.
            ShareUnavailable: not mounted, another consumer's, disconnected or hung.
        """
        return (await self.find(certificate, generation, bundle)).files

    async def find(self, certificate: str, generation: int, bundle: str = "") -> Found:
        """Do as `read`, and tell where the path of the share leads to it now."""
        which = {"certificate": certificate, "generation": generation, "bundle": bundle}
        answer = await self._worker.call(
            "read", {"consumer": self._consumer, **which}, patience=self._patience
        )
        return Found(answer.files, answer.header["generations"])

    async def stop(self) -> None:
        """End the worker; takes a second at most, whatever the share does."""
        await self._worker.stop()
