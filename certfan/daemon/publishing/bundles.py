"""What one consumer gets of one generation: made from the local state folder, signed, the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from certfan import pki
from certfan.core.model import Custody, Desired
from certfan.daemon.ca import CaFolder
from certfan.daemon.state import StateFolder
from certfan.daemon.store import StoreFacts
from certfan.errors import NotAllowed
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
        self._sealed_as: dict[
            tuple[str, int, str, str], str
        ] = {}  # read once: a sealed key is never sealed again

    def asked(self, certificate: str, consumer: str, generation: int, *, facts: StoreFacts) -> str | None:
        """Return which bundle of a generation is a consumer's now: see manifest.bundle_of.

        None: its key was not sealed yet to what the consumer has, or is not the consumer's own as it should be.
        """
        custody = self._custody(certificate)
        if custody is Custody.CONSUMER:
            issued = facts.generations.get(certificate, ())
            return "" if any(g.number == generation and g.holder == consumer for g in issued) else None
        if custody is not Custody.SEALED:
            return ""
        if (sealing_key := facts.sealing_keys.get(consumer)) is None:
            return None
        sealed_to = pki.sealing_id(sealing_key)
        known = (certificate, generation, consumer, sealed_to)
        if known not in self._sealed_as:
            sealed = self._state.read_sealed_key(certificate, generation, consumer, sealed_to)
            if sealed is None:
                return None
            self._sealed_as[known] = manifest.bundle_of({manifest.SEALED_KEY: sealed})
        return self._sealed_as[known]

    def pack(
        self, consumer: str, certificate: str, generation: int, *, sealing_key: bytes | None
    ) -> Mapping[str, bytes]:
        """Return all files of a bundle; `sealing_key` is the consumer's public one, as far as it is known.

        Raises:
            PairMismatch, ChainInvalid: the state folder does not hold the generation whole.
            NotAllowed: the key leaves this machine sealed only, and the consumer has no sealing key; or the consumer is
                to have its own, and this generation's is the daemon's.
        """
        files = self._state.read_generation(certificate, generation)
        ca, custody = self._ca(), self._custody(certificate)
        key: bytes | None = None
        chain: pki.Chain | pki.Pair
        if custody is Custody.CONSUMER:
            chain = self._bare(files, consumer, f"{certificate}@{generation}")
        else:
            chain = pki.load_pair(files.get("privkey.pem", b""), files.get("fullchain.pem", b""))
            key = chain.key_pem
        if custody is Custody.SEALED and key is not None:
            key = self._sealed(key, consumer, certificate, generation, sealing_key)
        return manifest.pack(
            chain,
            key,
            fleet=self._fleet,
            consumer=consumer,
            certificate=certificate,
            generation=generation,
            custody=custody,
            signer_key_pem=ca.signer_key_pem,
            signer_cert_pem=ca.signer_cert_pem,
        )

    def _bare(self, files: Mapping[str, bytes], consumer: str, subject: str) -> pki.Chain:
        if "request.pem" not in files:
            raise NotAllowed(
                f"key of {subject} was made here, and {consumer} is to have one of its own",
                subject=subject,
                hint="it is ordered anew by itself: certfan status",
            )
        return pki.load_chain(files.get("fullchain.pem", b""))

    def _sealed(
        self, key_pem: bytes, consumer: str, certificate: str, generation: int, sealing_key: bytes | None
    ) -> bytes:
        if sealing_key is None:
            raise NotAllowed(
                f"key of {certificate} may reach {consumer} sealed only, and {consumer} has told no sealing key",
                subject=f"{certificate}/{consumer}",
                hint=f"enrol it again with this release: certfan consumer add {consumer}",
            )

        def sealed() -> bytes:
            return manifest.seal_key(
                key_pem,
                sealing_key,
                fleet=self._fleet,
                consumer=consumer,
                certificate=certificate,
                generation=generation,
            )

        sealed_to = pki.sealing_id(sealing_key)
        return self._state.sealed_key(certificate, generation, consumer, sealed_to, sealed)

    def _custody(self, certificate: str) -> Custody:
        wanted = self._desired().certificates.get(certificate)
        return wanted.custody if wanted else Custody.SHARE
