"""One certificate authority: one method, one exchange; what to do with the answer is decided elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from acme import messages
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from josepy import b64, jwa, jwk
from josepy.interfaces import JSONDeSerializable
from josepy.json_util import field

from certfan import pki
from certfan.core.issuance import AuthorizationSeen, ChallengeSeen, OrderSeen
from certfan.core.model import Authority
from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.bridge import in_greenlet
from certfan.daemon.authority.network import LoopNetwork, NoncePool, ProblemAnswered
from certfan.daemon.authority.problems import PREFIX, refusal
from certfan.daemon.authority.reading import TOKEN, Reader
from certfan.daemon.authority.transport import Transport
from certfan.errors import AuthorityRefused, ChainInvalid, PairMismatch, RequestInvalid
from certfan.pki.keys import load_key

EXCHANGE_TIMEOUT = 30.0  # seconds for everything of one method: retried nonces, the directory, the answer
DIRECTORY_LIFE = 3600.0  # seconds that a fetched directory is believed
MOST_CERTIFICATES = 10  # of one chain


class NewOrder(messages.NewOrder):
    """A newOrder that may say which certificate it replaces (RFC 9773 section 5)."""

    replaces: str | None = field("replaces", omitempty=True)


class _Empty(JSONDeSerializable):
    """`{}`, which is how a challenge is answered (RFC 8555 section 7.5.1)."""

    def to_partial_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, jobj: Any) -> _Empty:
        return cls()


def make_account_key() -> bytes:
    """Return a new account key (P-256, for ES256) as PKCS#8 PEM."""
    return pki.make_key("ecdsa-p256")


class AcmeAuthority:
    """An authority and our account there; any number of tasks may share one.

    Every method is one exchange of at most 30 s. Cancelled, its request is cut off, the authority may or may not
    have heard it, and this object is as usable as before. All of them raise:

        AuthorityUnreachable: no answer came.
        AuthorityMalformed: an answer came that is not ACME, or not from the directory's origin.
        AuthorityRefused: the authority said no.
        ConfigInvalid: `ca_file` cannot be read.
    """

    def __init__(
        self,
        spec: Authority,
        *,
        account_key_pem: bytes,
        account_uri: str | None,
        clock: Callable[[], datetime],
    ) -> None:
        """Raise PairMismatch for a key that does not parse; nothing is sent before the first exchange."""
        self._spec = spec
        self._transport = Transport(spec, clock)
        self._reader = Reader(self._transport)
        self._nonces = NoncePool()
        self._key, self._alg = _load_account_key(account_key_pem)
        self._thumbprint = b64.b64encode(self._key.thumbprint()).decode()
        self._anonymous = self._network(None)
        self._account_uri = account_uri
        self._known = self._network(account_uri) if account_uri else None
        self._directory: tuple[dict[str, Any], float] | None = None
        self._directory_lock = asyncio.Lock()

    @property
    def account_uri(self) -> str | None:
        """The account's URL, once known."""
        return self._account_uri

    @property
    def server_date(self) -> datetime | None:
        """The authority's clock in its last answer, aware UTC; for telling whether ours is honest."""
        return self._transport.server_date

    async def register(self) -> str:
        """Return the URL of the account of our key, made now unless it exists. Repeatable."""
        wanted = messages.NewRegistration(contact=self._spec.contact, terms_of_service_agreed=True)
        answer = await self._exchange("a new account", "newAccount", wanted, network=self._anonymous)
        uri = self._reader.location(answer, "the account")
        status = self._reader.account_status(answer)
        if status != "valid":
            raise self._refused(f"the account {uri} is {status}", "unauthorized", "make a new account key")
        self._account_uri, self._known = uri, self._network(uri)
        return uri

    async def look(self) -> None:
        """See whether the authority answers at all: its directory is asked for anew."""
        self._directory = None
        async with self._patience():
            await self._fresh_directory()

    async def profiles(self) -> frozenset[str]:
        """Return the names of the profiles that the authority advertises; empty when it knows none."""
        async with self._patience():
            advertised = (await self._fresh_directory()).get("meta", {}).get("profiles")
        return frozenset(advertised) if isinstance(advertised, dict) else frozenset()

    async def new_order(
        self, csr_der: bytes, *, profile: str | None = None, replaces: str | None = None
    ) -> OrderSeen:
        """Order the names and addresses of a request; returns before any authorization is asked for.

        The authority may answer with an order that it has already. `profile` is that of the spec when None, and
        `replaces` a certID of RFC 9773.

        Raises:
            AuthorityRefused: also, before anything is ordered, for a profile that is not advertised.
            RequestInvalid: the request holds no names.
        """
        profile = profile or self._spec.profile
        if profile is not None:
            await self._check_profile(profile)
        wanted = NewOrder(identifiers=_identifiers(csr_der), profile=profile, replaces=replaces)
        answer = await self._exchange("a new order", "newOrder", wanted)
        return self._reader.order(answer, self._reader.location(answer, "the order"))

    async def order(self, url: str) -> OrderSeen:
        """Look at an order."""
        return self._reader.order(await self._exchange("a look at an order", url), url)

    async def authorization(self, url: str) -> AuthorizationSeen:
        """Look at an authorization."""
        return self._reader.authorization(await self._exchange("a look at an authorization", url), url)

    async def answer(self, challenge_url: str) -> ChallengeSeen:
        """Have the authority try a challenge whose answer is in place."""
        return self._reader.challenge(await self._exchange("a challenge's answer", challenge_url, _Empty()))

    async def finalize(self, url: str, csr_der: bytes, *, order_url: str) -> OrderSeen:
        """Send the request of a ready order that lives at `order_url`; the answer need not say where that is."""
        wanted = messages.CertificateRequest(csr=_load_csr(csr_der))
        return self._reader.order(await self._exchange("to finalize", url, wanted), order_url)

    async def certificate(self, url: str) -> bytes:
        """Return the chain as PEM, leaf first: certificates only, one to ten; whether it fits is for `pki` to say."""
        answer = await self._exchange("a certificate", url, accept="application/pem-certificate-chain")
        try:
            if not answer.content.lstrip().startswith(b"-----BEGIN"):
                raise ChainInvalid("no PEM")
            chain = pki.read_chain(answer.content)
        except ChainInvalid as error:
            raise self._transport.malformed(f"the certificate at {url}: {error.text}") from error
        if len(chain) > MOST_CERTIFICATES:
            raise self._transport.malformed(f"the chain at {url} holds {len(chain)} certificates")
        return answer.content

    def key_authorization(self, token: str) -> str:
        """Return what proves our account at a challenge (RFC 8555 section 8.1); ValueError for a bad token."""
        if not TOKEN.fullmatch(token):
            raise ValueError("token is not base64url")
        return f"{token}.{self._thumbprint}"

    async def close(self) -> None:
        """Close the connections; repeatable."""
        await self._transport.close()

    async def _exchange(
        self,
        asked: str,
        where: str,
        body: JSONDeSerializable | None = None,
        *,
        accept: str = "application/json",
        network: LoopNetwork | None = None,
    ) -> Answer:
        """POST to a URL, or to what the directory has under a name; without a body it is a POST-as-GET."""
        network = network or self._known
        if network is None:
            raise RuntimeError(f"authority {self._spec.name}: register comes before everything else")
        headers = {"Content-Type": LoopNetwork.JOSE_CONTENT_TYPE, "Accept": accept}
        async with self._patience():
            directory = await self._fresh_directory()
            url, new_nonce = directory.get(where, where), directory["newNonce"]
            try:
                return await in_greenlet(network.post, url, body, headers=headers, new_nonce_url=new_nonce)
            except ProblemAnswered as said:
                raise refusal(self._spec, asked, said.answer, said.document) from None

    async def _fresh_directory(self) -> dict[str, Any]:
        async with self._directory_lock:
            if self._directory is None or time.monotonic() - self._directory[1] > DIRECTORY_LIFE:
                try:
                    answer = await in_greenlet(self._anonymous.look, self._spec.directory)
                except ProblemAnswered as said:
                    raise refusal(self._spec, "its directory", said.answer, said.document) from None
                self._directory = self._reader.directory(answer), time.monotonic()
            return self._directory[0]

    async def _check_profile(self, profile: str) -> None:
        advertised = await self.profiles()
        if profile not in advertised:
            offers = ", ".join(sorted(advertised)[:20]) or "none"
            raise self._refused(
                f"profile {profile} is not advertised", "invalidProfile", f"choose a profile of: {offers}"
            )

    def _refused(self, reason: str, kind: str, hint: str) -> AuthorityRefused:
        text = f"authority {self._spec.name}: {reason}"
        return AuthorityRefused(text, type=PREFIX + kind, subject=self._spec.name, hint=hint)

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT):
                yield
        except TimeoutError as error:
            raise self._transport.unreachable(f"none within {EXCHANGE_TIMEOUT:.0f} s") from error

    def _network(self, account_uri: str | None) -> LoopNetwork:
        return LoopNetwork(self._key, self._alg, self._transport, self._nonces, account_uri)


def _load_account_key(pem: bytes) -> tuple[jwk.JWK, jwa.JWASignature]:
    match load_key(pem):
        case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()) as key:
            return jwk.JWKEC(key=key), jwa.ES256
        case ec.EllipticCurvePrivateKey(curve=ec.SECP384R1()) as key:
            return jwk.JWKEC(key=key), jwa.ES384
        case rsa.RSAPrivateKey() as key:
            return jwk.JWKRSA(key=key), jwa.RS256
    raise PairMismatch("account key is of a kind that no authority takes")


def _load_csr(csr_der: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_der_x509_csr(csr_der)
    except ValueError as error:
        raise RequestInvalid("certificate signing request does not parse") from error


def _identifiers(csr_der: bytes) -> list[messages.Identifier]:
    try:
        san = _load_csr(csr_der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise RequestInvalid("certificate signing request holds no names") from error
    names = [(messages.IDENTIFIER_FQDN, name) for name in san.get_values_for_type(x509.DNSName)]
    names += [(messages.IDENTIFIER_IP, str(ip)) for ip in san.get_values_for_type(x509.IPAddress)]
    return [messages.Identifier(typ=typ, value=value) for typ, value in names]
