"""A certificate authority in memory that follows a script: an AcmeClient, and gates at which a process can be cut off."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certfan import pki
from certfan.core.issuance import (
    AuthorizationSeen,
    AuthorizationStatus,
    ChallengeSeen,
    ChallengeStatus,
    OrderSeen,
    OrderStatus,
)
from certfan.core.model import Authority, Identifier, Problem
from certfan.core.renewal import Window
from certfan.errors import AuthorityRefused

PREFIX = "urn:ietf:params:acme:error:"
HOST = "https://ca.example"
ISSUER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Scripted Root")])
READS = frozenset(
    {"account", "open_issuances", "generations", "tokens", "order", "authorization", "certificate"}
    | {"find_account", "renewal_info"}
)
NEEDS_NO_ACCOUNT = frozenset({"register", "look", "find_account", "renewal_info"})


def refused(kind: str, status: int = 400, *, not_before: datetime | None = None) -> AuthorityRefused:
    """Return what the real client raises for a problem document."""
    return AuthorityRefused(kind, type=PREFIX + kind, status=status, subject="lab", not_before=not_before)


_ROOT_KEY = ec.generate_private_key(ec.SECP256R1())


class Gate:
    """Counts the points that are passed; at the `shut_at`-th the caller hangs for ever, as a killed process does."""

    def __init__(self, shut_at: int = 0) -> None:
        self.passed = 0
        self.names: list[str] = []
        self.reached = asyncio.Event()
        self._shut_at = shut_at

    async def passes(self, name: str) -> None:
        """Pass a point, or stop there."""
        self.passed += 1
        self.names.append(name)
        if self.passed == self._shut_at:
            self.reached.set()
            await asyncio.Event().wait()

    def around(self, real: Any) -> Any:
        """Return `real` with a point after each of its coroutines that has an effect.

        Before it is after the one before it: nothing happens in between.
        """
        return _Gated(real, self)


class _Gated:
    def __init__(self, real: Any, gate: Gate) -> None:
        self._real, self._gate = real, gate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name in READS or not asyncio.iscoroutinefunction(found):
            return found

        async def gated(*args: Any, **kwargs: Any) -> Any:
            answer = await found(*args, **kwargs)
            await self._gate.passes(name)
            return answer

        return gated


@dataclass(slots=True)
class Order:
    """What the authority knows of one order."""

    account: str
    names: tuple[str, ...]
    valid: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    chain: bytes = b""
    replaces: str | None = None

    @property
    def status(self) -> OrderStatus:
        if self.broken:
            return OrderStatus.INVALID
        if self.chain:
            return OrderStatus.VALID
        return OrderStatus.READY if len(self.valid) == len(self.names) else OrderStatus.PENDING


class ScriptedCa:
    """Follows RFC 8555 where the tests look; `scripts` hold what each next call of a method raises instead."""

    def __init__(self, now: datetime) -> None:
        self.accounts: dict[bytes, str] = {}
        self.orders: dict[str, Order] = {}
        self.calls: Counter[str] = Counter()
        self.scripts: dict[str, list[Exception]] = {}
        self.unreachable_names: set[str] = set()
        self.silent_names: set[str] = set()  # whose challenges are never looked at
        self.unfetched_names: set[str] = set()  # valid without a look at their challenges
        self.late_names: set[str] = set()  # valid only once somebody has asked for it too early
        self.on_look: Callable[[], Awaitable[None]] | None = None  # before every look at an order
        self.fetched: Callable[[str, Callable[[], str]], None] = lambda _token, _place: None
        self.connected: list[str | None] = []
        self.renewal: dict[str, Window] | None = None  # by certID; None: it has no such thing
        self.revoked: dict[bytes, int] = {}  # DER -> reason
        self.deactivated: list[str] = []
        self.contacts: dict[str, tuple[str, ...]] = {}
        self.date = now  # its Date header, and who is told it:
        self.dated: Callable[[datetime], object] = lambda _date: None
        self._now = now
        self._key = _ROOT_KEY

    def connect(self, spec: Authority, key: bytes, uri: str | None) -> "Client":
        """Return a client, as the composition root does."""
        self.connected.append(uri)
        return Client(self, spec, key, uri)

    def lose_accounts(self) -> None:
        """Forget everybody, as a test CA does when it restarts."""
        self.accounts.clear()
        self.orders.clear()

    def sign(self, csr_der: bytes, key: Any = None) -> bytes:
        """Return a chain (PEM) for a request; with `key` for that one instead of the request's."""
        request = x509.load_der_x509_csr(csr_der)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(ISSUER)
            .public_key(key or request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(hours=1))
            .not_valid_after(self._now + timedelta(days=90))
            .add_extension(names, critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, SHA256())
        )
        return leaf.public_bytes(Encoding.PEM)

    @property
    def root_pem(self) -> bytes:
        """What every chain is signed by."""
        root = (
            x509.CertificateBuilder(issuer_name=ISSUER, subject_name=ISSUER)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(self._now - timedelta(days=1))
            .not_valid_after(self._now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, SHA256())
        )
        return root.public_bytes(Encoding.PEM)


class Client:
    """One account there."""

    def __init__(self, ca: ScriptedCa, spec: Authority, key: bytes, uri: str | None) -> None:
        self._ca, self._spec, self._key, self._uri = ca, spec, key, uri

    def _enter(self, method: str, *, by_account: bool = True) -> None:
        self._ca.calls[method] += 1
        if script := self._ca.scripts.get(method):
            raise script.pop(0)
        if method in NEEDS_NO_ACCOUNT or not by_account:
            return
        if self._ca.accounts.get(self._key) != self._uri:
            raise refused("accountDoesNotExist")

    def _order(self, url: str) -> Order:
        if url not in self._ca.orders:
            raise refused("malformed", 404)
        return self._ca.orders[url]

    async def look(self) -> frozenset[str]:
        self._enter("look")
        self._ca.dated(self._ca.date)
        return frozenset({"ca.test"})

    async def register(self) -> str:
        self._enter("register")
        number = self._ca.calls["register"]
        self._uri = self._ca.accounts.setdefault(self._key, f"{HOST}/account/{number}")
        return self._uri

    async def find_account(self) -> str | None:
        self._enter("find_account")
        self._uri = self._ca.accounts.get(self._key, self._uri)
        return self._ca.accounts.get(self._key)

    async def update_contacts(self) -> None:
        self._enter("update_contacts")
        self._ca.contacts[self._ca.accounts[self._key]] = self._spec.contact

    async def change_key(self, new_key_pem: bytes) -> None:
        self._enter("change_key")
        if new_key_pem in self._ca.accounts:
            raise refused("malformed", 409)
        self._ca.accounts[new_key_pem] = self._ca.accounts.pop(self._key)
        self._key = new_key_pem

    async def new_order(
        self, csr_der: bytes, *, profile: str | None = None, replaces: str | None = None
    ) -> OrderSeen:
        self._enter("new_order")
        names = x509.load_der_x509_csr(csr_der).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        url = f"{HOST}/order/{self._ca.calls['new_order']}"
        assert self._uri is not None
        self._ca.orders[url] = Order(
            self._uri, tuple(names.value.get_values_for_type(x509.DNSName)), replaces=replaces
        )
        return self._seen(url)

    async def order(self, url: str) -> OrderSeen:
        self._enter("order")
        if self._ca.on_look is not None:
            await self._ca.on_look()
        return self._seen(url)

    def _seen(self, url: str) -> OrderSeen:
        order = self._order(url)
        seen = OrderSeen(
            url,
            order.status,
            tuple(f"{url}/authz/{name}" for name in order.names),
            f"{url}/finalize",
            certificate=f"{url}/certificate" if order.chain else None,
        )
        # As Pebble does: an order's own problem does not say whose it is.
        lost = Problem("authority.refused", "some authorization failed") if order.broken else None
        return replace(seen, problem=lost)

    async def authorization(self, url: str) -> AuthorizationSeen:
        self._enter("authorization")
        base, _, name = url.rpartition("/authz/")
        order = self._order(base)
        status = ChallengeStatus.VALID if name in order.valid else ChallengeStatus.PENDING
        problem = None
        if name in order.broken:
            status, problem = (
                ChallengeStatus.INVALID,
                Problem("challenge.failed", "got 404", "look at the vhost"),
            )
        token = f"{base.rpartition('/')[2]}-{name.replace('.', '_')}"
        challenge = ChallengeSeen("http-01", f"{base}/challenge/{name}", status, token, problem)
        return AuthorizationSeen(url, AuthorizationStatus(status.value), Identifier(name), (challenge,))

    async def answer(self, challenge_url: str) -> ChallengeSeen:
        self._enter("answer")
        base, _, name = challenge_url.rpartition("/challenge/")
        order = self._order(base)
        if name in self._ca.late_names:
            order.late.add(name)
        elif name not in self._ca.silent_names:
            (order.broken if name in self._ca.unreachable_names else order.valid).add(name)
        challenge = (await self.authorization(f"{base}/authz/{name}")).challenges[0]
        if name not in self._ca.silent_names | self._ca.unfetched_names:
            self._ca.fetched(challenge.token, lambda: "web1")
        return challenge

    async def finalize(self, url: str, csr_der: bytes, *, order_url: str) -> OrderSeen:
        self._enter("finalize")
        order = self._order(order_url)
        if order.status is not OrderStatus.READY:
            order.valid |= order.late
            raise refused("orderNotReady", 403)
        order.chain = self._ca.sign(csr_der)
        return self._seen(order_url)

    async def certificate(self, url: str, *, issuer: str | None = None) -> bytes:
        self._enter("certificate")
        return self._order(url.removesuffix("/certificate")).chain

    async def renewal_info(self, cert_id: str) -> Window | None:
        self._enter("renewal_info")
        if self._ca.renewal is None:
            return None
        if cert_id not in self._ca.renewal:
            raise refused("malformed", 404)
        return self._ca.renewal[cert_id]

    async def revoke(self, cert_der: bytes, reason: int, *, key_pem: bytes | None = None) -> None:
        self._enter("revoke", by_account=key_pem is None)
        self._ca.revoked.setdefault(cert_der, reason)

    async def deactivate(self, authorization_url: str) -> None:
        self._enter("deactivate")
        self._ca.deactivated.append(authorization_url)

    def key_authorization(self, token: str) -> str:
        return f"{token}.{pki.public_key_hash(self._key)}"

    async def close(self) -> None:
        pass
