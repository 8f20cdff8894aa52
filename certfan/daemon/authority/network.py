"""Requests of one account at an authority, signed (RFC 8555 section 6.2), and the nonces that they need.

What must never come in: what is asked for, and what an answer means beyond a refused nonce.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.bodies import Signer, base64url
from certfan.daemon.authority.problems import kind
from certfan.daemon.authority.transport import Transport

NONCE_TRIES = 20
NONCE_LIFE = 600.0  # seconds; authorities keep them longer, but promise nothing
NONCE_DOUBT = 30.0  # seconds of idleness after which one refusal speaks for all of that age
MOST_NONCES = 200
_SHOWN = 80


class ProblemAnswered(Exception):
    """An authority answered with a problem document; never leaves this folder."""

    def __init__(self, answer: Answer, document: Mapping[str, Any]) -> None:
        super().__init__(kind(document))
        self.answer = answer
        self.document = document


class NoncePool:
    """Nonces of one authority as it gave them, newest first out. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._kept: dict[bytes, float] = {}

    def keep(self, text: str, now: float) -> None:
        """Keep a Replay-Nonce; one that is not canonical base64url is ignored (RFC 8555 section 6.5.1)."""
        try:
            nonce = base64url(base64.urlsafe_b64decode(f"{text}=="))
        except ValueError:
            return
        if nonce and nonce == text.encode():
            self._kept[nonce] = now
        if len(self._kept) > MOST_NONCES:
            del self._kept[next(iter(self._kept))]

    def take(self, now: float) -> bytes | None:
        """Return the newest nonce that is not too old, and never again."""
        nonce, at = self._kept.popitem() if self._kept else (None, now)
        if now - at < NONCE_LIFE:
            return nonce
        self._kept.clear()  # all others are older still
        return None

    def doubt(self, now: float) -> None:
        """Drop what has idled: the authority just refused a nonce."""
        self._kept = {nonce: at for nonce, at in self._kept.items() if now - at < NONCE_DOUBT}


class Network:
    """Sends what is asked of an authority; any number of tasks may share one.

    Without an account URI requests carry the public key (newAccount). Cancelled, a request is as one of `Transport`.
    """

    def __init__(
        self, signer: Signer, transport: Transport, nonces: NoncePool, account_uri: str | None
    ) -> None:
        self._signer = signer
        self._transport = transport
        self._nonces = nonces
        by = {"jwk": signer.public} if account_uri is None else {"kid": account_uri}
        # What the protected header of each request begins with.
        self._by = json.dumps({"alg": signer.alg.name, **by}).removesuffix("}")

    async def post(self, url: str, payload: bytes, *, accept: str, new_nonce_url: str) -> Answer:
        """POST a signed payload, or none; a refused nonce is replaced by the newest, that of the refusal, up to 20 times.

        Raises:
            ProblemAnswered: the authority answered with a problem document.
            AuthorityUnreachable, AuthorityMalformed: as `Transport.send`.
        """
        headers = {"Content-Type": "application/jose+json", "Accept": accept}
        for attempt in range(1, NONCE_TRIES + 1):
            nonce = self._nonces.take(time.monotonic()) or await self._new_nonce(new_nonce_url)
            data = self.signed(payload, nonce, url)
            answer = self._heard(await self._transport.send("POST", url, data=data, headers=headers))
            if answer.ok:
                return answer
            document = self._problem(answer)
            if kind(document) != "badNonce" or attempt == NONCE_TRIES:
                raise ProblemAnswered(answer, document)
            self._nonces.doubt(time.monotonic())
        raise AssertionError("unreachable")

    async def look(self, url: str, *, method: str = "GET") -> Answer:
        """Ask without a signature; raises as `post`."""
        headers = {"Accept": "*/*"}
        answer = self._heard(await self._transport.send(method, url, data=None, headers=headers))
        if not answer.ok:
            raise ProblemAnswered(answer, self._problem(answer))
        return answer

    def signed(self, payload: bytes, nonce: bytes, url: str) -> bytes:
        """Return the JWS of a request, in flattened JSON (RFC 7515 section 7.2.2).

        The library takes five times as long: it checks what it just made.
        """
        protected = base64url(f'{self._by}, "nonce": "{nonce.decode()}", "url": {json.dumps(url)}}}'.encode())
        body = base64url(payload)
        signature = base64url(self._signer.sign(b"%b.%b" % (protected, body)))
        # Nothing in base64url needs an escape.
        return b'{"protected":"%b","payload":"%b","signature":"%b"}' % (protected, body, signature)

    async def _new_nonce(self, url: str) -> bytes:
        await self.look(url, method="HEAD")
        if (nonce := self._nonces.take(time.monotonic())) is None:
            raise self._transport.malformed(f"{url} gave no valid Replay-Nonce")
        return nonce

    def _heard(self, answer: Answer) -> Answer:
        self._nonces.keep(answer.headers.get("Replay-Nonce", ""), time.monotonic())
        return answer

    def _problem(self, answer: Answer) -> Mapping[str, Any]:
        if (document := _document(answer)) is not None:
            return document
        shown = answer.content[: 4 * _SHOWN].decode("utf-8", "replace")
        shown = " ".join("".join(c if c.isprintable() else " " for c in shown).split())[:_SHOWN]
        raise self._transport.malformed(
            f"{answer.url} answered HTTP {answer.status_code} without a problem document: {shown!r}",
            not_before=answer.not_before,
            status=answer.status_code,
        )


def _document(answer: Answer) -> Mapping[str, Any] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"type", "title", "detail"} & found.keys() else None
