"""Bundles on local disk, verified: what the privileged half may be asked to install.

`bundles/CERTIFICATE/NUMBER/` holds the files of a bundle, 0600 in 0700 folders. A sealed key stays sealed here.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from certfan import files, log
from certfan.agent.identity import Trust
from certfan.core.agent_steps import Pair, Staged
from certfan.core.model import CERTIFICATE_NAME
from certfan.errors import CertfanError
from certfan.protocol import manifest


class Staging:
    """The agent's own copies of its bundles."""

    def __init__(self, folder: Path, trust: Trust, clock: Callable[[], datetime]) -> None:
        self._folder = files.private_folder(folder)
        self._trust = trust
        self._clock = clock
        self._log = log.get("staging")

    def scan(self) -> dict[Pair, Staged]:
        """Return every bundle that still verifies; what does not is left alone and said once."""
        found: dict[Pair, Staged] = {}
        for certificate, number, folder in self._folders():
            try:
                read = {
                    one.name: files.read_private(one, limit=manifest.MAX_FILE) for one in folder.iterdir()
                }
                staged_at = datetime.fromtimestamp(folder.stat().st_mtime, self._clock().tzinfo)
                found[certificate, number] = self._verified(certificate, number, read, staged_at)
            except (CertfanError, OSError) as error:
                self._log.warning("bundle.unusable", bundle=f"{certificate}@{number}", problem=str(error))
        return found

    def put(self, certificate: str, number: int, bundle: Mapping[str, bytes]) -> Staged:
        """Verify a bundle and keep it; durable on return, repeatable.

        Raises:
            SignatureInvalid, BundleInvalid, PairMismatch: nothing was kept.
        """
        staged = self._verified(certificate, number, bundle, self._clock())
        parent = files.private_folder(self._folder / certificate)
        temporary = files.private_folder(parent / f".{number}.{secrets.token_hex(8)}")
        for name, data in bundle.items():
            files.create(temporary / name, data)
        files.sync_folder(temporary)
        place = parent / str(number)
        if place.exists():  # the same generation, fetched again: it no longer verified, or is sealed anew
            place.rename(parent / f".{number}.{secrets.token_hex(8)}")
        temporary.rename(place)
        files.sync_folder(parent)
        self._sweep(parent)
        return staged

    def remove(self, pairs: Iterable[Pair]) -> None:
        """Remove bundles; what is not there is fine."""
        for certificate, number in pairs:
            shutil.rmtree(self._folder / certificate / str(number), ignore_errors=True)

    def _verified(self, certificate: str, number: int, bundle: Mapping[str, bytes], at: datetime) -> Staged:
        opened = manifest.open_bundle(
            bundle,
            ca_pem=self._trust.ca_pem,
            fleet=self._trust.fleet,
            consumer=self._trust.consumer,
            certificate=certificate,
            generation=number,
            now=self._clock(),
        )
        return Staged(
            opened.manifest.fingerprint,
            opened.chain.leaf.not_after,
            staged_at=at,
            bundle=manifest.bundle_of(bundle),
        )

    def _folders(self) -> list[tuple[str, int, Path]]:
        return [
            (parent.name, int(folder.name), folder)
            for parent in self._folder.iterdir()
            if CERTIFICATE_NAME.fullmatch(parent.name)
            for folder in parent.iterdir()
            if folder.name.isdecimal()
        ]

    def _sweep(self, parent: Path) -> None:
        for left in parent.iterdir():
            if left.name.startswith("."):
                shutil.rmtree(left, ignore_errors=True)
