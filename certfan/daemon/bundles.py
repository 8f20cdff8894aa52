"""What one consumer gets of one generation: made from the local state folder, signed, the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable

from certfan import pki
from certfan.core.model import Custody, Desired
from certfan.daemon.ca import CaFolder
from certfan.daemon.state import StateFolder
from certfan.protocol import manifest


class Bundles:
    """Packs bundles for the share and the channel alike, so that both carry identical ones."""

    def __init__(
        self, state: StateFolder, ca: Callable[[], CaFolder], fleet: str, desired: Callable[[], Desired]
    ) -> None:
        self._state = state
        self._ca = ca
        self._fleet = fleet
        self._desired = desired

    def pack(self, consumer: str, certificate: str, generation: int) -> dict[str, bytes]:
        """Return all six files of a bundle.

        Raises:
            PairMismatch, ChainInvalid: the state folder does not hold the generation whole.
        """
        files = self._state.read_generation(certificate, generation)
        ca = self._ca()
        wanted = self._desired().certificates.get(certificate)
        return manifest.pack(
            pki.load_pair(files.get("privkey.pem", b""), files.get("fullchain.pem", b"")),
            fleet=self._fleet,
            consumer=consumer,
            certificate=certificate,
            generation=generation,
            custody=wanted.custody if wanted else Custody.SHARE,
            signer_key_pem=ca.signer_key_pem,
            signer_cert_pem=ca.signer_cert_pem,
        )
