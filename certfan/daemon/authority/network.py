"""The acme library's ClientNetwork over the loop: the one class that touches private members of that library.

Its `post` signs and sends; what it gets wrong is mended here: badNonce retried once only, nonces of error answers
thrown away, nonces that never age, headers of errors lost, HTTP 409 read as "account exists".
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from acme.client import ClientNetwork
from josepy import b64
from josepy.jwa import JWASignature
from josepy.jwk import JWK

from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.problems import kind
from certfan.daemon.authority.transport import Transport
from certfan.daemon.bridge import await_

NONCE_TRIES = 20
NONCE_LIFE = 600.0  # seconds; authorities keep them longer, but promise nothing
NONCE_DOUBT = 30.0  # seconds of idleness after which one refusal speaks for all of that age
MOST_NONCES = 200
_SHOWN = 80
# Four characters hold three bytes; what bits are left over at the end are zero (RFC 4648 section 3.5).
_NONCE = re.compile(r"(?=.)(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048])?")


class ProblemAnswered(Exception):
    """An authority answered with a problem document; never leaves this folder."""

    def __init__(self, answer: Answer, document: Mapping[str, Any]) -> None:
        super().__init__(kind(document))
        self.answer = answer
        self.document = document


class NoncePool:
    """Nonces of one authority as it gave them, newest first out. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._kept: dict[str, float] = {}

    def keep(self, text: str, now: float) -> None:
        """Keep a Replay-Nonce; one that is not canonical base64url is ignored (RFC 8555 section 6.5.1)."""
        if _NONCE.fullmatch(text):
            self._kept[text] = now
        if len(self._kept) > MOST_NONCES:
            del self._kept[next(iter(self._kept))]

    def take(self, now: float) -> str | None:
        """Return the newest nonce that is not too old, and never again."""
        nonce, at = self._kept.popitem() if self._kept else (None, now)
        if now - at < NONCE_LIFE:
            return nonce
        self._kept.clear()  # all others are older still
        return None

    def doubt(self, now: float) -> None:
        """Drop what has idled: the authority just refused a nonce."""
        self._kept = {nonce: at for nonce, at in self._kept.items() if now - at < NONCE_DOUBT}


class LoopNetwork(ClientNetwork):
    """Signs like its parent, sends through a `Transport`; every call must be made inside `in_greenlet`.

    Any number of greenlets may share one. Without an account URI requests carry the public key (newAccount).
    """

    def __init__(
        self,
        key: JWK,
        alg: JWASignature,
        transport: Transport,
        nonces: NoncePool,
        account_uri: str | None,
    ) -> None:
        super().__init__(key, account_uri and {"uri": account_uri}, alg)  # type: ignore[arg-type]
        self.session.close()  # the parent's; nothing is ever sent through it
        self._transport = transport
        self._pool = nonces
        by = {"jwk": key.public_key().to_partial_json()} if account_uri is None else {"kid": account_uri}
        # What the protected header of each request begins with.
        self._by = json.dumps({"alg": alg.name, **by}).removesuffix("}")
        # It logs whole JWS bodies at DEBUG, whatever level the rest of the process has.
        logging.getLogger("acme").setLevel(logging.WARNING)

    def post(self, *args: Any, **kwargs: Any) -> Answer:  # type: ignore[override]
        """POST a signed object; a refused nonce is replaced by the newest, that of the refusal, up to 20 times.

        Raises:
            ProblemAnswered: the authority answered with a problem document.
            AuthorityUnreachable, AuthorityMalformed: as `Transport.send`.
        """
        for attempt in range(1, NONCE_TRIES + 1):
            try:
                return self._post_once(*args, **kwargs)  # type: ignore[return-value]
            except ProblemAnswered as refused:
                if kind(refused.document) != "badNonce" or attempt == NONCE_TRIES:
                    raise
                self._pool.doubt(time.monotonic())
        raise AssertionError("unreachable")

    def look(self, url: str) -> Answer:
        """GET without a signature; raises as `post`."""
        return self._check_response(self._send_request("GET", url, headers={"Accept": "*/*"}))

    def _send_request(  # type: ignore[override]
        self, method: str, url: str, *, data: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        body = None if data is None else data.encode()
        answer = await_(self._transport.send(method, url, data=body, headers=headers or {}))
        self._pool.keep(answer.headers.get(self.REPLAY_NONCE_HEADER, ""), time.monotonic())
        return answer

    def _wrap_in_jws(self, obj: Any, nonce: str, url: str) -> str:
        """Sign as the parent does (RFC 8555 section 6.2), for a fifth of its time: it checks what it just made."""
        assert self.key is not None
        head = _b64(f'{self._by}, "nonce": "{nonce}", "url": {json.dumps(url)}}}'.encode())
        payload = _b64(json.dumps(obj.to_json()).encode()) if obj else ""
        signature = _b64(self.alg.sign(self.key.key, f"{head}.{payload}".encode()))
        # Nothing in base64url needs an escape.
        return f'{{"protected":"{head}","payload":"{payload}","signature":"{signature}"}}'

    def _add_nonce(self, response: Any) -> None:
        """Do nothing: `_send_request` kept it already, of error answers too."""

    def _get_nonce(self, url: str, new_nonce_url: str) -> str:
        nonce = self._pool.take(time.monotonic())
        if nonce is None:
            self._check_response(self.head(new_nonce_url))  # type: ignore[arg-type]
            nonce = self._pool.take(time.monotonic())
        if nonce is None:
            raise self._transport.malformed(f"{new_nonce_url} gave no valid Replay-Nonce")
        return nonce

    def _check_response(self, response: Answer, content_type: str | None = None) -> Answer:  # type: ignore[override]
        if response.ok:
            return response
        document = _document(response)
        if document is not None:
            raise ProblemAnswered(response, document)
        shown = response.content[: 4 * _SHOWN].decode("utf-8", "replace")
        shown = " ".join("".join(c if c.isprintable() else " " for c in shown).split())[:_SHOWN]
        raise self._transport.malformed(
            f"{response.url} answered HTTP {response.status_code} without a problem document: {shown!r}",
            not_before=response.not_before,
            status=response.status_code,
        )


def _b64(data: bytes) -> str:
    return b64.b64encode(data).decode()


def _document(answer: Answer) -> Mapping[str, Any] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"type", "title", "detail"} & found.keys() else None
