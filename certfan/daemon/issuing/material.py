"""What a generation is ordered with: a key of our own, or the request of the consumer that alone has the key; and its number.

What must never come in: the order, the store, a decision about who is to have a key (core.custody).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from certfan import pki
from certfan.core.model import Certificate, Generation
from certfan.daemon.state import StateFolder
from certfan.errors import ChainInvalid, PairMismatch, RequestInvalid


@dataclass(frozen=True, slots=True)
class Material:
    """A key's public side, and the key itself unless a consumer has it (PEM)."""

    csr: bytes = field(repr=False)  # DER
    key: str  # SHA-256 of the SubjectPublicKeyInfo
    key_pem: bytes | None = field(repr=False)

    @classmethod
    def of_key(cls, key_pem: bytes, certificate: Certificate) -> Material:
        """Return what our own key is ordered with; raises PairMismatch."""
        asked = pki.make_server_csr(key_pem, _names(certificate))
        return cls(asked.der, asked.key.spki_hash, key_pem)

    def matched(self, fullchain: bytes, certificate: Certificate) -> pki.Chain:
        """Return the chain, if it is for this key and the certificate's names.

        Raises:
            PairMismatch, ChainInvalid: it is not.
        """
        chain = pki.load_chain(fullchain)
        if chain.key_hash != self.key:
            serial = chain.leaf.serial
            raise PairMismatch(f"private key does not belong to certificate {serial}", subject=serial)
        wanted = tuple(sorted(map(str, certificate.identifiers)))
        if chain.leaf.names != wanted:
            raise ChainInvalid(
                f"certificate is for {', '.join(chain.leaf.names) or 'no name'}, not {', '.join(wanted)}"
            )
        return chain


class Stock:
    """What the state folder holds of each generation, and of those to be."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def begun(
        self, certificate: Certificate, number: int, spent: Collection[str], csr: bytes | None
    ) -> Material | None:
        """Return what a try of that number goes on with, durable first; None when it cannot any more. Repeatable.

        `csr` (DER) is what the consumer that is to have the key alone has sent.
        """
        if not self.fits(certificate, number, spent, csr):
            return None
        return self._of_holder(certificate, number, csr) if csr else self.keyed(certificate, number, None)

    def _of_holder(self, certificate: Certificate, number: int, csr: bytes) -> Material:
        asked = pki.read_server_csr(csr)
        self._state.generation_request(certificate.name, number, pki.csr_pem(asked.der))
        return Material(asked.der, asked.key.spki_hash, None)

    def keyed(self, certificate: Certificate, number: int, like: Generation | None) -> Material:
        """Have a key of our own for a number: the one it has, that of an earlier generation, or a new one."""
        made: Material | None = None

        def make() -> bytes:
            nonlocal made
            if like is not None:
                earlier = self._state.read_generation(like.certificate, like.number).get("privkey.pem")
                if earlier is not None:
                    return earlier
            key_pem, asked = pki.make_key_and_csr(certificate.key_type, _names(certificate))
            made = Material(asked.der, asked.key.spki_hash, key_pem)
            return key_pem

        key_pem = self._state.generation_key(certificate.name, number, make)
        return made or Material.of_key(key_pem, certificate)

    def next_number(
        self,
        certificate: Certificate,
        known: Collection[Generation],
        spent: Collection[str],
        floor: int,
    ) -> int:
        """Return the number above all generations; one that a failed try made a fitting key for is used.

        For a consumer to make the key of, no number will do that has anything here.
        """
        name = certificate.name
        number = 1 + max([floor, *(g.number for g in known)])
        there = sorted(n for n in self._state.generation_numbers(name) if n >= number)
        for one in there:
            if certificate.holder or self._state.read_chain(name, one) is not None:
                number = one + 1
        while number in there and not self.fits(certificate, number, spent, None):
            number += 1
        return number

    def fits(self, certificate: Certificate, number: int, spent: Collection[str], csr: bytes | None) -> bool:
        """Whether what a number has is of the wanted kind, the wanted holder's, and may be used, or is not yet made."""
        files = self._state.read_generation(certificate.name, number)
        key, request = files.get("privkey.pem"), files.get("request.pem")
        if request is not None:
            try:
                own = pki.read_server_csr(request)
            except RequestInvalid:
                return False  # damaged: another number, rather than the same failure for ever
            return own.der == csr and own.key.spki_hash not in spent
        if key is None:
            return True
        try:
            fit = pki.key_type(key) == certificate.key_type and pki.public_key_hash(key) not in spent
        except PairMismatch:
            return False  # damaged, or the machine crashed while it was written: as above
        return fit and not certificate.holder


def _names(certificate: Certificate) -> list[str]:
    return [str(i) for i in certificate.identifiers]
