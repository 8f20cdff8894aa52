"""What is signed and sent: our keys, and the bodies that the acme library lacks or would build from objects of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from acme import jws, messages
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from josepy import b64, jwa, jwk
from josepy.interfaces import JSONDeSerializable

from certfan import toml
from certfan.core.model import Authority
from certfan.daemon.authority.problems import PREFIX
from certfan.errors import AuthorityRefused, ConfigInvalid, PairMismatch, RequestInvalid
from certfan.pki.keys import load_key

SHORTEST_MAC_KEY = 16  # bytes
_MAC_KEY = re.compile(rb"([A-Za-z0-9_-]{1,1000})={0,2}")


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and how it signs."""

    key: jwk.JWK
    alg: jwa.JWASignature

    @property
    def public(self) -> dict[str, Any]:
        """The public key as a JWK."""
        found: dict[str, Any] = self.key.public_key().to_partial_json()
        return found

    @property
    def thumbprint(self) -> str:
        """What key authorizations end in (RFC 7638)."""
        return b64.b64encode(self.key.thumbprint()).decode()


class Body(JSONDeSerializable):
    """A JSON object as it is; `{}` answers a challenge (RFC 8555 section 7.5.1)."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def to_partial_json(self) -> dict[str, Any]:
        """Return the object."""
        return dict(self._fields)

    to_json = to_partial_json  # all of it is JSON already; the library would look through all of it

    @classmethod
    def from_json(cls, jobj: Any) -> Body:
        """Return one with these fields."""
        return cls(jobj)


def signer_of(pem: bytes) -> Signer:
    """Load the private key of an account, or of a certificate; raises PairMismatch."""
    match load_key(pem):
        case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()) as key:
            return Signer(jwk.JWKEC(key=key), jwa.ES256)
        case ec.EllipticCurvePrivateKey(curve=ec.SECP384R1()) as key:
            return Signer(jwk.JWKEC(key=key), jwa.ES384)
        case rsa.RSAPrivateKey() as key:
            return Signer(jwk.JWKRSA(key=key), jwa.RS256)
    raise PairMismatch("account key is of a kind that no authority takes")


def new_order(csr_der: bytes, *, profile: str | None, replaces: str | None) -> Body:
    """Return a newOrder for the names and addresses of a request (RFC 8555 section 7.4).

    It may name a profile, and the certificate that it replaces (RFC 9773 section 5).

    Raises:
        RequestInvalid: the request does not parse, or has no names.
    """
    more = {"profile": profile, "replaces": replaces}
    return Body(
        {
            "identifiers": _identifiers_of(csr_der),
            **{name: value for name, value in more.items() if value is not None},
        }
    )


def finalization(csr_der: bytes) -> Body:
    """Return what finalizes an order with a request."""
    return Body({"csr": b64.b64encode(csr_der).decode()})


def _identifiers_of(csr_der: bytes) -> list[dict[str, str]]:
    try:
        csr = x509.load_der_x509_csr(csr_der)
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise RequestInvalid("certificate signing request holds no names") from error
    except ValueError as error:
        raise RequestInvalid("certificate signing request does not parse") from error
    names = [{"type": "dns", "value": name} for name in san.get_values_for_type(x509.DNSName)]
    return names + [{"type": "ip", "value": str(ip)} for ip in san.get_values_for_type(x509.IPAddress)]


def registration(spec: Authority, signer: Signer, directory: Mapping[str, Any]) -> messages.NewRegistration:
    """Return a newAccount, bound to an account outside of ACME when the spec has an `eab_kid`.

    Raises:
        AuthorityRefused: the authority wants such a binding, and the spec has none.
        ConfigInvalid: the binding's key file is missing, or holds no base64url key; what it holds is told nobody.
        ConfigTooOpen: others may read or change that file.
    """
    bound = None
    if spec.eab_kid is not None:
        bound = _binding(spec, spec.eab_kid, signer, directory)
    elif directory.get("meta", {}).get("externalAccountRequired") is True:
        raise AuthorityRefused(
            f"authority {spec.name}: it takes only accounts that it knows already (external account binding)",
            type=PREFIX + "externalAccountRequired",
            subject=spec.name,
            hint=f"set eab_kid and eab_key_file of authority {spec.name}",
        )
    return messages.NewRegistration(
        contact=spec.contact, terms_of_service_agreed=True, external_account_binding=bound
    )


def key_change(account_uri: str, old: Signer, new: Signer, url: str) -> Body:
    """Return the inner JWS of a key change, by the new key and without a nonce (RFC 8555 section 7.3.5)."""
    wanted = Body({"account": account_uri, "oldKey": old.public})
    inner = jws.JWS.sign(wanted.json_dumps().encode(), key=new.key, alg=new.alg, nonce=None, url=url)
    return Body(inner.to_partial_json())


def revocation(cert_der: bytes, reason: int) -> Body:
    """Return what revokes a certificate (RFC 8555 section 7.6)."""
    return Body({"certificate": b64.b64encode(cert_der).decode(), "reason": reason})


def _binding(spec: Authority, kid: str, signer: Signer, directory: Mapping[str, Any]) -> dict[str, Any]:
    # The library decodes the MAC key and signs our public key for newAccount with it, by HS256.
    found: dict[str, Any] = messages.ExternalAccountBinding.from_data(
        signer.key.public_key(), kid, _mac_key(spec), cast("messages.Directory", directory)
    )
    return found


def _mac_key(spec: Authority) -> str:
    here = f"authority.{spec.name}.eab_key_file"
    if spec.eab_key_file is None:
        raise ConfigInvalid((f"{here}: is missing beside eab_kid",), subject=spec.name)
    path = Path(spec.eab_key_file)
    try:
        toml.refuse_open(path, secret=True)
        with path.open("rb") as file:
            text = file.read(4096).strip()
    except OSError as error:
        problem = f"{here}: {path} cannot be read: {error.strerror}"
        raise ConfigInvalid((problem,), subject=spec.name, hint=f"run: ls -l {path}") from error
    match = _MAC_KEY.fullmatch(text)
    if match is None or len(match[1]) % 4 == 1 or len(b64.b64decode(match[1])) < SHORTEST_MAC_KEY:
        problem = f"{here}: {path} holds no base64url key of at least {SHORTEST_MAC_KEY} bytes"
        hint = f"write the HMAC key that {spec.name} gave you into {path}, and nothing else"
        raise ConfigInvalid((problem,), subject=spec.name, hint=hint)
    return match[1].decode()
