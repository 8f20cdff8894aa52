"""Pairs that root may lay, by name and number: of bundles that the agent has staged, or of what root laid earlier.

Bundles are read from the agent's folder as a stranger's, and verified against what root has pinned.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from certfan import pki
from certfan.agent.config import AgentConfig
from certfan.agent.identity import SealingFolder, Trust
from certfan.agent.installer import Installer
from certfan.agent.own_keys import OwnKeys
from certfan.core.model import Custody
from certfan.errors import BundleInvalid, KeyLost, SealInvalid, SignatureInvalid
from certfan.protocol import manifest


class Bundled:
    """What root takes pairs from."""

    def __init__(
        self, config: AgentConfig, installer: Installer, trust: Trust, clock: Callable[[], datetime]
    ) -> None:
        self._config = config
        self._installer = installer
        self._trust = trust
        self._clock = clock

    @property
    def consumer(self) -> str:
        """Whose bundles they are."""
        return self._trust.consumer

    def pair(self, certificate: str, generation: int) -> pki.Pair:
        """Return a pair that may go live: of the staged bundle, or of the generation that root laid earlier.

        A key that is sealed is opened with root's own sealing key; one that was made here is joined with its chain.

        Raises:
            SignatureInvalid, BundleInvalid, PairMismatch, SealInvalid, KeyLost: there is none.
        """
        found = staged(self._config.state, certificate, generation)
        if found is None:
            return self._laid_earlier(certificate, generation)
        try:
            bundle = self.opened(found, certificate, generation)
            if bundle.manifest.custody is Custody.CONSUMER:
                return self._with_own_key(bundle.chain, certificate, generation)
            return bundle.pair(SealingFolder(self._config.trust).read())
        except (SealInvalid, SignatureInvalid):
            # Sealed to what this machine had before it was enrolled anew, or signed under a CA that is pinned no
            # longer: what was verified and opened then may be here still.
            with contextlib.suppress(BundleInvalid):
                return self._laid_earlier(certificate, generation)
            raise

    def opened(self, files: dict[str, bytes], certificate: str, generation: int) -> manifest.Bundle:
        """Verify a bundle for this consumer.

        Raises:
            SignatureInvalid, BundleInvalid, PairMismatch: it is not genuine.
        """
        return manifest.open_bundle(
            files,
            ca_pem=self._trust.ca_pem,
            fleet=self._trust.fleet,
            consumer=self._trust.consumer,
            certificate=certificate,
            generation=generation,
            now=self._clock(),
        )

    def numbers(self, certificate: str) -> frozenset[int]:
        """Return the generations that are staged, verified or not."""
        try:
            names = os.listdir(self._config.bundles / certificate)  # noqa: PTH208 - names, no paths
        except OSError:
            return frozenset()
        return frozenset(
            int(name) for name in names if name.isascii() and name.isdecimal() and len(name) < 19
        )

    def _with_own_key(self, chain: pki.Chain, certificate: str, generation: int) -> pki.Pair:
        key_pem = OwnKeys(self._config.install_to).find(certificate, chain.key_hash)
        if key_pem is not None:
            return pki.load_pair(key_pem, chain.fullchain_pem)
        with contextlib.suppress(BundleInvalid):
            return self._laid_earlier(certificate, generation)
        subject = f"{certificate}@{generation}"
        raise KeyLost(
            f"key of {subject} was made on {self.consumer}, and is not here any more",
            subject=subject,
            hint="a new one is made, and its certificate ordered, by itself: certfan status",
        )

    def _laid_earlier(self, certificate: str, generation: int) -> pki.Pair:
        for laid in self._installer.stored(certificate):
            if laid.generation == generation and (pair := self._installer.read(certificate, laid)):
                return pair
        subject = f"{certificate}@{generation}"
        raise BundleInvalid(f"bundle {subject} is neither staged nor installed", subject=subject)


def staged(state: Path, certificate: str, generation: int) -> dict[str, bytes] | None:
    """Read what the agent has staged as a stranger's: no symlink is followed, no pipe waited for, sizes capped.

    None when it is not there, or not all of it.

    Raises:
        BundleInvalid: it is no plain files of a sane size.
    """
    subject = f"{certificate}@{generation}"
    try:
        with contextlib.ExitStack() as opened:
            folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, folder)
            for part in ("bundles", certificate, str(generation)):
                folder = os.open(
                    part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
                )
                opened.callback(os.close, folder)
            found = {name: plain(name, folder, subject) for name in manifest.ALWAYS_THERE}
            for name in manifest.KEY_FILE_NAMES:
                with contextlib.suppress(FileNotFoundError):
                    found[name] = plain(name, folder, subject)
            return found
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleInvalid(
            f"staged bundle {subject} cannot be read: {error.strerror}", subject=subject
        ) from error


def plain(name: str, folder: int, subject: str) -> bytes:
    """Read a stranger's file in an open folder: no symlink is followed, no pipe waited for, its size capped."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BundleInvalid(f"{name} of staged bundle {subject} is no file", subject=subject)
        data = file.read(manifest.MAX_FILE + 1)
    if len(data) > manifest.MAX_FILE:
        raise BundleInvalid(f"{name} of staged bundle {subject} is too long", subject=subject)
    return data
