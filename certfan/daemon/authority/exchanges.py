"""One certificate authority: one method, one exchange; what to do with the answer is decided elsewhere."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from acme import messages
from josepy.interfaces import JSONDeSerializable

from certfan import pki
from certfan.core.issuance import AuthorizationSeen, ChallengeSeen, OrderSeen
from certfan.core.model import Authority
from certfan.core.renewal import Window
from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.bodies import (
    Body,
    Signer,
    finalization,
    key_change,
    new_order,
    registration,
    revocation,
    signer_of,
)
from certfan.daemon.authority.network import LoopNetwork, NoncePool, ProblemAnswered
from certfan.daemon.authority.patience import Patience
from certfan.daemon.authority.problems import PREFIX, refusal
from certfan.daemon.authority.reading import TOKEN, Reader, caa_identities
from certfan.daemon.authority.transport import Transport
from certfan.daemon.bridge import in_greenlet
from certfan.errors import AuthorityMalformed, AuthorityRefused, AuthorityUnreachable, ChainInvalid

EXCHANGE_TIMEOUT = (
    30.0  # seconds for the directory, and for all else of one method: retried nonces, the answer
)
DIRECTORY_LIFE = 3600.0  # seconds that a fetched directory is believed
MOST_CERTIFICATES = 10  # of one chain
MOST_ALTERNATES = 10  # chains beside the first that are looked at
_EXISTING = messages.NewRegistration(only_return_existing=True)
T = TypeVar("T")
_CERT_ID = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def make_account_key() -> bytes:
    """Return a new account key (P-256, for ES256) as PKCS#8 PEM."""
    return pki.make_key("ecdsa-p256")


class AcmeAuthority:
    """An authority and our account there; any number of tasks may share one.

    Every method is one exchange of at most 30 s, or a few. Cancelled, its request is cut off, the authority may or may not
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
        dated: Callable[[datetime], object] = lambda _date: None,
    ) -> None:
        """Raise PairMismatch for a key that does not parse; nothing is sent before the first exchange.

        `dated` is told the authority's own clock, aware UTC, at every answer.
        """
        self._spec = spec
        self._transport = Transport(spec, clock, dated)
        self._reader = Reader(self._transport)
        self._nonces = NoncePool()
        self._patience = Patience(EXCHANGE_TIMEOUT)
        self._sign_with(signer_of(account_key_pem), account_uri)
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
        """Return the URL of the account of our key, made now unless it exists. Repeatable.

        Bound to an account outside of ACME when the spec has an `eab_kid`.

        Raises:
            AuthorityRefused: also, before anything is sent, when the authority wants such a binding and has none.
            ConfigInvalid, ConfigTooOpen: also for the file of the binding's key.
        """
        wanted = registration(self._spec, self._signer, await self._known_directory())
        uri = await self._account("a new account", wanted, self._signer)
        self._sign_with(self._signer, uri)
        return uri

    async def find_account(self) -> str | None:
        """Return the URL of the account of our key; None when it has none, and none is made."""
        try:
            uri = await self._account("to find an account", _EXISTING, self._signer)
        except AuthorityRefused as refused:
            if refused.type == PREFIX + "accountDoesNotExist":
                return None
            raise
        self._sign_with(self._signer, uri)
        return uri

    async def _account(self, asked: str, wanted: messages.NewRegistration, signer: Signer) -> str:
        answer = await self._exchange(asked, "newAccount", wanted, network=self._network(signer, None))
        uri = self._reader.location(answer, "the account")
        status = self._reader.account_status(answer)
        if status != "valid":
            raise self._refused(f"the account {uri} is {status}", "unauthorized", "make a new account key")
        return uri

    async def update_contacts(self) -> None:
        """Let the account have the contacts of the spec and no others. Repeatable."""
        wanted = Body({"contact": list(self._spec.contact)})
        await self._exchange("new contacts", self._account_uri or "", wanted)

    async def change_key(self, new_key_pem: bytes) -> None:
        """Give the account another key (RFC 8555 section 7.3.5); from then on this object signs with it.

        What proves the account at a challenge changes too, so answers that were laid before no longer do. When it
        fails or is cancelled this object signs as before, and `find_account` with either key says which one counts.

        Raises:
            PairMismatch: the new key does not parse, or no authority takes its kind; nothing was sent.
            AuthorityRefused: also when the new key has an account already.
        """
        new = signer_of(new_key_pem)
        url = self._named(await self._known_directory(), "keyChange")
        uri = self._account_uri or ""
        await self._exchange("a change of the account's key", url, key_change(uri, self._signer, new, url))
        # Pebble 2.10 answers 200 to a key that another account has: only the account itself is believed.
        if (found := await self._account("to find the account by its new key", _EXISTING, new)) != uri:
            raise self._refused(
                f"the new key is that of {found}, not of {uri}", "malformed", "make another account key"
            )
        self._sign_with(new, uri)

    async def look(self) -> frozenset[str]:
        """See whether it answers at all: its directory is asked for anew. Returns how CAA records name it."""
        self._directory = None
        return caa_identities(await self._patiently(self._fresh_directory()))

    async def profiles(self) -> frozenset[str]:
        """Return the names of the profiles that the authority advertises; empty when it knows none."""
        advertised = (await self._known_directory()).get("meta", {}).get("profiles")
        return frozenset(advertised) if isinstance(advertised, dict) else frozenset()

    async def new_order(
        self, csr_der: bytes, *, profile: str | None = None, replaces: str | None = None
    ) -> OrderSeen:
        """Order the names and addresses of a request; returns before any authorization is asked for.

        The authority may answer with an order that it has already. `profile` is that of the spec when None, and
        `replaces` a certID of RFC 9773, which only an authority hears that offers renewal information.

        Raises:
            AuthorityRefused: also, before anything is ordered, for a profile that is not advertised.
            RequestInvalid: the request holds no names.
        """
        profile = profile or self._spec.profile
        if profile is not None:
            await self._check_profile(profile)
        if replaces is not None and "renewalInfo" not in await self._known_directory():
            replaces = None
        wanted = new_order(csr_der, profile=profile, replaces=replaces)
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
        return self._reader.challenge(await self._exchange("a challenge's answer", challenge_url, Body({})))

    async def finalize(self, url: str, csr_der: bytes, *, order_url: str) -> OrderSeen:
        """Send the request of a ready order that lives at `order_url`; the answer need not say where that is."""
        answer = await self._exchange("to finalize", url, finalization(csr_der))
        return self._reader.order(answer, order_url)

    async def certificate(self, url: str, *, issuer: str | None = None) -> bytes:
        """Return the chain as PEM, leaf first: certificates only, one to ten; whether it fits is for `pki` to say.

        With `issuer`, it is the first of the chains offered whose topmost certificate has, or is issued by, that
        common name, and the one offered first when there is none. An alternate that is no chain counts for nothing.
        """
        answer = await self._chain(url)
        if issuer is None or issuer in pki.top_names(answer.content):
            return answer.content
        for alternate in answer.links("alternate")[:MOST_ALTERNATES]:
            # The certificate is issued: a bad chain beside a good one must not keep it from being served.
            with suppress(AuthorityMalformed, AuthorityRefused):
                other = await self._chain(alternate)
                if issuer in pki.top_names(other.content):
                    return other.content
        return answer.content

    async def _chain(self, url: str) -> Answer:
        answer = await self._exchange("a certificate", url, accept="application/pem-certificate-chain")
        try:
            if not answer.content.lstrip().startswith(b"-----BEGIN"):
                raise ChainInvalid("no PEM")
            chain = pki.read_chain(answer.content)
        except ChainInvalid as error:
            raise self._transport.malformed(f"the certificate at {url}: {error.text}") from error
        if len(chain) > MOST_CERTIFICATES:
            raise self._transport.malformed(f"the chain at {url} holds {len(chain)} certificates")
        return answer

    async def renewal_info(self, cert_id: str) -> Window | None:
        """Return when the authority wants a certificate renewed (RFC 9773); None when it never says such a thing.

        `cert_id` is `pki.renewal_id`; ValueError when it cannot be one.
        """
        if not _CERT_ID.fullmatch(cert_id):
            raise ValueError("cert_id is not that of RFC 9773")
        where = (await self._known_directory()).get("renewalInfo")
        if where is None:
            return None
        base = self._transport.check(where, "renewalInfo of the directory").rstrip("/")
        look = self._look("renewal information", f"{base}/{cert_id}")
        return self._reader.renewal_info(await self._patiently(look))

    async def revoke(self, cert_der: bytes, reason: int, *, key_pem: bytes | None = None) -> None:
        """Revoke a certificate (RFC 8555 section 7.6) for a reason of RFC 5280 section 5.3.1. Repeatable.

        Signed by the account, or by the certificate's own private key when it is given.

        Raises:
            PairMismatch: `key_pem` does not parse.
        """
        network = None if key_pem is None else self._network(signer_of(key_pem), None)
        try:
            await self._exchange("a revocation", "revokeCert", revocation(cert_der, reason), network=network)
        except AuthorityRefused as refused:
            if refused.type != PREFIX + "alreadyRevoked":
                raise

    async def deactivate(self, authorization_url: str) -> None:
        """Give an authorization up (RFC 8555 section 7.5.2): nobody tries its challenges any more."""
        wanted = Body({"status": "deactivated"})
        await self._exchange("to give up an authorization", authorization_url, wanted)

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
        directory = await self._known_directory()
        url = where if "/" in where else self._named(directory, where)
        try:
            post = in_greenlet(network.post, url, body, headers=headers, new_nonce_url=directory["newNonce"])
            return await self._patiently(post, was_sent=True)
        except ProblemAnswered as said:
            raise refusal(self._spec, asked, said.answer, said.document) from None
        except AuthorityUnreachable:
            self._directory = (
                None  # the next exchange asks for that first, which costs nothing at the authority
            )
            raise

    async def _fresh_directory(self) -> dict[str, Any]:
        async with self._directory_lock:
            if (known := self._believed()) is not None:
                return known
            answer = await self._look("its directory", self._spec.directory)
            self._directory = self._reader.directory(answer), time.monotonic()
            return self._directory[0]

    def _believed(self) -> dict[str, Any] | None:
        if self._directory is None or time.monotonic() - self._directory[1] > DIRECTORY_LIFE:
            return None
        return self._directory[0]

    async def _known_directory(self) -> dict[str, Any]:
        if (known := self._believed()) is not None:
            return known
        return await self._patiently(self._fresh_directory())

    def _named(self, directory: dict[str, Any], name: str) -> str:
        if name not in directory:
            raise self._transport.malformed(f"the directory has no {name}")
        return self._transport.check(directory[name], f"{name} of the directory")

    async def _look(self, asked: str, url: str) -> Answer:
        try:
            return await in_greenlet(self._anonymous.look, url)
        except ProblemAnswered as said:
            raise refusal(self._spec, asked, said.answer, said.document) from None

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

    async def _patiently(self, exchange: Coroutine[Any, Any, T], *, was_sent: bool = False) -> T:
        try:
            with self._patience:
                return await exchange
        except TimeoutError as error:
            raise self._transport.unreachable(
                f"none within {EXCHANGE_TIMEOUT:.0f} s", was_sent=was_sent
            ) from error

    def _sign_with(self, signer: Signer, account_uri: str | None) -> None:
        self._signer, self._account_uri, self._thumbprint = signer, account_uri, signer.thumbprint
        self._anonymous = self._network(signer, None)
        self._known = self._network(signer, account_uri) if account_uri else None

    def _network(self, signer: Signer, account_uri: str | None) -> LoopNetwork:
        return LoopNetwork(signer.key, signer.alg, self._transport, self._nonces, account_uri)
